//! What the agent says of its workers, and those who watch them read.

/// Workers whose beats count at most.
pub const WORKERS_MAX: usize = 1024;

/// The one entry of the page that workers write their heartbeats to. Whoever watches them has it mapped.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failover {
    /// 0: no connect is touched.
    pub on: u32,
    /// So many of the beats count at most.
    pub workers: u32,
    /// A worker hangs if its beat is older than that.
    pub stale_ns: u64,
    /// Until then new connects go elsewhere though the agent lives.
    pub away_until_ns: u64,
    /// Until then beats do not count.
    pub hold_until_ns: u64,
    /// Nothing yet.
    pub reserved: [u64; 4],
    /// When each worker last said that it lives, by `CLOCK_MONOTONIC`. 0: it does not count.
    pub beats: [u64; WORKERS_MAX],
}

const _: () = assert!(size_of::<Failover>() == 64 + 8 * WORKERS_MAX);
