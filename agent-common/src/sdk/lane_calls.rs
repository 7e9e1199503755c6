//! Calls that go by the lane: what is different about them. Who waits for what is the same, and so is the state.

use bytes::Bytes;

use super::{
    Error,
    frames::Received,
    lane::{Lane, Sent, Wire},
    made::{Made, Outgoing},
    sending::Sending,
    state::{Names, Phase, State},
    taken::Start,
};
use crate::frame::{Flags, Frame, Header, Kind, Message};

/// The lane beside a connection.
#[derive(Debug, Default)]
pub(super) struct Laned {
    /// The agent gives one.
    pub(super) offered: bool,
    pub(super) open: Option<Lane>,
    /// How many there have been.
    number: u32,
    /// Ticks until calls of lanes that have ended are given up.
    patience: u32,
}

/// A call that has begun.
pub(super) struct Begun {
    pub(super) names: Names,
    pub(super) sending: Sending,
    /// The lane that it went by.
    pub(super) lane: Option<u32>,
}

/// A lane is to be given up.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LaneOver;

/// An agent has so many ticks to say what became of the calls of a lane that has ended.
const PATIENCE: u32 = 3;

/// What the kernel path does not route, so that it would only come later to the agent.
const SLOW: Flags = Flags(Flags::SLOW_PATH.0 | Flags::SHADOW.0 | Flags::ONE_WAY.0);

impl Laned {
    pub(super) fn new(offered: bool) -> Self {
        Self { offered, ..Self::default() }
    }

    /// The open lane, if a message of this size goes by it.
    fn for_message(&mut self, meta: &Bytes, body: Option<&Bytes>) -> Option<&mut Lane> {
        let body = body?.len();
        self.open.as_mut().filter(|lane| lane.takes(meta.len(), body))
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.open.as_ref().is_some_and(Lane::is_waiting)
    }

    /// Whether a lane is open, and its socket has taken everything.
    pub(super) fn has_sent_all(&self) -> bool {
        self.open.as_ref().is_some_and(|lane| !lane.is_waiting())
    }

    pub(super) fn cancel(&mut self, message: Message) -> bool {
        self.open.as_mut().is_some_and(|lane| lane.cancel(message))
    }
}

impl State {
    /// A lane is open from now on, unless the connection has ended.
    pub(super) fn open_lane(&mut self, wire: Box<dyn Wire>, body_max: u32) {
        if self.phase == Phase::Closed {
            return;
        }
        self.laned.number += 1;
        self.laned.open = Some(Lane::new(wire, self.laned.number, body_max));
    }

    /// The lane is over. What has waited for it goes by the stream connection; what was sent is the agent's to answer there.
    pub(super) fn end_lane(&mut self) {
        let Some(lane) = self.laned.open.take() else { return };
        let number = lane.number();
        for frame in lane.into_waiting() {
            self.send_by_stream(frame);
        }
        if self.made.values().any(|made| made.lane == Some(number)) {
            self.laned.patience = PATIENCE;
        }
    }

    /// Sends a whole message by the stream connection of which nobody has seen anything.
    fn send_by_stream(&mut self, frame: Frame) {
        if frame.header.kind == Kind::Request as u8
            && let Some(made) = self.made.get_mut(&frame.header.via)
        {
            // It gets its number when it leaves.
            made.names.stream = 0;
            made.lane = None;
        }
        self.outbox.push(frame);
    }

    /// Whether a call goes by the lane.
    pub(super) fn fits_lane(&mut self, request: &Outgoing) -> bool {
        request.flags.0 & SLOW.0 == 0 && self.laned.for_message(&request.meta, request.body.as_ref()).is_some()
    }

    /// Begins a call, which fits if there is a lane.
    pub(super) fn call_by_lane(&mut self, names: Names, header: Header, meta: Bytes, body: Bytes) -> Begun {
        let Some(lane) = self.laned.open.as_mut() else {
            return Begun { names, sending: self.begin(names, header, meta, Some(body)), lane: None };
        };
        let (names, lane_number) = (Names { stream: self.outbox.take_number(), ..names }, Some(lane.number()));
        let sent = lane.send(whole(Header { stream: names.stream, ..header }, meta, body));
        let sending = Sending { last: true, ended: true, ..Sending::default() };
        match sent {
            Sent::Taken => Begun { names, sending: Sending { first_end: Some(0), ..sending }, lane: lane_number },
            Sent::Waits => Begun { names, sending, lane: lane_number },
            Sent::Lost => {
                self.end_lane();
                self.laned.patience = PATIENCE;
                Begun { names, sending: Sending { first_end: Some(0), ..sending }, lane: lane_number }
            }
        }
    }

    /// Answers a call that came by this lane, if it is still there and the answer fits. Returns what does not.
    pub(super) fn answer_by_lane(&mut self, lane: Option<u32>, header: Header, meta: &Bytes, body: Option<&Bytes>) -> bool {
        let Some(body) = body else { return false };
        let open = self.laned.for_message(meta, Some(body)).filter(|open| Some(open.number()) == lane);
        let Some(open) = open else { return false };
        match open.send(whole(header, meta.clone(), body.clone())) {
            Sent::Taken | Sent::Waits => {}
            Sent::Lost => self.end_lane(),
        }
        true
    }

    /// Sends what waits for the lane's socket, which takes more. False when nothing more goes.
    pub(super) fn flush_lane(&mut self) -> bool {
        let Some((message, sent)) = self.laned.open.as_mut().and_then(Lane::send_waiting) else { return false };
        if !message.to_caller
            && let Some(made) = self.made.get_mut(&message.via)
        {
            made.sending.first_end = Some(0);
        }
        if matches!(sent, Sent::Lost) {
            self.end_lane();
        }
        self.laned.open.is_some()
    }

    /// Whether a lane on which a frame went in parts can be given up for a new one: nothing of it is in flight, and nobody
    /// can send anything by it.
    pub(super) fn is_lane_done(&self) -> bool {
        let spoiled = self.laned.open.as_ref().filter(|lane| lane.is_spoiled() && !lane.is_waiting());
        let unused = |lane: &Lane| !self.made.values().any(|made| made.lane == Some(lane.number()));
        self.terms.offers.is_empty() && spoiled.is_some_and(unused)
    }

    /// A frame came by the lane: it takes no credit, and its number says nothing but to its caller.
    pub(super) fn receive_by_lane(&mut self, frame: Received, starts: &mut Vec<Start>) -> Result<(), LaneOver> {
        let header = frame.header;
        let whole = header.flags.has(Flags::END_STREAM);
        let number = self.laned.open.as_ref().map(Lane::number);
        match header.kind() {
            Some(Kind::Request) if whole && !header.flags.has(Flags::ONE_WAY) => {
                self.on_request(frame, number, starts).map_err(|_| LaneOver)
            }
            Some(Kind::Response) if whole => {
                if let Some(lane) = &mut self.laned.open {
                    lane.read(&header);
                }
                self.on_response(frame).map_err(|_| LaneOver)
            }
            None => Ok(()),
            Some(_) => Err(LaneOver),
        }
    }

    /// An interval has passed: calls of lanes that have ended were not answered for too long.
    pub(super) fn tick_lanes(&mut self) {
        if self.laned.patience == 0 {
            return;
        }
        self.laned.patience -= 1;
        if self.laned.patience > 0 {
            return;
        }
        let open = self.laned.open.as_ref().map(Lane::number);
        let of_others = |made: &Made| made.lane.is_some() && made.lane != open;
        let lost: Vec<_> = self.made.values().filter(|made| of_others(made)).map(|made| made.names).collect();
        for names in lost {
            self.cancel_frame(names, crate::frame::status::REMOTING, "");
            self.fail_one(names.via, Error::broken("the lane to the agent broke", false));
        }
    }
}

/// A message of one frame.
fn whole(header: Header, meta: Bytes, body: Bytes) -> Frame {
    let (meta_len, body_len) = (u16::try_from(meta.len()).unwrap_or(0), u32::try_from(body.len()).unwrap_or(0));
    Frame { header: Header { flags: header.flags | Flags::END_STREAM, meta_len, body_len, ..header }, meta, body }
}

#[cfg(test)]
mod tests {
    use std::io::{self, ErrorKind};

    use tokio::sync::oneshot;

    use super::*;
    use crate::{
        frame::{Hello, MetaBuilder, Offer, Windows, id, status},
        sdk::{
            lane::tests::Script,
            made::{Answer, Begin, Told, Way},
            taken::Terms,
        },
    };

    const WINDOWS: Windows = Windows { stream: 262_144, connection: 1 << 20 };
    const BODY_MAX: u32 = 1024;

    fn state() -> (State, Script) {
        let lane = Some(crate::frame::Lane { token: [7; 16], body_max: BODY_MAX });
        let peer = Hello { lane, ..Hello::new(crate::frame::Role::Agent, "agent", "agent-1", WINDOWS) };
        let offers = [Offer::new("/a")].map(|offer| (offer.hash(), offer)).into();
        let terms = Terms { offers: std::sync::Arc::new(offers) };
        let mut state = State::new(&peer, WINDOWS, terms, 100, 1 << 20);
        let script = Script::default();
        state.open_lane(Box::new(script.clone()), BODY_MAX);
        (state, script)
    }

    fn meta() -> Bytes {
        let mut meta = MetaBuilder::new();
        meta.put(id::URI, b"/a");
        meta.finish()
    }

    fn outgoing(body: Option<usize>) -> Outgoing {
        let body = body.map(|len| vec![7; len].into());
        let (service, flags) = (Offer::new("/a").hash(), Flags::NONE);
        Outgoing { service, flags, timeout_ms: 0, meta: meta(), body, sampled: false }
    }

    fn call(state: &mut State, request: Outgoing) -> (Begin, oneshot::Receiver<Answer>) {
        let (tell, told) = oneshot::channel();
        (state.call(request, Told::Answer(tell), Way::Any).expect("it begins"), told)
    }

    /// The headers that leave by the stream connection.
    fn streamed(state: &mut State) -> Vec<Header> {
        let mut headers = Vec::new();
        while state.schedule() {
            let mut slices = [io::IoSlice::new(&[]); 32];
            let count = state.outbox.fill(&mut slices);
            let bytes: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.iter().copied()).collect();
            let mut rest = &bytes[..];
            while let Some(header) = rest.first_chunk() {
                let header = Header::parse(header).expect("a frame");
                rest = &rest[header.frame_len()..];
                headers.push(header);
            }
            state.advance(bytes.len());
        }
        headers
    }

    fn by_lane(state: &mut State, header: Header, meta: Bytes) -> Result<Vec<Start>, LaneOver> {
        let mut starts = Vec::new();
        let header = Header { meta_len: u16::try_from(meta.len()).expect("short"), ..header };
        state.receive_by_lane(Received { header, meta, body: Bytes::new() }, &mut starts).map(|()| starts)
    }

    fn answer(header: &Header) -> Header {
        let Header { stream, via, service, .. } = *header;
        Header { stream, via, service, flags: Flags::TO_CALLER | Flags::END_STREAM, ..Header::new(Kind::Response) }
    }

    fn request(via: u64) -> Header {
        let service = Offer::new("/a").hash();
        Header { stream: 5, via, service, flags: Flags::END_STREAM, ..Header::new(Kind::Request) }
    }

    const KERNEL: u64 = 1 << 63;

    #[test]
    fn what_fits_goes_by_the_lane_and_the_rest_by_the_stream_in_one_sequence() {
        let (mut state, script) = state();
        let bodies = [Some(10), Some(1025), Some(1024), None, Some(0)];
        let ways: Vec<_> = bodies.map(|body| (call(&mut state, outgoing(body)).0.by_lane, streamed(&mut state))).into();
        assert_eq!(ways.iter().map(|(by_lane, _)| *by_lane).collect::<Vec<_>>(), [true, false, true, false, true]);
        let numbers: Vec<_> = ways.iter().flat_map(|(_, headers)| headers.iter().map(|header| header.stream)).collect();
        assert_eq!(numbers, [2, 4]);
        let sent = script.headers();
        assert_eq!(sent.iter().map(|(header, _)| header.stream).collect::<Vec<_>>(), [1, 3, 5]);
        assert!(sent.iter().all(|(header, len)| header.flags.has(Flags::END_STREAM) && header.frame_len() == *len));
    }

    #[test]
    fn flags_and_recorded_traces_keep_a_call_off_the_lane() {
        for flags in [Flags::SLOW_PATH, Flags::SHADOW] {
            let (mut state, _) = state();
            assert!(!call(&mut state, Outgoing { flags, ..outgoing(Some(1)) }).0.by_lane);
        }
        let (mut state, _) = state();
        assert!(!call(&mut state, Outgoing { sampled: true, ..outgoing(Some(1)) }).0.by_lane);
        assert!(streamed(&mut state)[0].flags.has(Flags::SLOW_PATH));
        state.laned.offered = false;
        state.end_lane();
        call(&mut state, Outgoing { sampled: true, ..outgoing(Some(1)) });
        assert!(!streamed(&mut state)[0].flags.has(Flags::SLOW_PATH), "nothing is said where there are no lanes");
        let (tell, _told) = oneshot::channel();
        let one_way = state.call(outgoing(Some(1)), Told::Written(tell), Way::Any).expect("it begins");
        assert!(!one_way.by_lane);
    }

    #[test]
    fn an_answer_may_come_either_way_and_counts_once() {
        let (mut state, script) = state();
        let (_, mut first) = call(&mut state, outgoing(Some(1)));
        let (_, mut second) = call(&mut state, outgoing(Some(1)));
        let sent = script.headers();
        by_lane(&mut state, Header { receipt: 77, ..answer(&sent[0].0) }, Bytes::new()).expect("a lane that goes on");
        let received = Received { header: answer(&sent[1].0), meta: Bytes::new(), body: Bytes::new() };
        state.receive(received, &mut Vec::new()).expect("a fine frame");
        assert!(first.try_recv().is_ok_and(|answer| answer.is_ok()) && second.try_recv().is_ok_and(|answer| answer.is_ok()));
        by_lane(&mut state, answer(&sent[0].0), Bytes::new()).expect("a second answer is dropped");
        assert_eq!((state.ignored, state.made.len()), (1, 0));
        call(&mut state, outgoing(Some(1)));
        assert_eq!(script.headers()[0].0.receipt, 77);
    }

    #[test]
    fn a_call_is_answered_the_way_it_came_if_the_answer_fits() {
        let (mut state, script) = state();
        for (via, len) in [(KERNEL | 1, 1024), (KERNEL | 2, 1025)] {
            let starts = by_lane(&mut state, request(via), meta()).expect("a lane that goes on");
            let names = starts[0].names;
            let body = Bytes::from(vec![1; len]);
            assert!(state.answer(names, names.header(Kind::Response), Bytes::new(), Some(body)).is_some());
        }
        let by_stream = streamed(&mut state);
        let sent = script.headers();
        assert_eq!(sent.iter().map(|(header, _)| (header.via, header.stream)).collect::<Vec<_>>(), [(KERNEL | 1, 5)]);
        assert_eq!(by_stream.iter().map(|header| (header.via, header.stream)).collect::<Vec<_>>(), [(KERNEL | 2, 5)]);
        assert!(state.taken.is_empty());
    }

    #[test]
    fn a_call_that_may_not_be_executed_is_refused_the_same_way() {
        let (mut state, script) = state();
        let other = Header { service: 7, ..request(KERNEL | 1) };
        assert!(by_lane(&mut state, other, meta()).is_ok_and(|starts| starts.is_empty()));
        let (header, _) = script.headers()[0];
        assert_eq!((header.word, header.flags.has(Flags::NOT_EXECUTED)), (status::SERIALIZATION, true));
    }

    #[test]
    fn what_does_not_belong_on_a_lane_ends_it() {
        let frames = [
            Header { flags: Flags::NONE, ..request(KERNEL | 2) },
            Header { flags: Flags::END_STREAM | Flags::ONE_WAY, ..request(KERNEL | 2) },
            request(KERNEL | 1),
            Header { flags: Flags::TO_CALLER, ..answer(&request(1)) },
            Header::new(Kind::Data),
            Header::new(Kind::Hello),
            Header::new(Kind::GoAway),
            Header::new(Kind::Ping),
        ];
        for header in frames {
            let (mut state, _) = state();
            by_lane(&mut state, request(KERNEL | 1), meta()).expect("a lane that goes on");
            assert!(by_lane(&mut state, header, meta()).is_err(), "{header:?}");
        }
        let (mut state, _) = state();
        let unknown = Header { kind: 200, ..Header::new(Kind::Ping) };
        assert!(by_lane(&mut state, unknown, Bytes::new()).is_ok(), "it may be skipped");
    }

    #[test]
    fn when_the_lane_ends_what_waits_goes_by_the_stream() {
        let (mut state, script) = state();
        script.then(Err(ErrorKind::WouldBlock.into()));
        let (begin, mut told) = call(&mut state, outgoing(Some(10)));
        let starts = by_lane(&mut state, request(KERNEL | 1), meta()).expect("a lane that goes on");
        let names = starts[0].names;
        state.answer(names, names.header(Kind::Response), Bytes::new(), Some(Bytes::new()));
        assert!(begin.by_lane && state.laned.is_waiting() && streamed(&mut state).is_empty());
        state.end_lane();
        let sent = streamed(&mut state);
        assert_eq!(sent.iter().map(Header::kind).collect::<Vec<_>>(), [Some(Kind::Request), Some(Kind::Response)]);
        state.receive(Received { header: answer(&sent[0]), meta: Bytes::new(), body: Bytes::new() }, &mut Vec::new()).unwrap();
        assert!(told.try_recv().is_ok_and(|answer| answer.is_ok()));
    }

    #[test]
    fn a_lane_on_which_a_frame_went_in_parts_is_given_up_when_its_calls_have_ended() {
        let (mut state, script) = state();
        state.terms = Terms::default();
        script.then(Ok(41)).then(Err(ErrorKind::WouldBlock.into()));
        let (begin, mut told) = call(&mut state, outgoing(Some(10)));
        assert!(begin.by_lane && !call(&mut state, outgoing(Some(10))).0.by_lane);
        assert!(!state.flush_lane() && state.laned.is_waiting() && state.flush_lane() && !state.is_lane_done());
        let (header, _) = script.headers()[0];
        by_lane(&mut state, answer(&header), Bytes::new()).expect("a lane that goes on");
        assert!(told.try_recv().is_ok_and(|answer| answer.is_ok()) && state.is_lane_done());
    }

    #[test]
    fn a_frame_that_was_cut_off_by_the_lanes_end_goes_whole_by_the_stream() {
        let (mut state, script) = state();
        script.then(Ok(41));
        let (_, _told) = call(&mut state, outgoing(Some(10)));
        state.end_lane();
        assert_eq!(streamed(&mut state).iter().map(|header| (header.via, header.stream)).collect::<Vec<_>>(), [(1, 2)]);
        assert_eq!(state.made[&1].names.stream, 2);
        (0..10).for_each(|_| state.tick_lanes());
        assert_eq!(state.made.len(), 1, "it is a call of the stream connection");
    }

    #[test]
    fn calls_that_nobody_answers_when_the_lane_has_ended_fail_once() {
        let (mut state, _) = state();
        let (_, mut told) = call(&mut state, outgoing(Some(10)));
        state.end_lane();
        state.open_lane(Box::new(Script::default()), BODY_MAX);
        let (_, mut other) = call(&mut state, outgoing(Some(10)));
        for _ in 1..PATIENCE {
            state.tick_lanes();
            assert!(told.try_recv().is_err());
        }
        state.tick_lanes();
        let error = told.try_recv().expect("an end").expect_err("a failure");
        assert_eq!((error.status(), error.is_not_executed()), (status::REMOTING, false));
        assert_eq!(
            streamed(&mut state).iter().map(|header| (header.kind(), header.stream)).collect::<Vec<_>>(),
            [(Some(Kind::Cancel), 1)]
        );
        assert!(other.try_recv().is_err(), "the new lane's call goes on");
    }

    #[test]
    fn a_call_that_was_sent_is_cancelled_by_the_stream_and_one_that_waits_is_taken_back() {
        let (mut state, script) = state();
        let (sent, _first) = call(&mut state, outgoing(Some(10)));
        script.then(Err(ErrorKind::WouldBlock.into()));
        let (waits, _second) = call(&mut state, outgoing(Some(10)));
        state.abandon(waits.names, status::CANCELLED);
        assert!(!state.laned.is_waiting() && streamed(&mut state).is_empty());
        state.abandon(sent.names, status::CANCELLED);
        let cancels = streamed(&mut state);
        assert_eq!(cancels.iter().map(|header| (header.kind(), header.stream)).collect::<Vec<_>>(), [(Some(Kind::Cancel), 1)]);
    }

    #[test]
    fn the_end_of_the_connection_tells_what_left() {
        let (mut state, script) = state();
        let (_, mut sent) = call(&mut state, outgoing(Some(10)));
        script.then(Err(ErrorKind::WouldBlock.into()));
        let (_, mut waits) = call(&mut state, outgoing(Some(10)));
        state.fail("it broke");
        let end =
            |told: &mut oneshot::Receiver<Answer>| told.try_recv().expect("an end").expect_err("a failure").is_not_executed();
        assert_eq!((end(&mut sent), end(&mut waits)), (false, true));
    }
}
