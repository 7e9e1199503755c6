//! A scripted peer: the other end of a connection, written as a transcript of what is expected and what is sent.
//!
//! ```ignore
//! let agent = Agent::listen().await;
//! let mut peer = agent.accept().await;            // takes the HELLO
//! peer.greet().await;                             // sends one
//! let call = peer.expect(Kind::Request).await;
//! peer.send(call.answer(0).body(b"fine").end()).await;
//! ```
//!
//! Everything waits at most [`PATIENCE`], and fails then.

use std::{future::Future, time::Duration};

use agent_common::frame::{Flags, HEADER_LEN, Header, Hello, Kind, MetaBuilder, Role, Windows, find, id, service_hash};
use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, UnixListener},
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::timeout,
};

/// How long a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Where the peer listens.
pub(crate) struct Agent {
    listener: TcpListener,
}

/// One connection.
pub(crate) struct Peer {
    socket: Box<dyn Stream>,
    /// What the other end said first.
    pub(crate) hello: Hello,
    /// Whether PINGs are answered, and skipped.
    pub(crate) answers_pings: bool,
}

/// A frame that came, or that is to be sent.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) header: Header,
    pub(crate) meta: Bytes,
    pub(crate) body: Bytes,
}

pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Waits for what must come.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited {PATIENCE:?} for {what}"))
}

/// Waits until a condition holds.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    soon(what, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

impl Agent {
    /// Listens on a port of its own.
    pub(crate) async fn listen() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.unwrap() }
    }

    /// Listens where another one did before.
    pub(crate) async fn listen_at(address: &str) -> Self {
        soon("a port that was just in use", async {
            loop {
                if let Ok(listener) = TcpListener::bind(address).await {
                    return Self { listener };
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await
    }

    /// What a client is told.
    pub(crate) fn address(&self) -> String {
        self.listener.local_addr().unwrap().to_string()
    }

    /// The next connection, with its HELLO.
    pub(crate) async fn accept(&self) -> Peer {
        let (socket, _) = soon("a connection", self.listener.accept()).await.unwrap();
        socket.set_nodelay(true).unwrap();
        Peer::new(Box::new(socket)).await
    }

    /// The next connection, greeted.
    pub(crate) async fn connected(&self) -> Peer {
        let mut peer = self.accept().await;
        peer.greet().await;
        peer
    }
}

/// The next connection of a unix socket, greeted.
pub(crate) async fn connected_unix(listener: &UnixListener) -> Peer {
    let (socket, _) = soon("a connection", listener.accept()).await.unwrap();
    let mut peer = Peer::new(Box::new(socket)).await;
    peer.greet().await;
    peer
}

/// What an agent usually says.
pub(crate) fn agent_hello() -> Hello {
    Hello::new(Role::Agent, "agent", "agent-1", Windows { stream: 262_144, connection: 4 << 20 })
}

impl Peer {
    async fn new(socket: Box<dyn Stream>) -> Self {
        let mut peer = Self { socket, hello: agent_hello(), answers_pings: true };
        let frame = peer.next().await;
        assert_eq!(frame.header.kind(), Some(Kind::Hello), "the first frame");
        peer.hello = Hello::decode(&frame.meta).unwrap();
        peer
    }

    pub(crate) async fn greet(&mut self) {
        self.greet_with(&agent_hello()).await;
    }

    pub(crate) async fn greet_with(&mut self, hello: &Hello) {
        self.send_bytes(&hello.encode().unwrap()).await;
    }

    pub(crate) async fn send_bytes(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).await.unwrap();
    }

    pub(crate) async fn send(&mut self, frame: Frame) {
        self.send_bytes(&frame.bytes()).await;
    }

    /// The next frame, whatever it is.
    pub(crate) async fn next(&mut self) -> Frame {
        soon("a frame", self.read()).await.expect("a frame, not the end")
    }

    /// The next frame that is not a PING; CREDIT is skipped too unless it is expected.
    pub(crate) async fn expect(&mut self, kind: Kind) -> Frame {
        loop {
            let frame = self.next().await;
            match frame.header.kind().unwrap() {
                found if found == kind => return frame,
                Kind::Ping if self.answers_pings => self.send(Frame::new(Kind::Pong).via(frame.header.via)).await,
                Kind::Ping | Kind::Credit => {}
                _ => panic!("expected {kind:?}, got {frame:?}"),
            }
        }
    }

    /// Nothing more comes, but PINGs and credit before the end.
    pub(crate) async fn expect_end(&mut self) {
        loop {
            match soon("the end of the connection", self.read()).await {
                None => return,
                Some(frame) => assert!(matches!(frame.header.kind(), Some(Kind::Ping | Kind::Credit)), "got {frame:?}"),
            }
        }
    }

    /// Everything that comes before the answer to a PING of ours: what was sent because of all that was sent before.
    pub(crate) async fn sync(&mut self) -> Vec<Frame> {
        self.send(Frame::new(Kind::Ping).via(u64::MAX)).await;
        let mut frames = Vec::new();
        loop {
            let frame = self.next().await;
            match frame.header.kind() {
                Some(Kind::Pong) if frame.header.via == u64::MAX => return frames,
                Some(Kind::Ping) => self.send(Frame::new(Kind::Pong).via(frame.header.via)).await,
                _ => frames.push(frame),
            }
        }
    }

    /// A whole message: the frame that begins it and its body, with credit for everything.
    pub(crate) async fn message(&mut self, kind: Kind) -> (Frame, Vec<u8>) {
        let first = self.expect(kind).await;
        let mut body = first.body.to_vec();
        let mut last = first.clone();
        while !last.header.flags.has(Flags::END_STREAM) {
            self.credit(&last).await;
            last = self.expect(Kind::Data).await;
            assert_eq!(last.header.via, first.header.via);
            body.extend_from_slice(&last.body);
        }
        (first, body)
    }

    /// Gives back the room of a frame, for its message and for the connection.
    pub(crate) async fn credit(&mut self, frame: &Frame) {
        let word = u32::try_from(frame.header.frame_len()).unwrap();
        self.send(Frame::new(Kind::Credit).word(word)).await;
        self.send(frame.back(Kind::Credit).word(word)).await;
    }

    /// What is sent and what comes, with tasks that never wait for each other.
    pub(crate) fn split(self) -> (UnboundedSender<Frame>, UnboundedReceiver<Frame>) {
        let (mut reader, mut writer) = tokio::io::split(self.socket);
        let (sender, mut to_send) = unbounded_channel::<Frame>();
        let (came, receiver) = unbounded_channel();
        tokio::spawn(async move {
            while let Some(frame) = read(&mut reader).await {
                let _ = came.send(frame);
            }
        });
        tokio::spawn(async move {
            while let Some(frame) = to_send.recv().await {
                if writer.write_all(&frame.bytes()).await.is_err() {
                    return;
                }
            }
        });
        (sender, receiver)
    }

    async fn read(&mut self) -> Option<Frame> {
        read(&mut self.socket).await
    }
}

/// The next frame; none at the end. Not to be dropped before it is done.
pub(crate) async fn read(socket: &mut (impl AsyncRead + Unpin)) -> Option<Frame> {
    let mut header = [0; HEADER_LEN];
    socket.read_exact(&mut header).await.ok()?;
    let header = Header::parse(&header).unwrap();
    let mut meta = vec![0; header.meta_len.into()];
    socket.read_exact(&mut meta).await.ok()?;
    let mut body = vec![0; usize::try_from(header.body_len).unwrap()];
    socket.read_exact(&mut body).await.ok()?;
    Some(Frame { header, meta: meta.into(), body: body.into() })
}

impl Frame {
    pub(crate) fn new(kind: Kind) -> Self {
        Self { header: Header::new(kind), meta: Bytes::new(), body: Bytes::new() }
    }

    /// A REQUEST as an agent sends it.
    pub(crate) fn request(stream: u32, uri: &str) -> Self {
        let mut meta = MetaBuilder::new();
        meta.put(id::URI, uri.as_bytes());
        let mut frame = Self::new(Kind::Request).via(0x8000 + u64::from(stream)).meta(meta);
        (frame.header.stream, frame.header.service) = (stream, service_hash(uri.as_bytes(), b""));
        frame
    }

    /// A frame of the same call in the other direction.
    pub(crate) fn back(&self, kind: Kind) -> Self {
        let mut frame = self.same(kind);
        frame.header.flags = if self.header.flags.has(Flags::TO_CALLER) { Flags::NONE } else { Flags::TO_CALLER };
        frame
    }

    /// A frame of the same call in the same direction.
    pub(crate) fn same(&self, kind: Kind) -> Self {
        let Header { stream, via, service, .. } = self.header;
        let flags = Flags(self.header.flags.0 & Flags::TO_CALLER.0);
        Self { header: Header { stream, via, service, flags, ..Header::new(kind) }, meta: Bytes::new(), body: Bytes::new() }
    }

    /// The answer to a REQUEST.
    pub(crate) fn answer(&self, status: u32) -> Self {
        self.back(Kind::Response).word(status)
    }

    pub(crate) fn end(self) -> Self {
        self.flags(Flags::END_STREAM)
    }

    pub(crate) fn flags(mut self, flags: Flags) -> Self {
        self.header.flags |= flags;
        self
    }

    pub(crate) fn word(mut self, word: u32) -> Self {
        self.header.word = word;
        self
    }

    pub(crate) fn via(mut self, via: u64) -> Self {
        self.header.via = via;
        self
    }

    pub(crate) fn stream(mut self, stream: u32) -> Self {
        self.header.stream = stream;
        self
    }

    pub(crate) fn body(mut self, body: &[u8]) -> Self {
        self.header.body_len = u32::try_from(body.len()).unwrap();
        self.body = Bytes::copy_from_slice(body);
        self
    }

    pub(crate) fn meta(mut self, meta: MetaBuilder) -> Self {
        self.header.meta_len = u16::try_from(meta.len()).unwrap();
        self.meta = meta.finish();
        self
    }

    pub(crate) fn text(&self, id: u8) -> String {
        String::from_utf8(find(&self.meta, id).unwrap_or_default().to_vec()).unwrap()
    }

    pub(crate) fn has(&self, flags: Flags) -> bool {
        self.header.flags.has(flags)
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        [&self.header.bytes()[..], &self.meta, &self.body].concat()
    }
}
