use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{
    Address, Call, Reply,
    backoff::Backoff,
    driver::Serve,
    handshake::Opening,
    link::{Link, lock},
    options::{Options, common_options},
    serve::Service,
    taken::Terms,
};
use crate::frame::{Hello, Offer, Traits, WEIGHT_MAX};

/// Offers services through an agent.
///
/// ```no_run
/// use agent_common::sdk::{Call, Reply, Server};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let server = Server::builder("users").agents(["127.0.0.1:13000"]).offer("/service/user");
/// let handle = server.serve(|call: Call| async move {
///     match call.method() {
///         "get" => Reply::new(r#"{"name":"Ada"}"#),
///         _ => Reply::error(300, "no such method"),
///     }
/// }).await?;
/// // Until the process is to end:
/// handle.shutdown().await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Server;

/// Makes a server.
#[derive(Debug, Clone)]
pub struct ServerBuilder {
    options: Options,
    offers: Vec<Offer>,
    traits: Traits,
}

/// A server that runs. Dropped, it ends at once.
#[derive(Debug)]
pub struct Handle {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// Why a server does not begin.
#[derive(Debug)]
pub struct StartError(String);

/// Everything that a connection of a server is opened with.
struct Registrar {
    options: Options,
    /// Those that the application has named, then the siblings that the first of them has.
    agents: Mutex<Vec<Address>>,
    offers: Vec<Offer>,
    traits: Traits,
    terms: Terms,
    serve: Arc<dyn Serve>,
}

/// The connections of one process to one agent.
struct Registration {
    agent: Address,
    links: Vec<Link>,
}

impl Server {
    /// A server of an application with this name.
    #[must_use]
    pub fn builder(application: &str) -> ServerBuilder {
        let mut options = Options::new(application);
        options.connect_timeout = Duration::from_secs(10);
        ServerBuilder { options, offers: Vec::new(), traits: Traits::default() }
    }
}

impl ServerBuilder {
    common_options!();

    /// Offers a service, in the default group.
    #[must_use]
    pub fn offer(self, uri: &str) -> Self {
        self.offer_in_group(uri, "")
    }

    /// Offers a service in a group.
    #[must_use]
    pub fn offer_in_group(mut self, uri: &str, group: &str) -> Self {
        self.offers.push(Offer { uri: uri.to_owned(), group: group.to_owned() });
        self
    }

    /// Its share of the calls, in relation to other instances': 1 to 10,000; what is less or more counts as the bound.
    /// Usually not said, which agents take for 100.
    #[must_use]
    pub fn weight(mut self, weight: u32) -> Self {
        self.traits.weight = NonZeroU32::new(weight.clamp(1, WEIGHT_MAX));
        self
    }

    /// The environment that it belongs to, such as `pre`: calls that are meant for it come here first, and no others unless a
    /// rule says so. Up to 255 bytes without control characters; usually, and if it is empty, it serves all calls.
    #[must_use]
    pub fn environment(mut self, environment: &str) -> Self {
        environment.clone_into(&mut self.traits.environment);
        self
    }

    /// Something that the agent's rules can choose it by, such as its `version`; of two with the same name the last counts.
    /// Name and value have up to 255 bytes each, without control characters.
    #[must_use]
    pub fn label(mut self, name: &str, value: &str) -> Self {
        self.traits.labels.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Connects to the first agent in the list that can be reached, and returns once the services can be called there.
    ///
    /// Each call runs `handler` in a task of its own. The future that it returns is dropped when the caller cancels, when
    /// the deadline passes and when the connection ends.
    ///
    /// # Errors
    /// When an address is none, what is said does not fit into a HELLO, or no agent answers and takes it.
    pub async fn serve<F, Fut>(self, handler: F) -> Result<Handle, StartError>
    where
        F: Fn(Call) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Reply> + Send + 'static,
    {
        let agents = self.options.addresses().map_err(|error| StartError(error.to_string()))?;
        let offers: HashMap<u64, Offer> = self.offers.iter().map(|offer| (offer.hash(), offer.clone())).collect();
        let serve = Service { handler: Arc::new(handler), body_bytes_max: self.options.body_bytes_max };
        let registrar = Registrar {
            options: self.options,
            agents: Mutex::new(agents),
            offers: self.offers,
            traits: self.traits,
            terms: Terms { offers: Arc::new(offers) },
            serve: Arc::new(serve),
        };
        let first = registrar.register_anywhere().await.map_err(StartError)?;
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(registrar.run(first, stopped));
        Ok(Handle { stop, task })
    }
}

impl Handle {
    /// Asks the agent for no more calls, waits until those in flight have ended, and closes the connections.
    pub async fn shutdown(self) {
        self.stop.send_replace(true);
        let mut handle = self;
        let _ = (&mut handle.task).await;
    }
}

impl Registrar {
    async fn run(self, first: Registration, mut stopped: watch::Receiver<bool>) {
        let mut registration = first;
        tokio::select! {
            _ = stopped.wait_for(|stop| *stop) => {}
            () = self.keep(&mut registration) => {}
        }
        if *stopped.borrow() {
            registration.drain().await;
        }
    }

    /// Keeps all connections to the agent open, and goes to another agent when it is gone, or back to the local one.
    async fn keep(&self, registration: &mut Registration) {
        let mut backoff = Backoff::new(self.options.backoff_max);
        loop {
            tokio::select! {
                at = registration.lost() => self.replace(registration, at, &mut backoff).await,
                links = self.local_again(&registration.agent) => {
                    std::mem::replace(registration, links).leave();
                    backoff.reset();
                }
            }
        }
    }

    /// Another connection for one that was lost: to the same agent, or if that is gone to the first that is not.
    async fn replace(&self, registration: &mut Registration, at: usize, backoff: &mut Backoff) {
        if let Ok(link) = self.open(&registration.agent, at).await {
            registration.links[at] = link;
        } else if let Ok(other) = self.register_anywhere().await {
            std::mem::replace(registration, other).leave();
        }
        sleep(backoff.next()).await;
        if registration.links.iter().all(Link::is_open) {
            backoff.reset();
        }
    }

    /// Tries the local agent until it takes connections again.
    async fn local_again(&self, agent: &Address) -> Registration {
        let Some(local) = self.agents().into_iter().next().filter(|local| local != agent) else {
            return std::future::pending().await;
        };
        let mut backoff = Backoff::new(self.options.backoff_max);
        loop {
            sleep(backoff.next()).await;
            if let Ok(links) = self.register(&local).await {
                return links;
            }
        }
    }

    async fn register_anywhere(&self) -> Result<Registration, String> {
        let mut failures = Vec::new();
        for agent in self.agents() {
            match self.register(&agent).await {
                Ok(registration) => return Ok(registration),
                Err(failure) => failures.push(failure),
            }
        }
        Err(format!("no agent can be reached: {}", failures.join("; ")))
    }

    /// Opens as many connections as the agent says are worth having.
    async fn register(&self, agent: &Address) -> Result<Registration, String> {
        let first = self.open(agent, 0).await?;
        self.learn(agent, first.siblings());
        let count = usize::from(first.0.peer.connections).clamp(1, CONNECTIONS_MAX);
        let mut registration = Registration { agent: agent.clone(), links: vec![first] };
        for at in 1..count {
            registration.links.push(self.open(agent, at).await?);
        }
        Ok(registration)
    }

    fn agents(&self) -> Vec<Address> {
        lock(&self.agents).clone()
    }

    /// The local agent has these siblings.
    fn learn(&self, agent: &Address, siblings: Vec<Address>) {
        let mut agents = lock(&self.agents);
        if agents.first() == Some(agent) && !siblings.is_empty() {
            agents.truncate(self.options.agents.len());
            let new: Vec<_> = siblings.into_iter().filter(|sibling| !agents.contains(sibling)).collect();
            agents.extend(new);
        }
    }

    async fn open(&self, agent: &Address, at: usize) -> Result<Link, String> {
        let calls_max = u32::try_from(self.options.calls_max).unwrap_or(u32::MAX);
        let connection = u16::try_from(at).unwrap_or(u16::MAX);
        let (offers, traits) = (self.offers.clone(), self.traits.clone());
        let hello = Hello { offers, traits, connection: Some(connection), calls_max, ..self.options.hello() };
        let (terms, serve) = (self.terms.clone(), Some(Arc::clone(&self.serve)));
        Opening { options: &self.options, hello: &hello, terms, serve }.open(agent).await
    }
}

/// Connections that are opened at most, whatever the agent says.
const CONNECTIONS_MAX: usize = 256;
/// How long the last calls of connections that are not needed any more may take.
const LEAVE: Duration = Duration::from_secs(60);

impl Registration {
    /// Which connection takes no more calls.
    async fn lost(&self) -> usize {
        let waits: Vec<_> = self.links.iter().map(|link| Box::pin(link.gone())).collect();
        first_of(waits).await
    }

    /// Ends the connections in good order, in their own time.
    fn leave(self) {
        tokio::spawn(timeout(LEAVE, async move { self.drain().await }));
    }

    async fn drain(&self) {
        self.links.iter().for_each(Link::drain);
        for link in &self.links {
            link.closed().await;
        }
    }
}

impl Drop for Registration {
    /// Whatever happens, no connection stays that nobody looks after.
    fn drop(&mut self) {
        self.links.iter().for_each(Link::close);
    }
}

/// Which future is ready first.
async fn first_of<F: Future<Output = ()> + Unpin>(mut futures: Vec<F>) -> usize {
    std::future::poll_fn(|cx| {
        let ready = futures.iter_mut().position(|future| std::pin::Pin::new(future).poll(cx).is_ready());
        ready.map_or(std::task::Poll::Pending, std::task::Poll::Ready)
    })
    .await
}

impl Drop for Handle {
    fn drop(&mut self) {
        // Not after a shutdown: then the task ends on its own.
        if !*self.stop.borrow() {
            self.task.abort();
        }
    }
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StartError {}
