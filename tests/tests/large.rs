//! An answer of 100 MB, byte for byte, with small calls beside it.

use std::thread;

use moa_tests::{
    Agent, Answer, DEMO, FakeMoa, client::command, config, envelope, judge::pattern, load::Load, machine::memory_kib,
};

const LARGE: usize = 100 << 20;

#[test]
fn an_answer_of_100_mb() {
    let (fake, other) = (FakeMoa::start(), FakeMoa::start());
    let body = pattern(LARGE);
    let answer = Answer::bulk(&body);
    fake.script(move |_| answer.clone());
    let services = [
        config::service("/service/large", &[fake.address()], "timeout_ms = 60_000\nhealth = { check = \"off\" }"),
        config::service(DEMO, &[other.address()], config::NO_HEALTH_CHECK),
    ];
    let agent = Agent::start(&services.concat());
    let before = memory_kib(agent.pid(), "VmHWM");
    let load = Load::start(agent.address(), &[DEMO], 2);
    let mut client = agent.connect();
    for _ in 0..3 {
        let reply = client.get(&envelope("/service/large", "m", ""));
        assert!(reply.bulk() == body, "the answer is not what was sent");
    }
    let most = memory_kib(agent.pid(), "VmHWM");
    println!("three answers of 100 MB: {before} KiB, at most {most} KiB");
    assert!(most < before + (64 << 10), "the agent held an answer whole: {before} KiB grew to {most} KiB");
    load.await_calls(100);
    load.stop().expect_all_right();
}

#[test]
fn two_of_them_and_small_calls_on_one_connection() {
    let fake = FakeMoa::start();
    let body = pattern(LARGE);
    let answer = Answer::bulk(&body);
    fake.script(move |call| match call.method.as_str() {
        "large" => answer.clone(),
        _ => Answer::ok(&call.args[0]),
    });
    let policy = "timeout_ms = 60_000\nhealth = { check = \"off\" }";
    let agent = Agent::start(&config::service(DEMO, &[fake.address()], policy));
    let mut client = agent.connect();
    let large = command(&["GET", &envelope(DEMO, "large", "")]);
    let small = command(&["GET", &moa_tests::echo("small")]);
    client.send([&small[..], &large, &small, &large, &small].concat());
    let reader = thread::spawn(move || {
        for place in 0..5 {
            let reply = client.read();
            if place % 2 == 0 {
                assert!(reply.text().contains("\"result\":\"small\""), "{}", reply.brief());
            } else {
                assert!(reply.bulk() == body, "the answer in place {place} is not what was sent");
            }
        }
    });
    reader.join().expect("the reader");
}
