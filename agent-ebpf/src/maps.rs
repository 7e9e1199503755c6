//! The maps. A name, a key or a value that changes is a new `agent_common::SCHEMA`.

use agent_common::{Counts, Listener};
use aya_ebpf::{
    macros::map,
    maps::{HashMap, PerCpuArray},
};

/// The agent's own listeners, written by the agent. A connection to anything else is none of our business.
#[map]
pub(crate) static LISTENERS: HashMap<Listener, u32> = HashMap::with_max_entries(4096, 0);

/// Established connections to those listeners, in the one entry 0.
#[map]
pub(crate) static COUNTS: PerCpuArray<Counts> = PerCpuArray::with_max_entries(1, 0);
