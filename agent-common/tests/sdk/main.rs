//! The SDK's two ends, with an agent that follows a script or only renumbers.
#![expect(clippy::unwrap_used, reason = "a test fails with it")]

mod both;
mod client;
mod failover;
mod lane_agent;
mod lanes;
mod peer;
mod rules;
mod server;
