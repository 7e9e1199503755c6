//! Lanes: connections whose calls the kernel routes, and what is known of those calls.

use crate::End;

/// What a socket is for the program that routes: [`crate::Leg::lane`].
pub mod kind {
    /// Nothing was sent on it yet.
    pub const NEW: u32 = 0;
    /// It has begun with the HELLO of a connection that speaks frames: its next message decides.
    pub const GREETED: u32 = 1;
    /// A lane: [`crate::Leg::lane_index`] says which.
    pub const LANE: u32 = 2;
    /// A stream of bytes to the agent, for life.
    pub const STREAM: u32 = 3;
}

/// What the slots of the map `SLOTS` hold.
pub mod slot {
    /// What the attached stub runs for each message.
    pub const LEG: u32 = 0;
    /// What that runs for a message on a lane.
    pub const LANE: u32 = 1;
    /// What that runs for what it does not route.
    pub const STAY: u32 = 2;
}

/// Whether a lane is given calls: [`Lane::state`].
pub mod lane_state {
    /// Nobody has it.
    pub const FREE: u32 = 0;
    /// It is given calls.
    pub const OPEN: u32 = 1;
    /// It is given no calls for now; those that it has go on.
    pub const PAUSED: u32 = 2;
    /// It is over: no calls from it or to it.
    pub const CLOSED: u32 = 3;
}

/// How an instance is picked: [`Route::policy`].
pub mod pick {
    /// The next entry of [`super::Route::turns`], which has each instance as often as its weight says.
    pub const TURNS: u32 = 0;
    /// Of two entries by chance, the one with fewer calls in flight.
    pub const LEAST: u32 = 1;
    /// Of two entries by chance, the one where calls in flight times latency are less.
    pub const FASTER: u32 = 2;
    /// One entry by chance.
    pub const CHANCE: u32 = 3;
}

/// Whether callers need leave: [`Route::access`].
pub mod access {
    /// Everybody may call.
    pub const OPEN: u32 = 0;
    /// Those whose label has an entry in the map `ACCESS`.
    pub const LISTED: u32 = 1;
}

/// Entries of [`Route::turns`].
pub const TURNS_MAX: usize = 64;

/// Lanes of one agent.
pub const LANES_MAX: u32 = 16_384;

/// Instances of services whose calls are counted by themselves.
pub const MEMBERS_MAX: u32 = 4_096;

/// Entries of the map `ROUTES`, for two snapshots.
pub const ROUTES_MAX: u32 = 8_192;

/// Entries of the map `ACCESS`, for two snapshots.
pub const ACCESS_MAX: u32 = 262_144;

/// Calls in flight.
pub const CALLS_MAX: u32 = 65_536;

/// The bit of `via` that says that the program wrote it.
pub const KERNEL_VIA: u64 = 1 << 63;

/// What the program writes in the place of the receipt, which it has taken, into a call that goes to the agent for
/// [`Route::to_agent_per_million`] and nothing else.
pub const BY_SHARE: u32 = u32::MAX;

/// A caller gets a new receipt for each so many bytes of answers: this is the power of two.
pub const RECEIPT_SHIFT: u32 = 16;

/// A lane: an entry of the array `LANE`, which the agent maps into its memory. The map `LANES` says which lane a socket has.
///
/// The agent writes the first part, and the programs the second one; every word by itself, and the agent's in the order that
/// its user documents.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lane {
    /// The application's socket.
    pub end: End,
    /// See [`lane_state`].
    pub state: u32,
    /// One more each time that the lane is over: what was decided for a former one is void.
    pub generation: u32,
    /// Who calls, as the map `ACCESS` names it.
    pub label: u32,
    /// Calls in flight that it may be given.
    pub calls_max: u32,
    /// Bytes of calls, and as many of answers, that may wait at its end.
    pub bound: u64,
    /// Reserved for the agent.
    pub reserved: [u64; 6],

    /// Calls that it was given and has not answered. Here the programs' part begins, on a cache line of its own.
    pub in_flight: u64,
    /// Bytes of calls that it was given, and has not proven to have read. The agent takes off those of calls that it has
    /// ended itself, when the late answer proves it.
    pub queued: u64,
    /// Bytes of answers that it was given.
    pub delivered: u64,
    /// Of these, so many have been read for sure.
    pub acked: u64,
    /// The moving average of the time to its answers, in nanoseconds, which rises at once and falls slowly.
    pub latency_ns: u64,
    /// Calls that it has made.
    pub made: u64,
    /// Reserved for the programs.
    pub spare: [u64; 2],
}

const _: () = assert!(size_of::<Lane>() == 192 && align_of::<Lane>() == 8);

/// What a service's calls go by: the key of the map `ROUTES`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct RouteKey {
    /// The hash of its URI and group, as in the header.
    pub service: u64,
    /// The snapshot that it belongs to, modulo 2: [`Routing::snapshot`].
    pub snapshot: u64,
}

const _: () = assert!(size_of::<RouteKey>() == 16);

/// How calls of a service are routed.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// See [`pick`].
    pub policy: u32,
    /// See [`access`].
    pub access: u32,
    /// How long a call may take that does not say.
    pub timeout_ms: u32,
    /// Of a million calls, so many go to the agent by chance: those that are to be traced, or go to other nodes.
    pub to_agent_per_million: u32,
    /// Bytes that a body may have, at most as the agent takes them.
    pub body_max: u32,
    /// How many of `turns` are there, from 1 to [`TURNS_MAX`].
    pub turns_len: u32,
    /// Whose turn it is: the index of a counter in the array `TURNS`.
    pub turn: u32,
    /// Always 0.
    pub reserved: u32,
    /// Instances.
    pub turns: [Turn; TURNS_MAX],
}

const _: () = assert!(size_of::<Route>() == 32 + TURNS_MAX * 16);

/// An instance of a service that calls are routed to.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Turn {
    /// Its lane.
    pub lane: u32,
    /// The lane's generation.
    pub generation: u32,
    /// Where its calls are counted: an index of the array `MEMBERS`.
    pub member: u32,
    /// Always 0.
    pub reserved: u32,
}

/// Leave to call: the key of the map `ACCESS`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Leave {
    /// The service's hash.
    pub service: u64,
    /// [`Lane::label`] of the caller.
    pub label: u32,
    /// The snapshot, modulo 2.
    pub snapshot: u32,
}

const _: () = assert!(size_of::<Leave>() == 16);

/// A call in flight: a value of the map `CALLS`, whose key is the `via` that the callee sees. Whoever deletes the entry owns
/// the answer.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Call {
    /// The caller's own `via`.
    pub via: u64,
    /// The service's hash.
    pub service: u64,
    /// When it was routed, in nanoseconds of the monotonic clock.
    pub started_ns: u64,
    /// When it is too late for an answer.
    pub deadline_ns: u64,
    /// The caller's lane.
    pub caller: u32,
    /// And its generation.
    pub caller_generation: u32,
    /// The lane that it was given to.
    pub callee: u32,
    /// And its generation.
    pub callee_generation: u32,
    /// The caller's number of it.
    pub stream: u32,
    /// Bytes of its frame, which are reserved at the callee.
    pub bytes: u32,
    /// Where it is counted.
    pub member: u32,
    /// The flags of its frame.
    pub flags: u32,
}

const _: () = assert!(size_of::<Call>() == 64);

/// What is common to all calls that are routed: the one entry of the array `ROUTING`, which the agent maps into its memory.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Routing {
    /// The snapshot of the routes in force. The agent writes the entries of the next one, modulo 2, and then this.
    pub snapshot: u64,
    /// The key that `via` and receipts are made with.
    pub key: [u64; 2],
    /// Not 0: calls are routed.
    pub on: u64,
}

const _: () = assert!(size_of::<Routing>() == 32);

/// Counters of an instance: an entry of the array `MEMBERS`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Calls that it has answered with success.
    pub answered: u64,
    /// The sum of the times to their answers, in nanoseconds.
    pub sum_ns: u64,
    /// Bytes of calls and answers.
    pub bytes: u64,
    /// Always 0.
    pub reserved: u64,
    /// Answers by the time that they took: [`crate::latency::bucket`].
    pub took: [u64; crate::latency::BUCKETS],
}

/// Why a message on a lane was not routed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Unrouted {
    /// It is not one whole frame: the lane is a stream of bytes from now on.
    NotWhole,
    /// A frame that is for the agent: CANCEL, PING, GOAWAY and the like.
    ForAgent,
    /// A flag says so: SLOW_PATH, ONE_WAY, SHADOW, or a message of several frames.
    Flags,
    /// The body is too large.
    TooLarge,
    /// Routing is off.
    Off,
    /// The service is not routed here.
    NoRoute,
    /// The caller needs leave and has none: the agent answers.
    Denied,
    /// A share of the calls goes to the agent.
    Share,
    /// No instance takes calls now.
    NoInstance,
    /// The instance has as many calls as it may have.
    CalleeCalls,
    /// As many bytes wait at the instance as may.
    CalleeBytes,
    /// There is no room for one more call in flight.
    CallsFull,
    /// The routes changed while it was being routed.
    Changed,
    /// An answer to a call that is not in flight.
    Unknown,
    /// An answer to a call that this lane was not given, or with other numbers.
    NotOwn,
    /// An answer with an error, which the agent looks at.
    Error,
    /// As many bytes wait at the caller as may.
    CallerBytes,
    /// The caller's lane is over.
    CallerGone,
    /// The kernel did not do what was asked.
    Kernel,
}

/// Room for reasons.
pub const UNROUTED_MAX: usize = 32;

impl Unrouted {
    /// All of them, by number.
    pub const ALL: [Self; 19] = [
        Self::NotWhole,
        Self::ForAgent,
        Self::Flags,
        Self::TooLarge,
        Self::Off,
        Self::NoRoute,
        Self::Denied,
        Self::Share,
        Self::NoInstance,
        Self::CalleeCalls,
        Self::CalleeBytes,
        Self::CallsFull,
        Self::Changed,
        Self::Unknown,
        Self::NotOwn,
        Self::Error,
        Self::CallerBytes,
        Self::CallerGone,
        Self::Kernel,
    ];

    /// What it is called in lists and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotWhole => "not-one-frame",
            Self::ForAgent => "for-agent",
            Self::Flags => "flags",
            Self::TooLarge => "too-large",
            Self::Off => "turned-off",
            Self::NoRoute => "no-route",
            Self::Denied => "denied",
            Self::Share => "share",
            Self::NoInstance => "no-instance",
            Self::CalleeCalls => "instance-calls",
            Self::CalleeBytes => "instance-bytes",
            Self::CallsFull => "calls-full",
            Self::Changed => "routes-changed",
            Self::Unknown => "unknown-call",
            Self::NotOwn => "not-its-call",
            Self::Error => "error-answer",
            Self::CallerBytes => "caller-bytes",
            Self::CallerGone => "caller-gone",
            Self::Kernel => "kernel",
        }
    }
}

/// What became of the messages on lanes: one entry a CPU of the map `ROUTED`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Routed {
    /// Calls that were routed.
    pub calls: u64,
    /// Answers that were routed.
    pub answers: u64,
    /// Bytes of both.
    pub bytes: u64,
    /// Always 0.
    pub reserved: u64,
    /// Messages that were not, by reason.
    pub unrouted: [u64; UNROUTED_MAX],
}

const _: () = assert!(size_of::<Routed>() == 288);

impl core::ops::Add for Routed {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            calls: self.calls + other.calls,
            answers: self.answers + other.answers,
            bytes: self.bytes + other.bytes,
            reserved: 0,
            unrouted: core::array::from_fn(|at| self.unrouted[at] + other.unrouted[at]),
        }
    }
}

impl core::iter::Sum for Routed {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), core::ops::Add::add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_indexes() {
        assert!(Unrouted::ALL.iter().enumerate().all(|(at, why)| *why as usize == at));
    }

    #[test]
    fn adds_field_by_field() {
        let one = Routed { calls: 1, answers: 20, bytes: 300, reserved: 0, unrouted: [4; UNROUTED_MAX] };
        let twice = Routed { calls: 2, answers: 40, bytes: 600, reserved: 0, unrouted: [8; UNROUTED_MAX] };
        assert_eq!([one, one].into_iter().sum::<Routed>(), twice);
    }
}
