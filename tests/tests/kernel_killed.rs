//! An agent that is killed, and the next one, which finds what it left in the kernel.

use std::sync::Arc;

use moa_tests::{
    Agent, Answer, DEMO, FakeMoa, Judge,
    client::command,
    config, envelope,
    judge::pattern,
    kernel::{self, Look, links_of, program_exists, receive_memory},
    mixed::{self, KINDS, Mixed},
    seed,
    wait::until_true,
};

const LARGE: usize = 1 << 20;

/// A service with answers of all sizes, and an agent that publishes what it has read every 256 KiB.
fn start() -> (FakeMoa, Agent, Arc<[u8]>) {
    let fake = FakeMoa::start();
    let body: Arc<[u8]> = pattern(LARGE).into();
    let sent = body.clone();
    fake.script(move |call| if call.method == "large" { Answer::bulk(&sent) } else { mixed::service(call) });
    let section = config::service(DEMO, &[fake.address()], config::NO_HEALTH_CHECK);
    let agent = kernel::start(&format!("[kernel]\nleg_bytes_max = {}\n{section}", LARGE * 2));
    (fake, agent, body)
}

/// The counters of one process go on where those of the other stopped.
fn expect_adopted(before: &Look, after: &Look) {
    assert_eq!(after.program("stub"), before.program("stub"), "another stub");
    assert_eq!(after.kept_maps(), before.kept_maps(), "other maps");
    assert!(after.kept_maps().len() >= 10, "{:?}", after.kept_maps());
    let way = after.since(before);
    assert!(way.refusals.is_empty(), "{way:?}");
    let (was, is) = (before.program("established"), after.program("established"));
    assert_eq!(links_of(is), 1, "the program {is} has other than one link");
    until_true("the programs of the killed agent to go", || !program_exists(was) && !program_exists(before.program("leg")));
}

fn expect_calls_redirected(agent: &Agent) {
    let before = Look::at(agent);
    let mut client = agent.connect();
    for _ in 0..10 {
        let ask = Judge.ask(DEMO, 2000);
        ask.expect_right(&client.get(&ask.json));
    }
    Look::at(agent).since(&before).expect_kernel_only();
}

#[test]
fn under_load_again_and_again() {
    let (fake, mut agent, _) = start();
    for _ in 0..seed::count(10, 100) {
        let load = Mixed::start(agent.address(), DEMO, &[KINDS, KINDS].concat());
        load.await_rounds(3);
        until_true("something to be published of what was read", || Look::at(&agent).entries("READS") > 0);
        let before = Look::at(&agent);
        agent.kill();
        for end in load.await_ends() {
            assert!(end.is_err(), "a caller went on: {end:?}");
        }
        fake.await_counts("its connections to the service to end", |counts| counts.open == 0);
        agent.start_again();
        let after = Look::at(&agent);
        expect_adopted(&before, &after);
        assert_eq!((after.entries("READS"), after.entries("LISTENERS")), (0, 2), "{after:?}");
        until_true("the sockets of the killed agent to leave the map", || Look::at(&agent).enrolled == 0);
        expect_calls_redirected(&agent);
    }
}

#[test]
fn while_an_application_has_not_read_its_answer() {
    let (_fake, mut agent, body) = start();
    let mut client = agent.connect();
    let (own, peer) = (client.stream().local_addr().expect("an address"), agent.address());
    let first = Look::at(&agent);
    client.send(command(&["GET", &envelope(DEMO, "large", "")]));
    until_true("the answer to wait in the application's socket", || {
        receive_memory(own, peer).is_some_and(|bytes| bytes > LARGE as u64)
    });
    let before = Look::at(&agent);
    before.since(&first).expect_kernel_only();
    agent.kill();
    agent.start_again();
    expect_adopted(&before, &Look::at(&agent));
    assert!(client.read().bulk() == &body[..], "the answer is not what was sent");
    client.expect_closed();
    expect_calls_redirected(&agent);
}

#[test]
fn while_it_was_turned_off() {
    let (_fake, mut agent, _) = start();
    expect_calls_redirected(&agent);
    agent.json(&["kernel", "off"]);
    let before = Look::at(&agent);
    agent.kill();
    agent.start_again();
    let after = Look::at(&agent);
    assert!(after.status.on, "what an operator said holds for one process: {:?}", after.status);
    expect_adopted(&before, &after);
    expect_calls_redirected(&agent);
}
