//! Bytes that make frames: cut anywhere, one by one, lying about themselves; and what tells frames from Redis.

use agent_common::frame::{Flags, Header, Hello, Kind, Role, service_hash, status::reason};
use moa_tests::{
    Agent, Client, DEMO, FakeMoa, Reply,
    client::command,
    config, echo,
    frames::{FramePeer, Got, WIDE, bytes_of, caller, meta_of, service},
};

const USER: &str = "/service/user";

fn request(stream: u32, flags: Flags, body: &[u8]) -> Vec<u8> {
    let header = Header {
        flags,
        stream,
        via: u64::from(stream),
        service: service_hash(USER.as_bytes(), b""),
        ..Header::new(Kind::Request)
    };
    bytes_of(header, meta_of(USER).as_ref(), body)
}

fn numbered(kind: Kind, stream: u32, flags: Flags, word: u32) -> Header {
    let service = service_hash(USER.as_bytes(), b"");
    Header { flags, stream, via: u64::from(stream), service, word, ..Header::new(kind) }
}

/// Writes bytes in two parts. The first has been read alone when a call of another connection was answered meanwhile.
fn write_cut(peer: &mut FramePeer, bytes: &[u8], at: usize, between: &mut Client) {
    peer.write(&bytes[..at]);
    between.expect_usable();
    peer.write(&bytes[at..]);
}

#[test]
fn frames_of_a_caller_may_be_cut_anywhere() {
    let agent = Agent::start("");
    let mut server = FramePeer::connect(agent.address(), &service("s1", &[USER]));
    let mut client = FramePeer::connect(agent.address(), &caller());
    let mut between = agent.connect();
    let mut stream = 0;
    let one = request(1, Flags::END_STREAM, b"body").len();
    for at in 0..one {
        stream += 1;
        write_cut(&mut client, &request(stream, Flags::END_STREAM, b"body"), at, &mut between);
        let call = server.expect(Kind::Request);
        assert_eq!(call.body, b"body");
        server.respond(&call, 0, b"fine");
        assert_eq!(client.expect(Kind::Response).header.stream, stream);
    }
    let data = |stream| bytes_of(numbered(Kind::Data, stream, Flags::END_STREAM, 0), &[], b"more");
    for at in 0..data(0).len() {
        stream += 1;
        client.write(&request(stream, Flags::NONE, b"some"));
        write_cut(&mut client, &data(stream), at, &mut between);
        let call = server.expect(Kind::Request);
        assert_eq!((&call.body[..], call.has(Flags::END_STREAM)), (&b"some"[..], false));
        assert_eq!(server.expect(Kind::Data).body, b"more");
        server.respond(&call, 0, b"");
        client.expect(Kind::Response);
    }
    for at in 0..Header::new(Kind::Cancel).bytes().len() {
        stream += 1;
        client.write(&request(stream, Flags::END_STREAM, b""));
        let call = server.expect(Kind::Request);
        write_cut(&mut client, &bytes_of(numbered(Kind::Cancel, stream, Flags::NONE, 305), &[], &[]), at, &mut between);
        assert_eq!(server.expect(Kind::Cancel).header.via, call.header.via);
    }
    for (kind, word) in [(Kind::Ping, 0), (Kind::Pong, 0), (Kind::Credit, 1)] {
        for at in 0..Header::new(kind).bytes().len() {
            write_cut(&mut client, &bytes_of(Header { word, ..Header::new(kind) }, &[], &[]), at, &mut between);
            if kind == Kind::Ping {
                client.expect(Kind::Pong);
            }
        }
    }
    client.expect_quiet();
}

#[test]
fn frames_of_a_service_may_be_cut_anywhere() {
    let agent = Agent::start("");
    let mut server = FramePeer::connect(agent.address(), &service("s1", &[USER]));
    let mut client = FramePeer::connect(agent.address(), &caller());
    let mut between = agent.connect();
    let call = |client: &mut FramePeer, server: &mut FramePeer| {
        client.request(USER, Flags::END_STREAM, b"");
        server.expect(Kind::Request)
    };
    let answer = |call: &Got, kind, flags, word| {
        let header = call.back(kind);
        bytes_of(Header { flags: header.flags | flags, word, ..header }, &[], if kind == Kind::Cancel { b"" } else { b"body" })
    };
    for at in 0..44 {
        let got = call(&mut client, &mut server);
        write_cut(&mut server, &answer(&got, Kind::Response, Flags::END_STREAM, 7), at, &mut between);
        let back = client.expect(Kind::Response);
        assert_eq!((back.header.word, &back.body[..]), (7, &b"body"[..]));
        let got = call(&mut client, &mut server);
        server.write(&answer(&got, Kind::Response, Flags::NONE, 0));
        write_cut(&mut server, &answer(&got, Kind::Data, Flags::END_STREAM, 0), at, &mut between);
        client.expect(Kind::Response);
        assert_eq!(client.expect(Kind::Data).body, b"body");
        let got = call(&mut client, &mut server);
        let cancel = answer(&got, Kind::Cancel, Flags::NONE, 305);
        write_cut(&mut server, &cancel, at.min(cancel.len()), &mut between);
        assert_eq!(client.expect(Kind::Response).header.word, 305);
    }
    for at in 0..40 {
        write_cut(&mut server, &bytes_of(Header::new(Kind::Ping), &[], &[]), at, &mut between);
        server.expect(Kind::Pong);
    }
}

#[test]
fn hello_and_goaway_may_be_cut_anywhere_too() {
    let agent = Agent::start("");
    let mut between = agent.connect();
    let hello = service("s1", &[USER]).encode().expect("a HELLO that fits");
    let goaway = bytes_of(Header::new(Kind::GoAway), &[], &[]);
    for at in 1..hello.len() {
        let mut server = FramePeer::silent(agent.address());
        write_cut(&mut server, &hello, at, &mut between);
        server.expect(Kind::Hello);
        write_cut(&mut server, &goaway, at % goaway.len(), &mut between);
        server.expect_goaway(reason::DRAIN);
    }
}

#[test]
fn everything_may_come_one_byte_at_a_time() {
    let agent = Agent::start("");
    let mut server = FramePeer::connect(agent.address(), &service("s1", &[USER]));
    let mut client = FramePeer::silent(agent.address());
    let slowly = |peer: &mut FramePeer, bytes: &[u8]| bytes.iter().for_each(|byte| peer.write(&[*byte]));
    slowly(&mut client, &caller().encode().expect("a HELLO that fits"));
    client.expect(Kind::Hello);
    for stream in 1..20 {
        slowly(&mut client, &request(stream, Flags::NONE, b"a"));
        slowly(&mut client, &bytes_of(numbered(Kind::Data, stream, Flags::END_STREAM, 0), &[], b"b"));
        let call = server.expect(Kind::Request);
        assert_eq!((call.body, server.expect(Kind::Data).body), (b"a".to_vec(), b"b".to_vec()));
        let call = Got { body: Vec::new(), ..Got { header: call.header, meta: call.meta, body: Vec::new() } };
        let header = call.back(Kind::Response);
        slowly(&mut server, &bytes_of(Header { flags: header.flags | Flags::END_STREAM, ..header }, &[], b"fine"));
        assert_eq!(client.expect(Kind::Response).body, b"fine");
    }
}

#[test]
fn a_header_that_no_frame_can_have_ends_the_connection() {
    let agent = Agent::start("");
    let _server = FramePeer::connect(agent.address(), &service("s1", &[USER]));
    let long =
        |meta_len, body_len| Header { meta_len, body_len, ..numbered(Kind::Request, 1, Flags::END_STREAM, 0) }.bytes().to_vec();
    let kind = |kind| Header { kind, ..Header::new(Kind::Ping) }.bytes().to_vec();
    let mut version = Header::new(Kind::Ping).bytes().to_vec();
    version[2] = 2;
    let flags = |kind, flags| bytes_of(numbered(kind, 1, flags, 1), &[], &[]);
    let wrong = [
        long(32_729, 0),
        long(u16::MAX, 0),
        long(0, 65_497),
        long(100, 65_400),
        long(0, u32::MAX),
        kind(0),
        kind(10),
        kind(127),
        version,
        b"*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nPING\r\n".to_vec(),
        flags(Kind::Request, Flags::END_STREAM | Flags::TO_CALLER),
        flags(Kind::Response, Flags::END_STREAM),
        flags(Kind::Response, Flags::END_STREAM | Flags::TO_CALLER | Flags::ONE_WAY),
        bytes_of(numbered(Kind::Credit, 1, Flags::NONE, 0), &[], &[]),
        bytes_of(numbered(Kind::Cancel, 1, Flags::NONE, 0), &[], b"body"),
        bytes_of(numbered(Kind::Data, 1, Flags::NONE, 0), &[1, 0, 0], &[]),
        bytes_of(numbered(Kind::Ping, 1, Flags::NONE, 0), &[1, 0, 0], &[]),
        bytes_of(numbered(Kind::Request, 0, Flags::END_STREAM, 0), &[], &[]),
    ];
    for bytes in wrong {
        let mut client = FramePeer::connect(agent.address(), &caller());
        client.write(&bytes);
        let got = client.expect_goaway(reason::PROTOCOL);
        assert!(!got.error().is_empty(), "it says why");
    }
}

#[test]
fn a_kind_from_128_on_is_skipped() {
    let agent = Agent::start("");
    let mut server = FramePeer::connect(agent.address(), &service("s1", &[USER]));
    let mut client = FramePeer::connect(agent.address(), &caller());
    for kind in [128, 200, 255] {
        let header =
            Header { kind, flags: Flags(0xffff), stream: 9, via: 9, service: 9, word: 9, receipt: 9, ..Header::new(Kind::Ping) };
        client.send(header, &[0xff; 300], &[7; 60_000]);
        server.send(header, &[], &[7; 3]);
        client.request(USER, Flags::END_STREAM, b"still");
        let call = server.expect(Kind::Request);
        server.respond(&call, 0, b"there");
        assert_eq!(client.expect(Kind::Response).body, b"there");
    }
}

#[test]
fn a_hello_must_be_first_once_whole_and_right() {
    let agent = Agent::start("");
    let refused = |hello: &[u8], reason: u32| {
        let mut peer = FramePeer::silent(agent.address());
        peer.write(hello);
        peer.expect_goaway(reason).error()
    };
    let encoded = |hello: Hello| hello.encode().expect("a HELLO that fits").to_vec();
    refused(&request(1, Flags::END_STREAM, b""), reason::PROTOCOL);
    refused(&bytes_of(Header::new(Kind::Ping), &[], &[]), reason::PROTOCOL);
    refused(&bytes_of(Header::new(Kind::Hello), &[], &[]), reason::PROTOCOL);
    refused(&bytes_of(Header::new(Kind::Hello), &[1, 0, 9, 1], &[]), reason::PROTOCOL);
    let newer = refused(&encoded(Hello { versions: (2, 3), ..caller() }), reason::VERSION);
    assert!(newer.contains("version 1"), "{newer}");
    refused(&encoded(Hello { role: Role::Lane, ..caller() }), reason::REFUSED);
    let agents = refused(&encoded(Hello { role: Role::Agent, ..caller() }), reason::REFUSED);
    assert!(agents.contains("tunnel.listen"), "{agents}");
    refused(&encoded(Hello { offers: Vec::new(), ..Hello::new(Role::Application, "a\nb", "i", WIDE) }), reason::PROTOCOL);
    // Both that comes at once, and that comes later.
    let mut twice = FramePeer::connect(agent.address(), &caller());
    twice.write(&encoded(caller()));
    twice.expect_goaway(reason::PROTOCOL);
    let mut early = FramePeer::silent(agent.address());
    early.write(&[encoded(service("s1", &[USER])), request(1, Flags::END_STREAM, b"")].concat());
    early.expect_goaway(reason::PROTOCOL);
    let mut half = FramePeer::silent(agent.address());
    half.write(&encoded(caller())[..50]);
    half.finish();
    half.expect_end();
}

#[test]
fn half_a_hello_is_waited_for_only_so_long() {
    let agent = Agent::start("[app]\nstall_timeout_ms = 100\n");
    let mut half = FramePeer::silent(agent.address());
    half.write(&caller().encode().expect("a HELLO that fits")[..50]);
    half.expect_goaway(reason::PROTOCOL);
}

#[test]
fn the_first_bytes_tell_frames_from_redis() {
    let fake = FakeMoa::start();
    let agent = Agent::start(&config::service(DEMO, &[fake.address()], config::NO_HEALTH_CHECK));
    let mut between = agent.connect();
    let hello = caller().encode().expect("a HELLO that fits");
    for at in 1..5 {
        let mut client = FramePeer::silent(agent.address());
        write_cut(&mut client, &hello, at, &mut between);
        client.expect(Kind::Hello);
        assert_eq!(client.call(DEMO, echo("frames").as_bytes()).header.word, 0);
    }
    let json = echo("redis").replace('"', "\\\"");
    for line in [format!("MGET \"{json}\"\r\n"), "M\r\n".to_owned(), "MO\r\n".to_owned(), "MOVE a 1\r\n".to_owned()] {
        let mut client = agent.connect();
        client.send(&line);
        match client.read() {
            Reply::Array(members) if line.starts_with("MG") => assert!(members[0].text().contains("redis"), "{members:?}"),
            Reply::Error(_) if !line.starts_with("MG") => {}
            other => panic!("{line:?}: {}", other.brief()),
        }
        client.expect_usable();
    }
    // Whoever has begun in Redis goes on so.
    let mut client = agent.connect();
    client.expect_usable();
    client.send(&hello[..]);
    client.send("\r\n");
    let reply = client.try_read();
    assert!(!matches!(reply, Ok(Reply::Bulk(_))), "{reply:?}");
    let mut redis = agent.connect();
    redis.send(command(&["GET", &echo("x")]));
    assert!(redis.read().text().contains("\"ec\":0"));
}
