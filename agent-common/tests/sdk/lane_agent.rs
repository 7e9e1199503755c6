//! An agent that gives lanes and routes calls from one to another itself, over plain sockets: as the kernel path does, but
//! that it can be told to misbehave.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use agent_common::frame::{Flags, Hello, Kind, Lane, Role, status};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinHandle,
};

use crate::peer::{Frame, agent_hello, read, soon, until};

/// The largest body on a lane.
pub(crate) const BODY_MAX: u32 = 2_000;
const KERNEL: u64 = 1 << 63;

/// What is done with those who want a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lanes {
    Given,
    /// A final GOAWAY.
    Refused,
    /// No HELLO.
    Silent,
    /// A HELLO with another token.
    Mistaken,
    /// None is offered.
    None,
}

/// How the agent behaves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner {
    pub(crate) lanes: Lanes,
    /// Answers of calls that came by a lane go back by the stream connection.
    pub(crate) answers_by_stream: bool,
    /// Frames on lanes come in pieces.
    pub(crate) in_pieces: bool,
    /// Of so many calls on lanes, one is answered with 303 and goes nowhere.
    pub(crate) fails_every: Option<usize>,
}

/// What the agent has seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) calls_by_lane: AtomicUsize,
    pub(crate) calls_by_stream: AtomicUsize,
    pub(crate) answers_by_lane: AtomicUsize,
    pub(crate) answers_by_stream: AtomicUsize,
    pub(crate) cancels: AtomicUsize,
    /// Lanes that were asked for, and those that are open.
    pub(crate) asked: AtomicUsize,
    pub(crate) open: AtomicUsize,
    /// Rules that somebody broke.
    pub(crate) faults: Mutex<Vec<String>>,
}

/// What is done to the lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Closed, and calls on them answered.
    Close,
    /// Closed, and nothing said of what becomes of the calls.
    Forget,
    /// Bytes that are no frame.
    Garbage,
}

pub(crate) struct LaneAgent {
    pub(crate) address: String,
    pub(crate) seen: Arc<Seen>,
    orders: UnboundedSender<Event>,
    task: JoinHandle<()>,
}

enum Event {
    Connection(TcpStream),
    Frame(usize, Frame),
    End(usize),
    Order(Order),
}

struct Router {
    manner: Manner,
    seen: Arc<Seen>,
    events: UnboundedSender<Event>,
    ends: HashMap<usize, End>,
    calls: HashMap<u64, Call>,
    next: usize,
    last_via: u64,
}

/// A connection, of either kind.
struct End {
    writer: UnboundedSender<Vec<u8>>,
    reader: JoinHandle<()>,
    hello: Option<Hello>,
    /// Of a stream connection: its lane. Of a lane: its stream connection.
    other: Option<usize>,
    last_stream: u32,
    last_sent: u32,
    /// The last receipt that was sent, and those that may still come back.
    receipts: VecDeque<u32>,
}

struct Call {
    /// The stream connections.
    caller: usize,
    callee: usize,
    stream: u32,
    via: u64,
    /// What the callee has as its number.
    told: u32,
    by_lane: bool,
}

impl Default for Manner {
    fn default() -> Self {
        Self { lanes: Lanes::Given, answers_by_stream: false, in_pieces: false, fails_every: None }
    }
}

impl LaneAgent {
    pub(crate) async fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (events, came) = unbounded_channel();
        let seen = Arc::new(Seen::default());
        let accepted = events.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                socket.set_nodelay(true).unwrap();
                let _ = accepted.send(Event::Connection(socket));
            }
        });
        let router = Router {
            manner,
            seen: seen.clone(),
            events: events.clone(),
            ends: HashMap::new(),
            calls: HashMap::new(),
            next: 0,
            last_via: 0,
        };
        let task = tokio::spawn(async move {
            router.run(came).await;
            accepting.abort();
        });
        Self { address, seen, orders: events, task }
    }

    pub(crate) fn order(&self, order: Order) {
        let _ = self.orders.send(Event::Order(order));
    }

    /// Waits until so many lanes are open.
    pub(crate) async fn open(&self, lanes: usize) {
        until("lanes that are open", || self.seen.open.load(Ordering::SeqCst) == lanes).await;
    }

    /// Dies, with all connections.
    pub(crate) async fn die(mut self) {
        self.task.abort();
        let _ = soon("its end", &mut self.task).await;
    }

    pub(crate) fn count(&self, of: fn(&Seen) -> &AtomicUsize) -> usize {
        of(&self.seen).load(Ordering::SeqCst)
    }

    /// Nobody broke a rule.
    pub(crate) fn check(&self) {
        assert!(self.seen.faults.lock().unwrap().is_empty(), "{:?}", self.seen.faults);
    }
}

impl Drop for LaneAgent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Router {
    async fn run(mut self, mut events: UnboundedReceiver<Event>) {
        while let Some(event) = events.recv().await {
            match event {
                Event::Connection(socket) => self.connected(socket),
                Event::Frame(at, frame) => self.came(at, frame),
                Event::End(at) => self.ended(at, true),
                Event::Order(order) => self.obey(order),
            }
        }
    }

    fn connected(&mut self, socket: TcpStream) {
        let (at, events, pieces) = (self.next, self.events.clone(), self.manner.in_pieces);
        self.next += 1;
        let (mut input, mut output) = socket.into_split();
        let (writer, mut to_write) = unbounded_channel::<Vec<u8>>();
        tokio::spawn(async move {
            while let Some(bytes) = to_write.recv().await {
                let step = if pieces { bytes.len() / 3 + 1 } else { bytes.len() };
                for piece in bytes.chunks(step) {
                    if output.write_all(piece).await.is_err() {
                        return;
                    }
                    tokio::task::yield_now().await;
                }
            }
        });
        let reader = tokio::spawn(async move {
            while let Some(frame) = read(&mut input).await {
                let _ = events.send(Event::Frame(at, frame));
            }
            let _ = events.send(Event::End(at));
        });
        let end = End { writer, reader, hello: None, other: None, last_stream: 0, last_sent: 0, receipts: [0].into() };
        self.ends.insert(at, end);
    }

    fn came(&mut self, at: usize, frame: Frame) {
        let Some(hello) = self.ends.get(&at).map(|end| end.hello.clone()) else { return };
        match hello {
            None => self.greet(at, Hello::decode(&frame.meta).unwrap()),
            Some(hello) if hello.role == Role::Lane && self.ends[&at].other.is_none() => self.fault("a frame before the HELLO"),
            Some(hello) => self.frame(at, hello.role == Role::Lane, frame),
        }
    }

    fn greet(&mut self, at: usize, hello: Hello) {
        let token = |at: usize| [u8::try_from(at).unwrap(); 16];
        let lane = |at| Lane { token: token(at), body_max: BODY_MAX };
        if hello.role == Role::Application {
            let lane = (self.manner.lanes != Lanes::None).then(|| lane(at));
            self.ends.get_mut(&at).unwrap().hello = Some(hello);
            self.write(at, &Hello { lane, ..agent_hello() }.encode().unwrap());
            return;
        }
        self.seen.asked.fetch_add(1, Ordering::SeqCst);
        let told = hello.lane.map(|lane| lane.token);
        let stream = self.ends.iter().find(|(other, end)| told == Some(token(**other)) && end.hello.is_some());
        let Some((stream, of_stream)) = stream.map(|(stream, end)| (*stream, end.hello.clone().unwrap())) else {
            return self.fault("a lane with no token of ours");
        };
        let same = |hello: &Hello| (hello.application.clone(), hello.instance.clone(), hello.connection);
        if same(&hello) != same(&of_stream) || hello.lane != Some(lane(stream)) {
            self.fault("a lane that says something else than its connection");
        }
        self.ends.get_mut(&at).unwrap().hello = Some(hello);
        match self.manner.lanes {
            Lanes::Given => {
                self.ends.get_mut(&at).unwrap().other = Some(stream);
                self.ends.get_mut(&stream).unwrap().other = Some(at);
                self.write(at, &Hello { lane: Some(lane(stream)), ..agent_hello() }.encode().unwrap());
                self.seen.open.fetch_add(1, Ordering::SeqCst);
            }
            Lanes::Refused => {
                self.write(at, &Frame::new(Kind::GoAway).word(5).end().bytes());
                self.ended(at, false);
            }
            Lanes::Mistaken => {
                let lane = Some(Lane { token: [0xee; 16], body_max: BODY_MAX });
                self.write(at, &Hello { lane, ..agent_hello() }.encode().unwrap());
            }
            Lanes::Silent | Lanes::None => {}
        }
    }

    fn frame(&mut self, at: usize, by_lane: bool, mut frame: Frame) {
        let stream_end = if by_lane { self.ends[&at].other.unwrap() } else { at };
        if by_lane {
            let whole = frame.has(Flags::END_STREAM) && frame.header.body_len <= BODY_MAX;
            if !whole || !matches!(frame.header.kind(), Some(Kind::Request | Kind::Response)) {
                self.fault("a frame that does not belong on a lane");
            }
        } else if matches!(frame.header.kind(), Some(Kind::Request | Kind::Response | Kind::Data)) {
            self.write(at, &Frame::new(Kind::Credit).word(u32::try_from(frame.header.frame_len()).unwrap()).bytes());
        }
        match frame.header.kind() {
            Some(Kind::Ping) => self.write(at, &Frame::new(Kind::Pong).via(frame.header.via).bytes()),
            Some(Kind::Request) => self.request(at, stream_end, by_lane, frame),
            Some(Kind::Response) => self.response(stream_end, by_lane, frame),
            Some(Kind::Credit) if frame.header.stream == 0 => {}
            Some(Kind::Cancel | Kind::Credit | Kind::Data) if !frame.has(Flags::TO_CALLER) => {
                let cancel = frame.header.kind() == Some(Kind::Cancel);
                let is_it = |call: &Call| (call.caller, call.stream, call.via) == (at, frame.header.stream, frame.header.via);
                let found = self.calls.iter().find(|(_, call)| is_it(call)).map(|(via, call)| (*via, call.callee, call.told));
                let Some((via, callee, told)) = found else { return };
                (frame.header.via, frame.header.stream) = (via, told);
                self.write(callee, &frame.bytes());
                if cancel {
                    self.seen.cancels.fetch_add(1, Ordering::SeqCst);
                    self.calls.remove(&via);
                }
            }
            Some(Kind::Cancel | Kind::Credit | Kind::Data) => self.response(stream_end, by_lane, frame),
            _ => {}
        }
    }

    fn request(&mut self, at: usize, caller: usize, by_lane: bool, mut frame: Frame) {
        let header = frame.header;
        let end = self.ends.get_mut(&at).unwrap();
        if header.stream <= end.last_stream {
            self.fault("a number that goes back on one connection");
        }
        let end = self.ends.get_mut(&at).unwrap();
        end.last_stream = header.stream;
        if by_lane {
            // The caller may have read any of those that were sent, but none before the last one it has said.
            match end.receipts.iter().position(|receipt| *receipt == header.receipt) {
                Some(known) => drop(end.receipts.drain(..known)),
                None => self.fault("a receipt that was not given"),
            }
        }
        let seen = if by_lane { &self.seen.calls_by_lane } else { &self.seen.calls_by_stream };
        let count = seen.fetch_add(1, Ordering::SeqCst) + 1;
        let offered =
            |end: &End| end.hello.as_ref().is_some_and(|hello| hello.offers.iter().any(|offer| offer.hash() == header.service));
        let callee = self.ends.iter().find(|(_, end)| offered(end)).map(|(at, _)| *at);
        let fails = by_lane && self.manner.fails_every.is_some_and(|every| count.is_multiple_of(every));
        let Some(callee) = callee.filter(|_| !fails) else {
            return self.write(caller, &frame.answer(status::REMOTING).end().bytes());
        };
        let lane = self.ends[&callee].other.filter(|_| by_lane);
        self.last_via += 1;
        let via = self.last_via | if lane.is_some() { KERNEL } else { 0 };
        let mut told = header.stream;
        if lane.is_none() {
            let end = self.ends.get_mut(&callee).unwrap();
            end.last_sent += 1;
            told = end.last_sent;
        }
        self.calls.insert(via, Call { caller, callee, stream: header.stream, via: header.via, told, by_lane });
        (frame.header.via, frame.header.stream, frame.header.receipt) = (via, told, 0);
        self.write(lane.unwrap_or(callee), &frame.bytes());
    }

    fn response(&mut self, callee: usize, by_lane: bool, mut frame: Frame) {
        let end = frame.has(Flags::END_STREAM) || frame.header.kind() == Some(Kind::Cancel);
        let key = frame.header.via;
        let Some(call) = self.calls.get(&key).filter(|call| call.callee == callee) else { return };
        if frame.header.stream != call.told {
            return self.fault("an answer with another number");
        }
        (frame.header.stream, frame.header.via) = (call.stream, call.via);
        let (caller, lane) = (call.caller, call.by_lane && by_lane && !self.manner.answers_by_stream);
        if end {
            self.calls.remove(&key);
        }
        if frame.header.kind() == Some(Kind::Response) {
            let seen = if by_lane { &self.seen.answers_by_lane } else { &self.seen.answers_by_stream };
            seen.fetch_add(1, Ordering::SeqCst);
        }
        let lane = self.ends.get(&caller).and_then(|end| end.other).filter(|_| lane && frame.header.word == 0);
        if let Some(lane) = lane {
            let end = self.ends.get_mut(&lane).unwrap();
            frame.header.receipt = frame.header.stream | 1 << 31;
            end.receipts.push_back(frame.header.receipt);
        }
        self.write(lane.unwrap_or(caller), &frame.bytes());
    }

    fn obey(&mut self, order: Order) {
        let lanes: Vec<usize> = self.ends.iter().filter(|(_, end)| is_lane(end)).map(|(at, _)| *at).collect();
        for lane in lanes {
            if order == Order::Garbage {
                self.write(lane, &[0xff; 64]);
            } else {
                self.ended(lane, order == Order::Close);
            }
        }
    }

    /// A connection has ended, or is ended here.
    fn ended(&mut self, at: usize, answers: bool) {
        let Some(end) = self.ends.remove(&at) else { return };
        end.reader.abort();
        if !is_lane(&end) {
            return;
        }
        self.seen.open.fetch_sub(1, Ordering::SeqCst);
        let stream = end.other.unwrap();
        if let Some(stream) = self.ends.get_mut(&stream) {
            stream.other = None;
        }
        let of_lane = |call: &Call| call.by_lane && (call.caller == stream || call.callee == stream);
        let over: Vec<u64> = self.calls.iter().filter(|(_, call)| of_lane(call)).map(|(via, _)| *via).collect();
        for via in over {
            let call = self.calls.remove(&via).unwrap();
            let mut answer = Frame::new(Kind::Response).word(status::REMOTING).via(call.via).stream(call.stream);
            answer.header.flags = Flags::TO_CALLER | Flags::END_STREAM;
            if answers {
                self.write(call.caller, &answer.bytes());
            }
        }
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        if let Some(end) = self.ends.get(&at) {
            let _ = end.writer.send(bytes.to_vec());
        }
    }

    fn fault(&self, text: &str) {
        self.seen.faults.lock().unwrap().push(text.to_owned());
    }
}

fn is_lane(end: &End) -> bool {
    end.other.is_some() && end.hello.as_ref().is_some_and(|hello| hello.role == Role::Lane)
}
