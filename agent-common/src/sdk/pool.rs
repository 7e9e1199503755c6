use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::sleep;

use super::{
    Address, Error,
    backoff::{Backoff, random},
    handshake::Opening,
    link::{Link, lock},
    options::Options,
    taken::Terms,
};
use crate::frame::Hello;

/// The agents of a client, in the order in which they are liked.
#[derive(Debug)]
pub(super) struct Pool {
    options: Options,
    hello: Hello,
    agents: Vec<Agent>,
}

#[derive(Debug)]
struct Agent {
    address: Address,
    link: Mutex<Option<Link>>,
    /// Held by the one who dials.
    dialling: tokio::sync::Mutex<()>,
}

impl Pool {
    pub(super) fn new(options: Options, addresses: Vec<Address>) -> Self {
        let agents =
            addresses.into_iter().map(|address| Agent { address, link: Mutex::new(None), dialling: tokio::sync::Mutex::new(()) });
        // A lane must reach the same worker as its connection: any of them, but the same.
        let connection = options.lanes.then(|| u16::try_from(random() & 0xffff).unwrap_or(0));
        let hello = Hello { connection, ..options.hello() };
        Self { hello, agents: agents.collect(), options }
    }

    pub(super) fn options(&self) -> &Options {
        &self.options
    }

    /// The first agent in the list that is connected and was not tried yet; if none is, the first that can be dialled.
    pub(super) async fn pick(&self, tried: &[usize]) -> Result<(usize, Link), Error> {
        let left = || self.agents.iter().enumerate().filter(|(at, _)| !tried.contains(at));
        if let Some(found) = left().find_map(|(at, agent)| Some((at, agent.open()?))) {
            return Ok(found);
        }
        let mut failures = Vec::new();
        for (at, agent) in left() {
            match self.dial(agent).await {
                Ok(link) => return Ok((at, link)),
                Err(failure) => failures.push(failure),
            }
        }
        Err(Error::broken(format!("no agent can be reached: {}", failures.join("; ")), true))
    }

    /// The connection to an agent, opened if there is none. Only one dials at a time.
    async fn dial(&self, agent: &Agent) -> Result<Link, String> {
        let _dialling = agent.dialling.lock().await;
        if let Some(link) = agent.open() {
            return Ok(link);
        }
        let opening = Opening { options: &self.options, hello: &self.hello, terms: Terms::default(), serve: None };
        let link = opening.open(&agent.address).await?;
        *lock(&agent.link) = Some(link.clone());
        Ok(link)
    }

    /// Keeps the local agent connected: as soon as it takes connections again, calls go there again.
    pub(super) async fn keep_local(self: Arc<Self>) {
        let Some(local) = self.agents.first() else { return };
        self.keep(std::slice::from_ref(local)).await;
    }

    /// Keeps one of the siblings connected, so that calls can go there at once.
    pub(super) async fn keep_sibling(self: Arc<Self>) {
        let Some((_, siblings)) = self.agents.split_first() else { return };
        if !siblings.is_empty() {
            self.keep(siblings).await;
        }
    }

    async fn keep(&self, agents: &[Agent]) {
        let mut backoff = Backoff::new(self.options.backoff_max);
        loop {
            for agent in agents {
                let Ok(link) = self.dial(agent).await else { continue };
                let (gone, steady) = (link.gone(), sleep(STEADY));
                tokio::pin!(gone);
                tokio::select! {
                    () = &mut gone => {}
                    () = steady => {
                        backoff.reset();
                        gone.await;
                    }
                }
                break;
            }
            sleep(backoff.next()).await;
        }
    }

    /// Ends every connection once its calls have ended.
    pub(super) fn leave(&self) {
        for agent in &self.agents {
            if let Some(link) = lock(&agent.link).take() {
                link.leave();
            }
        }
    }
}

/// A connection that lasted so long was no failed try.
const STEADY: Duration = Duration::from_secs(1);

impl Agent {
    fn open(&self) -> Option<Link> {
        lock(&self.link).as_ref().filter(|link| link.is_open()).cloned()
    }
}
