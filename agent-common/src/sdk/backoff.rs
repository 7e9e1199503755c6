use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::Duration,
};

/// How long to wait before the next try: twice as long each time, and never as long as others wait.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    next: Duration,
    max: Duration,
}

const FIRST: Duration = Duration::from_millis(20);

impl Backoff {
    pub(super) fn new(max: Duration) -> Self {
        Self::starting(FIRST.min(max), max)
    }

    pub(super) fn starting(first: Duration, max: Duration) -> Self {
        Self { first, next: first, max }
    }

    /// Between half and all of what it has grown to.
    pub(super) fn next(&mut self) -> Duration {
        let base = self.next;
        self.next = (base * 2).min(self.max);
        let nanos = u64::try_from(base.as_nanos() / 2).unwrap_or(u64::MAX);
        base / 2 + Duration::from_nanos(random() % nanos.max(1))
    }

    pub(super) fn reset(&mut self) {
        self.next = self.first;
    }
}

/// The standard library's own seed: enough to tell processes apart, and not for secrets.
pub(super) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_its_bound_and_is_never_twice_the_same() {
        let mut backoff = Backoff::new(Duration::from_secs(1));
        let waits: Vec<_> = (0..20).map(|_| backoff.next()).collect();
        assert!(waits[0] < FIRST && waits[0] >= FIRST / 2);
        assert!(waits[10..].iter().all(|wait| *wait >= Duration::from_millis(500) && *wait < Duration::from_secs(1)));
        assert!(waits[10..].windows(2).any(|pair| pair[0] != pair[1]));
        backoff.reset();
        assert!(backoff.next() < FIRST);
    }
}
