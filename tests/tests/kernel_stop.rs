//! What a graceful stop leaves in the kernel: nothing, unless somebody has not read everything. And how it is removed then.

use std::{path::Path, process::ExitStatus, sync::Arc};

use moa_tests::{
    Agent, Answer, Client, DEMO, FakeMoa, Judge, PATIENCE,
    client::command,
    config, envelope,
    judge::pattern,
    kernel::{self, Look, left_of, receive_memory},
    mixed::{KINDS, Mixed, service},
    wait::until_true,
};
use nix::sys::signal::Signal;

const LARGE: usize = 1 << 20;

struct Bed {
    _fake: FakeMoa,
    agent: Agent,
    body: Arc<[u8]>,
}

fn start() -> Bed {
    let fake = FakeMoa::start();
    let body: Arc<[u8]> = pattern(LARGE).into();
    let sent = body.clone();
    fake.script(move |call| if call.method == "large" { Answer::bulk(&sent) } else { service(call) });
    let agent = kernel::start(&config::service(DEMO, &[fake.address()], config::NO_HEALTH_CHECK));
    Bed { _fake: fake, agent, body }
}

impl Bed {
    /// An application in whose socket a whole answer waits, redirected, and a look at the agent that sent it.
    fn unread(&self) -> (Client, Look) {
        let mut client = self.agent.connect();
        let (own, peer) = (client.stream().local_addr().expect("an address"), self.agent.address());
        let before = Look::at(&self.agent);
        client.send(command(&["GET", &envelope(DEMO, "large", "")]));
        until_true("the answer to wait in the application's socket", || {
            receive_memory(own, peer).is_some_and(|bytes| bytes > LARGE as u64)
        });
        let look = Look::at(&self.agent);
        look.since(&before).expect_kernel_only();
        (client, look)
    }

    fn expect_calls(&self, client: &mut Client) {
        let ask = Judge.ask(DEMO, 100);
        ask.expect_right(&client.get(&ask.json));
    }

    fn uninstall(&self, more: &[&str]) -> (ExitStatus, String, String) {
        let outcome = self.agent.verb(&[&["kernel", "uninstall"], more].concat());
        (outcome.status, outcome.stdout, outcome.stderr)
    }
}

fn expect_no_trace(look: &Look) {
    assert!(!look.pins.as_deref().expect("pins").exists(), "pins are left");
    // The kernel frees them some time after the last who holds them has gone.
    until_true("programs and maps to go", || left_of(look).is_empty());
}

fn pinned(look: &Look) -> bool {
    look.pins.as_deref().is_some_and(Path::exists)
}

#[test]
fn nothing_is_left() {
    let mut bed = start();
    let mut client = bed.agent.connect();
    bed.expect_calls(&mut client);
    drop(client);
    let look = Look::at(&bed.agent);
    assert!(pinned(&look) && look.redirected() > 0, "{look:?}");
    bed.agent.stop();
    expect_no_trace(&look);
}

#[test]
fn nothing_is_left_while_an_application_stays_connected() {
    let mut bed = start();
    let mut idle = bed.agent.connect();
    bed.expect_calls(&mut idle);
    let look = Look::at(&bed.agent);
    bed.agent.stop();
    assert!(!pinned(&look), "pins are left");
    idle.expect_closed();
    drop(idle);
    expect_no_trace(&look);
}

#[test]
fn nothing_is_left_after_a_stop_under_load() {
    let mut bed = start();
    let load = Mixed::start(bed.agent.address(), DEMO, &KINDS);
    load.await_rounds(5);
    let look = Look::at(&bed.agent);
    bed.agent.stop();
    load.await_ends();
    expect_no_trace(&look);
}

#[test]
fn the_pins_stay_until_an_application_has_read_its_answer() {
    let mut bed = start();
    let (mut client, look) = bed.unread();
    bed.agent.stop();
    assert!(pinned(&look), "what it has not read would be lost");
    assert!(bed.agent.log().contains("the kernel programs stay until the next start"), "{}", bed.agent.log());
    for more in [&["--within-ms", "20"][..], &["--within-ms", "20", "--json"]] {
        let (status, _, said) = bed.uninstall(more);
        assert!(!status.success() && said.contains("have not read what was sent to them") && said.contains("--force"), "{said}");
        assert!(pinned(&look), "it has refused, and removed all the same");
    }
    assert!(client.read().bulk() == &bed.body[..], "the answer is not what was sent");
    client.expect_closed();
    let (status, said, _) = bed.uninstall(&[]);
    assert!(status.success() && said.contains("nothing is left"), "{said}");
    drop(client);
    expect_no_trace(&look);
    let (status, said, _) = bed.uninstall(&[]);
    assert!(status.success() && said.contains("nothing to remove"), "{said}");
}

#[test]
fn uninstall_waits_until_an_application_has_read_its_answer() {
    let mut bed = start();
    let (mut client, look) = bed.unread();
    bed.agent.stop();
    let within = PATIENCE.as_millis().to_string();
    std::thread::scope(|scope| {
        let uninstall = scope.spawn(|| bed.uninstall(&["--within-ms", &within]));
        until_true("it to stop what enrols", || !look.pins.as_deref().expect("pins").join("established").exists());
        assert!(!uninstall.is_finished() && pinned(&look));
        assert!(client.read().bulk() == &bed.body[..], "the answer is not what was sent");
        let (status, _, said) = uninstall.join().expect("the verb");
        assert!(status.success(), "{said}");
    });
    client.expect_closed();
    drop(client);
    expect_no_trace(&look);
}

#[test]
fn the_next_start_adopts_what_stayed() {
    let mut bed = start();
    let (mut client, before) = bed.unread();
    bed.agent.stop();
    bed.agent.start_again();
    let after = Look::at(&bed.agent);
    assert_eq!((after.program("stub"), after.kept_maps()), (before.program("stub"), before.kept_maps()));
    assert!(after.redirected() >= before.redirected());
    let mut new = bed.agent.connect();
    bed.expect_calls(&mut new);
    Look::at(&bed.agent).since(&after).expect_kernel_only();
    assert!(client.read().bulk() == &bed.body[..], "the answer is not what was sent");
    client.expect_closed();
    drop((client, new));
    bed.agent.stop();
    expect_no_trace(&after);
}

#[test]
fn force_does_not_wait() {
    let mut bed = start();
    let (mut client, look) = bed.unread();
    let (own, peer) = (client.stream().local_addr().expect("an address"), bed.agent.address());
    bed.agent.stop();
    let (status, said, _) = bed.uninstall(&["--force", "--json"]);
    assert!(status.success());
    assert_eq!(serde_json::from_str::<serde_json::Value>(&said).expect("JSON"), serde_json::json!({ "removed": true }));
    assert!(!pinned(&look));
    until_true("what it has not read to be dropped", || receive_memory(own, peer) < Some(LARGE as u64));
    client.expect_closed();
    drop(client);
    expect_no_trace(&look);
}

#[test]
fn uninstall_leaves_a_running_agent_alone() {
    let mut bed = start();
    let mut client = bed.agent.connect();
    bed.expect_calls(&mut client);
    let look = Look::at(&bed.agent);
    for more in [&[][..], &["--force"], &["--json"]] {
        let (status, _, said) = bed.uninstall(more);
        assert!(!status.success() && said.contains(bed.agent.name()) && said.contains("runs"), "{said}");
    }
    bed.expect_calls(&mut client);
    Look::at(&bed.agent).since(&look).expect_kernel_only();
    bed.agent.kill();
    let (status, said, _) = bed.uninstall(&["--json"]);
    assert!(status.success() && said.contains(r#""removed":true"#), "{said}");
    drop(client);
    expect_no_trace(&look);
    let (status, said, _) = bed.uninstall(&["--json"]);
    assert!(status.success() && said.contains(r#""removed":false"#), "{said}");
}

#[test]
fn a_second_signal_cuts_what_is_in_flight_and_leaves_nothing() {
    let mut bed = start();
    let load = Mixed::start(bed.agent.address(), DEMO, &KINDS);
    load.await_rounds(2);
    let look = Look::at(&bed.agent);
    bed.agent.signal(Signal::SIGTERM);
    bed.agent.signal(Signal::SIGINT);
    bed.agent.wait(PATIENCE);
    load.await_ends();
    expect_no_trace(&look);
}
