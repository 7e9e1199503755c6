//! Bytes recorded from real MOA peers, through the agent: whole, and split at every byte.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use moa_tests::{
    Agent, Answer, Client, DEMO, FakeMoa, Reply, config,
    fake::{Call, demo},
    resp::read_reply,
    seed,
    vectors::{self, Vector},
};
use rand::{RngExt, rngs::StdRng};

/// Services that the recorded peers called.
const SERVICES: [&str; 4] = [DEMO, "/service/none", "/service/lookup", "/service/moa-admin"];

/// Recorded cases of one call and one answer, which the agent must pass on byte for byte.
fn exchanges() -> Vec<Vector> {
    let all = vectors::all().into_iter();
    let one = |vector: &Vector| body(&vector.request).is_some() && vector.response.starts_with(b"$");
    let found: Vec<_> = all.filter(one).filter(|vector| whole_bulk(&vector.response)).collect();
    assert!(found.len() > 25, "only {} recorded exchanges were found", found.len());
    found
}

/// The argument of the one GET that these bytes are; none if they are anything else.
fn body(request: &[u8]) -> Option<&[u8]> {
    let rest = request.strip_prefix(b"*2\r\n$3\r\nGET\r\n").or_else(|| request.strip_prefix(b"*2\r\n$3\r\nget\r\n"))?;
    let line = rest.windows(2).position(|pair| pair == b"\r\n")?;
    let length: usize = std::str::from_utf8(rest[1..line].as_ref()).ok()?.parse().ok()?;
    let body = &rest[line + 2..];
    (body.len() == length + 2 && length > 0).then(|| &body[..length])
}

fn whole_bulk(response: &[u8]) -> bool {
    let mut rest = response;
    matches!(read_reply(&mut rest), Ok(Reply::Bulk(_))) && rest.is_empty()
}

/// A server that answers as the case at hand was recorded, to that case's call.
struct RecordedServer {
    fake: FakeMoa,
    now: Arc<Mutex<Option<Vector>>>,
}

impl RecordedServer {
    fn start(pace: impl Fn(Answer) -> Answer + Send + Sync + 'static) -> Self {
        let now = Arc::new(Mutex::new(None::<Vector>));
        let fake = FakeMoa::start();
        let case = Arc::clone(&now);
        fake.script(move |call: &Call| match &*case.lock().expect("the case at hand") {
            Some(vector) if body(&vector.request) == Some(&call.body) => pace(Answer::raw(vector.response.clone())),
            _ => panic!("not the recorded call: {}", call.body.escape_ascii()),
        });
        Self { fake, now }
    }

    fn plays(&self, vector: &Vector) {
        *self.now.lock().expect("the case at hand") = Some(vector.clone());
    }
}

fn start(fake: &FakeMoa) -> Agent {
    let services: Vec<_> = SERVICES.iter().map(|uri| config::service(uri, &[fake.address()], config::NO_HEALTH_CHECK)).collect();
    // One worker: what one connection is told is done before another is answered.
    Agent::start(&format!("[agent]\nworkers = 1\n{}", services.join("")))
}

fn expect_bytes(client: &mut Client, expected: &[u8], case: &str) {
    let got = client.read_exact(expected.len());
    assert_eq!(got.escape_ascii().to_string(), expected.escape_ascii().to_string(), "{case}");
}

#[test]
fn each_exchange_whole() {
    let exchanges = exchanges();
    let server = RecordedServer::start(|answer| answer);
    let agent = start(&server.fake);
    let mut client = agent.connect();
    for vector in &exchanges {
        server.plays(vector);
        client.send(&vector.request);
        expect_bytes(&mut client, &vector.response, &vector.name);
        client.expect_usable();
    }
    // The calls reach the server as they came: the body byte for byte, and the verb as real clients write it.
    let bodies = |requests: &[Vec<u8>]| requests.iter().map(|request| body(request).map(<[u8]>::to_vec)).collect::<Vec<_>>();
    let sent: Vec<_> = exchanges.iter().map(|vector| vector.request.clone()).collect();
    assert_eq!(bodies(&server.fake.requests()), bodies(&sent));
}

#[test]
fn each_exchange_split_at_every_byte() {
    let mut rng = seed::rng("each_exchange_split_at_every_byte");
    let exchanges = exchanges();
    let server = RecordedServer::start(|answer| answer);
    let agent = start(&server.fake);
    let (mut client, mut barrier) = (agent.connect(), agent.connect());
    for vector in &exchanges {
        server.plays(vector);
        for at in splits(vector.request.len(), &mut rng) {
            client.send(&vector.request[..at]);
            // When this is answered, the agent has read the first part.
            barrier.expect_usable();
            client.send(&vector.request[at..]);
            expect_bytes(&mut client, &vector.response, &format!("{} split at {at}", vector.name));
        }
    }
    client.expect_usable();
}

/// Every place to split so many bytes, or a sample of them.
fn splits(length: usize, rng: &mut StdRng) -> Vec<usize> {
    let most = seed::count(400, 40_000);
    if length <= most {
        return (1..length).collect();
    }
    let edges = (1..100).chain(length - 100..length);
    edges.chain((0..most - 199).map(|_| rng.random_range(1..length))).collect()
}

#[test]
fn each_exchange_byte_by_byte_in_both_directions() {
    let exchanges = exchanges();
    let server = RecordedServer::start(|answer| answer.slowly(1, Duration::from_micros(1)));
    let agent = start(&server.fake);
    let (mut client, mut barrier) = (agent.connect(), agent.connect());
    for vector in exchanges.iter().filter(|vector| vector.request.len() < 200) {
        server.plays(vector);
        for byte in &vector.request {
            client.send([*byte]);
            barrier.expect_usable();
        }
        expect_bytes(&mut client, &vector.response, &vector.name);
    }
}

#[test]
fn a_3041_is_passed_on_and_its_connection_dropped() {
    let vector = vectors::load("moa16.timeout_3041_slow_14000");
    let server = RecordedServer::start(|answer| answer);
    server.plays(&vector);
    let agent = start(&server.fake);
    let mut client = agent.connect();
    for dropped in 1..=3 {
        client.send(&vector.request);
        expect_bytes(&mut client, &vector.response, &vector.name);
        server.fake.await_counts("the connection to be dropped", |counts| counts.ended_by_peer == dropped);
    }
}

#[test]
fn pipelines_are_answered_in_order() {
    let fake = FakeMoa::start();
    fake.script(at_once);
    let agent = start(&fake);
    let names = ["pipelined_2", "pipelined_10", "pipelined_20_getuser", "pipelined_slow_fast", "client_session"];
    for name in names {
        let vector = vectors::load(&format!("moa16.{name}"));
        let expected = one_by_one(&fake, &vector.request);
        let mut client = agent.connect();
        client.send(&vector.request);
        expect_bytes(&mut client, &expected, name);
        client.half_close();
        client.expect_closed();
    }
    let vector = vectors::load("moa16.pipelined_ping_get");
    let mut client = agent.connect();
    client.send(&vector.request);
    expect_bytes(
        &mut client,
        b"+PONG\r\n$44\r\n{\"ec\":0,\"em\":\"\\u003cnil\\u003e\",\"result\":\"b\"}\r\n+PONG\r\n",
        "ping_get",
    );
}

/// The recorded service, but nothing takes time.
fn at_once(call: &Call) -> Answer {
    match call.method.as_str() {
        "slow" => Answer::ok(&format!("slow-{}", call.args[0]).into()),
        _ => demo(call),
    }
}

/// What the server answers to each of these calls when it is asked directly, one after the other.
fn one_by_one(fake: &FakeMoa, requests: &[u8]) -> Vec<u8> {
    let mut direct = Client::connect(fake.address());
    let mut answers = Vec::new();
    let mut rest = requests;
    while !rest.is_empty() {
        let before = rest;
        read_reply(&mut rest).expect("a command");
        direct.send(&before[..before.len() - rest.len()]);
        let reply = direct.read();
        answers.extend(format!("${}\r\n", reply.bulk().len()).into_bytes());
        answers.extend_from_slice(reply.bulk());
        answers.extend_from_slice(b"\r\n");
    }
    answers
}

/// What a real server leaves without an answer, closes or resets at: the agent answers it, clearly, and sends nothing.
#[test]
fn what_real_servers_never_answer_is_answered() {
    let fake = FakeMoa::start();
    let agent = start(&fake);
    let codes = [("bad_json", 302), ("empty_bulk", 302), ("size_32768", 302)];
    for (case, code) in codes {
        let mut client = agent.connect();
        client.send(&vectors::load(&format!("moa16.{case}")).request);
        let answer = client.read();
        assert!(answer.text().starts_with(&format!("{{\"ec\":{code},\"em\":\"")), "{case}: {}", answer.brief());
        assert!(answer.text().contains(agent.name()), "{case} names no agent: {}", answer.brief());
        client.expect_usable();
    }
    for (case, replies) in [
        ("unknown_command_set", &["-ERR unknown command"][..]),
        ("get_no_arg", &["-ERR wrong number of arguments", "+PONG"]),
        ("ping_inline", &["+PONG"]),
        ("ping_lower", &["+PONG"]),
        ("ping", &["+PONG"]),
        ("star0_then_ping", &["+PONG"]),
        ("empty_line_then_ping", &["+PONG"]),
        ("idle_70s_then_ping", &["+PONG", "+PONG"]),
    ] {
        let mut client = agent.connect();
        client.send(&vectors::load(&format!("moa16.{case}")).request);
        for expected in replies {
            let reply = match client.read() {
                Reply::Simple(text) => format!("+{text}"),
                Reply::Error(text) => format!("-{text}"),
                other => panic!("{case}: {}", other.brief()),
            };
            assert!(reply.starts_with(expected), "{case}: expected {expected}, got {reply}");
        }
        client.expect_usable();
    }
    let counts = fake.counts();
    assert_eq!((counts.calls, counts.unanswerable, counts.bytes), (0, 0, 0), "something was sent to the server");
}

#[test]
fn every_key_order_escape_and_duplicate_is_read_as_a_parser_would() {
    let fake = FakeMoa::start();
    let agent = start(&fake);
    let mut client = agent.connect();
    for json in [
        r#"{"params":{"args":["x"],"m":"echo"},"action":"/service/demo"}"#,
        r#"{"action":"\/service\/demo","params":{"m":"echo","args":["x"]}}"#,
        r#"{"\u0061ction":"/service/\u0064emo","params":{"m":"echo","args":["x"]}}"#,
        r#"{"props":{"action":"/service/none"},"params":{"args":["x"],"m":"echo","action":"/service/none"},"action":"/service/demo"}"#,
        r#"{"action":"/service/none","action":"/service/demo","params":{"m":"echo","args":["x"]}}"#,
        " { \"action\" : \"/service/demo\" ,\r\n\t\"params\" : { \"m\" : \"echo\" , \"args\" : [ \"x\" ] } } ",
        r#"{"z":[[{"action":"/service/none"}],{"a":"}\"]"}],"action":"/service/demo","params":{"m":"echo","args":["x"]}}"#,
    ] {
        let before = fake.counts().calls;
        let answer = client.call(json);
        assert_eq!(answer["result"], "x", "{json}");
        assert_eq!(fake.counts().calls, before + 1);
        let sent = fake.requests().pop().expect("a request");
        assert_eq!(body(&sent), Some(json.as_bytes()), "the body was changed");
    }
}
