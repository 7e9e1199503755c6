use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{sync::watch, time::sleep};

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
    /// Those that the application has named, then the siblings that the first of them has.
    agents: watch::Sender<Agents>,
}

type Agents = Arc<[Arc<Agent>]>;

/// One agent.
#[derive(Debug)]
pub(super) struct Agent {
    address: Address,
    link: Mutex<Option<Link>>,
    /// Held by the one who dials.
    dialling: tokio::sync::Mutex<()>,
}

impl Pool {
    pub(super) fn new(options: Options, addresses: Vec<Address>) -> Self {
        let agents: Agents = addresses.into_iter().map(Agent::new).collect();
        // A lane must reach the same worker as its connection: any of them, but the same.
        let connection = options.lanes.then(|| u16::try_from(random() & 0xffff).unwrap_or(0));
        let hello = Hello { connection, ..options.hello() };
        Self { hello, agents: watch::Sender::new(agents), options }
    }

    pub(super) fn options(&self) -> &Options {
        &self.options
    }

    fn agents(&self) -> Agents {
        self.agents.borrow().clone()
    }

    /// The first agent in the list that is connected and was not tried yet; if none is, the first that can be dialled.
    pub(super) async fn pick(&self, tried: &[Arc<Agent>]) -> Result<(Arc<Agent>, Link), Error> {
        let agents = self.agents();
        let left = || agents.iter().filter(|agent| !tried.iter().any(|other| Arc::ptr_eq(other, agent)));
        if let Some((agent, link)) = left().find_map(|agent| Some((agent, agent.open()?))) {
            return Ok((agent.clone(), link));
        }
        let mut failures = Vec::new();
        for agent in left() {
            match self.dial(agent).await {
                Ok(link) => return Ok((agent.clone(), link)),
                Err(failure) => failures.push(failure),
            }
        }
        Err(Error::broken(format!("no agent can be reached: {}", failures.join("; ")), true))
    }

    /// The connection to an agent, opened if there is none. Only one dials at a time.
    async fn dial(&self, agent: &Arc<Agent>) -> Result<Link, String> {
        let _dialling = agent.dialling.lock().await;
        if let Some(link) = agent.open() {
            return Ok(link);
        }
        let opening = Opening { options: &self.options, hello: &self.hello, terms: Terms::default(), serve: None };
        let link = opening.open(&agent.address).await?;
        *lock(&agent.link) = Some(link.clone());
        if self.agents().first().is_some_and(|local| Arc::ptr_eq(local, agent)) {
            self.learn(&link.siblings());
        }
        Ok(link)
    }

    /// The local agent has these siblings. Those that it had before and has no more end with their last call.
    fn learn(&self, siblings: &[Address]) {
        if siblings.is_empty() {
            return;
        }
        let mut gone = Vec::new();
        self.agents.send_if_modified(|agents| {
            let (named, learned) = agents.split_at(self.options.agents.len());
            if learned.iter().map(|agent| &agent.address).eq(not_in(named, siblings)) {
                return false;
            }
            let known = |address: &Address| learned.iter().find(|agent| agent.address == *address).cloned();
            let siblings = not_in(named, siblings).map(|address| known(address).unwrap_or_else(|| Agent::new(address.clone())));
            let next: Agents = named.iter().cloned().chain(siblings).collect();
            gone = learned.iter().filter(|agent| !next.iter().any(|other| Arc::ptr_eq(other, agent))).cloned().collect();
            *agents = next;
            true
        });
        gone.iter().for_each(|agent| agent.leave());
    }

    /// Keeps the local agent connected: as soon as it takes connections again, calls go there again.
    pub(super) async fn keep_local(self: Arc<Self>) {
        self.keep(|agents| agents.get(..1).unwrap_or_default()).await;
    }

    /// Keeps one of the siblings connected, so that calls can go there at once.
    pub(super) async fn keep_sibling(self: Arc<Self>) {
        self.keep(|agents| agents.get(1..).unwrap_or_default()).await;
    }

    /// Keeps the first of these connected that can be reached.
    async fn keep(&self, of: impl Fn(&[Arc<Agent>]) -> &[Arc<Agent>]) {
        let mut backoff = Backoff::new(self.options.backoff_max);
        let mut changes = self.agents.subscribe();
        loop {
            let agents = changes.borrow_and_update().clone();
            let wanted = of(&agents);
            let mut kept = None;
            for agent in wanted {
                if let Ok(link) = self.dial(agent).await {
                    kept = Some(link);
                    break;
                }
            }
            let wait = async {
                if let Some(link) = kept {
                    let steady = tokio::time::timeout(STEADY, link.gone()).await.is_err();
                    if steady {
                        backoff.reset();
                        link.gone().await;
                    }
                } else if wanted.is_empty() {
                    std::future::pending::<()>().await;
                }
                sleep(backoff.next()).await;
            };
            tokio::select! {
                () = wait => {}
                changed = changes.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Ends every connection once its calls have ended.
    pub(super) fn leave(&self) {
        self.agents().iter().for_each(|agent| agent.leave());
    }
}

/// A connection that lasted so long was no failed try.
const STEADY: Duration = Duration::from_secs(1);

/// Those that are not named.
fn not_in<'a>(named: &'a [Arc<Agent>], siblings: &'a [Address]) -> impl Iterator<Item = &'a Address> {
    siblings.iter().filter(|address| !named.iter().any(|agent| agent.address == **address))
}

impl Agent {
    fn new(address: Address) -> Arc<Self> {
        Arc::new(Self { address, link: Mutex::new(None), dialling: tokio::sync::Mutex::new(()) })
    }

    fn open(&self) -> Option<Link> {
        lock(&self.link).as_ref().filter(|link| link.is_open()).cloned()
    }

    fn leave(&self) {
        if let Some(link) = lock(&self.link).take() {
            link.leave();
        }
    }
}
