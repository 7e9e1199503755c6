//! What an application is told when a call fails in the mesh.

use std::net::SocketAddr;

use serde_json::Value;

use crate::{agent::Agent, resp::Reply};

/// Expects an envelope with this code, whose text names the agent and the service.
pub fn expect_mesh_error(agent: &Agent, reply: &Reply, code: i64, service: &str) -> String {
    let text = expect_code(reply, code);
    for name in [agent.name(), service] {
        assert!(text.contains(name), "the text of an error names no {name}: {text}");
    }
    text
}

/// Like [`expect_mesh_error`], and the text names the instance.
pub fn expect_instance_error(agent: &Agent, reply: &Reply, code: i64, service: &str, instance: SocketAddr) -> String {
    let text = expect_mesh_error(agent, reply, code, service);
    assert!(text.contains(&instance.to_string()), "the text of an error names no instance {instance}: {text}");
    text
}

/// Expects an envelope with this code and no result, and returns its text.
pub fn expect_code(reply: &Reply, code: i64) -> String {
    let value: Value = serde_json::from_slice(reply.bulk())
        .unwrap_or_else(|error| panic!("an answer that is no JSON ({error}): {}", reply.brief()));
    assert_eq!(value["ec"], code, "{}", reply.brief());
    assert_eq!(value["result"], Value::Null, "{}", reply.brief());
    value["em"].as_str().unwrap_or_else(|| panic!("an error without a text: {}", reply.brief())).to_owned()
}
