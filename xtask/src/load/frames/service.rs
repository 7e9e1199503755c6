//! A service that answers each call with its body: it dials an agent and offers itself, or is called without one.

use std::{
    collections::HashMap,
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixListener,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use agent_common::frame::{Flags, Header, Hello, Kind, MetaBuilder, Offer, ReceiveWindow, Role, find, id, status};
use anyhow::{Context, Result, bail};
use bytes::Bytes;

use super::{
    Setup, URI, WINDOWS,
    events::Events,
    input::Frame,
    link::{Calls, Link, Ways, message_credit},
    output::Message,
    socket::{Listener, Socket},
};

/// How long the agent may take to be there.
const DIAL_WITHIN: Duration = Duration::from_secs(20);
const REDIAL: Duration = Duration::from_millis(20);
/// More than this is not allocated before it has come.
const BODY_MAX: u64 = 64 << 20;

/// Options of the service.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The agent to offer the service to
    #[arg(long, required_unless_present_any = ["listen", "listen_unix"], conflicts_with = "listen")]
    dial: Option<SocketAddr>,
    /// Where to be called without an agent
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// The same, as a unix socket
    #[arg(long, value_name = "PATH", conflicts_with_all = ["dial", "listen"])]
    listen_unix: Option<PathBuf>,
    /// Open lanes, and fail if the agent gives none
    #[arg(long, requires = "dial")]
    lanes: bool,
    /// So many connections more, which carry nothing; some of them offer 2,000 other services
    #[arg(long, default_value_t = 0, requires = "lanes")]
    crowd: usize,
    /// Bytes of the longest frame that is sent
    #[arg(long, default_value_t = Setup::USUAL.frame_max)]
    frame_max: usize,
}

/// Services of a crowd, of which one connection offers as many as fit into its HELLO.
const CROWD_SERVICES: usize = 2_000;
const SERVICES_OF_ONE: usize = 50;

/// The number of the listener among the sockets.
const LISTENER: usize = usize::MAX >> 1;

/// The calls of one connection.
struct Echo {
    /// The first entry of every REQUEST's metadata.
    uri: Bytes,
    /// Requests that have not come whole, by `via`.
    begun: HashMap<u64, Begun>,
}

struct Begun {
    header: Header,
    body: Vec<u8>,
    window: ReceiveWindow,
}

/// Serves until it is killed, or the agent has closed a connection.
pub(crate) fn serve(args: &Args) -> Result<()> {
    let setup = Setup { lanes: args.lanes, frame_max: args.frame_max };
    match (args.listen, args.dial, &args.listen_unix) {
        (Some(listen), _, _) => {
            let listener = TcpListener::bind(listen).with_context(|| format!("cannot listen on {listen}"))?;
            listened(&Listener::Tcp(listener), setup)
        }
        (_, Some(agent), _) => dialled(agent, setup, args.crowd),
        (_, _, Some(path)) => {
            let listener = UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
            listened(&Listener::Unix(listener), setup)
        }
        _ => bail!("neither an agent to dial nor an address to listen on"),
    }
}

/// Has as many connections as the agent says, and a crowd of others.
pub(super) fn dialled(agent: SocketAddr, setup: Setup, crowd: usize) -> Result<()> {
    let instance = format!("bench-service-{}", std::process::id());
    let hello = |connection| Hello { offers: vec![Offer::new(URI)], connection: Some(connection), ..hello(&instance) };
    let mut links = Vec::new();
    // The crowd first, which takes seconds: who offers the service is to answer at once.
    for number in 0..crowd {
        links.push(Link::connected(dial(agent)?, &idle(number, &instance)?, setup)?.0);
    }
    let (first, peer) = Link::connected(dial(agent)?, &hello(0), setup).context("the agent did not take the service")?;
    links.push(first);
    for connection in 1..peer.connections {
        links.push(Link::connected(dial(agent)?, &hello(connection), setup)?.0);
    }
    let mut events = Events::new()?;
    for (number, link) in links.iter().enumerate() {
        link.add_to(&mut events, number)?;
    }
    let mut links: Vec<_> = links.into_iter().map(|link| (link, Echo::new())).collect();
    loop {
        for (number, reads) in events.wait(Duration::from_secs(60))? {
            let (of_lane, number) = (number % 2 == 1, number / 2);
            turn(&mut links[number], of_lane, reads).context("the connection to the agent")?;
            links[number].0.renew_in(&mut events, number)?;
        }
    }
}

/// Takes any connection; one that ends is of no interest.
pub(super) fn listened(listener: &Listener, setup: Setup) -> Result<()> {
    let mut events = Events::new()?;
    events.add(LISTENER, listener)?;
    let mut links: HashMap<usize, (Link, Echo)> = HashMap::new();
    let mut next = 0;
    loop {
        for (number, reads) in events.wait(Duration::from_secs(60))? {
            if number == LISTENER {
                match Link::accepted(listener.accept()?, &hello("bench-service"), setup) {
                    Ok((link, _)) => {
                        link.add_to(&mut events, next)?;
                        links.insert(next, (link, Echo::new()));
                        next += 1;
                    }
                    Err(error) => eprintln!("a connection: {error:#}"),
                }
            } else if let Some(link) = links.get_mut(&(number / 2)) {
                let number = number / 2;
                match turn(link, false, reads) {
                    Ok(()) => link.0.renew_in(&mut events, number)?,
                    Err(error) => {
                        eprintln!("a connection: {error:#}");
                        links.remove(&number);
                    }
                }
            }
        }
    }
}

fn turn((link, echo): &mut (Link, Echo), of_lane: bool, reads: bool) -> Result<()> {
    if reads {
        link.take(of_lane, echo)?;
    }
    link.flush()
}

fn dial(agent: SocketAddr) -> Result<Socket> {
    let deadline = Instant::now() + DIAL_WITHIN;
    loop {
        match TcpStream::connect(agent) {
            Ok(socket) => return Ok(Socket::Tcp(socket)),
            Err(error) if Instant::now() > deadline => return Err(error).with_context(|| format!("no agent at {agent}")),
            Err(_) => thread::sleep(REDIAL),
        }
    }
}

/// One of the crowd: the first ones are services that nobody calls.
fn idle(number: usize, instance: &str) -> Result<Hello> {
    let offers = if number < CROWD_SERVICES / SERVICES_OF_ONE { SERVICES_OF_ONE } else { 0 };
    let uri = |nth| format!("{URI}-{number}-{nth}");
    let offers = (0..offers).map(|nth| Offer::new(&uri(nth))).collect();
    let instance = format!("{instance}-{number}");
    Ok(Hello { offers, connection: Some(u16::try_from(number)?), ..hello(&instance) })
}

fn hello(instance: &str) -> Hello {
    Hello::new(Role::Application, "bench-service", instance, WINDOWS)
}

impl Echo {
    fn new() -> Self {
        let mut uri = MetaBuilder::new();
        uri.put(id::URI, URI.as_bytes());
        Self { uri: uri.finish(), begun: HashMap::new() }
    }

    fn request(&mut self, frame: &Frame, ways: &mut Ways) -> Result<()> {
        let header = &frame.header;
        if !frame.meta.starts_with(&self.uri) {
            refuse(header, ways);
        } else if header.flags.has(Flags::END_STREAM) {
            answer(header, frame.body, ways);
        } else {
            let len = find(frame.meta, id::BODY_LEN).and_then(|len| len.try_into().ok()).map_or(0, u64::from_be_bytes);
            let body = Vec::with_capacity(usize::try_from(len.min(BODY_MAX))?);
            let begun = Begun { header: *header, body, window: ReceiveWindow::new(WINDOWS.stream) };
            self.begun.insert(header.via, begun);
            self.more(frame, ways)?;
        }
        Ok(())
    }

    fn more(&mut self, frame: &Frame, ways: &mut Ways) -> Result<()> {
        let header = &frame.header;
        let Some(begun) = self.begun.get_mut(&header.via) else { return Ok(()) };
        begun.body.extend_from_slice(frame.body);
        if let Some(credit) = message_credit(header, &mut begun.window, Flags::TO_CALLER)? {
            ways.stream.control(&credit);
        }
        if header.flags.has(Flags::END_STREAM)
            && let Some(Begun { header, body, .. }) = self.begun.remove(&header.via)
        {
            answer_whole(&header, body.into(), ways);
        }
        Ok(())
    }
}

impl Calls for Echo {
    fn frame(&mut self, frame: &Frame, ways: &mut Ways) -> Result<()> {
        let via = frame.header.via;
        match frame.header.kind() {
            Some(Kind::Request) => self.request(frame, ways)?,
            Some(Kind::Data) => self.more(frame, ways)?,
            Some(Kind::Cancel) => {
                self.begun.remove(&via);
                ways.stream.forget(via);
            }
            _ => bail!("the peer answered a call that nobody made"),
        }
        Ok(())
    }
}

fn answer(request: &Header, body: &[u8], ways: &mut Ways) {
    if !request.flags.has(Flags::ONE_WAY) && !ways.answer(response(request), body) {
        answer_whole(request, Bytes::copy_from_slice(body), ways);
    }
}

fn answer_whole(request: &Header, body: Bytes, ways: &mut Ways) {
    if request.flags.has(Flags::ONE_WAY) {
        return;
    }
    let mut meta = MetaBuilder::new();
    meta.put(id::BODY_LEN, &(body.len() as u64).to_be_bytes());
    ways.stream.queue(Message { header: response(request), meta: meta.finish(), body });
}

fn refuse(request: &Header, ways: &mut Ways) {
    let mut meta = MetaBuilder::new();
    meta.put(id::ERROR_TEXT, b"another service was offered");
    let header = Header { word: status::SERVICE_NOT_FOUND, ..response(request) };
    ways.stream.queue(Message { header, meta: meta.finish(), body: Bytes::new() });
}

fn response(request: &Header) -> Header {
    let Header { stream, via, service, .. } = *request;
    Header { flags: Flags::TO_CALLER, stream, via, service, ..Header::new(Kind::Response) }
}
