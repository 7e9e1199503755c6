use std::{collections::BTreeMap, net::SocketAddr, num::NonZeroU32};

use bytes::{BufMut, Bytes, BytesMut};

use super::{Header, Kind, VERSION, WINDOW_MAX, WINDOW_MIN, meta::MetaBuilder};

/// What entries of a HELLO are. Unknown ones are skipped.
mod id {
    pub(super) const VERSIONS: u8 = 1;
    pub(super) const ROLE: u8 = 2;
    pub(super) const APPLICATION: u8 = 3;
    pub(super) const INSTANCE: u8 = 4;
    pub(super) const OFFER: u8 = 5;
    pub(super) const WINDOWS: u8 = 6;
    pub(super) const FEATURES: u8 = 7;
    pub(super) const CONNECTION: u8 = 8;
    pub(super) const CONNECTIONS: u8 = 9;
    pub(super) const CALLS_MAX: u8 = 10;
    pub(super) const LANE_TOKEN: u8 = 11;
    pub(super) const LANE_BODY_MAX: u8 = 12;
    pub(super) const WEIGHT: u8 = 13;
    pub(super) const ENVIRONMENT: u8 = 14;
    pub(super) const LABEL: u8 = 15;
    pub(super) const SIBLING: u8 = 16;
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// An application: it calls, offers services, or both.
    Application,
    /// Another agent.
    Agent,
    /// The fast lane of an application, which only the kernel path uses.
    Lane,
}

/// A service that is offered.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Offer {
    /// Its URI, which begins with a slash.
    pub uri: String,
    /// Its group; empty for the default one.
    pub group: String,
}

/// How much may be on its way to the speaker, in bytes of whole frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    /// For one message.
    pub stream: u32,
    /// For all of the connection.
    pub connection: u32,
}

/// The right to open a fast lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lane {
    /// Ties the lane to its stream connection.
    pub token: [u8; 16],
    /// Bytes that the body of a frame on it may have.
    pub body_max: u32,
}

/// What is known of an instance that offers services, as agents know it of those in their configuration. Usually nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traits {
    /// Its share of the calls, in relation to the others'; up to [`WEIGHT_MAX`]. None: as those that say nothing.
    pub weight: Option<NonZeroU32>,
    /// Its environment, such as `pre`: it serves only calls that are meant for it. Empty if it serves all.
    pub environment: String,
    /// Whatever else rules can choose it by.
    pub labels: BTreeMap<String, String>,
}

/// The first frame each way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The oldest and the newest version that the speaker knows; the newest that both know is spoken.
    pub versions: (u8, u8),
    /// Who speaks.
    pub role: Role,
    /// The application's or the agent's name.
    pub application: String,
    /// The process, as nobody else is called; every connection of one process says the same.
    pub instance: String,
    /// What the speaker serves.
    pub offers: Vec<Offer>,
    /// What may be on its way to the speaker.
    pub windows: Windows,
    /// Features that the speaker knows; those that both know are on.
    pub features: u64,
    /// Which of the process's connections this is, from 0: an agent gives each to another worker. None: any worker will do.
    pub connection: Option<u16>,
    /// How many connections are worth having: one for each worker of the agent. 0 if the speaker does not say.
    pub connections: u16,
    /// Calls that the speaker takes at once on this connection; 0 if it does not say.
    pub calls_max: u32,
    /// From an agent: the right to open a lane. From an application: which lane this is.
    pub lane: Option<Lane>,
    /// From an application that offers services: what is known of it.
    pub traits: Traits,
    /// From an agent to an application: who takes it when this agent is gone, in order of preference.
    pub siblings: Vec<SocketAddr>,
}

/// Why a HELLO is not understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BadHello {
    /// The entries are broken.
    Meta(super::BadMeta),
    /// An entry is missing.
    Missing(&'static str),
    /// An entry has a value that it can't have.
    Value(&'static str),
}

/// Siblings that count; further ones are skipped.
const SIBLINGS_MAX: usize = 8;

/// A name may be so long, in bytes.
const NAME_MAX: usize = 255;

/// The largest weight of an instance. Most have 100.
pub const WEIGHT_MAX: u32 = 10_000;

impl Hello {
    /// A HELLO of the version that this library speaks.
    #[must_use]
    pub fn new(role: Role, application: &str, instance: &str, windows: Windows) -> Self {
        Self {
            versions: (VERSION, VERSION),
            role,
            application: application.to_owned(),
            instance: instance.to_owned(),
            offers: Vec::new(),
            windows,
            features: 0,
            connection: None,
            connections: 0,
            calls_max: 0,
            lane: None,
            traits: Traits::default(),
            siblings: Vec::new(),
        }
    }

    /// The whole frame; none if its entries do not fit into one.
    #[must_use]
    pub fn encode(&self) -> Option<Bytes> {
        let mut meta = MetaBuilder::new();
        meta.put(id::VERSIONS, &[self.versions.0, self.versions.1]);
        meta.put(id::ROLE, &[self.role.number()]);
        meta.put(id::APPLICATION, self.application.as_bytes());
        meta.put(id::INSTANCE, self.instance.as_bytes());
        let mut windows = [0; 8];
        windows[..4].copy_from_slice(&self.windows.stream.to_be_bytes());
        windows[4..].copy_from_slice(&self.windows.connection.to_be_bytes());
        meta.put(id::WINDOWS, &windows);
        meta.put(id::FEATURES, &self.features.to_be_bytes());
        if let Some(connection) = self.connection {
            meta.put(id::CONNECTION, &connection.to_be_bytes());
        }
        if self.connections > 0 {
            meta.put(id::CONNECTIONS, &self.connections.to_be_bytes());
        }
        if self.calls_max > 0 {
            meta.put(id::CALLS_MAX, &self.calls_max.to_be_bytes());
        }
        if let Some(lane) = self.lane {
            meta.put(id::LANE_TOKEN, &lane.token);
            meta.put(id::LANE_BODY_MAX, &lane.body_max.to_be_bytes());
        }
        self.traits.encode(&mut meta)?;
        for sibling in &self.siblings {
            meta.put(id::SIBLING, sibling.to_string().as_bytes());
        }
        for offer in &self.offers {
            let mut value = offer.uri.clone().into_bytes();
            if !offer.group.is_empty() {
                value.push(0);
                value.extend_from_slice(offer.group.as_bytes());
            }
            meta.put(id::OFFER, &value);
        }
        let meta_len = u16::try_from(meta.len()).ok().filter(|len| usize::from(*len) + super::HEADER_LEN <= super::HEAD_MAX)?;
        let header = Header { meta_len, ..Header::new(Kind::Hello) };
        let mut frame = BytesMut::with_capacity(header.frame_len());
        frame.put_slice(&header.bytes());
        frame.put_slice(meta.as_ref());
        Some(frame.freeze())
    }

    /// Reads the entries of a HELLO.
    ///
    /// # Errors
    /// When they are broken, one that must be there is not, or one is not what it can be.
    pub fn decode(meta: &[u8]) -> Result<Self, BadHello> {
        let windows = Windows { stream: WINDOW_MIN, connection: WINDOW_MIN };
        let mut hello = Self::new(Role::Application, "", "", windows);
        let (mut versions, mut role, mut token, mut body_max) = (None, None, None, 0);
        for entry in super::entries(meta) {
            let (id, value) = entry.map_err(BadHello::Meta)?;
            match id {
                id::VERSIONS => {
                    let [oldest, newest] = fixed(value, "versions")?;
                    if oldest > newest {
                        return Err(BadHello::Value("versions"));
                    }
                    versions = Some((oldest, newest));
                }
                id::ROLE => role = Some(Role::from_number(fixed::<1>(value, "role")?[0]).ok_or(BadHello::Value("role"))?),
                id::APPLICATION => hello.application = name(value, "application")?,
                id::INSTANCE => hello.instance = name(value, "instance")?,
                id::WINDOWS => hello.windows = windows_of(fixed(value, "windows")?)?,
                id::FEATURES => hello.features = u64::from_be_bytes(fixed(value, "features")?),
                id::CONNECTION => hello.connection = Some(u16::from_be_bytes(fixed(value, "connection")?)),
                id::CONNECTIONS => hello.connections = u16::from_be_bytes(fixed(value, "connections")?),
                id::CALLS_MAX => hello.calls_max = u32::from_be_bytes(fixed(value, "calls_max")?),
                id::LANE_TOKEN => token = Some(fixed(value, "lane_token")?),
                id::LANE_BODY_MAX => body_max = u32::from_be_bytes(fixed(value, "lane_body_max")?),
                id::OFFER => hello.offers.push(Offer::decode(value)?),
                id::WEIGHT => hello.traits.weight = Some(weight_of(fixed(value, "weight")?)?),
                id::ENVIRONMENT => hello.traits.environment = name(value, "environment")?,
                id::LABEL => {
                    let (name, value) = label_of(value)?;
                    hello.traits.labels.insert(name, value);
                }
                id::SIBLING => {
                    let address = name(value, "sibling")?.parse().map_err(|_| BadHello::Value("sibling"))?;
                    if hello.siblings.len() < SIBLINGS_MAX {
                        hello.siblings.push(address);
                    }
                }
                _ => {}
            }
        }
        hello.versions = versions.ok_or(BadHello::Missing("versions"))?;
        hello.role = role.ok_or(BadHello::Missing("role"))?;
        hello.lane = token.map(|token| Lane { token, body_max });
        Ok(hello)
    }

    /// The newest version that both know.
    #[must_use]
    pub fn common_version(&self, other: &Self) -> Option<u8> {
        let newest = self.versions.1.min(other.versions.1);
        (newest >= self.versions.0.max(other.versions.0)).then_some(newest)
    }
}

impl Offer {
    /// A service of the default group.
    #[must_use]
    pub fn new(uri: &str) -> Self {
        Self { uri: uri.to_owned(), group: String::new() }
    }

    /// Its hash, as it stands in headers.
    #[must_use]
    pub fn hash(&self) -> u64 {
        super::service_hash(self.uri.as_bytes(), self.group.as_bytes())
    }

    fn decode(value: &[u8]) -> Result<Self, BadHello> {
        let (uri, group) = match value.iter().position(|byte| *byte == 0) {
            Some(at) => (&value[..at], &value[at + 1..]),
            None => (value, &value[..0]),
        };
        let (uri, group) = (name(uri, "offer")?, name(group, "offer")?);
        if uri.starts_with('/') { Ok(Self { uri, group }) } else { Err(BadHello::Value("offer")) }
    }
}

impl Traits {
    /// Puts what is known; none if the name of a label is too long for its length.
    fn encode(&self, meta: &mut MetaBuilder) -> Option<()> {
        if let Some(weight) = self.weight {
            meta.put(id::WEIGHT, &weight.get().to_be_bytes());
        }
        if !self.environment.is_empty() {
            meta.put(id::ENVIRONMENT, self.environment.as_bytes());
        }
        for (name, value) in &self.labels {
            let len = u8::try_from(name.len()).ok()?;
            meta.put(id::LABEL, &[&[len], name.as_bytes(), value.as_bytes()].concat());
        }
        Some(())
    }
}

impl Role {
    const fn number(self) -> u8 {
        match self {
            Self::Application => 1,
            Self::Agent => 2,
            Self::Lane => 3,
        }
    }

    const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Application,
            2 => Self::Agent,
            3 => Self::Lane,
            _ => return None,
        })
    }
}

fn fixed<const N: usize>(value: &[u8], what: &'static str) -> Result<[u8; N], BadHello> {
    value.try_into().map_err(|_| BadHello::Value(what))
}

fn name(value: &[u8], what: &'static str) -> Result<String, BadHello> {
    let text = std::str::from_utf8(value).map_err(|_| BadHello::Value(what))?;
    let fine = value.len() <= NAME_MAX && !text.chars().any(char::is_control);
    if fine { Ok(text.to_owned()) } else { Err(BadHello::Value(what)) }
}

fn weight_of(bytes: [u8; 4]) -> Result<NonZeroU32, BadHello> {
    let weight = NonZeroU32::new(u32::from_be_bytes(bytes));
    weight.filter(|weight| weight.get() <= WEIGHT_MAX).ok_or(BadHello::Value("weight"))
}

fn label_of(value: &[u8]) -> Result<(String, String), BadHello> {
    let split = value.split_first().and_then(|(len, rest)| rest.split_at_checked(usize::from(*len)));
    let (label, value) = split.ok_or(BadHello::Value("label"))?;
    Ok((name(label, "label")?, name(value, "label")?))
}

fn windows_of(bytes: [u8; 8]) -> Result<Windows, BadHello> {
    let [a, b, c, d, e, f, g, h] = bytes;
    let windows = Windows { stream: u32::from_be_bytes([a, b, c, d]), connection: u32::from_be_bytes([e, f, g, h]) };
    let fine = |size| (WINDOW_MIN..=WINDOW_MAX).contains(&size);
    if fine(windows.stream) && fine(windows.connection) { Ok(windows) } else { Err(BadHello::Value("windows")) }
}

impl std::fmt::Display for BadHello {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Meta(error) => write!(f, "HELLO: {error}"),
            Self::Missing(what) => write!(f, "HELLO has no entry `{what}`"),
            Self::Value(what) => write!(f, "HELLO has a wrong value in its entry `{what}`"),
        }
    }
}

impl std::error::Error for BadHello {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::HEADER_LEN;

    fn hello() -> Hello {
        let windows = Windows { stream: 262_144, connection: 1_048_576 };
        let mut hello = Hello::new(Role::Application, "shop", "shop-1", windows);
        hello.offers = vec![Offer::new("/service/user"), Offer { uri: "/service/user".to_owned(), group: "blue".to_owned() }];
        (hello.features, hello.connection, hello.connections, hello.calls_max) = (5, Some(1), 2, 1000);
        hello.lane = Some(Lane { token: [7; 16], body_max: 32_768 });
        hello.traits = Traits {
            weight: NonZeroU32::new(50),
            environment: "pre".to_owned(),
            labels: [("version", "2"), ("", "")].map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        };
        hello.siblings = ["10.0.0.2:13001", "[fd00::2]:13001"].map(|address| address.parse().expect("an address")).into();
        hello
    }

    #[test]
    fn comes_back_as_it_was() {
        let frame = hello().encode().expect("it fits");
        assert_eq!(Hello::decode(&frame[HEADER_LEN..]), Ok(hello()));
    }

    #[test]
    fn cut_or_wrong_it_is_an_error_never_a_panic() {
        let frame = hello().encode().expect("it fits");
        let meta = &frame[HEADER_LEN..];
        for cut in 0..meta.len() {
            let _ = Hello::decode(&meta[..cut]);
        }
        for at in 0..meta.len() {
            let mut wrong = meta.to_vec();
            wrong[at] ^= 0xff;
            let _ = Hello::decode(&wrong);
        }
        assert_eq!(Hello::decode(&[]), Err(BadHello::Missing("versions")));
    }

    #[test]
    fn an_entry_that_is_not_known_is_skipped() {
        let frame = hello().encode().expect("it fits");
        let mut meta = frame[HEADER_LEN..].to_vec();
        meta.extend_from_slice(&[99, 0, 2, 1, 2]);
        assert_eq!(Hello::decode(&meta), Ok(hello()));
    }

    #[test]
    fn windows_have_bounds() {
        for (stream, connection) in [(0, WINDOW_MIN), (WINDOW_MIN, WINDOW_MAX + 1), (WINDOW_MIN - 1, WINDOW_MIN)] {
            let wrong = Hello { windows: Windows { stream, connection }, ..hello() };
            let frame = wrong.encode().expect("it fits");
            assert_eq!(Hello::decode(&frame[HEADER_LEN..]), Err(BadHello::Value("windows")));
        }
    }

    fn with(id: u8, value: &[u8]) -> Result<Hello, BadHello> {
        let mut meta = hello().encode().expect("it fits")[HEADER_LEN..].to_vec();
        meta.extend_from_slice(MetaBuilder::new().put(id, value).as_ref());
        Hello::decode(&meta)
    }

    #[test]
    fn weights_have_bounds() {
        for weight in [1, WEIGHT_MAX] {
            let read = with(id::WEIGHT, &weight.to_be_bytes()).expect("a weight");
            assert_eq!(read.traits.weight.map(NonZeroU32::get), Some(weight));
        }
        for weight in [0, WEIGHT_MAX + 1, u32::MAX] {
            assert_eq!(with(id::WEIGHT, &weight.to_be_bytes()), Err(BadHello::Value("weight")));
        }
        assert_eq!(with(id::WEIGHT, &[50]), Err(BadHello::Value("weight")));
    }

    #[test]
    fn of_labels_with_the_same_name_the_last_counts() {
        let read = with(id::LABEL, b"\x07version3").expect("a label");
        assert_eq!(read.traits.labels.get("version").map(String::as_str), Some("3"));
        assert_eq!(read.traits.labels.len(), 2);
        for wrong in [&b""[..], b"\x08version", b"\x01\n", b"\x01a\xff"] {
            assert_eq!(with(id::LABEL, wrong), Err(BadHello::Value("label")), "{wrong:?}");
        }
        let too_long = Traits { labels: [("x".repeat(256), String::new())].into(), ..Traits::default() };
        assert_eq!(Hello { traits: too_long, ..hello() }.encode(), None);
    }

    #[test]
    fn so_many_siblings_count_and_each_is_an_address() {
        let mut meta = MetaBuilder::new();
        for last in 1..=10 {
            meta.put(id::SIBLING, format!("10.0.0.{last}:13001").as_bytes());
        }
        let mut all = hello().encode().expect("it fits")[HEADER_LEN..].to_vec();
        all.extend_from_slice(meta.as_ref());
        assert_eq!(Hello::decode(&all).expect("siblings").siblings.len(), SIBLINGS_MAX);
        for wrong in [&b""[..], b"10.0.0.2", b"host:13001", b"10.0.0.2:70000"] {
            assert_eq!(with(id::SIBLING, wrong), Err(BadHello::Value("sibling")), "{wrong:?}");
        }
    }

    #[test]
    fn offers_that_do_not_fit_make_no_frame() {
        let offers = (0..4000).map(|n| Offer::new(&format!("/service/number-{n}"))).collect();
        assert_eq!(Hello { offers, ..hello() }.encode(), None);
    }

    #[test]
    fn the_newest_common_version_counts() {
        let with = |versions| Hello { versions, ..hello() };
        assert_eq!(with((1, 3)).common_version(&with((2, 5))), Some(3));
        assert_eq!(with((1, 1)).common_version(&with((2, 5))), None);
        let frame = with((2, 1)).encode().expect("it fits");
        assert_eq!(Hello::decode(&frame[HEADER_LEN..]), Err(BadHello::Value("versions")));
    }
}
