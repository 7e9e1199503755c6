//! Calls in frames, through one agent: to applications that have dialled in, and to servers that speak Redis.

use agent_common::frame::{Flags, Header, Kind, id, service_hash};
use moa_tests::{
    Agent, DEMO, FakeMoa, Reply,
    client::command,
    config, echo,
    frames::{FramePeer, caller, meta_of, service},
    until_true,
};

const USER: &str = "/service/user";

#[test]
fn a_frame_application_calls_one_that_has_dialled_in() {
    let agent = Agent::start("");
    let mut server = FramePeer::connect(agent.address(), &service("s1", &[USER]));
    let mut client = FramePeer::connect(agent.address(), &caller());
    let mut meta = meta_of(USER);
    meta.put(id::METHOD, b"get").put(200, b"own");
    let header = Header {
        flags: Flags::END_STREAM | Flags::IDEMPOTENT | Flags::VERIFIED | Flags(1 << 15),
        service: service_hash(USER.as_bytes(), b""),
        word: 1000,
        ..Header::new(Kind::Request)
    };
    let stream = client.request_with(header, meta.as_ref(), b"body");
    let call = server.expect(Kind::Request);
    assert_eq!((&call.meta[..], &call.body[..]), (meta.as_ref(), &b"body"[..]));
    assert_eq!(call.header.flags, Flags::END_STREAM | Flags::IDEMPOTENT | Flags(1 << 15), "an application's word is no proof");
    assert_eq!(call.header.service, header.service);
    assert!(call.header.word > 0 && call.header.word <= 1000, "{}", call.header.word);
    assert_eq!(call.header.via >> 63, 0, "an agent wrote it");
    server.respond(&call, 0, b"answer");
    let answer = client.expect(Kind::Response);
    assert_eq!((answer.header.stream, answer.header.via, &answer.body[..]), (stream, u64::from(stream), &b"answer"[..]));
}

#[test]
fn a_frame_application_calls_a_redis_server() {
    let fake = FakeMoa::start();
    let agent = Agent::start(&config::service(DEMO, &[fake.address()], config::NO_HEALTH_CHECK));
    let mut client = FramePeer::connect(agent.address(), &caller());
    let answer = client.call(DEMO, echo("hello").as_bytes());
    assert_eq!(answer.header.word, 0);
    assert!(String::from_utf8_lossy(&answer.body).contains("hello"), "{answer:?}");
}

#[test]
fn a_redis_client_calls_an_application_that_has_dialled_in() {
    let agent = Agent::start("");
    let mut server = FramePeer::connect(agent.address(), &service("s1", &[DEMO]));
    let mut client = agent.connect();
    client.send(command(&["GET", &echo("hello")]));
    let call = server.expect(Kind::Request);
    assert_eq!(call.body, echo("hello").as_bytes());
    server.respond(&call, 0, br#"{"ec":0,"result":"hello"}"#);
    let reply = client.read();
    assert_eq!(reply, Reply::Bulk(br#"{"ec":0,"result":"hello"}"#.to_vec()));
    drop(server);
    until_true("the service is gone", || client.call(&echo("again"))["ec"] == 501);
}
