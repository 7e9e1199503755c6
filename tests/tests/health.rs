//! Health checks take an instance out of traffic after the threshold, and bring it back.

use moa_tests::{Agent, DEMO, FakeMoa, Judge, config, echo, expect_mesh_error, fake::demo, until};

#[test]
fn an_instance_that_does_not_answer_ping_leaves_traffic_and_comes_back() {
    let (ill, well) = (FakeMoa::start(), FakeMoa::start());
    let agent = Agent::start(&config::service(DEMO, &[ill.address(), well.address()], config::QUICK_HEALTH_CHECK));
    let (mut client, judge) = (agent.connect(), Judge);
    let mut call = |times: usize| {
        for _ in 0..times {
            let ask = judge.ask(DEMO, 20);
            ask.expect_right(&client.get(&ask.json));
        }
    };
    call(10);
    assert!(ill.counts().calls > 0 && well.counts().calls > 0);
    for _ in 0..2 {
        ill.answer_pings(false);
        agent.await_health(DEMO, ill.address(), false);
        let before = ill.counts().calls;
        call(20);
        assert_eq!(ill.counts().calls, before, "an instance that is out of traffic got calls");
        ill.answer_pings(true);
        agent.await_health(DEMO, ill.address(), true);
        call(20);
        assert!(ill.counts().calls > before, "an instance that is back gets no calls");
    }
}

#[test]
fn one_bad_answer_below_the_threshold_changes_nothing() {
    let fake = FakeMoa::start();
    let policy = "health = { check = \"ping\", interval_ms = 20, timeout_ms = 50, unhealthy_after = 1000 }";
    let agent = Agent::start(&config::service(DEMO, &[fake.address()], policy));
    fake.answer_pings(false);
    let pings = fake.counts().pings;
    fake.await_counts("five checks in vain", |counts| counts.pings > pings + 5);
    let instance = agent.instance(DEMO, fake.address()).expect("the instance");
    assert_eq!(instance["healthy"], true, "{instance}");
    assert_eq!(agent.connect().call(&echo("still"))["result"], "still");
}

#[test]
fn a_service_without_a_healthy_instance_says_so() {
    let fake = FakeMoa::start();
    let agent = Agent::start(&config::service(DEMO, &[fake.address()], config::QUICK_HEALTH_CHECK));
    fake.down(moa_tests::fake::End::Reset);
    agent.await_health(DEMO, fake.address(), false);
    let instance = agent.instance(DEMO, fake.address()).expect("the instance");
    assert!(instance["reason"].as_str().is_some_and(|reason| reason.to_lowercase().contains("refused")), "{instance}");
    let text = expect_mesh_error(&agent, &agent.connect().get(&echo("x")), 303, DEMO);
    println!("{text}");
    fake.up();
    agent.await_health(DEMO, fake.address(), true);
    assert_eq!(agent.connect().call(&echo("back"))["result"], "back");
}

#[test]
fn a_call_can_be_the_check() {
    let fake = FakeMoa::start();
    let check = r#"{\"action\":\"/service/demo\",\"params\":{\"m\":\"nop\",\"args\":[]}}"#;
    let policy = format!(
        "health = {{ check = \"call\", call = \"{check}\", interval_ms = 50, timeout_ms = 200, unhealthy_after = 2, healthy_after = 2 }}"
    );
    let agent = Agent::start(&config::service(DEMO, &[fake.address()], &policy));
    fake.await_counts("a check", |counts| counts.calls > 2);
    agent.await_health(DEMO, fake.address(), true);
    fake.script(|call| match call.method.as_str() {
        "nop" => moa_tests::Answer::envelope(300, "ill", "null"),
        _ => demo(call),
    });
    agent.await_health(DEMO, fake.address(), false);
    fake.script(demo);
    agent.await_health(DEMO, fake.address(), true);
    assert_eq!(fake.counts().pings, 0);
}

#[test]
fn checks_that_are_off_send_nothing() {
    let fake = FakeMoa::start();
    let agent = Agent::start(&config::service(DEMO, &[fake.address()], config::NO_HEALTH_CHECK));
    for _ in 0..20 {
        assert_eq!(agent.connect().call(&echo("x"))["result"], "x");
    }
    until("the counts to be whole", || (fake.counts().calls == 20).then_some(()));
    assert_eq!(fake.counts().pings, 0);
}
