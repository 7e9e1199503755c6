//! The data plane: workers, application connections, backends, calls in flight.
//!
//! A call is served from first byte to last on the thread that read it. [`Proxy`] is the handle for everybody else.

mod accept;
mod account;
mod again;
mod app;
mod app_conn;
mod away;
mod backend;
mod board;
mod caller;
mod calls;
mod cgroups;
mod choice;
mod conns;
mod deadlines;
mod describe;
mod dial;
mod dispatch;
mod drain;
mod explain;
mod frames;
mod govern;
mod handle;
mod health;
mod lag;
mod lanes;
mod limits;
mod link;
mod listen;
mod namespaces;
mod out;
mod outliers;
mod overload;
mod path;
mod place;
mod places;
mod pool;
mod read;
mod replies;
mod report;
mod request;
mod retreat;
mod routes;
mod says;
mod service;
mod session;
mod socket;
pub mod stats;
mod stream;
mod timer;
mod turn;
mod worker;

pub(crate) use handle::worker_count;
pub use handle::{ApplyError, DrainError, Options, Proxy, StartError};
pub use lanes::{
    Decision, LaneId, LaneLook, LanePath, LaneRoute, LaneTrace, Pick, Routed, RoutedCall, RoutedMember, TraceLine, Traced,
    Tracer, Unrouted,
};
pub use path::{End, Enrolled, Fallback, KernelPath};
pub use report::Telemetry;
