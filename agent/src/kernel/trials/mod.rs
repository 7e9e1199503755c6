//! What the kernel is tried for before any application's connection is entrusted to it: on connections of our own, in a
//! network namespace of our own, through programs and maps of our own.
//!
//! Kernels differ in what their socket maps do. One that does not do what the path relies on is not used, or not in the
//! direction that it does wrongly, and says why.

mod list;
mod pair;
mod speed;

use std::{io, thread};

use agent_common::mode;

pub use self::speed::Speed;
use super::{AttachError, Kernel, Options};
use crate::{api, netns::thread::enter_new};

/// Small, so that it is soon reached.
const BOUND: u64 = 256 * 1024;

/// What the kernel was seen to do.
#[derive(Debug, Clone, PartialEq)]
pub struct Tried {
    /// Everything that was tried, and what came of it.
    pub probes: Vec<api::KernelProbe>,
    /// The directions that can be redirected: bits of [`agent_common::mode`].
    pub mode: u32,
    /// Whether a socket must leave the map when what it is sent goes over to TCP.
    pub unenrols: bool,
}

/// Why nothing could be tried.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// No namespace of our own.
    #[error("a network namespace to try the kernel in cannot be made ({source}): run as root")]
    Namespace {
        /// What the kernel said.
        source: io::Error,
    },
    /// The programs cannot be attached.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The connections cannot be made.
    #[error("connections to try the kernel with cannot be made: {source}")]
    Connection {
        /// What the kernel said.
        source: io::Error,
    },
    /// The thread that tries has ended.
    #[error("trying the kernel has ended in the middle: report it with the log")]
    Ended,
}

/// Tries everything that the path relies on. Takes some ten milliseconds.
///
/// # Errors
/// Nothing could be tried: the path cannot be used.
pub fn run() -> Result<Tried, TrialError> {
    apart(|kernel| Ok(list::run(kernel)))
}

/// Measures a call's four sends and receives by TCP and through the kernel. Takes some hundred milliseconds.
///
/// # Errors
/// Nothing could be measured.
pub fn measure() -> Result<Speed, TrialError> {
    apart(|kernel| speed::measure(kernel).map_err(|source| TrialError::Connection { source }))
}

/// Runs something in a network namespace that nobody else is in, with programs that see only what is in it.
fn apart<T: Send + 'static>(run: fn(&Kernel) -> Result<T, TrialError>) -> Result<T, TrialError> {
    let thread = thread::Builder::new().name("moa-trials".into()).spawn(move || {
        enter_new().map_err(|source| TrialError::Namespace { source })?;
        run(&Kernel::attach(&Options { bound: BOUND, ..Options::default() })?)
    });
    thread.map_err(|source| TrialError::Namespace { source })?.join().map_err(|_| TrialError::Ended)?
}

impl Tried {
    fn new(probes: Vec<(Direction, api::KernelProbe)>) -> Self {
        let wrong = |direction| probes.iter().any(|(of, probe)| *of == direction && !probe.ok);
        let mode = match (wrong(Direction::Both), wrong(Direction::FromAgent)) {
            (true, _) => 0,
            (false, true) => mode::TO_AGENT,
            (false, false) => mode::TO_AGENT | mode::FROM_AGENT,
        };
        Self { mode, unenrols: false, probes: probes.into_iter().map(|(_, probe)| probe).collect() }
    }

    /// What was seen to be right, in a line, with what is peculiar to this kernel.
    #[must_use]
    pub fn summary(&self) -> String {
        let names: Vec<&str> = self.probes.iter().map(|probe| probe.name.as_str()).collect();
        let peculiar =
            if self.unenrols { "; FIONREAD is wrong for TCP on sockets of the map: they leave it at a fall-back" } else { "" };
        format!("does what it relies on: {}{peculiar}", names.join(", "))
    }

    /// Why the path, or a direction of it, is not used.
    #[must_use]
    pub fn objection(&self) -> Option<String> {
        let wrong: Vec<String> =
            self.probes.iter().filter(|probe| !probe.ok).map(|probe| format!("{}: {}", probe.name, probe.found)).collect();
        let what = if self.mode == 0 { "is not used" } else { "is used only towards the agent" };
        (!wrong.is_empty()).then(|| format!("the kernel path {what} with this kernel ({})", wrong.join("; ")))
    }
}

/// What must be right for a direction to be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    /// Without it, neither is.
    Both,
    /// Without it, what the agent sends goes by TCP.
    FromAgent,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_does_what_it_must() {
        let tried = run().expect("run as root, after cargo xtask build");
        assert!(tried.probes.iter().all(|probe| probe.ok), "{tried:?}");
        assert_eq!((tried.mode, tried.objection()), (mode::TO_AGENT | mode::FROM_AGENT, None));
    }

    #[test]
    fn what_is_wrong_turns_off_what_relies_on_it() {
        let probe = |ok| api::KernelProbe { name: "it".into(), ok, found: "seen".into() };
        let tried = |both, from| Tried::new(vec![(Direction::Both, probe(both)), (Direction::FromAgent, probe(from))]);
        assert_eq!(tried(true, true).mode, mode::TO_AGENT | mode::FROM_AGENT);
        assert_eq!(tried(true, false).mode, mode::TO_AGENT);
        assert!(tried(true, false).objection().unwrap().contains("only towards the agent with this kernel (it: seen)"));
        assert_eq!(tried(false, true).mode, 0);
        assert!(tried(false, false).objection().unwrap().contains("not used"));
    }

    #[test]
    fn both_ways_can_be_measured() {
        let speed = measure().expect("run as root, after cargo xtask build");
        assert!(speed.kernel_ns > 0 && speed.tcp_ns > 0, "{speed:?}");
    }
}
