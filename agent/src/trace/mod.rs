//! What is told of single calls: spans for a collector, and records for an operator who looks on.
//!
//! Knows nobody else of the agent. The data plane makes [`Context`]s, [`Span`]s and [`Record`]s, and gives them away by [`Spans::offer`]
//! and [`Watch::offer`], neither of which ever waits.

mod collector;
mod context;
mod export;
mod otlp;
mod record;
mod span;
mod tap;
#[cfg(test)]
mod tests;

pub use collector::{BadEndpoint, Endpoint};
pub use context::{Context, SpanId, TraceId};
pub use export::{Exporter, Options, Spans};
pub use record::{By, Line, Record};
pub use span::{Event, Kind, Span, Value};
pub use tap::{Filter, TapReader, Taps, TooManyReaders, Watch};
