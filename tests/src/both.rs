//! An application that uses both of its connections as it should: whole messages in and out, by credit where they go by the
//! stream connection, and by the lane as long as there is one.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use agent_common::frame::{Flags, HEADER_LEN, Header, Hello, Kind, Message, Windows, service_hash};

use crate::{
    frames::{FramePeer, Got, bytes_of, meta_of},
    lanes::{LanePeer, Way},
    wait::PATIENCE,
};

/// Bytes of a large message's pieces.
const PIECE: usize = 24_000;
/// The longest body that goes by the lane.
pub const LANE_BODY: usize = 32 * 1024;

enum Peer {
    Laned(Box<LanePeer>),
    Plain(Box<FramePeer>),
}

/// The application.
pub struct Both {
    peer: Peer,
    windows: Windows,
    /// Room of the stream connection.
    room: i64,
    out: Vec<Out>,
    /// Messages that have begun to come.
    coming: HashMap<Message, Got>,
    /// A part of a frame was sent on the lane, so that no more begins there.
    lane_is_cut: bool,
}

/// A message that goes by the stream connection.
struct Out {
    header: Header,
    meta: Vec<u8>,
    body: Vec<u8>,
    at: usize,
    room: i64,
    begun: bool,
}

/// What has come.
pub enum Came {
    /// A whole message.
    Whole(Way, Got),
    /// A call was given up, and whether something of what goes the other way had left.
    Cancelled(Got, bool),
    /// A piece of a message that is not known.
    Stray(Got),
    /// Nothing, or nothing that matters.
    Nothing,
    /// The end.
    End,
}

impl Both {
    /// Connects, and opens a lane if there is one.
    pub fn open(address: SocketAddr, hello: &Hello) -> Self {
        let hello = Hello { connection: hello.connection.or(Some(0)), ..hello.clone() };
        let stream = FramePeer::connect(address, &hello);
        let windows = stream.hello.as_ref().expect("a HELLO").windows;
        let peer = match LanePeer::beside(stream, address, &hello) {
            Ok(peer) => Peer::Laned(Box::new(peer)),
            Err(no) => Peer::Plain(no.stream),
        };
        let room = i64::from(windows.connection);
        let mut both = Self { peer, windows, room, out: Vec::new(), coming: HashMap::new(), lane_is_cut: false };
        both.stream().quiet = false;
        both
    }

    /// Whether it has a lane that calls may be sent on.
    pub fn has_lane(&self) -> bool {
        matches!(self.peer, Peer::Laned(_)) && !self.lane_is_cut
    }

    fn stream(&mut self) -> &mut FramePeer {
        match &mut self.peer {
            Peer::Laned(peer) => &mut peer.stream,
            Peer::Plain(peer) => peer,
        }
    }

    /// Begins a call. Returns its number, and the way that it goes.
    pub fn call(&mut self, uri: &str, timeout_ms: u32, body: &[u8]) -> (u32, Way) {
        let meta = meta_of(uri);
        let service = service_hash(uri.as_bytes(), b"");
        let header = Header { flags: Flags::END_STREAM, service, word: timeout_ms, ..Header::new(Kind::Request) };
        if body.len() <= LANE_BODY
            && self.has_lane()
            && let Peer::Laned(peer) = &mut self.peer
        {
            let (stream, bytes) = peer.request_bytes(header, meta.as_ref(), body);
            self.send_on_lane(&bytes);
            return (stream, Way::Lane);
        }
        let stream = self.stream().take_number();
        self.push(Header { stream, via: u64::from(stream), ..header }, meta.as_ref(), body);
        (stream, Way::Stream)
    }

    /// Answers a call, which came this way.
    pub fn respond(&mut self, way: Way, call: &Got, status: u32, body: &[u8]) {
        let header = Header { word: status, ..call.back(Kind::Response) };
        if way == Way::Lane && body.len() <= LANE_BODY && self.has_lane() {
            let flags = header.flags | Flags::END_STREAM;
            self.send_on_lane(&bytes_of(Header { flags, ..header }, &[], body));
        } else {
            self.push(header, &[], body);
        }
    }

    /// Gives up a call.
    pub fn cancel(&mut self, uri: &str, stream: u32) {
        let message = Message { via: u64::from(stream), to_caller: false };
        let unsent = self.take_out(message) == Some(false);
        self.coming.remove(&Message { to_caller: true, ..message });
        if !unsent {
            self.stream().cancel(uri, stream);
        }
    }

    /// Sends what may go, and takes what comes within this time.
    pub fn next(&mut self, limit: Duration) -> Came {
        self.pump();
        let came = match &mut self.peer {
            Peer::Laned(peer) => peer.frame_within(limit),
            Peer::Plain(peer) => peer.frame_within(limit).map(|got| got.map(|got| (Way::Stream, got))),
        };
        match came {
            Err(_) => Came::End,
            Ok(None) => Came::Nothing,
            Ok(Some((way, got))) => self.took(way, got),
        }
    }

    fn took(&mut self, way: Way, got: Got) -> Came {
        match got.kind() {
            Some(Kind::Credit) => self.credited(&got.header),
            Some(Kind::Ping) => self.stream().send(Header { kind: Kind::Pong as u8, ..got.header }, &[], &[]),
            Some(Kind::Cancel) => {
                let message = Message::of(&got.header);
                self.coming.remove(&message);
                let begun = self.take_out(Message { to_caller: !message.to_caller, ..message }) != Some(false);
                return Came::Cancelled(got, begun);
            }
            Some(Kind::Request | Kind::Response | Kind::Data) => return self.piece(way, got),
            _ => {}
        }
        Came::Nothing
    }

    fn piece(&mut self, way: Way, got: Got) -> Came {
        let end = got.has(Flags::END_STREAM);
        if way == Way::Lane {
            assert!(end, "a lane carries whole messages: {:?}", got.header);
            return Came::Whole(way, got);
        }
        let len = u32::try_from(HEADER_LEN + got.meta.len() + got.body.len()).expect("a frame's length");
        self.stream().credit(&got, len);
        let message = Message::of(&got.header);
        if got.kind() != Some(Kind::Data) {
            if end {
                return Came::Whole(way, got);
            }
            assert!(self.coming.insert(message, got).is_none(), "a message that begins twice");
            return Came::Nothing;
        }
        let Some(whole) = self.coming.get_mut(&message) else { return Came::Stray(got) };
        whole.body.extend_from_slice(&got.body);
        match end {
            true => self.coming.remove(&message).map_or(Came::Nothing, |whole| Came::Whole(way, whole)),
            false => Came::Nothing,
        }
    }

    /// Forgets a message that goes out; whether something of it had left.
    fn take_out(&mut self, message: Message) -> Option<bool> {
        let at = self.out.iter().position(|out| Message::of(&out.header) == message)?;
        Some(self.out.remove(at).begun)
    }

    fn credited(&mut self, header: &Header) {
        let room = i64::from(header.word);
        // It goes the other way than what it is for.
        let message = Message { via: header.via, to_caller: !header.flags.has(Flags::TO_CALLER) };
        if header.stream == 0 {
            self.room += room;
        } else if let Some(out) = self.out.iter_mut().find(|out| Message::of(&out.header) == message) {
            out.room += room;
        }
    }

    fn push(&mut self, header: Header, meta: &[u8], body: &[u8]) {
        let room = i64::from(self.windows.stream);
        self.out.push(Out { header, meta: meta.to_vec(), body: body.to_vec(), at: 0, room, begun: false });
        self.pump();
    }

    fn pump(&mut self) {
        let mut out = std::mem::take(&mut self.out);
        out.retain_mut(|one| self.goes_on(one));
        self.out = out;
    }

    /// Sends as much of a message as may go. Whether something is left.
    fn goes_on(&mut self, one: &mut Out) -> bool {
        loop {
            let piece = &one.body[one.at..(one.at + PIECE).min(one.body.len())];
            let len = i64::try_from(HEADER_LEN + one.meta.len() + piece.len()).expect("a length");
            if one.room < len || self.room < len {
                return true;
            }
            let end = one.at + piece.len() == one.body.len();
            let kept = Flags(one.header.flags.0 & Flags::TO_CALLER.0) | if end { Flags::END_STREAM } else { Flags::NONE };
            let header = match one.begun {
                false => Header { flags: kept, ..one.header },
                true => Header { kind: Kind::Data as u8, flags: kept, word: 0, ..one.header },
            };
            let bytes = bytes_of(header, &std::mem::take(&mut one.meta), piece);
            // In vain if the agent has ended the connection, which is seen when it is read.
            let _ = self.stream().try_write(&bytes);
            (self.room, one.room) = (self.room - len, one.room - len);
            (one.begun, one.at) = (true, one.at + piece.len());
            if end {
                return false;
            }
        }
    }

    /// Sends a frame on the lane, or what is left of one, whatever becomes of it.
    fn send_on_lane(&mut self, mut bytes: &[u8]) {
        let Peer::Laned(peer) = &mut self.peer else { return };
        let deadline = Instant::now() + PATIENCE;
        while !bytes.is_empty() {
            match peer.try_send(bytes) {
                Ok(sent) => {
                    bytes = &bytes[sent..];
                    self.lane_is_cut |= !bytes.is_empty();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    assert!(Instant::now() < deadline, "the lane took nothing within {PATIENCE:?}");
                    thread::sleep(Duration::from_micros(200));
                }
                // It says something of whom the frame was for.
                Err(_) => return,
            }
        }
    }
}
