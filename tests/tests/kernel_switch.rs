//! `moa kernel off` and `on`, in the middle of everything: every answer stays exact and in its place.

use std::sync::Arc;

use moa_tests::{
    Agent, Answer, Client, DEMO, FakeMoa, Gate, Judge,
    client::command,
    config,
    judge::{Ask, pattern},
    kernel::{self, Look, receive_memory},
    mixed::{self, KINDS, Kind, Mixed},
    seed::{self, rng},
    wait::until_true,
};
use rand::RngExt;

const OFF: &str = "turned-off";

fn start(workers: usize) -> (FakeMoa, Agent) {
    let fake = FakeMoa::start();
    fake.script(mixed::service);
    let section = config::service(DEMO, &[fake.address()], config::NO_HEALTH_CHECK);
    // One worker has one connection to the service for one call at a time.
    let agent = kernel::start(&format!("[agent]\nworkers = {workers}\n{section}"));
    (fake, agent)
}

fn switch(agent: &Agent, to: &str) -> Look {
    let said = agent.json(&["kernel", to]);
    assert_eq!(said["status"]["on"], to == "on", "{said}");
    Look::at(agent)
}

fn call(client: &mut Client, times: usize) {
    for _ in 0..times {
        let ask = Judge.ask_repeated(DEMO, 500, 3);
        ask.expect_right(&client.get(&ask.json));
    }
}

#[test]
fn what_is_open_stays_and_what_comes_is_enrolled() {
    let (fake, agent) = start(1);
    let mut old = agent.connect();
    let first = Look::at(&agent);
    call(&mut old, 10);
    Look::at(&agent).since(&first).expect_kernel_only();

    let off = switch(&agent, "off");
    call(&mut old, 10);
    let mut refused = agent.connect();
    call(&mut refused, 10);
    let way = Look::at(&agent).since(&off);
    way.expect_tcp_only();
    assert!(way.tcp > 0 && way.fallbacks.keys().all(|why| why == OFF) && way.fallbacks[OFF] >= 3, "{way:?}");
    assert_eq!(way.refusals.get(OFF), Some(&2), "{way:?}");

    let on = switch(&agent, "on");
    call(&mut old, 10);
    call(&mut refused, 10);
    let way = Look::at(&agent).since(&on);
    way.expect_tcp_only();
    assert!(way.tcp > 0 && way.fallbacks.is_empty(), "{way:?}");

    let (on, bytes) = (Look::at(&agent), fake.counts().bytes);
    let mut new = agent.connect();
    call(&mut new, 10);
    let way = Look::at(&agent).since(&on);
    // The connection to the service is an old one.
    assert_eq!((way.to_agent, way.from_agent), new.traffic());
    assert_eq!((way.tcp, way.enrolled), ((fake.counts().bytes - bytes) as u64, 2), "{way:?}");
}

#[test]
fn off_and_on_again_under_load() {
    let (_fake, agent) = start(2);
    let first = Look::at(&agent);
    let load = Mixed::start(agent.address(), DEMO, &[KINDS, KINDS].concat());
    load.await_rounds(5);
    assert!(Look::at(&agent).since(&first).from_agent > 1 << 20);
    switch(&agent, "off");
    // Whoever was in the middle of a message has ended it.
    load.await_rounds(2);
    let off = Look::at(&agent);
    load.await_rounds(10);
    let way = Look::at(&agent).since(&off);
    way.expect_tcp_only();
    assert!(way.tcp > 1 << 20, "{way:?}");
    let on = switch(&agent, "on");
    load.await_rounds(5);
    assert!(load.stop() > 0);
    let way = Look::at(&agent).since(&on);
    assert!(way.tcp > 1 << 20 && way.fallbacks.keys().all(|why| why != OFF), "{way:?}");
    let after = Look::at(&agent);
    call(&mut agent.connect(), 10);
    assert!(Look::at(&agent).since(&after).to_agent > 0);
}

#[test]
fn flipped_at_random_under_load() {
    let (_fake, agent) = start(2);
    let mut rng = rng("flipped_at_random_under_load");
    let first = Look::at(&agent);
    let kinds = KINDS.map(|kind| Kind { rounds_per_connection: rng.random_range(3..20), ..kind });
    let load = Mixed::start(agent.address(), DEMO, &kinds);
    for _ in 0..seed::count(15, 500) {
        switch(&agent, "off");
        load.await_rounds(rng.random_range(0..4));
        switch(&agent, "on");
        load.await_rounds(rng.random_range(0..4));
    }
    let calls = load.stop();
    let way = Look::at(&agent).since(&first);
    println!("{calls} calls: {way:?}");
    assert!(way.to_agent > 0 && way.from_agent > 0 && way.tcp > 0 && way.fallbacks[OFF] > 0, "{way:?}");
}

#[test]
fn a_pipeline_whose_answers_come_after_the_switch() {
    let fake = FakeMoa::builder().in_order().start();
    let gate = Gate::closed();
    let own = gate.clone();
    fake.script(move |call| mixed::service(call).at(&own));
    let policy = format!("pipelined = true\n{}", config::NO_HEALTH_CHECK);
    let agent = kernel::start(&config::service(DEMO, &[fake.address()], &policy));
    let mut client = agent.connect();
    let asks: Vec<Ask> = (0..50).map(|_| Judge.ask(DEMO, 1000)).collect();
    client.send(asks.iter().flat_map(|ask| command(&["GET", &ask.json])).collect::<Vec<u8>>());
    fake.await_in_flight(50);
    let off = switch(&agent, "off");
    gate.open();
    for ask in asks {
        ask.expect_right(&client.read());
    }
    let way = Look::at(&agent).since(&off);
    way.expect_tcp_only();
    assert!(way.tcp > 50_000, "{way:?}");
}

#[test]
fn an_answer_that_waits_is_read_before_what_comes_after_it() {
    const LARGE: usize = 1 << 20;
    let fake = FakeMoa::start();
    let body: Arc<[u8]> = pattern(LARGE).into();
    let sent = body.clone();
    fake.script(move |call| if call.method == "large" { Answer::bulk(&sent) } else { mixed::service(call) });
    let agent = kernel::start(&config::service(DEMO, &[fake.address()], config::NO_HEALTH_CHECK));
    let mut client = agent.connect();
    let (own, peer) = (client.stream().local_addr().expect("an address"), agent.address());
    client.send(command(&["GET", &moa_tests::envelope(DEMO, "large", "")]));
    until_true("the answer to wait in the application's socket", || {
        receive_memory(own, peer).is_some_and(|bytes| bytes > LARGE as u64)
    });
    let off = switch(&agent, "off");
    let ask = Judge.ask(DEMO, 100);
    client.send(command(&["GET", &ask.json]));
    fake.await_counts("the second call", |counts| counts.calls == 2 && counts.in_flight == 0);
    let way = Look::at(&agent).since(&off);
    way.expect_tcp_only();
    assert!(client.read().bulk() == &body[..], "the answer that waited is not what was sent");
    ask.expect_right(&client.read());
    let way = Look::at(&agent).since(&off);
    way.expect_tcp_only();
    assert!(way.tcp > 0 && way.fallbacks[OFF] >= 3, "{way:?}");
}
