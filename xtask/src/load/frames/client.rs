//! The calling end: connections of one thread, each with a number of calls in flight.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use agent_common::frame::{Flags, Header, Hello, Kind, MetaBuilder, ReceiveWindow, Role, id, service_hash};
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;

use super::{
    super::Stats,
    FrameLoad, URI, WINDOWS,
    events::Events,
    input::Frame,
    link::{Calls, Link, Ways, message_credit, why},
    output::Message,
    socket::Socket,
};

/// What the thread shares with who started it.
pub(super) struct Shared {
    /// A load's flows, each with what was seen of it.
    pub(super) stats: Mutex<Vec<Stats>>,
    pub(super) stop: AtomicBool,
    /// Bytes that went and came on all connections.
    pub(super) bytes: AtomicU64,
}

/// The thread.
pub(super) struct Client {
    events: Events,
    links: Vec<(Link, Callers)>,
    shared: Arc<Shared>,
    timeout: Duration,
}

/// The calls of one connection.
struct Callers {
    flows: Vec<Flow>,
    slots: Vec<Slot>,
    /// Calls that may still be begun.
    left: u64,
    in_flight: usize,
    /// Slots whose call has ended.
    free: Vec<usize>,
}

/// What calls of one flow have in common.
struct Flow {
    header: Header,
    meta: Bytes,
    body: Bytes,
}

/// One call after another; its number is the `via` of each.
struct Slot {
    flow: usize,
    begun: Option<Instant>,
    /// Bytes of the answer so far.
    came: usize,
    window: ReceiveWindow,
}

/// One connection's turn.
struct Turn<'a> {
    callers: &'a mut Callers,
    stats: &'a mut Vec<Stats>,
    now: Instant,
}

impl Client {
    /// Opens every connection.
    pub(super) fn open(load: &FrameLoad, shared: Arc<Shared>) -> Result<Self> {
        let (mut events, mut links) = (Events::new()?, Vec::new());
        let calls = load.calls.map(|calls| calls / load.connections as u64);
        for number in 0..load.connections {
            let socket = Socket::connect(&load.to, load.timeout)?;
            let instance = format!("bench-client-{}", std::process::id());
            // Workers share the connections evenly.
            let connection = Some(u16::try_from(number)?);
            let hello = Hello { connection, ..Hello::new(Role::Application, "bench-client", &instance, WINDOWS) };
            let (link, peer) = Link::connected(socket, &hello, load.setup)?;
            let depth: usize = load.flows.iter().map(|flow| flow.depth).sum();
            ensure!(peer.calls_max == 0 || peer.calls_max as usize >= depth, "the peer takes {} calls at once", peer.calls_max);
            link.add_to(&mut events, number)?;
            links.push((link, Callers::new(load, calls.unwrap_or(u64::MAX))));
        }
        Ok(Self { events, links, shared, timeout: load.timeout })
    }

    /// Calls until it is told to stop, or has made as many calls as it should, and the last answer is there.
    pub(super) fn run(mut self) {
        if let Err(error) = self.call() {
            let in_flight: usize = self.links.iter().map(|(_, callers)| callers.in_flight).sum();
            stats(&self.shared)[0].error((in_flight as u64).max(1), format!("{error:#}"));
        }
    }

    fn call(&mut self) -> Result<()> {
        for number in 0..self.links.len() {
            self.turn(2 * number, false)?;
        }
        while self.links.iter().any(|(_, callers)| callers.in_flight > 0) {
            let ready = self.events.wait(self.timeout)?;
            ensure!(!ready.is_empty(), "no answer in time");
            for (number, reads) in ready {
                self.turn(number, reads)?;
            }
        }
        Ok(())
    }

    fn turn(&mut self, number: usize, reads: bool) -> Result<()> {
        let (of_lane, number) = (number % 2 == 1, number / 2);
        let (link, callers) = &mut self.links[number];
        let before = link.bytes();
        if reads {
            let mut stats = stats(&self.shared);
            link.take(of_lane, &mut Turn { callers, stats: &mut stats, now: Instant::now() })?;
        }
        if !self.shared.stop.load(Ordering::Relaxed) {
            callers.begin(&mut link.ways());
        }
        link.flush()?;
        self.shared.bytes.fetch_add(link.bytes() - before, Ordering::Relaxed);
        link.renew_in(&mut self.events, number)
    }
}

fn stats(shared: &Shared) -> MutexGuard<'_, Vec<Stats>> {
    shared.stats.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Callers {
    fn new(load: &FrameLoad, left: u64) -> Self {
        let flows: Vec<Flow> = load.flows.iter().map(|flow| Flow::new(flow.body)).collect();
        let of_flow = |(number, flow): (usize, &super::Flow)| std::iter::repeat_n(number, flow.depth);
        let slots: Vec<Slot> = load.flows.iter().enumerate().flat_map(of_flow).map(Slot::new).collect();
        Self { flows, free: (0..slots.len()).collect(), slots, left, in_flight: 0 }
    }

    /// Begins a call in each slot that has none.
    fn begin(&mut self, ways: &mut Ways) {
        if self.free.is_empty() {
            return;
        }
        let now = Instant::now();
        while self.left > 0
            && let Some(number) = self.free.pop()
        {
            self.left -= 1;
            self.in_flight += 1;
            let slot = &mut self.slots[number];
            let flow = &self.flows[slot.flow];
            *slot = Slot { begun: Some(now), ..Slot::new(slot.flow) };
            let header = Header { via: via(number), ..flow.header };
            if !ways.call(header, &flow.meta, &flow.body) {
                ways.stream.queue(Message { header, meta: flow.meta.clone(), body: flow.body.clone() });
            }
        }
    }
}

/// Not 0, so that no call is taken for the connection.
fn via(slot: usize) -> u64 {
    slot as u64 + 1
}

impl Flow {
    fn new(len: usize) -> Self {
        let body: Vec<u8> = (0..=250).cycle().take(len).collect();
        let mut meta = MetaBuilder::new();
        meta.put(id::URI, URI.as_bytes()).put(id::METHOD, b"echo");
        if len > 16 << 10 {
            meta.put(id::BODY_LEN, &(len as u64).to_be_bytes());
        }
        let header = Header { service: service_hash(URI.as_bytes(), b""), ..Header::new(Kind::Request) };
        Self { header, meta: meta.finish(), body: body.into() }
    }
}

impl Slot {
    fn new(flow: usize) -> Self {
        Self { flow, begun: None, came: 0, window: ReceiveWindow::new(WINDOWS.stream) }
    }
}

impl Calls for Turn<'_> {
    fn frame(&mut self, frame: &Frame, ways: &mut Ways) -> Result<()> {
        let header = &frame.header;
        let number = usize::try_from(header.via)?.wrapping_sub(1);
        let slot = self.callers.slots.get_mut(number).filter(|slot| slot.begun.is_some());
        let slot = slot.context("an answer to no call")?;
        let mut error = None;
        match header.kind() {
            Some(Kind::Response) if header.word != 0 => error = Some(why(frame)),
            Some(Kind::Response | Kind::Data) => {}
            Some(Kind::Cancel) => error = Some(why(frame)),
            _ => bail!("the peer made a call that nobody offered to take"),
        }
        let ended = header.flags.has(Flags::END_STREAM) || header.kind() == Some(Kind::Cancel);
        if error.is_none() {
            let expected = &self.callers.flows[slot.flow].body[slot.came..];
            ensure!(expected.starts_with(frame.body), "an answer has other bytes than its call");
            ensure!(!ended || expected.len() == frame.body.len(), "an answer ends too early");
            slot.came += frame.body.len();
        }
        if !ended {
            if let Some(credit) = message_credit(header, &mut slot.window, Flags::NONE)? {
                ways.stream.control(&credit);
            }
            return Ok(());
        }
        if error.is_some() {
            ways.stream.forget(header.via);
        }
        let (flow, begun) = (slot.flow, slot.begun.take().context("an answer to no call")?);
        self.stats[flow].answered(self.now.duration_since(begun), error);
        self.callers.in_flight -= 1;
        self.callers.free.push(number);
        Ok(())
    }
}
