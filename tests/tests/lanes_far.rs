//! Calls on lanes to a service that other nodes have instances of, too: the kernel gives those of this node their share, and the
//! agent those of others theirs.

use std::num::NonZeroU32;

use agent_common::frame::{Flags, Hello, Kind, Traits};
use moa_tests::{
    Agent, DEMO, LanePeer,
    config::{self, NO_HEALTH_CHECK},
    fleet::metric,
    frames::{FramePeer, caller, service},
    herd::Serving,
    kernel,
    lanes::{self, Way},
    mesh::tunnel,
    otlp::Collector,
    routed::{Routed, await_routed, await_unreserved},
    seed, until_true,
};

/// Nothing is taken out of traffic for failing, and nothing is sent again.
const KEPT: &str = "outlier = { consecutive = 0, success_rate_deviations = 0 }\nretry.tries_max = 1\n";
/// Calls at once.
const DEPTH: usize = 50;

/// An agent with lanes, and another one that has the service as well.
struct Two {
    near: Agent,
    far: Agent,
    head: String,
    there: Serving,
}

/// Where calls went.
#[derive(Debug, Default)]
struct Went {
    here: Vec<u64>,
    there: u64,
    routed: u64,
    by_share: u64,
}

impl Two {
    fn start(head: &str, policy: &str) -> Self {
        let far = kernel::start(&config::service(DEMO, &[], NO_HEALTH_CHECK));
        let there = Serving::start(far.address(), &[service("there-1", &[DEMO]), service("there-2", &[DEMO])]);
        let head = format!("[agent]\nworkers = 2\n{head}{}", config::peer("far", far.tunnel_address()));
        let near = kernel::start(&configured(&head, policy));
        until_true("the tunnel to be open", || tunnel(&near, "far").0);
        Self { near, far, head, there }
    }

    fn reload(&self, policy: &str) {
        self.near.reload(&configured(&self.head, policy));
    }

    /// Instances on this node of these weights.
    fn here(&self, weights: &[u32]) -> Serving {
        let hello = |(nth, weight): (usize, &u32)| {
            let traits = Traits { weight: NonZeroU32::new(*weight), ..Traits::default() };
            Hello { traits, ..service(&format!("here-{nth}"), &[DEMO]) }
        };
        let serving = Serving::start(self.near.address(), &weights.iter().enumerate().map(hello).collect::<Vec<_>>());
        until_true("all instances to be there", || {
            let services = self.near.json(&["services", DEMO]);
            services[0]["instances"].as_array().is_some_and(|all| all.len() == weights.len() + 1)
        });
        await_routed(&self.near, DEMO);
        serving
    }

    fn went(&self, here: &Serving) -> Went {
        let routed = Routed::at(&self.near);
        let by_share = routed.unrouted.get("share").copied().unwrap_or(0);
        Went { here: here.served(), there: self.there.served().iter().sum(), routed: routed.calls, by_share }
    }

    /// Has so many calls made, and says where they went.
    fn tally(&self, here: &Serving, calls: usize) -> Went {
        let mut client = LanePeer::open(self.near.address(), &caller());
        let before = self.went(here);
        for _ in 0..calls / DEPTH {
            let streams: Vec<_> = (0..DEPTH).map(|_| client.request(DEMO, Flags::END_STREAM, b"x")).collect();
            for stream in streams {
                let (_, got) = client.answer_to(stream);
                assert_eq!((got.header.word, &*got.body), (0, &b"x"[..]), "{}", got.error());
            }
        }
        let after = self.went(here);
        let went = Went {
            here: after.here.iter().zip(&before.here).map(|(after, before)| after - before).collect(),
            there: after.there - before.there,
            routed: after.routed - before.routed,
            by_share: after.by_share - before.by_share,
        };
        println!("{calls} calls: {went:?}");
        assert_eq!(went.here.iter().sum::<u64>() + went.there, calls as u64);
        went
    }
}

fn configured(head: &str, policy: &str) -> String {
    format!("{head}{}", config::served_by(DEMO, &[], &["far"], &format!("{KEPT}{NO_HEALTH_CHECK}\n{policy}")))
}

fn weighted(percent: u32, balance: &str) -> String {
    format!("locality.local = \"weighted\"\nlocality.local_percent = {percent}\nbalance.policy = \"{balance}\"")
}

/// Expects a share within six standard deviations: fewer than one in ten million are not.
fn expect_share(count: u64, calls: usize, share: f64) {
    let (count, calls) = (count as f64, calls as f64);
    let most = 6.0 * (calls * share * (1.0 - share)).sqrt() + 1.0;
    assert!((count - calls * share).abs() <= most, "{count} of {calls} calls for a share of {share}");
}

/// Waits until the agent has published what it knows: that this share of the calls goes to other nodes.
fn await_share(two: &Two, here: &Serving, is_it: impl Fn(f64) -> bool) {
    until_true("the share of other nodes to be known", || {
        let went = two.tally(here, 200);
        is_it(went.there as f64 / 200.0)
    });
}

#[test]
fn each_node_gets_the_share_that_the_policy_says() {
    let calls = seed::count(4_000, 40_000);
    let two = Two::start("", &weighted(70, "round-robin"));
    let here = two.here(&[100, 300]);
    let went = two.tally(&here, calls);
    // To the call: what the kernel keeps stays here, and what it gives to the agent goes there.
    assert_eq!((went.here.iter().sum::<u64>(), went.there), (went.routed, went.by_share), "{went:?}");
    expect_share(went.there, calls, 0.3);
    assert!(went.here[1].abs_diff(3 * went.here[0]) <= 8, "by weight: {went:?}");
    // Who has no lane gets the same from the agent alone.
    let mut plain = FramePeer::connect(two.near.address(), &caller());
    let before = two.went(&here);
    for _ in 0..calls / 4 {
        plain.request(DEMO, Flags::END_STREAM, b"x");
        assert_eq!(plain.expect(Kind::Response).header.word, 0);
    }
    let after = two.went(&here);
    assert_eq!(after.routed, before.routed);
    expect_share(after.there - before.there, calls / 4, 0.3);
    // So does what a lane carries and the kernel does not route.
    let mut client = LanePeer::open(two.near.address(), &caller());
    let before = after;
    for _ in 0..calls / 4 {
        let stream = client.request(DEMO, Flags::END_STREAM | Flags::SLOW_PATH, b"x");
        assert_eq!(client.answer_to(stream).1.header.word, 0);
    }
    expect_share(two.went(&here).there - before.there, calls / 4, 0.3);
    for (percent, balance) in [(20, "peak-ewma"), (100, "least-request"), (0, "random")] {
        two.reload(&weighted(percent, balance));
        let due = 1.0 - f64::from(percent) / 100.0;
        await_share(&two, &here, |share| (share - due).abs() < 0.15);
        let went = two.tally(&here, calls);
        assert_eq!((went.here.iter().sum::<u64>(), went.there), (went.routed, went.by_share), "{went:?}");
        expect_share(went.there, calls, due);
    }
    await_unreserved(&two.near);
}

#[test]
fn without_levels_the_weights_say_how_many_go_to_other_nodes() {
    let calls = seed::count(4_000, 40_000);
    let two = Two::start("", "locality.failover = false\nbalance.policy = \"random\"");
    let here = two.here(&[100, 200]);
    let went = two.tally(&here, calls);
    assert_eq!((went.here.iter().sum::<u64>(), went.there), (went.routed, went.by_share), "{went:?}");
    expect_share(went.there, calls, 0.25);
    expect_share(went.here[1], calls, 0.5);
    // By load, nobody knows before.
    two.reload("locality.failover = false\nbalance.policy = \"peak-ewma\"");
    until_true("it not to be routed", || {
        Routed::at(&two.near).services[DEMO].as_deref() == Some("a share goes to other nodes by their load")
    });
    assert_eq!(two.tally(&here, 100).routed, 0);
}

#[test]
fn when_an_instance_here_is_taken_out_others_get_what_is_left_over() {
    let calls = seed::count(4_000, 40_000);
    let ejects = "outlier = { consecutive = 5, success_rate_deviations = 0, codes = [777], ejection_ms = 300000 }\n\
                  retry.tries_max = 1\nbalance.policy = \"round-robin\"\n";
    let two = Two::start("", "");
    let config = config::served_by(DEMO, &[], &["far"], &format!("{NO_HEALTH_CHECK}\n{ejects}"));
    two.near.reload(&format!("{}{config}", two.head));
    let here = two.here(&[100]);
    assert_eq!(two.tally(&here, 500).routed, 500, "all stay here");
    let fails = LanePeer::open(two.near.address(), &service("fails", &[DEMO]));
    let failing = lanes::serve(fails, |peer, way, got| {
        if got.kind() == Some(Kind::Request) {
            peer.respond_by(way, &got, 777, b"");
        }
    });
    let mut client = LanePeer::open(two.near.address(), &caller());
    until_true("it to be taken out", || {
        client.call(DEMO, b"x");
        two.went(&here).by_share > 0
    });
    // One of two carries 70 %, at 140 % of its load.
    await_share(&two, &here, |share| share > 0.1);
    let went = two.tally(&here, calls);
    assert_eq!((went.here[0], went.there), (went.routed, went.by_share), "{went:?}");
    expect_share(went.there, calls, 0.3);
    drop(here);
    drop(two);
    failing.join().expect("an instance");
}

#[test]
fn when_the_other_node_goes_all_calls_stay_here_until_it_is_back() {
    let mut two = Two::start("[tunnel]\nconnect_timeout_ms = 200\n", &weighted(50, "round-robin"));
    let here = two.here(&[100]);
    expect_share(two.tally(&here, 1_000).there, 1_000, 0.5);
    two.far.stop();
    let mut client = LanePeer::open(two.near.address(), &caller());
    let mut in_a_row = 0;
    until_true("all calls to be routed", || {
        in_a_row = if client.call(DEMO, b"x").0 == Way::Lane { in_a_row + 1 } else { 0 };
        in_a_row == 100
    });
    two.far.start_again();
    two.there = Serving::start(two.far.address(), &[service("there-1", &[DEMO])]);
    until_true("the tunnel to be open", || tunnel(&two.near, "far").0);
    await_share(&two, &here, |share| share > 0.2);
    expect_share(two.tally(&here, 1_000).there, 1_000, 0.5);
}

#[test]
fn traces_begin_as_often_as_they_should_whoever_has_the_call() {
    let calls = seed::count(4_000, 20_000);
    let collector = Collector::start();
    let head = |sample: u32| {
        format!("[tracing]\nendpoint = \"{}\"\ninterval_ms = 10\nsample_per_million = {sample}\n", collector.endpoint())
    };
    // All stay here: each call that the kernel gives to the agent begins a trace.
    let two = Two::start(&head(100_000), "");
    let here = two.here(&[100]);
    let went = two.tally(&here, calls);
    expect_share(went.by_share, calls, 0.1);
    let spans = collector.await_spans(usize::try_from(went.by_share).expect("a number"));
    assert_eq!((spans.len() as u64, went.there), (went.by_share, 0));
    drop((here, two));
    // Some of them are for another node, of which as many are traced as of all.
    let before = spans.len();
    let two = Two::start(&head(200_000), &weighted(60, "round-robin"));
    let here = two.here(&[100]);
    let went = two.tally(&here, calls);
    expect_share(went.there, calls, 0.4);
    expect_share(went.by_share, calls, 1.0 - 0.8 * 0.6);
    let mut traced = 0;
    until_true("the spans to be there", || {
        traced = metric(&two.near, "moa_spans_sent_total");
        traced * 100 > calls as u64 * 17
    });
    until_true("no more spans to come", || {
        let now = metric(&two.near, "moa_spans_sent_total");
        std::mem::replace(&mut traced, now) == now && now == (collector.spans().len() - before) as u64
    });
    expect_share(traced, calls, 0.2);
}
