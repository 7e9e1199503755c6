//! Others on the same machine: a second agent, one agent behind another, and whoever has nothing to do with any. And
//! applications in cgroups below the one where the programs are.

use std::{fs, path::PathBuf, process::Command};

use moa_tests::{
    Agent, Client, DEMO, FakeMoa, Judge,
    client::command,
    config, external,
    kernel::{self, Look, Way},
    mixed::{self, KINDS, Kind, Mixed},
    seed::{self, rng},
};
use rand::RngExt;

/// What never waits as long as the bound is, however slow a reader is.
const SMALL: [Kind; 3] = [KINDS[0], KINDS[1], KINDS[2]];

fn service() -> FakeMoa {
    let fake = FakeMoa::start();
    fake.script(mixed::service);
    fake
}

fn section(address: std::net::SocketAddr) -> String {
    config::service(DEMO, &[address], config::NO_HEALTH_CHECK)
}

fn call(client: &mut Client, calls: usize) {
    for _ in 0..calls {
        let ask = Judge.ask_repeated(DEMO, 1_000, 3);
        ask.expect_right(&client.get(&ask.json));
    }
}

/// The second one calls the service, and is called by the first one. Whichever was there first.
fn chain(fake: &FakeMoa, near_first: bool) -> (Agent, Agent) {
    let far = kernel::prepare(&section(fake.address()));
    let near = kernel::prepare(&section(far.address()));
    if near_first {
        let near = near.start();
        (near, far.start())
    } else {
        let far = far.start();
        (near.start(), far)
    }
}

#[test]
fn one_agent_calls_through_another() {
    for near_first in [true, false] {
        let fake = service();
        let (near, far) = chain(&fake, near_first);
        let before = (Look::at(&near), Look::at(&far));
        let mut client = near.connect();
        call(&mut client, 100);
        let (sent, received) = client.traffic();
        let (at_near, at_far) = (Look::at(&near).since(&before.0), Look::at(&far).since(&before.1));
        println!("near first: {near_first}; near: {at_near:?}, far: {at_far:?}");
        assert!(at_near.to_agent >= sent && at_near.from_agent >= received, "{at_near:?}");
        assert!(at_far.to_agent >= received && at_far.from_agent >= fake.counts().bytes as u64, "{at_far:?}");
        // All three legs are redirected. The one between the agents is that of whoever was attached first.
        let all = [&at_near, &at_far].map(|way| way.to_agent + way.from_agent).iter().sum::<u64>();
        assert_eq!((all, at_near.tcp + at_far.tcp), (3 * (sent + received), 0), "{at_near:?}, {at_far:?}");
        assert_eq!((at_near.enrolled, at_far.enrolled), if near_first { (4, 2) } else { (2, 4) });
    }
}

#[test]
fn one_agent_calls_through_another_while_both_are_switched() {
    let fake = service();
    let mut rng = rng("one_agent_calls_through_another_while_both_are_switched");
    let (near, far) = chain(&fake, rng.random());
    let before = Look::at(&near);
    let kinds = KINDS.map(|kind| Kind { rounds_per_connection: rng.random_range(3..20), ..kind });
    let load = Mixed::start(near.address(), DEMO, &kinds);
    for _ in 0..seed::count(10, 200) {
        let agent = if rng.random() { &near } else { &far };
        agent.json(&["kernel", if rng.random() { "on" } else { "off" }]);
        load.await_rounds(rng.random_range(0..3));
    }
    near.json(&["kernel", "on"]);
    load.await_rounds(2);
    println!("{} calls", load.stop());
    call(&mut near.connect(), 10);
    let way = Look::at(&near).since(&before);
    assert!(way.to_agent > 0 && way.from_agent > 0, "{way:?}");
}

#[test]
fn agents_come_and_go_beside_one_that_works() {
    let (fake, other) = (service(), service());
    let agent = kernel::start(&section(fake.address()));
    let before = Look::at(&agent);
    let load = Mixed::start(agent.address(), DEMO, &SMALL);
    for round in 0..seed::count(5, 50) {
        let mut neighbour = kernel::start(&section(other.address()));
        let first = Look::at(&neighbour);
        call(&mut neighbour.connect(), 10);
        Look::at(&neighbour).since(&first).expect_kernel_only();
        load.await_rounds(1);
        if round % 2 == 0 {
            neighbour.stop();
        } else {
            neighbour.kill();
        }
        drop(neighbour);
        load.await_rounds(1);
    }
    assert!(load.stop() > 0);
    Look::at(&agent).since(&before).expect_kernel_only();
}

#[test]
fn bystanders_are_left_alone() {
    let (fake, stranger) = (service(), service());
    let agent = kernel::start(&section(fake.address()));
    call(&mut agent.connect(), 10);
    let before = Look::at(&agent);
    // Also those who call the agent's service themselves.
    let loads = [&fake, &stranger].map(|server| Mixed::start(server.address(), DEMO, &[KINDS[0], KINDS[2]]));
    for load in loads {
        load.await_rounds(20);
        assert!(load.stop() > 0);
    }
    let mut direct = Client::connect(stranger.address());
    direct.send(command(&["PING"]));
    assert!(direct.read().is_text("PONG"));
    assert_eq!(Look::at(&agent).since(&before), Way::default());
}

/// A cgroup of this test's own, below another.
struct Child(PathBuf);

impl Child {
    fn below(parent: &std::path::Path, name: &str) -> Self {
        let path = parent.join(format!("moa-test-{name}-{}", std::process::id()));
        fs::create_dir(&path).unwrap_or_else(|error| panic!("{}: {error}: run this test as root", path.display()));
        Self(path)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let removed = fs::remove_dir(&self.0);
        assert!(removed.is_ok() || std::thread::panicking(), "{}: {removed:?}", self.0.display());
    }
}

#[test]
fn an_application_in_a_cgroup_below() {
    let fake = service();
    let agent = kernel::start(&section(fake.address()));
    let before = Look::at(&agent);
    let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc");
    let root = before.cgroup.display().to_string();
    assert!(mounts.lines().any(|line| line.contains(&format!(" {root} cgroup2 "))), "{root} is not the root of cgroup2");
    let one = Child::below(&before.cgroup, "one");
    let two = Child::below(&one.0, "two");
    for (number, cgroup) in [&one, &two].into_iter().enumerate() {
        let before = Look::at(&agent);
        let text = format!("called from below {number}");
        let ask = moa_tests::echo(&text);
        let port = agent.address().port().to_string();
        let mut shell = Command::new("sh");
        let script = "echo $$ > \"$0/cgroup.procs\" && cat /proc/self/cgroup && exec redis-cli -p \"$1\" GET \"$2\"";
        shell.args(["-c", script]).arg(&cgroup.0).args([&port, &ask]);
        let said = external::run(&mut shell);
        assert!(said.contains(&text) && said.contains("moa-test-one"), "{said}");
        let way = Look::at(&agent).since(&before);
        way.expect_kernel_only();
        assert!(way.enrolled >= 2, "{way:?}");
    }
    drop((two, one));
}

#[test]
fn an_agent_in_a_cgroup_below() {
    let fake = service();
    let agent = kernel::start(&section(fake.address()));
    let below = Child::below(&Look::at(&agent).cgroup, "agent");
    fs::write(below.0.join("cgroup.procs"), agent.pid().to_string()).expect("moving the agent");
    let before = Look::at(&agent);
    let mut client = agent.connect();
    call(&mut client, 10);
    Look::at(&agent).since(&before).expect_kernel_only();
    drop(agent);
}
