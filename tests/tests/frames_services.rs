//! Services that dial in: several processes, several connections, groups, both kinds of instances, and how they go.

use std::{
    io::{BufReader, Write},
    net::TcpListener,
    os::unix::net::UnixStream,
    thread,
};

use agent_common::frame::{Flags, Header, Hello, Kind, Offer, Role, id, service_hash, status::reason};
use moa_tests::{
    Agent, DEMO, FakeMoa,
    client::command,
    config, echo,
    frames::{FramePeer, Got, WIDE, caller, meta_of, service},
    machine::free_address,
    resp::read_reply,
    until, until_true,
};

const USER: &str = "/service/user";

/// Two workers, whatever machine this is.
const TWO: &str = "[agent]\nworkers = 2\n";

/// Two workers, whose calls go to instances in turn.
fn in_turn() -> String {
    format!("{TWO}[defaults]\nbalance.policy = \"round-robin\"\n")
}

fn nth(hello: Hello, connection: u16) -> Hello {
    Hello { connection: Some(connection), ..hello }
}

fn status_of(got: &Got) -> (Option<Kind>, u32) {
    (got.kind(), got.header.word)
}

#[test]
fn calls_take_turns_between_instances_whole_and_streamed() {
    let agent = Agent::start(&in_turn());
    let mut servers = ["a", "b"].map(|name| FramePeer::connect(agent.address(), &nth(service(name, &[USER]), 0)));
    let mut client = FramePeer::connect(agent.address(), &nth(caller(), 0));
    for flags in [Flags::END_STREAM, Flags::NONE] {
        for _ in 0..4 {
            for _ in 0..2 {
                client.request(USER, flags, b"");
            }
            for server in &mut servers {
                let call = server.expect(Kind::Request);
                server.respond(&call, 0, b"");
                client.expect(Kind::Response);
            }
        }
    }
}

#[test]
fn who_goes_away_takes_only_its_own_calls_with_it() {
    let agent = Agent::start(&in_turn());
    let mut stays = FramePeer::connect(agent.address(), &service("stays", &[USER]));
    let mut goes = FramePeer::connect(agent.address(), &service("goes", &[USER]));
    let mut client = FramePeer::connect(agent.address(), &caller());
    let streams: Vec<_> = (0..8).map(|_| client.request(USER, Flags::END_STREAM, b"")).collect();
    let kept: Vec<_> = (0..4).map(|_| stays.expect(Kind::Request)).collect();
    (0..4).for_each(|_| drop(goes.expect(Kind::Request)));
    drop(goes);
    let mut lost: Vec<_> = (0..4)
        .map(|_| {
            let got = client.expect(Kind::Response);
            assert_eq!((got.header.word, got.has(Flags::NOT_EXECUTED)), (303, false), "{}", got.error());
            got.header.stream
        })
        .collect();
    // Nobody sends them again.
    stays.expect_quiet();
    for call in &kept {
        stays.respond(call, 0, b"");
        lost.push(client.expect(Kind::Response).header.stream);
    }
    lost.sort_unstable();
    assert_eq!(lost, streams);
    for _ in 0..10 {
        client.request(USER, Flags::END_STREAM, b"");
        let call = stays.expect(Kind::Request);
        stays.respond(&call, 0, b"");
        assert_eq!(client.expect(Kind::Response).header.word, 0);
    }
}

#[test]
fn an_offer_comes_and_goes_and_comes_back() {
    let agent = Agent::start(TWO);
    let mut client = FramePeer::connect(agent.address(), &caller());
    for round in 0..10 {
        // The services can be called as soon as HELLO is answered, on any worker.
        let mut server = FramePeer::connect(agent.address(), &nth(service("s1", &[USER, "/service/other"]), round % 2));
        for flags in [Flags::NONE, Flags::END_STREAM] {
            for uri in [USER, "/service/other"] {
                client.request(uri, flags, b"");
                let call = server.expect(Kind::Request);
                server.respond(&call, 0, b"");
                assert_eq!(client.expect(Kind::Response).header.word, 0);
            }
        }
        drop(server);
        until_true("the offer to be gone", || {
            client.request(USER, Flags::END_STREAM, b"");
            client.expect(Kind::Response).header.word == 501
        });
    }
}

#[test]
fn a_process_may_have_a_connection_to_every_worker() {
    let agent = Agent::start(TWO);
    let connections = FramePeer::connect(agent.address(), &caller()).hello.map(|hello| hello.connections);
    assert_eq!(connections, Some(2));
    let mut servers = [0, 1].map(|n| FramePeer::connect(agent.address(), &nth(service("s1", &[USER]), n)));
    let services = until("one instance with two connections", || {
        let services = agent.json(&["services"]);
        (services[0]["instances"].as_array().map(Vec::len) == Some(1)).then_some(services)
    });
    assert_eq!(services[0]["uri"], USER, "{services}");
    for round in 0..6 {
        let worker = round % 2;
        let mut client = FramePeer::connect(agent.address(), &nth(caller(), u16::try_from(worker).expect("0 or 1")));
        client.request(USER, Flags::END_STREAM, b"");
        let call = servers[worker].expect(Kind::Request);
        servers[worker].respond(&call, 0, b"");
        client.expect(Kind::Response);
    }
    let [mut left, gone] = servers;
    drop(gone);
    // The other worker reaches it by way of the first.
    let answers = thread::spawn(move || {
        let call = left.expect(Kind::Request);
        left.respond(&call, 0, b"");
        left
    });
    let mut client = FramePeer::connect(agent.address(), &nth(caller(), 1));
    until_true("the other connection to be used", || client.call(USER, b"").header.word == 0);
    answers.join().expect("the service that is left");
}

#[test]
fn one_connection_serves_the_callers_of_all_workers() {
    let agent = Agent::start(TWO);
    for (service_at, caller_at) in [(0, 1), (1, 0), (0, 0), (1, 1)] {
        let mut server = FramePeer::connect(agent.address(), &nth(service("s1", &[USER]), service_at));
        let mut client = FramePeer::connect(agent.address(), &nth(caller(), caller_at));
        let mut meta = meta_of(USER);
        meta.put(200, b"own");
        let header =
            Header { flags: Flags::NONE, word: 900, service: service_hash(USER.as_bytes(), b""), ..Header::new(Kind::Request) };
        let stream = client.request_with(header, meta.as_ref(), b"begun");
        let call = server.expect(Kind::Request);
        assert_eq!(&call.meta[..], meta.as_ref());
        assert!(call.header.word <= 900 && call.header.word > 0, "{call:?}");
        client.data(&Header { stream, via: u64::from(stream), ..header }, Flags::END_STREAM, b"end");
        assert_eq!(server.expect(Kind::Data).body, b"end");
        let back = call.back(Kind::Response);
        server.send(Header { word: 7, ..back }, &[77, 0, 0], b"begun");
        server.data(&back, Flags::TO_CALLER | Flags::END_STREAM, b"end");
        let got = client.expect(Kind::Response);
        assert_eq!((got.header.word, &got.meta[..], &got.body[..]), (7, &[77, 0, 0][..], &b"begun"[..]));
        assert_eq!(client.expect(Kind::Data).body, b"end");
        let stream = client.request(USER, Flags::END_STREAM, b"");
        let call = server.expect(Kind::Request);
        client.cancel(USER, stream);
        assert_eq!(server.expect(Kind::Cancel).header.via, call.header.via);
        client.request(USER, Flags::END_STREAM, b"");
        server.expect(Kind::Request);
        drop(server);
        assert_eq!(status_of(&client.expect(Kind::Response)), (Some(Kind::Response), 303));
        until_true("the offer to be gone", || client.call(USER, b"").header.word == 501);
    }
}

#[test]
fn groups_are_services_of_their_own() {
    let agent = Agent::start(TWO);
    let offer = |group: &str| Offer { uri: USER.to_owned(), group: group.to_owned() };
    let mut servers = ["", "blue", "green"].map(|group| {
        let hello = Hello { offers: vec![offer(group)], ..Hello::new(Role::Application, "grouped", &format!("i-{group}"), WIDE) };
        (group, FramePeer::connect(agent.address(), &hello))
    });
    let mut client = FramePeer::connect(agent.address(), &caller());
    let mut call = |group: &str| {
        let mut meta = meta_of(USER);
        if !group.is_empty() {
            meta.put(id::GROUP, group.as_bytes());
        }
        let service = service_hash(USER.as_bytes(), group.as_bytes());
        client.request_with(Header { flags: Flags::END_STREAM, service, ..Header::new(Kind::Request) }, meta.as_ref(), b"");
        if group == "red" { Some(client.expect(Kind::Response)) } else { None }
    };
    for (group, server) in &mut servers {
        call(group);
        let got = server.expect(Kind::Request);
        server.respond(&got, 0, b"");
    }
    let got = call("red");
    assert_eq!(got.map(|got| got.kind()), Some(Some(Kind::Response)));
}

#[test]
fn a_configured_service_may_be_offered_too() {
    let fake = FakeMoa::start();
    let policy = format!("{}\ntimeout_ms = 4321\nbalance.policy = \"round-robin\"", config::NO_HEALTH_CHECK);
    let agent =
        Agent::start(&format!("{}{}", config::service(DEMO, &[fake.address()], &policy), config::service(USER, &[], &policy)));
    let mut client = FramePeer::connect(agent.address(), &caller());
    assert_eq!(client.call(USER, b"").header.word, 303, "it is known, but nobody serves it");
    let mut server = FramePeer::connect(agent.address(), &service("s1", &[USER, DEMO]));
    client.request(USER, Flags::END_STREAM, b"");
    let call = server.expect(Kind::Request);
    assert!((1..=4321).contains(&call.header.word), "the service's own timeout: {}", call.header.word);
    server.respond(&call, 0, b"");
    client.expect(Kind::Response);
    // Both kinds of instances take turns.
    let mut redis = agent.connect();
    for _ in 0..4 {
        for _ in 0..2 {
            redis.send(command(&["GET", &echo("both")]));
        }
        let call = server.expect(Kind::Request);
        server.respond(&call, 0, br#"{"ec":0,"result":"framed"}"#);
        let replies = [redis.read(), redis.read()];
        let framed = replies.iter().filter(|reply| reply.text().contains("framed")).count();
        assert_eq!(framed, 1, "{replies:?}");
    }
    assert_eq!(fake.counts().calls, 4);
    drop(server);
    until_true("only the server to be left", || (0..4).all(|_| client.call(DEMO, echo("left").as_bytes()).header.word == 0));
    assert_eq!(client.call(USER, b"").header.word, 303);
}

#[test]
fn the_agent_port_leads_only_to_what_is_local() {
    let fake = FakeMoa::start();
    let elsewhere = TcpListener::bind(free_address()).expect("a port");
    elsewhere.set_nonblocking(false).expect("a listener that waits");
    let text = [
        TWO.to_owned(),
        config::peer("elsewhere", elsewhere.local_addr().expect("an address")),
        config::served_by("/service/away", &[], &["elsewhere"], ""),
        config::served_by(DEMO, &[fake.address()], &["elsewhere"], config::NO_HEALTH_CHECK),
    ]
    .concat();
    let agent = Agent::start(&text);
    // One tunnel of each worker.
    let mut others = [(); 2].map(|()| {
        let mut other = FramePeer::accepted(elsewhere.accept().expect("a tunnel").0);
        other.greet(&Hello::new(Role::Agent, "elsewhere", "e1", WIDE));
        assert_eq!(other.hello.as_ref().map(|hello| hello.role), Some(Role::Agent));
        other
    });
    let mut server = FramePeer::connect(agent.address(), &service("s1", &[USER]));
    let neighbour = Hello::new(Role::Agent, "neighbour", "n1", WIDE);
    let mut tunnel = FramePeer::connect(agent.tunnel_address(), &neighbour);
    let header = Header {
        flags: Flags::END_STREAM | Flags::VERIFIED,
        service: service_hash(USER.as_bytes(), b""),
        ..Header::new(Kind::Request)
    };
    tunnel.request_with(header, meta_of(USER).as_ref(), b"");
    let call = server.expect(Kind::Request);
    assert!(call.has(Flags::VERIFIED), "an agent's word counts");
    server.respond(&call, 0, b"");
    assert_eq!(tunnel.expect(Kind::Response).header.word, 0);
    for _ in 0..4 {
        assert_eq!(tunnel.call(DEMO, echo("x").as_bytes()).header.word, 0);
        let got = tunnel.call("/service/away", b"");
        assert_eq!((got.header.word, got.has(Flags::NOT_EXECUTED)), (303, true), "{}", got.error());
    }
    let mut redis = moa_tests::Client::connect(agent.tunnel_address());
    assert!(redis.get(&echo("redis")).text().contains("\"ec\":0"));
    others.iter_mut().for_each(FramePeer::expect_quiet);
    // Those of applications do go there.
    for worker in [0, 1] {
        let mut client = FramePeer::connect(agent.address(), &nth(caller(), worker));
        client.request("/service/away", Flags::END_STREAM, b"");
        let other =
            &mut others[..].iter_mut().find(|other| other.hello.as_ref().is_some_and(|hello| hello.connection == Some(worker)));
        let other = other.as_mut().expect("the worker's tunnel");
        let call = other.expect(Kind::Request);
        other.respond(&call, 0, b"");
        assert_eq!(client.expect(Kind::Response).header.word, 0);
    }
    let mut application = FramePeer::silent(agent.tunnel_address());
    application.write(&caller().encode().expect("a HELLO that fits"));
    application.expect_goaway(reason::REFUSED);
}

#[test]
fn the_unix_socket_speaks_both_protocols() {
    let fake = FakeMoa::start();
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("app.sock");
    let text = format!("{}{}", config::app_unix(&path, ""), config::service(DEMO, &[fake.address()], config::NO_HEALTH_CHECK));
    let agent = Agent::start(&text);
    let mut server = FramePeer::connect_unix(&path, &nth(service("s1", &[USER]), 1));
    let mut client = FramePeer::connect_unix(&path, &nth(caller(), 0));
    assert_eq!(client.call(DEMO, echo("unix").as_bytes()).header.word, 0);
    client.request(USER, Flags::END_STREAM, &[7; 60_000]);
    let call = server.expect(Kind::Request);
    assert_eq!(call.body, [7; 60_000]);
    server.respond(&call, 0, &[8; 60_000]);
    assert_eq!(client.expect(Kind::Response).body, [8; 60_000]);
    let mut redis = BufReader::new(UnixStream::connect(&path).expect("the agent listens"));
    redis.get_mut().write_all(&command(&["GET", &echo("redis")])).expect("the agent reads");
    let reply = read_reply(&mut redis).expect("a reply");
    assert!(reply.text().contains("redis"), "{}", reply.brief());
    drop(agent);
}
