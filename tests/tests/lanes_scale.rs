//! As many lanes, services and calls in flight as a node may have: each call ends once, and nothing of it is left.

use std::{
    collections::{HashMap, HashSet},
    thread,
    time::Duration,
};

use agent_common::{
    frame::{Flags, Header, Hello, Kind, status},
    lane::CALLS_MAX,
};
use moa_tests::{
    Agent, DEMO, LanePeer,
    frames::{Got, caller, meta_of, service},
    herd::{self, Serving},
    kernel,
    lanes::{Way, request_header},
    routed::{Routed, await_idle, await_lanes, await_routed, await_unreserved},
    seed, until_true,
};

const HEAD: &str = "[agent]\nworkers = 2\n";
/// Threads of callers.
const THREADS: usize = 4;

fn unrouted(routed: &Routed, why: &str) -> u64 {
    routed.unrouted.get(why).copied().unwrap_or(0)
}

/// An instance that takes as many calls at once as there can be.
fn wide(name: &str, uris: &[&str]) -> Hello {
    Hello { calls_max: CALLS_MAX, ..service(name, uris) }
}

fn await_instances(agent: &Agent, count: usize) {
    until_true("all instances to be there", || {
        agent.json(&["services", DEMO])[0]["instances"].as_array().is_some_and(|all| all.len() == count)
    });
    await_routed(agent, DEMO);
}

/// What it calls with: nobody else does.
fn body(thread: usize, round: usize, nth: usize) -> Vec<u8> {
    format!("{thread}/{round}/{nth}").into_bytes()
}

/// Has each of these call so often, and counts the answers by way.
fn calls(peers: &mut [LanePeer], thread: usize, rounds: usize) -> HashMap<Way, usize> {
    let mut ways = HashMap::new();
    for round in 0..rounds {
        for (nth, (way, got)) in herd::call_each(peers, |_| DEMO, |nth| body(thread, round, nth)).into_iter().enumerate() {
            assert_eq!((got.header.word, &got.body), (0, &body(thread, round, nth)), "{}", got.error());
            *ways.entry(way).or_default() += 1;
        }
    }
    ways
}

#[test]
fn thousands_of_callers_share_a_few_instances_and_leave_nothing() {
    const INSTANCES: usize = 4;
    let (callers, rounds) = (seed::count(400, 4_000), seed::count(25, 50));
    let agent = kernel::start(&format!("{HEAD}[services.\"{DEMO}\"]\nbalance.policy = \"round-robin\"\n"));
    let hellos: Vec<_> = (0..INSTANCES).map(|nth| wide(&format!("echo-{nth}"), &[DEMO])).collect();
    let serving = Serving::start(agent.address(), &hellos);
    await_instances(&agent, INSTANCES);
    let open = |_| herd::callers(agent.address(), callers / THREADS);
    let mut herds: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|nth| scope.spawn(move || open(nth))).collect();
        threads.into_iter().map(|thread| thread.join().expect("callers")).collect()
    });
    await_lanes(&agent, (callers + INSTANCES) as u64);
    let (before, served_before) = (Routed::at(&agent), serving.served());
    let ways: Vec<_> = thread::scope(|scope| {
        let calls = herds.iter_mut().enumerate().map(|(nth, herd)| scope.spawn(move || calls(herd, nth, rounds)));
        let threads: Vec<_> = calls.collect();
        threads.into_iter().map(|thread| thread.join().expect("answers")).collect()
    });
    let (after, made) = (Routed::at(&agent), (callers * rounds) as u64);
    let by_lane = ways.iter().filter_map(|ways| ways.get(&Way::Lane)).sum::<usize>() as u64;
    let served: Vec<_> = serving.served().iter().zip(&served_before).map(|(now, before)| now - before).collect();
    println!("{made} calls of {callers} callers, {by_lane} by lane, {served:?}, {:?}", after.unrouted);
    assert_eq!(served.iter().sum::<u64>(), made, "each call comes once: {served:?}");
    let share = made / INSTANCES as u64;
    assert!(served.iter().all(|one| one.abs_diff(share) * 20 <= share), "not fair: {served:?} of {share}");
    assert!((after.calls - before.calls) * 100 >= made * 95, "{after:?} after {before:?}, of {made}");
    assert!(by_lane * 100 >= made * 95, "{by_lane} of {made}");
    await_unreserved(&agent);
    for peer in herds.iter_mut().flatten() {
        assert!(peer.frame_within(Duration::ZERO).is_ok_and(|more| more.is_none()), "more than its answers");
    }
    drop(herds);
    await_lanes(&agent, INSTANCES as u64);
    await_unreserved(&agent);
    drop(serving);
    await_lanes(&agent, 0);
}

#[test]
fn one_caller_of_hundreds_of_services_is_routed_to_all_of_them() {
    let count = seed::count(200, 1_000);
    let agent = kernel::start(HEAD);
    let uris: Vec<_> = (0..count).map(|nth| format!("/service/of-many/{nth}")).collect();
    let hellos: Vec<_> = uris.iter().enumerate().map(|(nth, uri)| service(&format!("one-of-{nth}"), &[uri])).collect();
    let serving = Serving::start(agent.address(), &hellos);
    let all_routed = |but: Option<&str>| {
        let routed = Routed::at(&agent).services;
        let is = |uri: &String| routed.get(uri) == Some(&None);
        uris.iter().all(|uri| if Some(&**uri) == but { !is(uri) } else { is(uri) })
    };
    until_true("all services to be routed", || all_routed(None));
    let shown = agent.verb(&["kernel"]).stdout;
    let missing: Vec<_> =
        uris.iter().filter(|uri| !shown.lines().any(|line| line.split_whitespace().any(|word| word == *uri))).collect();
    assert!(missing.is_empty(), "moa kernel does not show {missing:?}");
    let mut client = LanePeer::open(agent.address(), &caller());
    let mut call_all = || -> Vec<Way> {
        let streams: Vec<_> = uris.iter().map(|uri| client.request(uri, Flags::END_STREAM, uri.as_bytes())).collect();
        let answers = streams.iter().zip(&uris).map(|(stream, uri)| {
            let (way, got) = client.answer_to(*stream);
            assert_eq!((got.header.word, &*got.body), (0, uri.as_bytes()), "{}", got.error());
            way
        });
        answers.collect()
    };
    let before = Routed::at(&agent);
    assert!((0..3).all(|_| call_all().iter().all(|way| *way == Way::Lane)));
    let after = Routed::at(&agent);
    assert_eq!((after.calls - before.calls, &after.unrouted), (3 * count as u64, &before.unrouted));
    // One that only the agent can serve by its policy, and back.
    let one = &uris[count / 3];
    agent.reload(&format!("{HEAD}[services.\"{one}\"]\nrate.service_per_s = 1000000\n"));
    until_true("one not to be routed, and all others", || all_routed(Some(one)));
    let ways = call_all();
    let by_stream: Vec<_> = ways.iter().zip(&uris).filter(|(way, _)| **way == Way::Stream).map(|(_, uri)| uri).collect();
    assert_eq!(by_stream, [one]);
    assert_eq!(Routed::at(&agent).services[one].as_deref(), Some("rate limits"));
    agent.reload(HEAD);
    until_true("all services to be routed", || all_routed(None));
    assert!(call_all().iter().all(|way| *way == Way::Lane));
    let last = Routed::at(&agent);
    assert_eq!((unrouted(&last, "calls-full"), unrouted(&last, "no-route")), (0, unrouted(&before, "no-route") + 1), "{last:?}");
    assert_eq!(serving.served().iter().sum::<u64>(), 5 * count as u64);
    await_unreserved(&agent);
}

/// Takes calls until so many have come, with the way that each did.
fn hold(peer: &mut LanePeer, held: &mut Vec<(Way, Got)>) {
    while let Ok(Some((way, got))) = peer.frame_within(Duration::ZERO) {
        if got.kind() == Some(Kind::Request) {
            held.push((way, got));
        }
    }
}

/// Takes the answers that have come.
fn take(clients: &mut [LanePeer], answers: &mut [HashMap<u32, (Way, Got)>]) {
    for (client, answers) in clients.iter_mut().zip(answers) {
        while let Ok(Some((way, got))) = client.frame_within(Duration::ZERO) {
            assert_eq!(got.kind(), Some(Kind::Response), "{got:?}");
            let twice = answers.insert(got.header.stream, (way, got));
            assert!(twice.is_none(), "answered twice: {twice:?}");
        }
    }
}

#[test]
fn when_no_more_calls_can_be_in_flight_the_agent_has_the_others() {
    const INSTANCES: usize = 10;
    const CALLERS: usize = 10;
    let each = CALLS_MAX as usize / CALLERS + 500;
    let agent = kernel::start(&format!("{HEAD}[services.\"{DEMO}\"]\ntimeout_ms = 100000\n"));
    let hello = |nth: usize| Hello { connection: u16::try_from(nth).ok(), ..wide(&format!("held-{nth}"), &[DEMO]) };
    let mut instances: Vec<_> = (0..INSTANCES).map(|nth| LanePeer::open(agent.address(), &hello(nth))).collect();
    await_instances(&agent, INSTANCES);
    let mut clients = herd::callers(agent.address(), CALLERS);
    let mut held: Vec<Vec<_>> = vec![Vec::new(); INSTANCES];
    let mut answers: Vec<HashMap<u32, (Way, Got)>> = vec![HashMap::new(); CALLERS];
    let mut made: Vec<HashMap<u32, Vec<u8>>> = vec![HashMap::new(); CALLERS];
    let header = Header { word: 100_000, ..request_header(DEMO, Flags::END_STREAM) };
    for nth in 0..each {
        for (at, client) in clients.iter_mut().enumerate() {
            let body = body(at, nth, 0);
            made[at].insert(client.request_with(header, meta_of(DEMO).as_ref(), &body), body);
        }
        if nth % 100 == 0 {
            instances.iter_mut().zip(&mut held).for_each(|(peer, held)| hold(peer, held));
        }
    }
    // Whatever was not routed has come by way of the agent, or was refused by it.
    let total = each * CALLERS;
    until_true("each call to be somewhere", || {
        instances.iter_mut().zip(&mut held).for_each(|(peer, held)| hold(peer, held));
        take(&mut clients, &mut answers);
        held.iter().map(Vec::len).sum::<usize>() + answers.iter().map(HashMap::len).sum::<usize>() >= total
    });
    let full = Routed::at(&agent);
    let by_agent = held.iter().flatten().filter(|(way, _)| *way == Way::Stream).count();
    let refused = answers.iter().map(HashMap::len).sum::<usize>();
    println!("{full:?}: {by_agent} by the agent, {refused} refused");
    assert!(full.in_flight <= u64::from(CALLS_MAX) && full.in_flight >= u64::from(CALLS_MAX) * 9 / 10, "{full:?}");
    assert!(unrouted(&full, "calls-full") >= (by_agent + refused) as u64 && by_agent > 0, "{full:?}");
    for (_, got) in answers.iter().flat_map(HashMap::values) {
        assert_eq!(got.header.word, status::LIMIT, "{}", got.error());
        assert!(got.has(Flags::NOT_EXECUTED) && got.error().contains("calls are in flight"), "{}", got.error());
    }
    // All are answered: nothing is left, and calls are routed again.
    let executed: HashSet<_> = held.iter().flatten().map(|(_, got)| got.body.clone()).collect();
    assert_eq!(executed.len() + refused, total, "a call came twice, or to nobody");
    for (peer, held) in instances.iter_mut().zip(held) {
        for (way, call) in held {
            peer.respond_by(way, &call, 0, &call.body);
        }
    }
    until_true("each call to be answered", || {
        take(&mut clients, &mut answers);
        answers.iter().map(HashMap::len).sum::<usize>() >= total
    });
    for (made, answers) in made.iter().zip(&answers) {
        let wrong = |(stream, body): &(&u32, &Vec<u8>)| {
            let (_, got) = &answers[*stream];
            got.header.word != status::LIMIT && (got.header.word, &got.body) != (0, *body)
        };
        assert_eq!(made.iter().find(wrong), None);
    }
    await_unreserved(&agent);
    drop(instances);
    await_lanes(&agent, CALLERS as u64);
    let _serving = Serving::start(agent.address(), &[service("last", &[DEMO])]);
    await_routed(&agent, DEMO);
    assert!(clients.iter_mut().all(|client| client.call(DEMO, b"again").0 == Way::Lane));
    await_idle(&agent);
}
