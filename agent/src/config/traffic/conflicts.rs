//! Keys of traffic policy that do not fit each other.

use super::{Concurrency, Hedge, Outlier, Retry, RetryOn};
use crate::config::{ServicePolicy, check::Conflict};

/// Codes that say of an answer that it is none of an error.
const SUCCESS: [u16; 2] = [0, 200];

impl ServicePolicy {
    /// What does not fit in traffic policy, rules and the codes of retries aside.
    pub(in crate::config) fn traffic_conflicts(&self) -> Vec<Conflict> {
        let tries = (self.try_timeout_ms >= self.timeout_ms && self.try_timeout_ms > 0).then(|| Conflict {
            // With a shorter timeout of a service the one from `[defaults]` has no effect, which is no mistake.
            keys: &["try_timeout_ms"],
            found: format!("a try of {} ms in a call of {} ms", self.try_timeout_ms, self.timeout_ms),
            expected: "try_timeout_ms to be below timeout_ms".into(),
            advice: "lower try_timeout_ms, or set it to 0, which is as long as the call".into(),
        });
        let all = [
            tries,
            self.retry.backoff(),
            self.hedge.late(self.timeout_ms),
            self.outlier.times(),
            self.concurrency.bounds(),
            success(&["retry.codes"], &self.retry.codes),
            success(&["outlier.codes"], &self.outlier.codes),
        ];
        all.into_iter().flatten().collect()
    }
}

impl Retry {
    /// What is wrong with the combination of `on` and `codes`. `[defaults]` may hold one for services that add the other, and a
    /// service may do without either.
    pub(in crate::config) fn codes_conflict(&self) -> Option<Conflict> {
        match (self.on.contains(&RetryOn::Code), &self.codes[..]) {
            (true, []) => Some(Conflict {
                keys: &["retry.on"],
                found: r#""code" without any codes"#.into(),
                expected: "retry.codes, the service's own error codes after which a call is sent again".into(),
                advice: r#"add codes = […], or remove "code" from retry.on"#.into(),
            }),
            (false, [_, ..]) => Some(Conflict {
                keys: &["retry.codes"],
                found: "codes, but no retries after codes".into(),
                expected: r#""code" in retry.on, or no retry.codes"#.into(),
                advice: r#"add "code" to retry.on, or remove retry.codes"#.into(),
            }),
            _ => None,
        }
    }

    fn backoff(&self) -> Option<Conflict> {
        (self.backoff_ms > self.backoff_max_ms).then(|| Conflict {
            keys: &["retry.backoff_ms", "retry.backoff_max_ms"],
            found: format!("a first wait of {} ms, and {} ms as the longest", self.backoff_ms, self.backoff_max_ms),
            expected: "backoff_ms to be at most backoff_max_ms".into(),
            advice: "raise backoff_max_ms, or lower backoff_ms".into(),
        })
    }
}

impl Hedge {
    fn late(&self, timeout_ms: u64) -> Option<Conflict> {
        (self.after_ms >= timeout_ms && self.after_ms > 0).then(|| Conflict {
            // See `try_timeout_ms`.
            keys: &["hedge.after_ms"],
            found: format!("a second copy after {} ms of a call of {timeout_ms} ms", self.after_ms),
            expected: "hedge.after_ms to be below timeout_ms".into(),
            advice: "lower hedge.after_ms, or set it to 0, which is no second copies".into(),
        })
    }
}

impl Outlier {
    fn times(&self) -> Option<Conflict> {
        (self.ejection_ms > self.ejection_max_ms).then(|| Conflict {
            keys: &["outlier.ejection_ms", "outlier.ejection_max_ms"],
            found: format!("{} ms for the first time, and {} ms at most", self.ejection_ms, self.ejection_max_ms),
            expected: "ejection_ms to be at most ejection_max_ms".into(),
            advice: "raise ejection_max_ms, or lower ejection_ms".into(),
        })
    }
}

impl Concurrency {
    fn bounds(&self) -> Option<Conflict> {
        (self.min > self.max).then(|| Conflict {
            keys: &["concurrency.min", "concurrency.max"],
            found: format!("{} calls in any case, and {} at most", self.min, self.max),
            expected: "min to be at most max".into(),
            advice: "raise max, or lower min".into(),
        })
    }
}

/// A code of success among those of errors.
fn success(keys: &'static [&'static str], codes: &[u16]) -> Option<Conflict> {
    let code = codes.iter().find(|code| SUCCESS.contains(code))?;
    Some(Conflict {
        keys,
        found: format!("the code {code}, which is no error"),
        expected: "codes of errors".into(),
        advice: "remove it".into(),
    })
}
