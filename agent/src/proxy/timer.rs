//! A timer that costs nothing while it is not due. While the runtime has one of its own, each of its waits has a timeout,
//! which is computed from the clock, armed and disarmed in the kernel: more than 1 µs a wait.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, RawFd},
    time::Duration,
};

use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::{Interest, unix::AsyncFd};

/// A timer of the kernel, for one sleeper at a time.
#[derive(Debug)]
pub(crate) struct Timer(AsyncFd<Descriptor>);

#[derive(Debug)]
struct Descriptor(TimerFd);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// What a timer is made of, in any thread.
pub(crate) fn descriptor() -> io::Result<TimerFd> {
    Ok(TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?)
}

impl Timer {
    /// A timer of the runtime that this is called in.
    pub(crate) fn new() -> io::Result<Self> {
        Self::over(descriptor()?)
    }

    /// A timer of the runtime that this is called in, with a descriptor of its own.
    #[expect(deprecated, reason = "it is so for descriptors that may be closed too early: `TimerFd` owns its own")]
    pub(crate) fn over(descriptor: TimerFd) -> io::Result<Self> {
        Ok(Self(AsyncFd::with_interest(Descriptor(descriptor), Interest::READABLE)?))
    }

    pub(crate) async fn sleep(&self, time: Duration) {
        if self.try_sleep(time).await.is_err() {
            // Nothing of it can fail; but who sleeps here must neither stop nor spin.
            tokio::time::sleep(time).await;
        }
    }

    async fn try_sleep(&self, time: Duration) -> io::Result<()> {
        let Descriptor(timer) = self.0.get_ref();
        // Zero would be never.
        timer.set(Expiration::OneShot(time.max(Duration::from_nanos(1)).into()), TimerSetTimeFlags::empty())?;
        self.0.async_io(Interest::READABLE, |Descriptor(timer)| Ok(timer.wait()?)).await
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, pin::pin, task::Poll};

    use tokio::{runtime, time::Instant};

    use super::*;

    #[test]
    fn a_sleep_that_nobody_waited_for_does_not_shorten_the_next() {
        let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let timer = Timer::new().unwrap();
            timer.sleep(Duration::ZERO).await;
            {
                let mut dropped = pin!(timer.sleep(Duration::ZERO));
                poll_fn(|cx| Poll::Ready(dropped.as_mut().poll(cx))).await.is_ready();
                timer.0.readable().await.unwrap().retain_ready();
            }
            let (begun, time) = (Instant::now(), Duration::from_millis(20));
            timer.sleep(time).await;
            assert!(begun.elapsed() >= time);
        });
    }
}
