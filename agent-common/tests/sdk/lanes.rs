//! Lanes: with an agent that routes between them, and with one that misbehaves. Whatever it does, every call ends once, and
//! nothing is to be seen of it but the way that frames take.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use agent_common::{
    frame::{Flags, Header, Hello, Kind, Lane, Role, id, status},
    sdk::{Body, Call, Client, Error, Handle, Reply, Request, Response, Server, ServerBuilder},
};
use tokio::{
    sync::Notify,
    task::{JoinHandle, JoinSet},
};

use crate::{
    lane_agent::{BODY_MAX, LaneAgent, Lanes, Manner, Order},
    peer::{Agent, Frame, Peer, agent_hello, soon},
};

/// Long enough that a busy machine answers three PINGs.
const TICK: Duration = Duration::from_millis(500);
const SECOND: Duration = Duration::from_secs(1);

/// What the services have been called for.
#[derive(Default)]
struct World {
    executed: AtomicUsize,
    dropped: AtomicUsize,
    go_on: Notify,
    waits: Notify,
}

struct Dropped(Arc<World>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.dropped.fetch_add(1, Ordering::SeqCst);
    }
}

async fn handle(call: Call, world: Arc<World>) -> Reply {
    world.executed.fetch_add(1, Ordering::SeqCst);
    match call.uri() {
        "/echo" => Reply::new(call.body.bytes().await.unwrap()),
        "/large" => Reply::new(vec![7; BODY_MAX as usize + 1]),
        "/wait" => {
            let _dropped = Dropped(Arc::clone(&world));
            world.waits.notify_one();
            world.go_on.notified().await;
            Reply::new("at last")
        }
        _ => Reply::error(1000, "no such thing"),
    }
}

async fn serve(builder: ServerBuilder) -> (Handle, Arc<World>) {
    let world = Arc::new(World::default());
    let builder = ["/echo", "/large", "/wait", "/error"].iter().fold(builder, |builder, uri| builder.offer(uri));
    let of_calls = Arc::clone(&world);
    let handle = builder.serve(move |call| handle(call, Arc::clone(&of_calls)));
    (soon("the server", handle).await.unwrap(), world)
}

struct Bed {
    agent: LaneAgent,
    client: Client,
    server: Handle,
    world: Arc<World>,
}

/// A client and a server, with lanes if the agent gives them.
async fn bed(manner: Manner) -> Bed {
    let agent = LaneAgent::start(manner).await;
    let (server, world) = serve(Server::builder("users").agents([agent.address.clone()]).ping_interval(TICK)).await;
    let client = Client::builder("shop").agents([agent.address.clone()]).ping_interval(TICK).connect().await.unwrap();
    if manner.lanes == Lanes::Given {
        agent.open(2).await;
        settle(&agent, &client, manner.fails_every.is_some()).await;
    }
    Bed { agent, client, server, world }
}

/// Calls until both lanes are in use: an end may not have read the HELLO yet that the agent has sent.
async fn settle(agent: &LaneAgent, client: &Client, fails: bool) {
    soon("calls and answers by lanes", async {
        while agent.count(|seen| &seen.calls_by_lane) == 0 || !fails && agent.count(|seen| &seen.answers_by_lane) == 0 {
            let _ = client.call(Request::new("/echo")).await;
            tokio::task::yield_now().await;
        }
    })
    .await;
}

async fn answer(call: impl Future<Output = Result<Response, Error>>) -> Result<Vec<u8>, Error> {
    soon("an answer", async { Ok(call.await?.body.bytes().await?.to_vec()) }).await
}

fn pattern(number: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from((number * 7 + at) % 251).unwrap()).collect()
}

#[tokio::test]
async fn small_calls_and_answers_go_by_lanes_and_large_ones_by_the_stream_connection() {
    let Bed { agent, client, server, .. } = bed(Manner::default()).await;
    let ways = || [agent.count(|seen| &seen.calls_by_lane), agent.count(|seen| &seen.answers_by_lane)];
    for (uri, len, by_lane) in [("/echo", 10, [1, 1]), ("/echo", 2_000, [1, 1]), ("/echo", 2_001, [0, 0]), ("/large", 5, [1, 0])]
    {
        let (before, body) = (ways(), pattern(1, len));
        let came = answer(client.call(Request::new(uri).body(body.clone()))).await.unwrap();
        assert!(uri == "/large" || came == body, "{len} bytes");
        assert_eq!([ways()[0] - before[0], ways()[1] - before[1]], by_lane, "{uri} with {len} bytes");
    }
    let before = ways();
    let error = answer(client.call(Request::new("/error"))).await.unwrap_err();
    assert_eq!((error.status(), error.text()), (1000, "no such thing"));
    let (sender, streamed) = Body::channel();
    let sending = tokio::spawn(async move {
        sender.send("piece").await.unwrap();
        sender.finish().await.unwrap();
    });
    assert_eq!(answer(client.call(Request::new("/echo").body(streamed))).await.unwrap(), b"piece");
    sending.await.unwrap();
    soon("a one-way call", client.notify(Request::new("/echo"))).await.unwrap();
    let traced = Request::new("/echo").metadata(id::TRACEPARENT, b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    answer(client.call(traced)).await.unwrap();
    assert_eq!(ways(), [before[0] + 1, before[1] + 1], "all but the error went by the stream connection");
    soon("the server's end", server.shutdown()).await;
    agent.check();
}

/// Calls of all sizes at once, each of which must end with its own body, or with 303 if it may.
async fn storm(client: &Client, calls: usize, may_fail: bool) -> (usize, usize) {
    let mut tasks = JoinSet::new();
    for number in 0..calls {
        let client = client.clone();
        tasks.spawn(async move {
            let body = pattern(number, number * 37 % 3_000);
            let request = Request::new("/echo").body(body.clone()).idempotent(number % 2 == 0);
            match answer(client.call(request)).await {
                Ok(came) => {
                    assert!(came == body, "call {number}");
                    true
                }
                Err(error) => {
                    assert!(may_fail && error.status() == status::REMOTING, "call {number}: {error}");
                    false
                }
            }
        });
        if number % 16 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let (mut fine, mut failed) = (0, 0);
    while let Some(ended) = tasks.join_next().await {
        *(if ended.unwrap() { &mut fine } else { &mut failed }) += 1;
    }
    (fine, failed)
}

#[tokio::test]
async fn a_thousand_calls_at_once_by_both_ways() {
    for manner in [
        Manner::default(),
        Manner { answers_by_stream: true, ..Manner::default() },
        Manner { in_pieces: true, ..Manner::default() },
    ] {
        let Bed { agent, client, server: _server, .. } = bed(manner).await;
        let before = (agent.count(|seen| &seen.calls_by_lane), agent.count(|seen| &seen.calls_by_stream));
        assert_eq!(storm(&client, 1_000, false).await, (1_000, 0), "{manner:?}");
        let by_lane = agent.count(|seen| &seen.calls_by_lane) - before.0;
        let by_stream = agent.count(|seen| &seen.calls_by_stream) - before.1;
        assert!(by_lane > 300 && by_lane + by_stream == 1_000, "{by_lane} by lane, {by_stream} by stream, {manner:?}");
        agent.check();
    }
}

#[tokio::test]
async fn threads_share_a_lane() {
    let Bed { agent, client, server: _server, .. } = bed(Manner::default()).await;
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let client = client.clone();
            tokio::task::spawn_blocking(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(storm(&client, 300, false))
            })
        })
        .collect();
    for thread in threads {
        assert_eq!(thread.await.unwrap(), (300, 0));
    }
    assert!(agent.count(|seen| &seen.calls_by_lane) > 400);
    agent.check();
}

#[tokio::test]
async fn without_a_lane_all_goes_by_the_stream_connection() {
    for lanes in [Lanes::Refused, Lanes::Silent, Lanes::Mistaken, Lanes::None] {
        let Bed { agent, client, server, .. } = bed(Manner { lanes, ..Manner::default() }).await;
        assert_eq!(storm(&client, 50, false).await, (50, 0), "{lanes:?}");
        if lanes != Lanes::None {
            crate::peer::until("lanes that are asked for", || agent.count(|seen| &seen.asked) >= 2).await;
        }
        assert_eq!(storm(&client, 50, false).await, (50, 0), "{lanes:?}");
        assert_eq!(agent.count(|seen| &seen.calls_by_lane), 0);
        assert!(lanes != Lanes::None || agent.count(|seen| &seen.asked) == 0);
        soon("the server's end", server.shutdown()).await;
        agent.check();
    }
}

#[tokio::test]
async fn they_can_be_turned_off() {
    let agent = LaneAgent::start(Manner::default()).await;
    let (_server, _) = serve(Server::builder("users").agents([agent.address.clone()]).lanes(false)).await;
    let client = Client::builder("shop").agents([agent.address.clone()]).lanes(false).connect().await.unwrap();
    assert_eq!(storm(&client, 50, false).await, (50, 0));
    assert_eq!(agent.count(|seen| &seen.asked), 0);
}

#[tokio::test]
async fn a_refused_lane_is_asked_for_again_after_a_second() {
    let Bed { agent, client: _client, server: _server, .. } = bed(Manner { lanes: Lanes::Refused, ..Manner::default() }).await;
    crate::peer::until("two lanes that are asked for", || agent.count(|seen| &seen.asked) == 2).await;
    let since = tokio::time::Instant::now();
    crate::peer::until("one more", || agent.count(|seen| &seen.asked) > 2).await;
    assert!(since.elapsed() > SECOND * 8 / 10, "{:?}", since.elapsed());
}

#[tokio::test]
async fn lanes_that_end_under_load_lose_no_call() {
    for order in [Order::Close, Order::Garbage, Order::Forget] {
        let Bed { agent, client, server: _server, world } = bed(Manner::default()).await;
        let storming = tokio::spawn({
            let client = client.clone();
            async move { storm(&client, 2_000, true).await }
        });
        let before = world.executed.load(Ordering::SeqCst);
        crate::peer::until("some calls", || world.executed.load(Ordering::SeqCst) > before + 100).await;
        agent.order(order);
        let (fine, failed) = soon("all calls' ends", storming).await.unwrap();
        assert_eq!(fine + failed, 2_000);
        assert!(fine > 1_000, "{order:?}: {fine} of 2,000 calls were answered");
        // Those that fail may not be sent again. New ones go by the stream connection at once, and later by a new lane.
        assert_eq!(storm(&client, 100, false).await, (100, 0), "{order:?}");
        agent.open(2).await;
        let by_lane = agent.count(|seen| &seen.calls_by_lane);
        soon("calls by the new lane", async {
            while agent.count(|seen| &seen.calls_by_lane) == by_lane {
                answer(client.call(Request::new("/echo"))).await.unwrap();
            }
        })
        .await;
        agent.check();
    }
}

#[tokio::test]
async fn a_call_that_fails_on_the_lane_goes_once_more_by_the_stream_connection_if_it_may() {
    let Bed { agent, client, server: _server, .. } = bed(Manner { fails_every: Some(1), ..Manner::default() }).await;
    let by_stream = agent.count(|seen| &seen.calls_by_stream);
    let error = answer(client.call(Request::new("/echo").body("x"))).await.unwrap_err();
    assert_eq!((error.status(), error.is_safe_to_retry()), (status::REMOTING, false));
    assert_eq!(agent.count(|seen| &seen.calls_by_stream), by_stream);
    assert_eq!(answer(client.call(Request::new("/echo").body("x").idempotent(true))).await.unwrap(), b"x");
    assert_eq!(agent.count(|seen| &seen.calls_by_stream), by_stream + 1);
    let by_lane = agent.count(|seen| &seen.calls_by_lane);
    let none = answer(client.call(Request::new("/none").idempotent(true))).await.unwrap_err();
    assert_eq!(none.status(), status::REMOTING);
    let sent = (agent.count(|seen| &seen.calls_by_lane), agent.count(|seen| &seen.calls_by_stream));
    assert_eq!(sent, (by_lane + 1, by_stream + 2), "once each");
    agent.check();
}

#[tokio::test]
async fn a_call_that_is_given_up_is_cancelled_and_its_handler_dropped() {
    let Bed { agent, client, server: _server, world } = bed(Manner::default()).await;
    let by_lane = agent.count(|seen| &seen.calls_by_lane);
    let calling = tokio::spawn(async move { client.call(Request::new("/wait")).await });
    soon("the handler", world.waits.notified()).await;
    calling.abort();
    crate::peer::until("the handler's end", || world.dropped.load(Ordering::SeqCst) == 1).await;
    assert_eq!((agent.count(|seen| &seen.calls_by_lane), agent.count(|seen| &seen.cancels)), (by_lane + 1, 1));
    agent.check();
}

#[tokio::test]
async fn a_deadline_counts_on_the_lane_too() {
    let Bed { agent, client, server: _server, world } = bed(Manner::default()).await;
    let error = answer(client.call(Request::new("/wait").timeout(Duration::from_millis(30)))).await.unwrap_err();
    assert_eq!(error.status(), status::TIMEOUT);
    crate::peer::until("the handler's end", || world.dropped.load(Ordering::SeqCst) == 1).await;
    agent.check();
}

#[tokio::test]
async fn when_the_agent_dies_every_call_ends() {
    let Bed { agent, client, server: _server, world } = bed(Manner::default()).await;
    let calls: Vec<_> = (0..20)
        .map(|_| {
            tokio::spawn({
                let client = client.clone();
                async move { client.call(Request::new("/wait")).await }
            })
        })
        .collect();
    crate::peer::until("the calls", || world.executed.load(Ordering::SeqCst) >= 20).await;
    agent.die().await;
    for call in calls {
        let error = soon("the call's end", call).await.unwrap().unwrap_err();
        assert_eq!((error.status(), error.is_not_executed()), (status::REMOTING, false), "{error}");
    }
    crate::peer::until("the handlers' ends", || world.dropped.load(Ordering::SeqCst) == 20).await;
}

/// A scripted agent's two connections with a client, after a call by the lane has shown that it is open.
async fn scripted(request: impl Fn() -> Request) -> (Client, Peer, Peer, JoinHandle<Result<Response, Error>>, Frame) {
    let agent = Agent::listen().await;
    let client = Client::builder("shop").agents([agent.address()]).build().unwrap();
    let lane_hello = Hello { lane: Some(Lane { token: [9; 16], body_max: BODY_MAX }), ..agent_hello() };
    let calling = |request: Request| {
        let client = client.clone();
        tokio::spawn(async move { client.call(request).await })
    };
    let first = calling(Request::new("/first"));
    let mut stream = agent.accept().await;
    stream.greet_with(&lane_hello).await;
    let call = stream.expect(Kind::Request).await;
    stream.send(call.answer(0).end()).await;
    soon("the call", first).await.unwrap().unwrap();
    let mut lane = agent.accept().await;
    assert_eq!((lane.hello.role, lane.hello.lane, lane.hello.connection), (Role::Lane, lane_hello.lane, stream.hello.connection));
    lane.greet_with(&lane_hello).await;
    loop {
        let task = calling(request());
        tokio::select! {
            frame = lane.next() => return (client, stream, lane, task, frame),
            // One that is cut here is sent before the lane is open, and of no interest.
            () = tokio::time::sleep(Duration::from_millis(20)) => {
                let call = stream.expect(Kind::Request).await;
                stream.send(call.answer(0).end()).await;
                soon("the call", task).await.unwrap().unwrap();
            }
        }
    }
}

#[tokio::test]
async fn calls_of_one_sequence_are_matched_on_either_connection() {
    let (client, mut stream, mut lane, task, first) = scripted(|| Request::new("/a").body("one")).await;
    assert!(first.has(Flags::END_STREAM) && first.header.receipt == 0);
    let large = tokio::spawn({
        let client = client.clone();
        async move { client.call(Request::new("/a").body(vec![1; BODY_MAX as usize + 1])).await }
    });
    let second = stream.expect(Kind::Request).await;
    assert_eq!(second.header.stream, first.header.stream + 1);
    let mut by_lane = first.answer(0).end();
    by_lane.header.receipt = 0xabcd_ef01;
    lane.send(by_lane).await;
    lane.send(second.answer(0).end()).await;
    soon("the first", task).await.unwrap().unwrap();
    soon("the second", large).await.unwrap().unwrap();
    let third = tokio::spawn(async move { client.call(Request::new("/a").body("three")).await });
    let frame = lane.next().await;
    assert_eq!((frame.header.stream, frame.header.receipt), (first.header.stream + 2, 0xabcd_ef01));
    stream.send(frame.answer(0).end()).await;
    soon("the third", third).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_error_of_the_agent_by_the_stream_connection_ends_a_call_of_the_lane() {
    let (_client, mut stream, _lane, task, frame) = scripted(|| Request::new("/a")).await;
    stream.send(frame.back(Kind::Cancel).word(status::TIMEOUT)).await;
    let error = soon("the call", task).await.unwrap().unwrap_err();
    assert_eq!(error.status(), status::TIMEOUT);
}

#[tokio::test]
async fn a_goaway_on_the_lane_ends_the_lane_alone() {
    let (client, mut stream, mut lane, task, frame) = scripted(|| Request::new("/a")).await;
    lane.send(Frame::new(Kind::GoAway).word(4).end()).await;
    lane.expect_end().await;
    stream.send(frame.answer(0).end()).await;
    soon("the call", task).await.unwrap().unwrap();
    let next = tokio::spawn(async move { client.call(Request::new("/a")).await });
    let call = stream.expect(Kind::Request).await;
    stream.send(call.answer(0).end()).await;
    soon("the next", next).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_final_goaway_says_nothing_of_what_has_left_by_the_lane() {
    for last in [0, 1] {
        let (_client, mut stream, lane, task, frame) = scripted(|| Request::new("/a")).await;
        assert!(frame.header.stream > last);
        stream.send(Frame::new(Kind::GoAway).stream(last).end()).await;
        drop((stream, lane));
        let error = soon("the call", task).await.unwrap().unwrap_err();
        assert!(!error.is_not_executed(), "{error}");
    }
}

#[tokio::test]
async fn an_answer_that_lies_on_the_lane_when_the_connection_ends_has_come() {
    let (_client, stream, mut lane, task, call) = scripted(|| Request::new("/last")).await;
    // More than is read before it is the other connection's turn: answers to nothing, and then the one to the call.
    let mut bytes = Vec::new();
    for via in 1_000..1_150 {
        bytes.extend(Frame { header: Header { via, ..call.header }, ..call.clone() }.answer(0).body(&[7; 1_900]).end().bytes());
    }
    bytes.extend(call.answer(0).body(b"in time").end().bytes());
    lane.send_bytes(&bytes).await;
    drop(stream);
    let answer = soon("the answer", task).await.unwrap().expect("what has come");
    assert_eq!(&answer.body.bytes().await.unwrap()[..], b"in time");
}

#[tokio::test]
async fn a_server_that_shuts_down_serves_what_lies_on_its_lane() {
    let agent = Agent::listen().await;
    let lane_hello = Hello { lane: Some(Lane { token: [9; 16], body_max: BODY_MAX }), ..agent_hello() };
    let starting = tokio::spawn(serve(Server::builder("users").agents([agent.address()])));
    let mut stream = agent.accept().await;
    stream.greet_with(&lane_hello).await;
    let (server, _) = soon("the server", starting).await.unwrap();
    let mut lane = agent.accept().await;
    lane.greet_with(&lane_hello).await;
    // Both ends of the lane are there once a call has gone by it.
    lane.send(Frame::request(1, "/echo").via(1 << 63 | 1).end()).await;
    lane.expect(Kind::Response).await;
    let shutting = tokio::spawn(server.shutdown());
    let goaway = stream.expect(Kind::GoAway).await;
    assert!(!goaway.has(Flags::END_STREAM));
    stream.answers_pings = false;
    let ping = stream.expect(Kind::Ping).await;
    // The last calls that were routed come before the answer to the PING, on the other connection.
    for number in 2..50 {
        lane.send(Frame::request(number, "/echo").via(1 << 63 | u64::from(number)).end()).await;
    }
    stream.send(Frame::new(Kind::Pong).via(ping.header.via)).await;
    for _ in 2..50 {
        assert_eq!(lane.expect(Kind::Response).await.header.word, 0);
    }
    let last = stream.expect(Kind::GoAway).await;
    assert!(last.has(Flags::END_STREAM) && last.header.word == 0);
    drop((stream, lane));
    soon("the server's end", shutting).await.unwrap();
}
