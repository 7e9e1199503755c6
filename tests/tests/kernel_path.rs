//! Calls go through the kernel: every byte, in both directions, on both legs, and the agent says so.

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::Command,
};

use moa_tests::{
    Agent, Answer, Client, DEMO, FakeMoa, Judge, Reply,
    client::command,
    config, echo, external,
    judge::pattern,
    kernel::{self, Look, Way},
    machine::{free_address_v6, release_address},
    seed::{self, rng},
    wait::until_true,
};
use rand::RngExt;

/// A health check.
const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";
/// That of `echo("again")`.
const ANSWER: &[u8] = br#"{"ec":0,"em":"\u003cnil\u003e","result":"again"}"#;

fn section(fake: &FakeMoa, policy: &str) -> String {
    config::service(DEMO, &[fake.address()], &format!("{}\n{policy}", config::NO_HEALTH_CHECK))
}

/// Calls with texts of all sizes, one after the other; each gets its answer.
fn call_often(client: &mut Client, calls: usize) {
    let mut rng = rng("sizes");
    for _ in 0..calls {
        let size = [20, 300, 5_000, 32_000][rng.random_range(0..4)];
        let ask = Judge.ask(DEMO, size);
        ask.expect_right(&client.get(&ask.json));
    }
}

/// What went the whole way: requests to the agent and on to the service, answers to the agent and on to the application.
fn expect_all_redirected(agent: &Agent, fake: &FakeMoa, before: &Look, clients: &[Client], enrolled: u64) {
    let (sent, received) = clients.iter().map(Client::traffic).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    let way = Look::at(agent).since(before);
    let counts = fake.counts();
    // The agent of another test, whose service had this port before, may still check its health here; this one's does not.
    let asked = (counts.bytes - counts.pings * PING.len()) as u64;
    let expected = Way { to_agent: sent + received, from_agent: asked + received, enrolled, ..Way::default() };
    assert_eq!(way, expected, "sent {sent}, received {received}");
}

#[test]
fn every_byte_of_every_call_is_redirected() {
    let fake = FakeMoa::start();
    let agent = kernel::start(&section(&fake, ""));
    let before = Look::at(&agent);
    let mut client = agent.connect();
    call_often(&mut client, 500);
    expect_all_redirected(&agent, &fake, &before, &[client], 4);
    let look = Look::at(&agent);
    assert!(look.status.attached && look.status.on && look.status.reason.is_none(), "{:?}", look.status);
    assert!(look.status.share > 0.999 && look.status.redirected_bytes == look.redirected(), "{:?}", look.status);
    assert!(look.probes.iter().all(|probe| probe.ok) && look.probes.len() > 4, "{:?}", look.probes);
    assert_eq!(look.bytes_total, look.redirected());
}

#[test]
fn over_ipv6_too() {
    let fake = FakeMoa::builder().v6().start();
    let listen = free_address_v6();
    let agent = kernel::prepare(&section(&fake, "")).listen_at(listen).start();
    let before = Look::at(&agent);
    let mut client = agent.connect();
    assert!(client.stream().peer_addr().is_ok_and(|peer| peer.is_ipv6()));
    call_often(&mut client, 100);
    expect_all_redirected(&agent, &fake, &before, &[client], 4);
    release_address(listen);
}

#[test]
fn an_application_of_ipv6_that_calls_an_address_of_ipv4() {
    let fake = FakeMoa::start();
    let agent = kernel::start(&section(&fake, ""));
    let before = Look::at(&agent);
    let mapped = Ipv4Addr::LOCALHOST.to_ipv6_mapped();
    let mut client = Client::connect(SocketAddr::from((mapped, agent.address().port())));
    assert!(client.stream().local_addr().is_ok_and(|own| own.is_ipv6()));
    call_often(&mut client, 100);
    expect_all_redirected(&agent, &fake, &before, &[client], 4);
}

#[test]
fn listeners_on_every_address() {
    for wildcard in ["0.0.0.0", "[::]"] {
        let fake = FakeMoa::start();
        let port = free_address_v6().port();
        let config = section(&fake, "");
        let agent = kernel::prepare(&config).listen_at(format!("{wildcard}:{port}").parse().expect("an address")).start();
        let before = Look::at(&agent);
        let mut client = Client::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        call_often(&mut client, 50);
        expect_all_redirected(&agent, &fake, &before, &[client], 4);
        drop(agent);
        release_address(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    }
}

#[test]
fn pipelines_on_both_legs() {
    let fake = FakeMoa::builder().in_order().start();
    let agent = kernel::start(&section(&fake, "pipelined = true"));
    let before = Look::at(&agent);
    let mut clients: Vec<Client> = (0..4).map(|_| agent.connect()).collect();
    for _ in 0..5 {
        for client in &mut clients {
            let asks: Vec<_> = (0..50).map(|_| Judge.ask(DEMO, 100)).collect();
            client.send(asks.iter().flat_map(|ask| command(&["GET", &ask.json])).collect::<Vec<u8>>());
            for ask in asks {
                ask.expect_right(&client.read());
            }
        }
    }
    let accepted = fake.counts().accepted as u64;
    expect_all_redirected(&agent, &fake, &before, &clients, 2 * (4 + accepted));
}

#[test]
fn a_hundred_connections_come_and_go() {
    let fake = FakeMoa::start();
    let agent = kernel::start(&section(&fake, ""));
    let before = Look::at(&agent);
    let mut clients: Vec<Client> = (0..100).map(|_| agent.connect()).collect();
    clients.iter_mut().for_each(|client| call_often(client, 5));
    let backends = fake.counts().accepted as u64;
    expect_all_redirected(&agent, &fake, &before, &clients, 2 * (100 + backends));
    assert_eq!(Look::at(&agent).enrolled, 2 * (100 + backends));
    drop(clients);
    until_true("the applications' sockets to leave the map", || Look::at(&agent).enrolled == 2 * backends);
}

#[test]
fn redis_cli_and_redis_benchmark() {
    let fake = FakeMoa::start();
    let agent = kernel::start(&section(&fake, ""));
    let before = Look::at(&agent);
    let port = agent.address().port().to_string();
    let said = external::run(Command::new("redis-cli").args(["-p", &port, "GET", &echo("typed")]));
    assert!(said.contains("typed"), "{said}");
    let mut benchmark = Command::new("redis-benchmark");
    benchmark.args(["-p", &port, "-n", "5000", "-c", "20", "-P", "8", "--csv", "-e", "GET", &echo("hi")]);
    external::run(&mut benchmark);
    let way = Look::at(&agent).since(&before);
    way.expect_kernel_only();
    assert!(fake.counts().calls > 5_000 && way.from_agent > fake.counts().bytes as u64, "{way:?}, {:?}", fake.counts());
}

#[test]
fn many_calls_on_one_connection_never_fall_back() {
    let fake = FakeMoa::start();
    let agent = kernel::start(&section(&fake, ""));
    let before = Look::at(&agent);
    let mut client = agent.connect();
    repeat(&mut client, &echo("again"), &Reply::Bulk(ANSWER.to_vec()), seed::count(30_000, 1_000_000));
    expect_all_redirected(&agent, &fake, &before, &[client], 4);
}

#[test]
fn many_bytes_on_one_connection_never_fall_back() {
    const LARGE: usize = 1 << 20;
    let fake = FakeMoa::start();
    let body = pattern(LARGE);
    let answer = Answer::bulk(&body);
    fake.script(move |_| answer.clone());
    let agent = kernel::start(&section(&fake, ""));
    let before = Look::at(&agent);
    let mut client = agent.connect();
    repeat(&mut client, &echo("large"), &Reply::Bulk(body), seed::count(500, 10_000));
    expect_all_redirected(&agent, &fake, &before, &[client], 4);
}

fn repeat(client: &mut Client, json: &str, answer: &Reply, times: usize) {
    let request = command(&["GET", json]);
    for _ in 0..times {
        client.send(&request);
        let reply = client.read();
        assert!(reply == *answer, "{}", reply.brief());
    }
}
