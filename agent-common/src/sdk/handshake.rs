use std::{future::poll_fn, sync::Arc};

use tokio::time::timeout;

use super::{
    Address,
    address::Socket,
    driver::{Driver, Serve, farewell, goaway},
    frames::{Frames, Received},
    lane_socket::LaneKeeper,
    link::Link,
    options::Options,
    state::{Fault, State, error_text},
    taken::Terms,
};
use crate::frame::{Hello, Kind, status::reason};

/// What a connection is opened with.
pub(super) struct Opening<'a> {
    pub(super) options: &'a Options,
    pub(super) hello: &'a Hello,
    pub(super) terms: Terms,
    pub(super) serve: Option<Arc<dyn Serve>>,
}

impl Opening<'_> {
    /// Connects, and waits for the agent's HELLO. The connection's task runs on its own then.
    pub(super) async fn open(self, address: &Address) -> Result<Link, String> {
        let options = self.options;
        let greeted = timeout(options.connect_timeout, async {
            let socket = address.connect().await.map_err(|error| error.to_string())?;
            greet(socket, self.hello).await
        });
        let late = || format!("no HELLO in {:?}", options.connect_timeout);
        let answer = greeted.await.map_err(|_| late()).flatten();
        let (socket, frames, peer) = answer.map_err(|error| format!("{address}: {error}"))?;
        let bound = usize::try_from(peer.calls_max).ok().filter(|bound| *bound > 0 && self.serve.is_none());
        let calls_max = options.calls_max.min(bound.unwrap_or(usize::MAX));
        let state = State::new(&peer, options.windows, self.terms, calls_max, options.queued_bytes_max);
        let link = Link::new(state, peer);
        if options.lanes
            && let Some(keeper) = LaneKeeper::new(&link, &socket, self.hello)
        {
            tokio::spawn(keeper.run());
        }
        tokio::spawn(Driver::new(link.clone(), socket, frames, options.ping_interval, self.serve).run());
        Ok(link)
    }
}

/// Says HELLO, and waits for the agent's.
pub(super) async fn greet(mut socket: Socket, hello: &Hello) -> Result<(Socket, Frames, Hello), String> {
    let mut frames = Frames::default();
    let bytes = hello.encode().ok_or("the names and offers do not fit into a HELLO")?;
    socket.write_all(&bytes).await.map_err(|error| error.to_string())?;
    let answer = loop {
        match frames.next() {
            Ok(Some(frame)) => break understood(&frame, hello),
            Err(broken) => break Err(Refusal::Ours(broken.into())),
            Ok(None) => {}
        }
        match poll_fn(|cx| frames.poll_read(cx, &socket)).await {
            Ok(0) => return Err("the agent closed the connection before its HELLO".to_owned()),
            Ok(_) => {}
            Err(error) => return Err(error.to_string()),
        }
    };
    match answer {
        Ok(peer) => Ok((socket, frames, peer)),
        Err(Refusal::Theirs(text)) => Err(text),
        Err(Refusal::Ours(fault)) => {
            let words = goaway(fault.reason, &fault.text, 0);
            tokio::spawn(async move { farewell(socket, &words).await });
            Err(fault.text)
        }
    }
}

enum Refusal {
    Theirs(String),
    Ours(Fault),
}

fn understood(frame: &Received, ours: &Hello) -> Result<Hello, Refusal> {
    let fault = |reason, text: String| Refusal::Ours(Fault { reason, text });
    match frame.header.kind() {
        Some(Kind::Hello) => {}
        Some(Kind::GoAway) => {
            let text = error_text(&frame.meta, frame.header.word);
            return Err(Refusal::Theirs(format!("the agent refused with reason {}: {text}", frame.header.word)));
        }
        _ => return Err(fault(reason::PROTOCOL, "the first frame is no HELLO".to_owned())),
    }
    let theirs = Hello::decode(&frame.meta).map_err(|error| fault(reason::PROTOCOL, error.to_string()))?;
    match ours.common_version(&theirs) {
        Some(_) => Ok(theirs),
        None => Err(fault(reason::VERSION, "there is no version that both know".to_owned())),
    }
}
