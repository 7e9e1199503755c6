//! Traffic policy of a service: who gets a call, what happens if it fails, and which calls are treated in their own way.
//!
//! What the keys mean in practice, and when to change them, is in `docs/traffic.md`.

mod conflicts;
mod limits;
mod resilience;
mod rules;
mod spread;

pub use limits::{Breaker, Concurrency, Priority, Rate};
pub use resilience::{Hedge, Outlier, Retry, RetryOn};
pub use rules::{Access, AccessMode, AccessRule, Fault, Patterns, Route, Shadow, Split, Stress, To, Verdict, When};
pub use spread::{Balance, BalancePolicy, LocalPreference, Locality};
