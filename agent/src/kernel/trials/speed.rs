//! Whether the kernel path is faster than TCP on this machine.

use std::{
    fmt, io,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::pair::{Pair, pass};
use crate::kernel::Kernel;

/// A small call.
const MESSAGE: usize = 128;
/// Rounds of both, in turn; the median counts.
const ROUNDS: usize = 7;
/// Calls in a round.
const CALLS: u32 = 300;

/// What the sends and receives of a call take, without anybody being woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Speed {
    /// By TCP.
    pub tcp_ns: u64,
    /// Through the kernel.
    pub kernel_ns: u64,
}

impl Speed {
    /// Whether the path through the kernel is the faster one.
    #[must_use]
    pub fn pays(&self) -> bool {
        self.kernel_ns < self.tcp_ns
    }
}

impl fmt::Display for Speed {
    #[expect(clippy::cast_precision_loss, reason = "times for people")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = |ns: u64| ns as f64 / 1000.0;
        let is = if self.pays() { "faster" } else { "not faster" };
        let (kernel, tcp) = (micros(self.kernel_ns), micros(self.tcp_ns));
        write!(f, "auto: {is} on this machine, {kernel:.1} µs a call's sends and receives against {tcp:.1} µs by TCP")
    }
}

pub(super) fn measure(kernel: &Kernel) -> io::Result<Speed> {
    let mut tcp = (Pair::plain()?, Pair::plain()?);
    let mut path = (Pair::accepted(kernel)?, Pair::dialled(kernel)?);
    let mut times = (Vec::new(), Vec::new());
    // The first of each only warms up.
    for _ in 0..=ROUNDS {
        times.0.push(round(&mut tcp)?);
        times.1.push(round(&mut path)?);
    }
    Ok(Speed { tcp_ns: median(times.0), kernel_ns: median(times.1) })
}

fn round((front, back): &mut (Pair, Pair)) -> io::Result<Duration> {
    let mut message = [7; MESSAGE];
    let begun = Instant::now();
    for _ in 0..CALLS {
        pass(&mut front.app, &mut front.agent, &mut message)?;
        pass(&mut back.agent, &mut back.app, &mut message)?;
        pass(&mut back.app, &mut back.agent, &mut message)?;
        pass(&mut front.agent, &mut front.app, &mut message)?;
    }
    Ok(begun.elapsed() / CALLS)
}

fn median(mut times: Vec<Duration>) -> u64 {
    times.remove(0);
    times.sort();
    u64::try_from(times[times.len() / 2].as_nanos()).unwrap_or(u64::MAX)
}
