//! Calls across two agents: whoever calls and whoever serves, in frames or as Redis.

use agent_common::frame::{Flags, Kind};
use moa_tests::{
    Agent, DEMO, FakeMoa, Reply,
    client::command,
    config, echo, envelope,
    frames::{FramePeer, caller, service},
    until_true,
};

/// An agent that reaches DEMO by way of another one, which has this configuration.
fn pair(far: &str) -> (Agent, Agent) {
    let far = Agent::start(far);
    let near = format!("{}{}", config::peer("far", far.tunnel_address()), config::served_by(DEMO, &[], &["far"], ""));
    let near = Agent::start(&near);
    (near, far)
}

fn redis_server(fake: &FakeMoa) -> String {
    config::service(DEMO, &[fake.address()], config::NO_HEALTH_CHECK)
}

#[test]
fn a_redis_client_reaches_a_redis_server_as_it_was_sent() {
    let fake = FakeMoa::start();
    let (near, _far) = pair(&redis_server(&fake));
    let mut client = near.connect();
    let json = format!(" {} ", echo("hello\u{1}").replace(':', " : "));
    let answer = client.call(&json);
    assert_eq!(answer["ec"], 0, "{answer}");
    assert_eq!(fake.requests(), [command(&["GET", &json])], "the JSON is untouched");
}

#[test]
fn a_redis_client_reaches_a_frame_service() {
    let (near, far) = pair("");
    let mut server = FramePeer::connect(far.address(), &service("s1", &[DEMO]));
    let mut client = near.connect();
    client.send(command(&["GET", &echo("hello")]));
    let call = server.expect(Kind::Request);
    assert_eq!(call.body, echo("hello").as_bytes());
    server.respond(&call, 0, b"any body");
    assert_eq!(client.read(), Reply::Bulk(b"any body".to_vec()));
}

#[test]
fn a_frame_client_reaches_a_redis_server() {
    let fake = FakeMoa::start();
    let (near, _far) = pair(&redis_server(&fake));
    let mut client = FramePeer::connect(near.address(), &caller());
    let answer = client.call(DEMO, echo("hello").as_bytes());
    assert_eq!(answer.header.word, 0, "{}", answer.error());
    assert!(String::from_utf8_lossy(&answer.body).contains("hello"));
}

#[test]
fn a_frame_client_reaches_a_frame_service() {
    let (near, far) = pair("");
    let mut server = FramePeer::connect(far.address(), &service("s1", &[DEMO]));
    let mut client = FramePeer::connect(near.address(), &caller());
    let stream = client.request(DEMO, Flags::END_STREAM, b"body");
    let call = server.expect(Kind::Request);
    server.respond(&call, 7, b"an error of its own");
    let answer = client.expect(Kind::Response);
    assert_eq!((answer.header.stream, answer.header.word, &answer.body[..]), (stream, 7, &b"an error of its own"[..]));
}

#[test]
fn a_large_answer_crosses_both_agents_whole() {
    let fake = FakeMoa::start();
    let (near, _far) = pair(&redis_server(&fake));
    let call = envelope(DEMO, "big", "20000000");
    let answer = near.connect().call(&call);
    assert_eq!((&answer["ec"], answer["result"].as_str().map(str::len)), (&0.into(), Some(20_000_000)));
    let mut frames = FramePeer::connect(near.address(), &caller());
    let answer = frames.call(DEMO, call.as_bytes());
    assert_eq!(answer.header.word, 0, "{}", answer.error());
    assert!(answer.body.len() > 20_000_000, "{}", answer.body.len());
}

#[test]
fn an_agent_that_was_away_is_found_again() {
    let fake = FakeMoa::start();
    let (near, mut far) = pair(&redis_server(&fake));
    let mut client = near.connect();
    assert_eq!(client.call(&echo("first"))["ec"], 0);
    far.kill();
    assert_eq!(client.call(&echo("nobody"))["ec"], 303);
    far.start_again();
    until_true("the tunnel is open again", || client.call(&echo("again"))["ec"] == 0);
}
