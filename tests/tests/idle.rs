//! Idle connections: as many as the file limit allows. In a file of its own, as it takes most of this process's files.

use moa_tests::{
    Agent, Client, DEMO, FakeMoa, Judge,
    client::command,
    config,
    judge::Ask,
    machine::{memory_kib, raise_file_limit},
    seed, until,
};

/// One address has so many local ports for one peer, and others need some.
const PORTS: u64 = 25_000;

/// Files that this process needs for other things than clients.
const RESERVE: u64 = 400;

#[test]
fn as_many_idle_connections_as_the_file_limit_allows() {
    let limit = raise_file_limit();
    let fake = FakeMoa::start();
    let agent = Agent::start(&config::service(DEMO, &[fake.address()], config::NO_HEALTH_CHECK));
    let most = agent.json(&["status"])["app"]["connections_max"].as_u64().expect("connections_max");
    let wanted = (most - 1).min(limit - RESERVE).min(PORTS).min(seed::count(20_000, 60_000) as u64);
    assert!(wanted > limit / 2, "only {wanted} connections of a limit of {limit} files; the agent allows {most}");
    warm_up(&agent);
    let before = memory_kib(agent.pid(), "VmRSS");
    let mut clients: Vec<Client> = (0..wanted).map(|_| agent.connect()).collect();
    // Half of them were in use before they became idle.
    clients.iter_mut().step_by(2).for_each(Client::expect_usable);
    until("all connections to be taken", || (agent.json(&["status"])["app"]["connections"] == wanted).then_some(()));
    let idle = memory_kib(agent.pid(), "VmRSS");
    let each = (idle.saturating_sub(before)) as f64 / wanted as f64;
    println!("{wanted} idle connections: {before} KiB, then {idle} KiB: {each:.2} KiB each");
    assert!(each < 4.0, "an idle connection takes {each:.2} KiB");
    each_answers(&mut clients);
    let after = memory_kib(agent.pid(), "VmRSS");
    println!("after a call on each: {after} KiB: {:.2} KiB each", after.saturating_sub(before) as f64 / wanted as f64);
    assert_eq!(agent.json(&["status"])["app"]["refused"], 0);
    drop(clients);
    until("all connections to end", || (agent.json(&["status"])["app"]["connections"] == 0).then_some(()));
}

/// What the agent needs once, whoever calls: so that it does not count as a connection's.
fn warm_up(agent: &Agent) {
    let judge = Judge;
    let mut clients: Vec<Client> = (0..64).map(|_| agent.connect()).collect();
    each_answers(&mut clients);
    let ask = judge.ask(DEMO, 100);
    ask.expect_right(&clients[0].get(&ask.json));
    drop(clients);
    until("the connections to end", || (agent.json(&["status"])["app"]["connections"] == 0).then_some(()));
}

/// A call on each, some of them at the same time.
fn each_answers(clients: &mut [Client]) {
    let judge = Judge;
    for some in clients.chunks_mut(200) {
        let asks: Vec<Ask> = some.iter().map(|_| judge.ask(DEMO, 64)).collect();
        for (client, ask) in some.iter_mut().zip(&asks) {
            client.send(command(&["GET", &ask.json]));
        }
        for (client, ask) in some.iter_mut().zip(&asks) {
            ask.expect_right(&client.read());
        }
    }
}
