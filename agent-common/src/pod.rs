//! Leave for the loader to copy these types to and from maps.
#![expect(unsafe_code, reason = "aya's marker for types that are plain bytes is an unsafe trait")]

use crate::{
    Counts, End, Leg, Listener, Offsets, Shared, Verdicts,
    failover::{Decisions, Diverted, Gate, Peer},
    lane::{Call, Lane, Leave, Member, Route, RouteKey, Routed, Routing},
};

// SAFETY: `repr(C)`, integers and arrays of integers only, no padding (asserted beside the type).
unsafe impl aya::Pod for Counts {}

// SAFETY: as above.
unsafe impl aya::Pod for Listener {}

// SAFETY: as above.
unsafe impl aya::Pod for End {}

// SAFETY: as above.
unsafe impl aya::Pod for Leg {}

// SAFETY: as above.
unsafe impl aya::Pod for Shared {}

// SAFETY: as above.
unsafe impl aya::Pod for Verdicts {}

// SAFETY: as above.
unsafe impl aya::Pod for Offsets {}

// SAFETY: as above.
unsafe impl aya::Pod for Lane {}

// SAFETY: as above.
unsafe impl aya::Pod for RouteKey {}

// SAFETY: as above.
unsafe impl aya::Pod for Route {}

// SAFETY: as above.
unsafe impl aya::Pod for Leave {}

// SAFETY: as above.
unsafe impl aya::Pod for Call {}

// SAFETY: as above.
unsafe impl aya::Pod for Routing {}

// SAFETY: as above.
unsafe impl aya::Pod for Member {}

// SAFETY: as above.
unsafe impl aya::Pod for Routed {}

// SAFETY: as above.
unsafe impl aya::Pod for Gate {}

// SAFETY: as above.
unsafe impl aya::Pod for Peer {}

// SAFETY: as above.
unsafe impl aya::Pod for Diverted {}

// SAFETY: as above.
unsafe impl aya::Pod for Decisions {}
