//! Many calls that end otherwise than by an answer in time, and programs that are replaced and turned off under load: each call
//! ends once, nothing stays reserved, and what is counted only grows.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use agent_common::{
    frame::{Flags, Header, Hello, Kind},
    sdk::{Call, Client, Handle, Reply, Request, Server},
};
use moa_tests::{
    Agent, DEMO, LanePeer,
    frames::{Got, bytes_of, caller, meta_of, service},
    herd::{self, Serving},
    kernel,
    lanes::{Way, request_header},
    routed::{Routed, await_lanes, await_routed, await_unreserved},
    seed,
    wait::{PATIENCE, until_true},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{
    runtime::{self, Runtime},
    sync::oneshot,
    task::JoinSet,
    time::timeout,
};

const HEAD: &str = "[agent]\nworkers = 2\n";
/// Instances are not taken out for what their calls show.
const CALM: &str = "outlier = { consecutive = 0, success_rate_deviations = 0, latency_percent = 0 }\n";

// Calls that expire and are given up.

/// Answers each call after some milliseconds by chance, whether anybody still waits for it or not, until it is told to stop.
fn slow(mut peer: LanePeer, mut rng: StdRng, stop: Arc<AtomicBool>) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut later: Vec<(Instant, Way, Got)> = Vec::new();
        while !stop.load(Relaxed) {
            match peer.frame_within(Duration::from_millis(1)) {
                Ok(Some((way, got))) if got.kind() == Some(Kind::Request) => {
                    later.push((Instant::now() + Duration::from_micros(rng.random_range(0..40_000)), way, got));
                }
                Ok(_) => {}
                Err(_) => return,
            }
            let now = Instant::now();
            for (_, way, call) in later.extract_if(.., |(due, ..)| *due <= now) {
                let word = if rng.random_range(0..10) == 0 { 777 } else { 0 };
                let header = call.back(Kind::Response);
                let bytes = bytes_of(Header { flags: header.flags | Flags::END_STREAM, word, ..header }, &[], &call.body);
                // In vain if its caller has gone at this moment.
                match way {
                    Way::Lane => drop(peer.try_send(&bytes)),
                    Way::Stream => drop(peer.stream.try_write(&bytes)),
                }
            }
        }
    })
}

/// A caller that gives some of its calls little time, gives some up, and sometimes goes without a word.
struct Hasty {
    peer: LanePeer,
    rng: StdRng,
    live: HashMap<u32, Vec<u8>>,
    given_up: HashSet<u32>,
    /// What calls ended with.
    ended: HashMap<u32, u64>,
}

impl Hasty {
    fn open(address: SocketAddr, mut rng: StdRng) -> Self {
        let peer = LanePeer::open(address, &Hello { connection: Some(rng.random_range(0..2)), ..caller() });
        Self { peer, rng, live: HashMap::new(), given_up: HashSet::new(), ended: HashMap::new() }
    }

    fn begin(&mut self) {
        let word = if self.rng.random() { self.rng.random_range(1..40) } else { 0 };
        let mut body = vec![0; self.rng.random_range(1..2_000)];
        self.rng.fill(&mut body[..]);
        let header = Header { word, ..request_header(DEMO, Flags::END_STREAM) };
        let stream = self.peer.request_with(header, meta_of(DEMO).as_ref(), &body);
        self.live.insert(stream, body);
        if self.rng.random_range(0..5) == 0 {
            let nth = self.rng.random_range(0..self.live.len());
            let stream = *self.live.keys().nth(nth).expect("one of them");
            self.live.remove(&stream);
            self.given_up.insert(stream);
            self.peer.stream.cancel(DEMO, stream);
        }
    }

    fn take(&mut self) {
        let Some((_, got)) = self.peer.frame_within(Duration::from_millis(5)).expect("the agent goes on") else { return };
        if got.kind() != Some(Kind::Response) {
            return;
        }
        let (stream, word) = (got.header.stream, got.header.word);
        match self.live.remove(&stream) {
            Some(body) => assert!(!matches!(word, 0 | 777) || got.body == body, "another's answer"),
            None => assert!(self.given_up.remove(&stream), "a second answer, or nobody's: {got:?}"),
        }
        assert!([0, 303, 304, 305, 777].contains(&word), "{word}: {}", got.error());
        *self.ended.entry(word).or_default() += 1;
    }

    /// Makes so many calls, and opens another connection now and then without waiting for what is in flight.
    fn run(address: SocketAddr, mut rng: StdRng, calls: usize) -> HashMap<u32, u64> {
        let mut hasty = Self::open(address, StdRng::seed_from_u64(rng.random()));
        for _ in 0..calls {
            hasty.begin();
            while hasty.live.len() >= 16 {
                hasty.take();
            }
            if rng.random_range(0..500) == 0 {
                let ended = std::mem::take(&mut hasty.ended);
                hasty = Self { ended, ..Self::open(address, StdRng::seed_from_u64(rng.random())) };
            }
        }
        let deadline = Instant::now() + PATIENCE;
        while !hasty.live.is_empty() {
            assert!(Instant::now() < deadline, "calls without an end: {:?}", hasty.live.keys());
            hasty.take();
        }
        hasty.ended
    }
}

#[test]
fn calls_that_expire_or_are_given_up_leave_nothing_reserved() {
    let mut rng = seed::rng("hasty");
    let agent = kernel::start(&format!("{HEAD}[services.\"{DEMO}\"]\n{CALM}"));
    let address = agent.address();
    let stop = Arc::new(AtomicBool::new(false));
    let serve = |name: &str, rng: &mut StdRng, stop: &Arc<AtomicBool>| {
        let hello = Hello { connection: Some(rng.random_range(0..2)), ..service(name, &[DEMO]) };
        slow(LanePeer::open(address, &hello), StdRng::seed_from_u64(rng.random()), stop.clone())
    };
    let staying: Vec<_> = (0..3).map(|nth| serve(&format!("stays-{nth}"), &mut rng, &stop)).collect();
    await_routed(&agent, DEMO);
    let calls = seed::count(1_500, 40_000);
    let hasty: Vec<_> = (0..8)
        .map(|_| {
            let rng = StdRng::seed_from_u64(rng.random());
            thread::spawn(move || Hasty::run(address, rng, calls))
        })
        .collect();
    let mut nth = 0;
    while hasty.iter().any(|caller| !caller.is_finished()) {
        // One that dies with whatever it was given.
        nth += 1;
        let dies = Arc::new(AtomicBool::new(false));
        let mortal = serve(&format!("dies-{nth}"), &mut rng, &dies);
        let before = Routed::at(&agent).calls;
        until_true("calls to be routed", || Routed::at(&agent).calls > before + 500 || hasty.iter().all(JoinHandle::is_finished));
        dies.store(true, Relaxed);
        mortal.join().expect("an instance");
    }
    let mut ended: HashMap<u32, u64> = HashMap::new();
    for caller in hasty {
        caller
            .join()
            .expect("a caller that saw nothing wrong")
            .into_iter()
            .for_each(|(word, n)| *ended.entry(word).or_default() += n);
    }
    println!("{nth} instances have died; ended: {ended:?}; {:?}", Routed::at(&agent));
    assert!([0, 304, 777].iter().all(|word| ended[word] > 0), "{ended:?}");
    await_lanes(&agent, 3);
    await_unreserved(&agent);
    stop.store(true, Relaxed);
    staying.into_iter().for_each(|instance| instance.join().expect("an instance"));
    await_lanes(&agent, 0);
}

#[test]
fn the_first_frame_of_a_lane_is_the_agents_hello_whatever_is_called_meanwhile() {
    let agent = kernel::start(HEAD);
    let staying = Serving::start(agent.address(), &[service("stays", &[DEMO])]);
    await_routed(&agent, DEMO);
    let stop = Arc::new(AtomicBool::new(false));
    let call = |_| {
        let (mut peers, stop) = (herd::callers(agent.address(), 8), stop.clone());
        thread::spawn(move || {
            while !stop.load(Relaxed) {
                herd::call_each(&mut peers, |_| DEMO, |_| b"x".to_vec());
            }
        })
    };
    let calling: Vec<_> = (0..2).map(call).collect();
    for nth in 0..seed::count(300, 2_000) {
        // This panics if anything else comes first.
        drop(LanePeer::open(agent.address(), &service(&format!("comes-{nth}"), &[DEMO])));
    }
    stop.store(true, Relaxed);
    calling.into_iter().for_each(|thread| thread.join().expect("a caller whose calls all ended"));
    await_unreserved(&agent);
    drop(staying);
    await_lanes(&agent, 0);
}

// Programs that are replaced and turned off.

/// A runtime whose applications go on in a thread of their own while the test waits for something else.
struct Apart {
    handle: runtime::Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Apart {
    fn start() -> Self {
        let runtime: Runtime = runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (handle, (stop, stopped)) = (runtime.handle().clone(), oneshot::channel());
        let thread = thread::spawn(move || drop(runtime.block_on(stopped)));
        Self { handle, stop: Some(stop), thread: Some(thread) }
    }

    fn run<F: Future>(&self, future: F) -> F::Output {
        self.handle.block_on(future)
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(thread::panicking() || ended.is_none_or(|ended| ended.is_ok()), "the runtime");
    }
}

/// How often each body was executed.
type Executed = Arc<Mutex<HashMap<Vec<u8>, u32>>>;

async fn serve_as(agent: &Agent, instance: &str, executed: &Executed) -> Handle {
    let server = Server::builder("test-server").instance(instance).agents([agent.address().to_string()]).offer(DEMO);
    let server = server.backoff_max(Duration::from_millis(50));
    let executed = executed.clone();
    let answer = move |call: Call| {
        let executed = executed.clone();
        async move {
            let body = call.body.bytes().await.map(|body| body.to_vec()).unwrap_or_default();
            *executed.lock().unwrap_or_else(PoisonError::into_inner).entry(body.clone()).or_default() += 1;
            Reply::new(body)
        }
    };
    server.serve(answer).await.expect("an agent that takes it")
}

async fn client_of(agent: &Agent) -> Client {
    let client = Client::builder("test-client").agents([agent.address().to_string()]).backoff_max(Duration::from_millis(50));
    client.connect().await.expect("an agent that takes it")
}

/// Calls without a pause until it is told to stop.
struct Calling {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<Vec<Ended>>,
}

/// A call's body, and the status of an error.
type Ended = (Vec<u8>, Option<u32>);

static NEXT: AtomicU64 = AtomicU64::new(0);

impl Calling {
    /// In the runtime that was entered.
    fn start(client: &Client) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for _ in 0..4 {
            tasks.spawn(call_on(client.clone(), stop.clone()));
        }
        Self { stop, tasks }
    }

    async fn stop(mut self) -> Vec<Ended> {
        self.stop.store(true, Relaxed);
        let mut all = Vec::new();
        while let Some(ended) = self.tasks.join_next().await {
            all.extend(ended.expect("a caller that saw nothing wrong"));
        }
        all
    }
}

async fn call_on(client: Client, stop: Arc<AtomicBool>) -> Vec<Ended> {
    let mut all = Vec::new();
    while !stop.load(Relaxed) {
        let body = NEXT.fetch_add(1, Relaxed).to_string().into_bytes();
        let answered = async { client.call(Request::new(DEMO).body(body.clone())).await?.body.bytes().await };
        let error = match timeout(PATIENCE, answered).await.expect("an end") {
            Ok(answer) => {
                assert_eq!(answer, body, "another's answer");
                None
            }
            Err(error) => Some(error.status()),
        };
        if error.is_some() {
            // There is no agent at this moment.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        all.push((body, error));
    }
    all
}

/// No call was executed twice, and those that went well were.
fn expect_once(ended: &[Ended], executed: &Executed) {
    let executed = executed.lock().unwrap_or_else(PoisonError::into_inner);
    let twice: Vec<_> = executed.iter().filter(|(_, times)| **times > 1).take(5).collect();
    assert!(twice.is_empty(), "executed more than once: {twice:?}");
    assert!(ended.iter().all(|(body, error)| error.is_some() || executed.contains_key(body)), "answered and not executed");
}

/// What only grows.
fn counted(agent: &Agent) -> [u64; 4] {
    let routed = Routed::at(agent);
    let [calls, answers] = [routed.calls, routed.answers];
    [calls, answers, agent.json(&["kernel"])["routing"]["bytes"].as_u64().expect("bytes"), routed.unrouted.values().sum()]
}

/// What was counted goes on from before.
fn expect_grown(agent: &Agent, before: &mut [u64; 4]) {
    let now = counted(agent);
    assert!(now.iter().zip(&*before).all(|(now, before)| now >= before), "{now:?} after {before:?}");
    *before = now;
}

#[test]
fn programs_that_are_replaced_again_and_again_under_load_do_each_call_once() {
    let mut rng = seed::rng("replaced");
    let apart = Apart::start();
    let _entered = apart.handle.enter();
    let mut agent = kernel::start(HEAD);
    let executed = Executed::default();
    let servers = ["one", "two"].map(|name| apart.run(serve_as(&agent, name, &executed)));
    let clients: Vec<_> = (0..3).map(|_| apart.run(client_of(&agent))).collect();
    let calling: Vec<_> = clients.iter().map(Calling::start).collect();
    let mut before = counted(&agent);
    for _ in 0..seed::count(6, 60) {
        // Some have not yet opened a lane when their agent is killed.
        let more = if rng.random_range(0..3) == 0 { 0 } else { rng.random_range(1..2_000) };
        until_true("calls to be routed", || more == 0 || Routed::at(&agent).calls > before[0] + more);
        expect_grown(&agent, &mut before);
        agent.kill();
        agent.start_again();
        expect_grown(&agent, &mut before);
    }
    until_true("calls to be routed", || Routed::at(&agent).calls > before[0] + 1_000);
    let ended: Vec<_> = calling.into_iter().flat_map(|calling| apart.run(calling.stop())).collect();
    let failed = ended.iter().filter(|(_, error)| error.is_some()).count();
    println!("{} calls, of which {failed} failed", ended.len());
    expect_once(&ended, &executed);
    let wrong = ended.iter().find(|(_, error)| error.is_some_and(|code| ![303, 304, 501].contains(&code)));
    assert_eq!(wrong, None);
    await_unreserved(&agent);
    drop((servers, clients));
    await_lanes(&agent, 0);
}

#[test]
fn turned_off_and_on_again_and_again_under_load_every_call_ends_well() {
    let apart = Apart::start();
    let _entered = apart.handle.enter();
    let agent = kernel::start(HEAD);
    let executed = Executed::default();
    let (mut ended, mut before) = (Vec::new(), counted(&agent));
    let mut server = apart.run(serve_as(&agent, "first", &executed));
    let stays = apart.run(client_of(&agent));
    let staying = Calling::start(&stays);
    for nth in 0..seed::count(4, 40) {
        let client = apart.run(client_of(&agent));
        let calling = Calling::start(&client);
        let routed = Routed::at(&agent).calls;
        until_true("calls to be routed", || Routed::at(&agent).calls > routed + 500);
        expect_grown(&agent, &mut before);
        agent.json(&["kernel", "off"]);
        let off = Routed::at(&agent);
        let made = NEXT.load(Relaxed);
        until_true("calls to go on", || NEXT.load(Relaxed) > made + 500);
        expect_grown(&agent, &mut before);
        // What was on its way may still have been counted.
        assert!(Routed::at(&agent).calls <= off.calls + 64, "{off:?}");
        agent.json(&["kernel", "on"]);
        // Lanes that were turned off are streams for life: what comes now has new ones.
        let next = apart.run(serve_as(&agent, &format!("server-{nth}"), &executed));
        let former = std::mem::replace(&mut server, next);
        apart.run(async { timeout(PATIENCE, former.shutdown()).await }).expect("the server's end");
        ended.extend(apart.run(calling.stop()));
    }
    ended.extend(apart.run(staying.stop()));
    println!("{} calls", ended.len());
    expect_once(&ended, &executed);
    let wrong: Vec<_> = ended.iter().filter_map(|(_, error)| *error).collect();
    assert!(wrong.is_empty(), "of {} calls: {wrong:?}", ended.len());
    await_unreserved(&agent);
    drop((server, stays));
    await_lanes(&agent, 0);
}
