//! Support for the end-to-end tests: real agents, a fake MOA server that misbehaves on demand, Redis clients that
//! read like a transcript, and a judge that knows which answer belongs to which call.
//!
//! Everything here panics with a text that says what was expected: it runs in tests only.

#![forbid(unsafe_code)]

pub mod agent;
pub mod both;
pub mod client;
pub mod config;
pub mod errors;
pub mod external;
pub mod fake;
pub mod fleet;
pub mod frames;
pub mod herd;
pub mod judge;
pub mod kernel;
pub mod lanes;
pub mod leg;
pub mod load;
pub mod machine;
pub mod mesh;
pub mod mixed;
pub mod mux;
pub mod netns;
pub mod otlp;
pub mod pods;
pub mod process;
pub mod resp;
pub mod routed;
pub mod seed;
pub mod several;
pub mod siblings;
pub mod transcript;
pub mod vectors;
pub mod wait;

pub use agent::Agent;
pub use client::Client;
pub use errors::{expect_code, expect_instance_error, expect_mesh_error};
pub use fake::{Answer, FakeMoa, Gate};
pub use judge::Judge;
pub use lanes::LanePeer;
pub use resp::Reply;
pub use several::Several;
pub use transcript::ScriptedPeer;
pub use wait::{PATIENCE, until, until_true};

/// The service that most tests call.
pub const DEMO: &str = "/service/demo";

/// The JSON of a call, as MOA's clients write it.
pub fn envelope(service: &str, method: &str, args: &str) -> String {
    format!(r#"{{"action":"{service}","params":{{"m":"{method}","args":[{args}]}}}}"#)
}

/// The JSON of a call of [`DEMO`]'s `echo`.
pub fn echo(text: &str) -> String {
    envelope(DEMO, "echo", &serde_json::Value::from(text).to_string())
}
