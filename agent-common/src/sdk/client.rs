use std::{
    sync::{Arc, Once},
    time::Duration,
};

use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};

use super::{
    BadAddress, Error, Incoming, Metadata, Request, Response,
    body::Kind,
    link::{Link, Ticket, lock},
    made::{Answer, Head, Outgoing, Way},
    options::{Options, common_options},
    pool::{Agent, Pool},
    state::error_text,
};
use crate::frame::status;

/// Calls services through an agent. Clones share their connections.
///
/// ```no_run
/// use std::time::Duration;
/// use agent_common::sdk::{Client, Request};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let client = Client::builder("shop").agents(["127.0.0.1:13000", "10.0.0.2:13000"]).build()?;
/// let request = Request::new("/service/user").method("get").timeout(Duration::from_secs(1)).idempotent(true);
/// let answer = client.call(request.body(r#"{"id":7}"#)).await?;
/// println!("{:?}", answer.body.bytes().await?);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Client(Arc<Inner>);

/// Makes a [`Client`].
#[derive(Debug, Clone)]
pub struct ClientBuilder {
    options: Options,
}

#[derive(Debug)]
struct Inner {
    pool: Arc<Pool>,
    begun: Once,
    keepers: std::sync::Mutex<Vec<tokio::task::AbortHandle>>,
}

impl Client {
    /// A client of an application with this name.
    #[must_use]
    pub fn builder(application: &str) -> ClientBuilder {
        ClientBuilder { options: Options::new(application) }
    }

    /// Calls a service, and waits for the beginning of its answer. Dropped before, it cancels the call; so does dropping
    /// the answer before its body has come whole.
    ///
    /// # Errors
    /// When the answer's status is not 0, and when there is none. The call was sent again where that is safe before.
    pub async fn call(&self, request: Request) -> Result<Response, Error> {
        let deadline = request.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let (mut tried, mut last, mut sent) = (Vec::new(), None, 0);
        loop {
            let picked = within(deadline, self.pick(&tried)).await;
            let (at, link) = match picked {
                Ok(picked) => picked,
                Err(error) => {
                    let error = last.unwrap_or_else(|| error.not_executed(true));
                    return Err(error.of_call(request.is_idempotent()));
                }
            };
            let error = match self.try_here(&link, &request, deadline, &mut sent).await {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            if !error.may_go_elsewhere() || !request.body.is_whole() || is_over(deadline) {
                return Err(error);
            }
            tried.push(at);
            last = Some(error);
        }
    }

    /// Sends a call that nothing answers, and waits until the socket has taken it: no more is known of it.
    ///
    /// # Errors
    /// When it could not be sent whole.
    pub async fn notify(&self, request: Request) -> Result<(), Error> {
        let deadline = request.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let (mut tried, mut last) = (Vec::new(), None);
        loop {
            let (at, link) = match within(deadline, self.pick(&tried)).await {
                Ok(picked) => picked,
                Err(error) => return Err(last.unwrap_or(error)),
            };
            let sent_before = u8::try_from(tried.len()).unwrap_or(u8::MAX);
            let outgoing = request.outgoing(left_ms(deadline), sent_before)?;
            match within(deadline, send(&link, &request, outgoing)).await {
                Ok(()) => return Ok(()),
                Err(error) if error.is_not_executed() && request.body.is_whole() => last = Some(error),
                Err(error) => return Err(error),
            }
            tried.push(at);
        }
    }

    async fn pick(&self, tried: &[Arc<Agent>]) -> Result<(Arc<Agent>, Link), Error> {
        let Inner { pool, begun, keepers } = &*self.0;
        begun.call_once(|| {
            let local = tokio::spawn(Arc::clone(pool).keep_local()).abort_handle();
            let sibling = tokio::spawn(Arc::clone(pool).keep_sibling()).abort_handle();
            lock(keepers).extend([local, sibling]);
        });
        pool.pick(tried).await
    }

    /// By the lane where that is possible, and if it fails there and may be sent again, once more by the stream connection.
    async fn try_here(
        &self,
        link: &Link,
        request: &Request,
        deadline: Option<Instant>,
        sent: &mut u8,
    ) -> Result<Response, Error> {
        let mut way = Way::Any;
        loop {
            let answer = self.try_call(link, request, deadline, (way, *sent)).await;
            *sent = sent.saturating_add(1);
            let Err(error) = answer else { return answer };
            let error = error.of_call(request.is_idempotent());
            if way == Way::Stream || !error.may_go_by_stream() || !link.is_open() || is_over(deadline) {
                return Err(error);
            }
            way = Way::Stream;
        }
    }

    async fn try_call(
        &self,
        link: &Link,
        request: &Request,
        deadline: Option<Instant>,
        (way, sent_before): (Way, u8),
    ) -> Result<Response, Error> {
        let outgoing = request.outgoing(left_ms(deadline), sent_before)?;
        let (ticket, told) = link.call(outgoing, deadline, way)?;
        let by_lane = ticket.is_by_lane();
        pump(link, &ticket, request);
        let mut waiting = Waiting { ticket, told };
        let head = within(deadline, waiting.answer()).await.map_err(|error| error.by_lane(by_lane))?;
        let ticket = waiting.ticket;
        let names = ticket.names();
        let Head { header, meta, body, pipe } = head;
        let body = match pipe {
            None => Incoming::whole(body),
            Some(pipe) => {
                let bound = self.0.pool.options().body_bytes_max;
                Incoming::coming(pipe, link.clone(), names, deadline, bound).with_ticket(ticket)
            }
        };
        let response = Response { status: header.word, flags: header.flags, metadata: Metadata(meta), body };
        if header.word == status::OK {
            return Ok(response);
        }
        let error = Error::new(header.word, error_text(&response.metadata.0, header.word));
        let not_executed = header.flags.has(crate::frame::Flags::NOT_EXECUTED);
        Err(error.not_executed(not_executed).by_lane(by_lane).with_response(response))
    }
}

/// A call whose answer has not come.
struct Waiting {
    ticket: Ticket,
    told: oneshot::Receiver<Answer>,
}

impl Waiting {
    async fn answer(&mut self) -> Answer {
        let answer = (&mut self.told).await.unwrap_or_else(|_| Err(cut_off()));
        if answer.as_ref().map_or(true, |head| head.pipe.is_none()) {
            self.ticket.end();
        }
        answer
    }
}

/// Sends a call that nothing answers.
async fn send(link: &Link, request: &Request, outgoing: Outgoing) -> Result<(), Error> {
    let (mut ticket, told) = link.notify(outgoing)?;
    pump(link, &ticket, request);
    let told = told.await.unwrap_or_else(|_| Err(cut_off()));
    ticket.end();
    told
}

/// Sends a streamed body next to waiting for the answer, and beyond it: both may go on at once.
fn pump(link: &Link, ticket: &Ticket, request: &Request) {
    if let Kind::Streamed(body) = &request.body.0 {
        let (link, names, body) = (link.clone(), ticket.names(), Arc::clone(body));
        tokio::spawn(async move {
            if !link.pump(names, &body).await {
                link.change(|state| state.abandon(names, status::CANCELLED));
            }
        });
    }
}

async fn within<T>(deadline: Option<Instant>, future: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    match deadline {
        Some(deadline) => timeout_at(deadline, future).await.unwrap_or_else(|_| Err(Error::late())),
        None => future.await,
    }
}

fn is_over(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|deadline| Instant::now() >= deadline)
}

/// What a REQUEST says of its time; 0 if it has no bound of its own.
fn left_ms(deadline: Option<Instant>) -> u32 {
    let Some(deadline) = deadline else { return 0 };
    let left = deadline.saturating_duration_since(Instant::now()).as_millis();
    u32::try_from(left).unwrap_or(u32::MAX).max(1)
}

/// What is said of a call that was abandoned from here.
fn cut_off() -> Error {
    Error::new(status::CANCELLED, "the request's body was cut off: it was not finished")
}

impl Drop for Inner {
    fn drop(&mut self) {
        lock(&self.keepers).drain(..).for_each(|keeper| keeper.abort());
        self.pool.leave();
    }
}

impl ClientBuilder {
    common_options!();

    /// A client that connects with its first call, and is to be used in a runtime of tokio.
    ///
    /// # Errors
    /// When an address is none.
    pub fn build(self) -> Result<Client, BadAddress> {
        let addresses = self.options.addresses()?;
        let pool = Arc::new(Pool::new(self.options, addresses));
        Ok(Client(Arc::new(Inner { pool, begun: Once::new(), keepers: std::sync::Mutex::default() })))
    }

    /// A client that is connected to the first agent in the list that can be reached.
    ///
    /// # Errors
    /// When an address is none, or no agent answers.
    pub async fn connect(self) -> Result<Client, Box<dyn std::error::Error + Send + Sync>> {
        let client = self.build()?;
        client.pick(&[]).await?;
        Ok(client)
    }
}
