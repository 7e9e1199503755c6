//! The maps. A name, a key or a value that changes is a new `agent_common::SCHEMA`.

use agent_common::{
    Counts, End, Leg, Listener, Shared, Verdicts,
    failover::{Decisions, Diverted, Failover, Gate, PEERS_MAX, Peer},
    lane::{
        ACCESS_MAX, CALLS_MAX, Call, LANES_MAX, Lane, Leave, MEMBERS_MAX, Member, NAMES_OF_LINE, ROUTES_MAX, Route, RouteKey,
        Routed, Routing, TRACE_BYTES,
    },
};
use aya_ebpf::{
    bindings::{BPF_F_CLONE, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, bpf_map_type::BPF_MAP_TYPE_SK_STORAGE},
    macros::{btf_map, map},
    maps::{Array, HashMap, LruHashMap, PerCpuArray, ProgramArray, RingBuf, SockHash},
};

/// The agent's own listeners, written by the agent. A connection to anything else is none of our business.
#[map]
pub(crate) static LISTENERS: HashMap<Listener, u32> = HashMap::with_max_entries(4096, 0);

/// Network namespaces that are left alone, by cookie, written by the agent.
#[map]
pub(crate) static EXCLUDED: HashMap<u64, u32> = HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);

/// Established connections to the listeners, in the one entry 0.
#[map]
pub(crate) static COUNTS: PerCpuArray<Counts> = PerCpuArray::with_max_entries(1, 0);

/// What was enrolled and sent, in the one entry 0.
#[map]
pub(crate) static VERDICTS: PerCpuArray<Verdicts> = PerCpuArray::with_max_entries(1, 0);

/// What the agent says to the programs, and they to it, in the one entry 0, which the agent maps into its memory.
#[map]
pub(crate) static SHARED: Array<Shared> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// The enrolled sockets. A socket leaves it when it is closed; nobody else takes one out, as that would drop what waits
/// in its queue.
#[map]
pub(crate) static SOCKS: SockHash<End> = SockHash::with_max_entries(262_144, 0);

/// Connections that the agent has opened and the other end has not yet accepted: there for some microseconds each.
#[map]
pub(crate) static DIALS: LruHashMap<End, u32> = LruHashMap::with_max_entries(4096, 0);

/// What the agent has read at its end of a connection, written by the agent for those that carry much.
#[map]
pub(crate) static READS: HashMap<End, u64> = HashMap::with_max_entries(262_144, BPF_F_NO_PREALLOC);

/// Agent's ends whose other end has a socket that blocks, with the bytes that it had redirected until that was seen. The
/// agent takes them out when it has read what came; what it closes before that is displaced in time.
#[map]
pub(crate) static BLOCKING: LruHashMap<End, u64> = LruHashMap::with_max_entries(16_384, 0);

/// Applications' sockets that are lanes, by their place in `LANE`. Written by the agent.
#[map]
pub(crate) static LANES: HashMap<End, u32> = HashMap::with_max_entries(LANES_MAX, BPF_F_NO_PREALLOC);

/// The lanes, which the agent maps into its memory.
#[map]
pub(crate) static LANE: Array<Lane> = Array::with_max_entries(LANES_MAX, BPF_F_MMAPABLE);

/// How services are routed, of two snapshots. Written by the agent.
#[map]
pub(crate) static ROUTES: HashMap<RouteKey, Route> = HashMap::with_max_entries(ROUTES_MAX, BPF_F_NO_PREALLOC);

/// Who may call what, of two snapshots. Written by the agent.
#[map]
pub(crate) static ACCESS: HashMap<Leave, u32> = HashMap::with_max_entries(ACCESS_MAX, BPF_F_NO_PREALLOC);

/// Calls in flight, which the agent maps into its memory.
#[map]
pub(crate) static CALLS: Array<Call> = Array::with_max_entries(CALLS_MAX, BPF_F_MMAPABLE);

/// What calls at the same places are called, which the agent maps into its memory too.
#[map]
pub(crate) static NAMES: Array<[u64; NAMES_OF_LINE as usize]> =
    Array::with_max_entries(CALLS_MAX / NAMES_OF_LINE, BPF_F_MMAPABLE);

/// Whose turn it is, for each service.
#[map]
pub(crate) static TURNS: Array<u64> = Array::with_max_entries(4096, 0);

/// What instances have answered.
#[map]
pub(crate) static MEMBERS: Array<Member> = Array::with_max_entries(MEMBERS_MAX, 0);

/// What is common to all calls, in the one entry 0, which the agent maps into its memory.
#[map]
pub(crate) static ROUTING: Array<Routing> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// What became of messages on lanes, in the one entry 0.
#[map]
pub(crate) static ROUTED: PerCpuArray<Routed> = PerCpuArray::with_max_entries(1, 0);

/// What was decided about the messages of one service, while somebody wants to know.
#[map]
pub(crate) static TRACE: RingBuf = RingBuf::with_byte_size(TRACE_BYTES, 0);

/// The programs that the attached stub runs, and those that they run: see `slot`.
#[map]
pub(crate) static SLOTS: ProgramArray = ProgramArray::with_max_entries(4, 0);

/// A `Leg` for each socket of ours; a socket that is accepted gets a copy of its listener's.
#[btf_map]
pub(crate) static LEGS: Storage<Leg, { (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize }> = Storage::new();

/// Where applications connect to the agent, and where those connects go while it does not take them. Written by the agent.
#[map]
pub(crate) static GATES: HashMap<Listener, Gate> = HashMap::with_max_entries(8192, BPF_F_NO_PREALLOC);

/// What is believed of siblings, which the agent maps into its memory.
#[map]
pub(crate) static PEERS: Array<Peer> = Array::with_max_entries(PEERS_MAX, BPF_F_MMAPABLE);

/// How the agent does, in the one entry 0, which it maps into its memory.
#[map]
pub(crate) static FAILOVER: Array<Failover> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// What was decided about connects to gates, in the one entry 0.
#[map]
pub(crate) static DECISIONS: PerCpuArray<Decisions> = PerCpuArray::with_max_entries(1, 0);

/// A `Diverted` for each socket whose connect went to a sibling.
#[btf_map]
pub(crate) static DIVERTED: Storage<Diverted, { BPF_F_NO_PREALLOC as usize }> = Storage::new();

/// Storage of sockets, as the loader wants it described. aya's own type has no room for the flag that copies.
#[repr(C)]
pub(crate) struct Storage<T, const FLAGS: usize> {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; FLAGS],
}

// SAFETY: a description for the loader; nobody reads it.
unsafe impl<T, const FLAGS: usize> Sync for Storage<T, FLAGS> {}

impl<T, const FLAGS: usize> Storage<T, FLAGS> {
    const fn new() -> Self {
        Self {
            r#type: core::ptr::null(),
            key: core::ptr::null(),
            value: core::ptr::null(),
            max_entries: core::ptr::null(),
            map_flags: core::ptr::null(),
        }
    }
}
