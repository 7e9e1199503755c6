//! Servers that say who they are and remember what came to them, and callers of both kinds that mark their calls: for tests of
//! which instance gets a call.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use agent_common::frame::{Flags, Header, Hello, Kind, MetaBuilder, Offer, Role, entries, id, service_hash};
use serde_json::{Map, Value, json};

use crate::{
    Agent, Answer, Client, FakeMoa,
    frames::{FramePeer, Got, WIDE},
    machine::http,
    wait::until,
};

/// A Redis server that answers with its name.
pub fn named(name: &str) -> FakeMoa {
    let fake = FakeMoa::start();
    says_name(&fake, name);
    fake
}

/// Has it answer with its name.
pub fn says_name(fake: &FakeMoa, name: &str) {
    let name = Value::from(name);
    fake.script(move |_| Answer::ok(&name));
}

/// The section of a service whose instances have keys of their own besides the address, as the configuration has them.
pub fn section(uri: &str, instances: &[(&FakeMoa, &str)], more: &str) -> String {
    let instances: Vec<_> = instances
        .iter()
        .map(|(fake, keys)| {
            let comma = if keys.is_empty() { "" } else { ", " };
            format!("{{ address = \"{}\"{comma}{keys} }}", fake.address())
        })
        .collect();
    format!("[services.\"{uri}\"]\ninstances = [{}]\nhealth = {{ check = \"off\" }}\n{more}\n", instances.join(", "))
}

/// What an event of a service's policy was counted so far.
pub fn events(agent: &Agent, service: &str, event: &str) -> u64 {
    metric(agent, &format!("moa_policy_events_total{{service=\"{service}\",event=\"{event}\"}}"))
}

/// A line of an agent's metrics; 0 if it is not there.
pub fn metric(agent: &Agent, name: &str) -> u64 {
    let (_, metrics) = http(agent.metrics_address(), "/metrics");
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().split(' ').next());
    line.map_or(0, |count| count.split('.').next().and_then(|whole| whole.parse().ok()).expect("a number"))
}

/// Waits until an event was counted so often, and not more often.
pub fn await_events(agent: &Agent, service: &str, event: &str, count: u64) {
    let seen =
        until(&format!("{count} {event} of {service}"), || Some(events(agent, service, event)).filter(|now| *now >= count));
    assert_eq!(seen, count, "{event} of {service}");
}

/// What a call says of itself besides service and method: for a Redis client properties, for frames entries by their names, and
/// properties.
pub type Marks<'a> = &'a [(&'a str, &'a str)];

/// Who calls.
pub enum Caller {
    /// In Redis.
    Redis(Box<Client>),
    /// In frames.
    Frames(Box<FramePeer>),
}

/// What became of a call: the name of the server that answered, or the error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// 0 if it went well.
    pub code: i64,
    /// The name, or the error's text.
    pub text: String,
}

impl Outcome {
    /// The name of the server that answered.
    ///
    /// # Panics
    /// If none did.
    pub fn by(self) -> String {
        assert_eq!(self.code, 0, "{}", self.text);
        self.text
    }

    /// The text of the error.
    ///
    /// # Panics
    /// If it is none, or not with this code.
    pub fn error(self, code: i64) -> String {
        assert_eq!(self.code, code, "{}", self.text);
        self.text
    }

    fn of_json(body: &[u8]) -> Self {
        let value: Value = serde_json::from_slice(body).expect("an envelope");
        let code = value["ec"].as_i64().expect("a code");
        let text = if code == 0 { &value["result"] } else { &value["em"] };
        Self { code, text: text.as_str().unwrap_or_default().to_owned() }
    }
}

impl Caller {
    /// A Redis client, and one that speaks frames.
    pub fn both(agent: &Agent) -> [Self; 2] {
        Self::both_as(agent, "")
    }

    /// The same, who call themselves so.
    pub fn both_as(agent: &Agent, application: &str) -> [Self; 2] {
        [Self::redis(agent, application), Self::frames(agent, application)]
    }

    /// A Redis client that calls itself so, unless that is empty.
    pub fn redis(agent: &Agent, application: &str) -> Self {
        let mut client = agent.connect();
        if !application.is_empty() {
            client.command(&["CLIENT", "SETNAME", application]);
        }
        Self::Redis(Box::new(client))
    }

    /// One that speaks frames.
    pub fn frames(agent: &Agent, application: &str) -> Self {
        let hello = Hello::new(Role::Application, application, &format!("{application}-1"), WIDE);
        Self::Frames(Box::new(FramePeer::connect(agent.address(), &hello)))
    }

    /// Makes a call.
    pub fn call(&mut self, service: &str, method: &str, marks: Marks<'_>) -> Outcome {
        match self {
            Self::Redis(client) => Outcome::of_json(client.get(&json_of(service, method, marks)).bulk()),
            Self::Frames(peer) => {
                let stream = begin(peer, service, method, marks);
                outcome(&peer.answer_to(stream))
            }
        }
    }

    /// Makes so many calls, and counts who has answered.
    pub fn tally(&mut self, count: usize, service: &str, method: &str, marks: Marks<'_>) -> BTreeMap<String, usize> {
        let mut tally = BTreeMap::new();
        for _ in 0..count {
            *tally.entry(self.call(service, method, marks).by()).or_default() += 1;
        }
        tally
    }

    /// Makes a few calls, each of which this server must answer.
    pub fn expect(&mut self, server: &str, service: &str, method: &str, marks: Marks<'_>) {
        for _ in 0..8 {
            assert_eq!(self.call(service, method, marks).by(), server, "{} with {marks:?}", self.kind());
        }
    }

    /// What it is.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Redis(_) => "Redis",
            Self::Frames(_) => "frames",
        }
    }
}

/// The JSON of a call with these properties.
pub fn json_of(service: &str, method: &str, marks: Marks<'_>) -> String {
    let props: Map<String, Value> = marks.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
    json!({ "action": service, "params": { "m": method, "args": ["x"] }, "props": props }).to_string()
}

/// Begins a call in frames. Returns its number.
pub fn begin(peer: &mut FramePeer, service: &str, method: &str, marks: Marks<'_>) -> u32 {
    begin_with(peer, service, method, (Flags::END_STREAM, marks))
}

/// Begins a call in frames with these flags. Returns its number.
pub fn begin_with(peer: &mut FramePeer, service: &str, method: &str, (flags, marks): (Flags, Marks<'_>)) -> u32 {
    let (uri, group) = service.split_once('#').unwrap_or((service, ""));
    let header = Header { flags, service: service_hash(uri.as_bytes(), group.as_bytes()), ..Header::new(Kind::Request) };
    peer.request_with(header, meta_of(service, method, marks).as_ref(), json_of(uri, method, &[]).as_bytes())
}

/// The metadata of a call.
pub fn meta_of(service: &str, method: &str, marks: Marks<'_>) -> MetaBuilder {
    let (uri, group) = service.split_once('#').unwrap_or((service, ""));
    let mut meta = MetaBuilder::new();
    meta.put(id::URI, uri.as_bytes()).put(id::METHOD, method.as_bytes());
    if !group.is_empty() {
        meta.put(id::GROUP, group.as_bytes());
    }
    for (name, value) in marks {
        match entry(name) {
            Some(number) => meta.put(number, value.as_bytes()),
            None => meta.put_property(name, value.as_bytes()),
        };
    }
    meta
}

fn entry(name: &str) -> Option<u8> {
    Some(match name {
        "application" => id::SOURCE_APPLICATION,
        "environment" => id::ENVIRONMENT,
        "zone" => id::ZONE,
        "stress" => id::STRESS,
        "hash_key" => id::HASH_KEY,
        "traceparent" => id::TRACEPARENT,
        "tracestate" => id::TRACESTATE,
        "baggage" => id::BAGGAGE,
        _ => return name.strip_prefix("entry.")?.parse().ok(),
    })
}

/// What became of a call in frames.
pub fn outcome(answer: &Got) -> Outcome {
    match answer.header.word {
        0 => Outcome::of_json(&answer.body),
        code => Outcome { code: code.into(), text: answer.error() },
    }
}

/// An application that has dialled in, and remembers what came.
pub struct Server {
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    /// Whole calls.
    calls: Vec<Got>,
    cancelled: usize,
    /// What it answers with instead of its name; 0 is its name.
    status: u32,
    /// It does not answer.
    silent: bool,
}

impl Server {
    /// Dials in and offers these, as `URI` or `URI#GROUP`.
    pub fn start(agent: &Agent, name: &str, offers: &[&str]) -> Self {
        let mut hello = Hello::new(Role::Application, name, &format!("{name}-1"), WIDE);
        hello.offers = offers
            .iter()
            .map(|offer| {
                let (uri, group) = offer.split_once('#').unwrap_or((offer, ""));
                Offer { uri: uri.to_owned(), group: group.to_owned() }
            })
            .collect();
        let (mut peer, seen) = (FramePeer::connect(agent.address(), &hello), Arc::new(Mutex::new(Seen::default())));
        let (shared, body) = (seen.clone(), json!({ "ec": 0, "em": "", "result": name }).to_string());
        thread::spawn(move || {
            let mut parts: HashMap<u64, Got> = HashMap::new();
            while let Some(got) = peer.next_frame() {
                let via = got.header.via;
                match got.kind() {
                    Some(Kind::Cancel) => lock(&shared).cancelled += 1,
                    Some(Kind::Request) => drop(parts.insert(via, got.clone())),
                    Some(Kind::Data) => {
                        if let Some(call) = parts.get_mut(&via) {
                            call.body.extend_from_slice(&got.body);
                        }
                    }
                    _ => continue,
                }
                if matches!(got.kind(), Some(Kind::Request | Kind::Data)) {
                    peer.credit(&got, u32::try_from(got.header.frame_len()).expect("a length"));
                    if got.has(Flags::END_STREAM)
                        && let Some(call) = parts.remove(&via)
                    {
                        let (status, silent) = {
                            let mut seen = lock(&shared);
                            seen.calls.push(call.clone());
                            (seen.status, seen.silent)
                        };
                        if !silent && !call.has(Flags::ONE_WAY) {
                            peer.respond(&call, status, if status == 0 { body.as_bytes() } else { b"" });
                        }
                    }
                }
            }
        });
        Self { seen }
    }

    /// From now on, answers with this error, or with its name again.
    pub fn answer(&self, status: u32) {
        lock(&self.seen).status = status;
    }

    /// From now on, does not answer.
    pub fn silent(&self) {
        lock(&self.seen).silent = true;
    }

    /// The calls that came, whole.
    pub fn calls(&self) -> Vec<Got> {
        lock(&self.seen).calls.clone()
    }

    /// How many calls were cancelled.
    pub fn cancelled(&self) -> usize {
        lock(&self.seen).cancelled
    }

    /// Waits for as many calls, and returns them all.
    pub fn await_calls(&self, count: usize) -> Vec<Got> {
        until(&format!("{count} calls, of which {} came", self.calls().len()), || {
            Some(self.calls()).filter(|calls| calls.len() >= count)
        })
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The values of an entry, in their order.
pub fn values(got: &Got, number: u8) -> Vec<String> {
    let all = entries(&got.meta).map_while(Result::ok).filter(|(found, _)| *found == number);
    all.map(|(_, value)| String::from_utf8_lossy(value).into_owned()).collect()
}
