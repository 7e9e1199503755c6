//! Conversations keep the rules of calls, windows and connections, frame by frame.

use std::collections::BTreeMap;

use agent_common::frame::{Flags, HEADER_LEN, Header, Hello, Kind, SendWindow, WINDOW_MIN, Windows, find, id, is_after};

use crate::file::{Conversation, File, Side, Step};
use crate::invalid::refusal;

const SMALLEST: Windows = Windows { stream: WINDOW_MIN, connection: WINDOW_MIN };

/// A connection all of whose calls go one way.
#[derive(Debug, Default)]
struct Connection {
    callee: Option<Peer>,
    caller: Option<Peer>,
    last_stream: u32,
    calls: BTreeMap<u32, Call>,
    ping: Option<(Side, u64)>,
    /// No call is begun after this one; with no number, none at all.
    goaway: Option<Option<u32>>,
}

/// What a side said of itself, and the room that the other has towards it.
#[derive(Debug)]
struct Peer {
    windows: Windows,
    room: SendWindow,
}

/// A call in flight, and the room that its two messages have.
#[derive(Debug)]
struct Call {
    via: u64,
    service: u64,
    one_way: bool,
    request: Message,
    response: Message,
}

#[derive(Debug)]
struct Message {
    begun: bool,
    ended: bool,
    /// What its first frame says of the whole body, and what came of it.
    body: (Option<u64>, u64),
    room: SendWindow,
}

#[test]
fn conversations_keep_the_rules() {
    for conversation in File::read().conversations {
        assert_eq!(replay(conversation.frames.iter()), Ok(()), "{}", conversation.name);
        assert!(conversation.frames.iter().all(|step| !step.comment.is_empty()), "{}", conversation.name);
    }
}

#[test]
fn a_conversation_that_lacks_a_frame_breaks_a_rule() {
    for conversation in File::read().conversations {
        for (missing, step) in conversation.frames.iter().enumerate() {
            let header = step.header();
            let needed = match header.kind() {
                Some(Kind::Hello) => true,
                // Those of the callee: the room of the answer was not needed.
                Some(Kind::Credit) => conversation.name == "streamed" && step.from == Side::Callee,
                // A GOAWAY, a whole REQUEST or the end of an answer; an answer may come before its request has ended.
                Some(kind) if kind != Kind::Data || step.from == Side::Callee => {
                    header.flags.has(Flags::END_STREAM) && !header.flags.has(Flags::ONE_WAY) && !step.dropped
                }
                _ => false,
            };
            let rest = conversation.frames.iter().enumerate().filter(|(at, _)| *at != missing).map(|(_, step)| step);
            assert!(!needed || replay(rest).is_err(), "{}: frame {missing} is not missed", conversation.name);
        }
    }
}

/// The comment of the frame that breaks a rule, and the rule.
fn replay<'a>(steps: impl Iterator<Item = &'a Step>) -> Result<(), (&'a str, &'static str)> {
    let mut connections = BTreeMap::<usize, Connection>::new();
    for step in steps {
        connections.entry(step.connection).or_default().frame(step).map_err(|rule| (&*step.comment, rule))?;
    }
    let over = connections.values().all(|connection| connection.calls.is_empty());
    must(over, "every call ends").map_err(|rule| ("the end", rule))
}

#[test]
fn what_is_forwarded_changes_its_numbers_alone() {
    let file = File::read();
    let conversation = file.conversations.iter().find(|conversation| conversation.name == "forwarded").unwrap();
    let (left, right) = (calls(conversation, 0), calls(conversation, 1));
    assert_eq!(left.len(), right.len());
    for ((from, bytes), (to, forwarded)) in left.into_iter().zip(right) {
        assert_ne!((from.stream, from.via), (to.stream, to.via));
        assert_eq!((from.kind, from.flags, from.service, from.body_len), (to.kind, to.flags, to.service, to.body_len));
        assert_eq!(bytes[from.head_len()..], forwarded[to.head_len()..]);
        assert!(forwarded[HEADER_LEN..].starts_with(&bytes[HEADER_LEN..from.head_len()]), "entries stay in their order");
        assert!(to.word <= from.word, "time only runs out");
    }
}

/// The frames of calls on one of a conversation's connections.
fn calls(conversation: &Conversation, connection: usize) -> Vec<(Header, Vec<u8>)> {
    let frames = conversation.frames.iter().filter(|step| step.connection == connection);
    let frames = frames.map(|step| (step.header(), step.bytes()));
    frames.filter(|(header, _)| header.kind().is_some_and(Kind::needs_credit)).collect()
}

type Said = Result<(), &'static str>;

fn must(rule: bool, otherwise: &'static str) -> Said {
    if rule { Ok(()) } else { Err(otherwise) }
}

impl Connection {
    fn frame(&mut self, step: &Step) -> Said {
        let bytes = step.bytes();
        assert_eq!(refusal(&bytes), None);
        let header = step.header();
        let kind = header.kind().ok_or("a kind that is not known")?;
        if kind == Kind::Hello {
            let hello = Hello::decode(&bytes[HEADER_LEN..]).unwrap();
            return self.hello(step.from, hello.windows);
        }
        must(self.caller.is_some() && self.callee.is_some(), "both HELLOs come first")?;
        if kind.needs_credit() {
            let room = &mut self.peer(other(step.from)).as_mut().unwrap().room;
            must(room.take(header.frame_len()), "the connection's window has no room")?;
        }
        match kind {
            Kind::Ping => {
                self.ping = Some((step.from, header.via));
                Ok(())
            }
            Kind::Pong => must(self.ping.take() == Some((other(step.from), header.via)), "a PONG that no PING asked for"),
            Kind::GoAway => {
                self.goaway = Some(header.flags.has(Flags::END_STREAM).then_some(header.stream));
                Ok(())
            }
            Kind::Credit if header.stream == 0 => {
                must((header.via, header.service, header.flags) == (0, 0, Flags::NONE), "all three are 0")?;
                let room = &mut self.peer(step.from).as_mut().unwrap().room;
                room.credit(header.word).map_err(|_| "more room than a window may have")
            }
            _ => self.of_a_call(step, kind, &header),
        }
    }

    fn hello(&mut self, from: Side, windows: Windows) -> Said {
        let peer = self.peer(from);
        must(peer.is_none(), "one HELLO each way")?;
        *peer = Some(Peer { windows, room: SendWindow::new(windows.connection) });
        Ok(())
    }

    fn of_a_call(&mut self, step: &Step, kind: Kind, header: &Header) -> Said {
        let to_caller = step.from == Side::Callee;
        must(header.flags.has(Flags::TO_CALLER) == to_caller, "TO_CALLER says which way a frame goes")?;
        if kind == Kind::Request {
            return self.begin(step, header);
        }
        let Some(call) = self.calls.get_mut(&header.stream) else {
            return must(step.dropped, "its call is not in flight");
        };
        must(!step.dropped, "its call is in flight")?;
        must((call.via, call.service) == (header.via, header.service), "a call keeps its via and its service")?;
        let (message, back) =
            if to_caller { (&mut call.response, &mut call.request) } else { (&mut call.request, &mut call.response) };
        match kind {
            Kind::Credit => return back.room.credit(header.word).map_err(|_| "more room than a window may have"),
            Kind::Cancel => {
                must(!header.flags.has(Flags::NOT_EXECUTED) || !message.begun, "a call that is answered is executed")?;
                self.calls.remove(&header.stream);
                return Ok(());
            }
            Kind::Response => must(!message.begun, "one RESPONSE each call")?,
            _ => must(message.begun && !message.ended, "DATA continues a message")?,
        }
        message.send(header, &step.bytes()[HEADER_LEN..header.head_len()])?;
        must(!to_caller || !call.one_way, "nothing answers a one-way call")?;
        self.end(header);
        Ok(())
    }

    fn begin(&mut self, step: &Step, header: &Header) -> Said {
        must(is_after(header.stream, self.last_stream), "numbers increase")?;
        self.last_stream = header.stream;
        must(self.calls.values().all(|call| call.via != header.via), "a via of its own")?;
        match self.goaway {
            Some(None) => return Err("no call is begun after a GOAWAY"),
            Some(Some(last)) => return must(step.dropped && is_after(header.stream, last), "it is not executed"),
            None => must(!step.dropped, "it is executed")?,
        }
        let message = |peer: &Option<Peer>| Message {
            begun: false,
            ended: false,
            body: (None, 0),
            room: SendWindow::new(peer.as_ref().map_or(SMALLEST, |peer| peer.windows).stream),
        };
        let (mut request, response) = (message(&self.callee), message(&self.caller));
        request.send(header, &step.bytes()[HEADER_LEN..header.head_len()])?;
        let one_way = header.flags.has(Flags::ONE_WAY);
        self.calls.insert(header.stream, Call { via: header.via, service: header.service, one_way, request, response });
        self.end(header);
        Ok(())
    }

    /// A call ends with its answer, or with its request if nothing answers it.
    fn end(&mut self, header: &Header) {
        if self.calls.get(&header.stream).is_some_and(|call| call.response.ended || call.one_way && call.request.ended) {
            self.calls.remove(&header.stream);
        }
    }

    fn peer(&mut self, side: Side) -> &mut Option<Peer> {
        match side {
            Side::Caller => &mut self.caller,
            Side::Callee => &mut self.callee,
        }
    }
}

impl Message {
    fn send(&mut self, header: &Header, meta: &[u8]) -> Said {
        if let Some(len) = find(meta, id::BODY_LEN) {
            self.body.0 = Some(u64::from_be_bytes(len.try_into().map_err(|_| "body_len has 8 bytes")?));
        }
        self.begun = true;
        self.ended = header.flags.has(Flags::END_STREAM);
        self.body.1 += u64::from(header.body_len);
        must(!self.ended || self.body.0.is_none_or(|len| len == self.body.1), "body_len is that of the whole body")?;
        must(self.room.take(header.frame_len()), "the message's window has no room")
    }
}

fn other(side: Side) -> Side {
    match side {
        Side::Caller => Side::Callee,
        Side::Callee => Side::Caller,
    }
}
