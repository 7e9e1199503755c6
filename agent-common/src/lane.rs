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

/// Calls in flight: entries of the arrays `CALLS` and `NAMES`.
pub const CALLS_MAX: u32 = 65_536;

/// Entries of `NAMES` that lie in one cache line, and are one value of that array.
pub const NAMES_OF_LINE: u32 = 8;

/// The bit of `via` that says that the program wrote it.
pub const KERNEL_VIA: u64 = 1 << 63;

/// The bits of such a `via` that say where the call is in `CALLS`. The others cannot be guessed.
pub const PLACE_MASK: u64 = CALLS_MAX as u64 - 1;

/// What is at a place of `NAMES` while a call is being entered there: no `via` that the program writes, and not 0, which says
/// that the place is free.
pub const BEING_ENTERED: u64 = 1;

/// [`Lane::work`] counts calls from this bit on, and bytes below it.
pub const CALLS_SHIFT: u32 = 40;

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

    /// Calls that it was given and has not answered, from bit [`CALLS_SHIFT`] on, and below it their bytes. The agent takes
    /// off calls that it has ended itself, when the late answer proves that they were read. Here the programs' part begins, on
    /// a cache line of its own.
    pub work: u64,
    /// Bytes of answers that it was given.
    pub delivered: u64,
    /// Of these, so many have been read for sure.
    pub acked: u64,
    /// The moving average of the time to its answers, in nanoseconds, which rises at once and falls slowly.
    pub latency_ns: u64,
    /// Calls that it has made.
    pub made: u64,
    /// The receipt that answers to it get now, and from bit 32 on the half of its epoch that says which one it is of; 0: none.
    pub receipt: u64,
    /// Reserved for the programs.
    pub spare: [u64; 2],
}

/// What one call of so many bytes is in [`Lane::work`].
#[inline(always)]
#[must_use]
pub const fn work_of(bytes: u64) -> u64 {
    (1 << CALLS_SHIFT) + bytes
}

/// Calls in flight, and their bytes, of [`Lane::work`].
#[inline(always)]
#[must_use]
pub const fn calls_and_bytes(work: u64) -> (u64, u64) {
    (work >> CALLS_SHIFT, work & ((1 << CALLS_SHIFT) - 1))
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

/// A call in flight: an entry of the array `CALLS`, which the agent maps into its memory. The same place of `NAMES` has the
/// `via` that the callee sees: whoever puts 0 in its place owns the answer. Until then the entry does not change.
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
    /// The hash of the service of which each decision is shown in the ring buffer `TRACE`; 0: of none.
    pub traced: u64,
    /// Decisions that there was no room for. The programs add to it.
    pub untold: u64,
}

const _: () = assert!(size_of::<Routing>() == 48);

/// What a program has decided about a message of the traced service: an entry of the ring buffer `TRACE`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traced {
    /// When, by the monotonic clock.
    pub at_ns: u64,
    /// The service's hash.
    pub service: u64,
    /// Of an answer that was routed: the time since its call was.
    pub took_ns: u64,
    /// The lane of the caller, or [`NOBODY`] if it is not known.
    pub caller: u32,
    /// That lane's generation.
    pub caller_generation: u32,
    /// The lane of the instance that the call was given to, or [`NOBODY`] if it was given to none.
    pub callee: u32,
    /// That lane's generation.
    pub callee_generation: u32,
    /// The call's number, on its caller's connection.
    pub stream: u32,
    /// Bytes of the message.
    pub bytes: u32,
    /// 0: it was routed; else one more than the number of the reason, see [`Traced::why`].
    pub verdict: u32,
    /// Not 0: it is an answer.
    pub answer: u32,
}

const _: () = assert!(size_of::<Traced>() == 56);

/// In [`Traced`], no lane.
pub const NOBODY: u32 = u32::MAX;

/// Bytes of the ring buffer `TRACE`: some 4,000 decisions.
pub const TRACE_BYTES: u32 = 256 * 1024;

impl Traced {
    /// As it lies in the ring buffer; none if there is not as much.
    #[must_use]
    pub fn of_bytes(bytes: &[u8]) -> Option<Self> {
        let (longs, _) = bytes.get(..size_of::<Self>())?.as_chunks::<8>();
        let (words, _) = bytes.get(24..size_of::<Self>())?.as_chunks::<4>();
        let long = |at: usize| longs.get(at).map(|long| u64::from_ne_bytes(*long));
        let word = |at: usize| words.get(at).map(|word| u32::from_ne_bytes(*word));
        Some(Self {
            at_ns: long(0)?,
            service: long(1)?,
            took_ns: long(2)?,
            caller: word(0)?,
            caller_generation: word(1)?,
            callee: word(2)?,
            callee_generation: word(3)?,
            stream: word(4)?,
            bytes: word(5)?,
            verdict: word(6)?,
            answer: word(7)?,
        })
    }

    /// What stands for a reason in [`Traced::verdict`].
    #[inline(always)]
    #[must_use]
    pub const fn verdict_of(why: Unrouted) -> u32 {
        why as u32 + 1
    }

    /// Why it was not routed; none if it was. A number that is not known is none of this version's.
    #[must_use]
    pub fn why(&self) -> Option<Unrouted> {
        let at = self.verdict.checked_sub(1)?;
        Unrouted::ALL.get(usize::try_from(at).ok()?).copied()
    }
}

/// Counters of an instance: an entry of the array `MEMBERS`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// The sum of the times to their answers, in nanoseconds.
    pub sum_ns: u64,
    /// Bytes of calls and answers.
    pub bytes: u64,
    /// Always 0.
    pub reserved: [u64; 2],
    /// Answers by the time that they took: [`crate::latency::bucket`].
    pub took: [u64; crate::latency::BUCKETS],
}

impl Member {
    /// Calls that it has answered with success.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.took.iter().sum()
    }

    /// How long the answers since an earlier look took on average, in nanoseconds; none if there were none.
    #[must_use]
    pub fn mean_since(&self, earlier: &Self) -> Option<u64> {
        self.sum_ns.saturating_sub(earlier.sum_ns).checked_div(self.answered().saturating_sub(earlier.answered()))
    }
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
    /// Bytes of calls that have a routed answer, and of these.
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
    fn a_decision_is_read_as_it_was_written() {
        let bytes: [u8; size_of::<Traced>()] = core::array::from_fn(|at| u8::try_from(at).unwrap());
        let traced = Traced::of_bytes(&bytes).unwrap();
        let word = |at: u8| u32::from_ne_bytes([at, at + 1, at + 2, at + 3]);
        assert_eq!((traced.took_ns, traced.caller), (u64::from_ne_bytes([16, 17, 18, 19, 20, 21, 22, 23]), word(24)));
        assert_eq!((traced.callee_generation, traced.stream, traced.answer), (word(36), word(40), word(52)));
        assert_eq!(Traced::of_bytes(&bytes[1..]), None);
        let whys = Unrouted::ALL.map(|why| Traced { verdict: Traced::verdict_of(why), ..traced }.why());
        assert_eq!((whys, Traced { verdict: 0, ..traced }.why()), (Unrouted::ALL.map(Some), None));
    }

    #[test]
    fn adds_field_by_field() {
        let one = Routed { calls: 1, answers: 20, bytes: 300, reserved: 0, unrouted: [4; UNROUTED_MAX] };
        let twice = Routed { calls: 2, answers: 40, bytes: 600, reserved: 0, unrouted: [8; UNROUTED_MAX] };
        assert_eq!([one, one].into_iter().sum::<Routed>(), twice);
    }
}
