//! The shape of the file. `vectors/README.md` says it in words.

use std::{collections::BTreeMap, fs, num::NonZeroU32, path::Path};

use agent_common::frame::Header;
use serde::{Deserialize, Deserializer, de::Error};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct File {
    #[serde(rename = "about")]
    _about: String,
    pub(crate) frames: Vec<Frame>,
    pub(crate) headers: Vec<HeaderOnly>,
    pub(crate) services: Vec<ServiceHash>,
    pub(crate) stream_order: Vec<StreamOrder>,
    pub(crate) stream_next: Vec<StreamNext>,
    pub(crate) invalid: Vec<Invalid>,
    pub(crate) conversations: Vec<Conversation>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Frame {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) header: Fields,
    pub(crate) entries: Vec<Entry>,
    pub(crate) body: Hex,
    pub(crate) service: Option<Service>,
    pub(crate) hello: Option<HelloFields>,
    pub(crate) hex: Hex,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HeaderOnly {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) header: Fields,
    pub(crate) hex: Hex,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fields {
    pub(crate) version: u8,
    pub(crate) kind: u8,
    pub(crate) kind_name: Option<String>,
    pub(crate) flags: u16,
    pub(crate) flag_names: Option<Vec<String>>,
    pub(crate) meta_len: u16,
    pub(crate) body_len: u32,
    pub(crate) stream: u32,
    pub(crate) via: Wide,
    pub(crate) service: Wide,
    pub(crate) word: u32,
    pub(crate) receipt: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    pub(crate) id: u8,
    pub(crate) name: Option<String>,
    text: Option<String>,
    hex: Option<Hex>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Service {
    pub(crate) uri: String,
    pub(crate) group: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HelloFields {
    pub(crate) versions: (u8, u8),
    pub(crate) role: String,
    pub(crate) application: String,
    pub(crate) instance: String,
    pub(crate) offers: Vec<Service>,
    pub(crate) windows: Windows,
    pub(crate) features: Wide,
    pub(crate) connection: Option<u16>,
    pub(crate) connections: u16,
    pub(crate) calls_max: u32,
    pub(crate) lane: Option<Lane>,
    pub(crate) weight: Option<NonZeroU32>,
    #[serde(default)]
    pub(crate) environment: String,
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) siblings: Vec<std::net::SocketAddr>,
    /// The reference writes the same with other entries, or in another order.
    #[serde(default)]
    pub(crate) read_only: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Windows {
    pub(crate) message: u32,
    pub(crate) connection: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Lane {
    pub(crate) token: Hex,
    pub(crate) body_max: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ServiceHash {
    pub(crate) uri: String,
    pub(crate) group: String,
    pub(crate) hash: Wide,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StreamOrder {
    pub(crate) stream: u32,
    pub(crate) other: u32,
    pub(crate) after: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StreamNext {
    pub(crate) stream: u32,
    pub(crate) next: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Invalid {
    pub(crate) name: String,
    pub(crate) rule: String,
    pub(crate) breaks: String,
    pub(crate) hex: Hex,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Conversation {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) frames: Vec<Step>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Step {
    #[serde(default)]
    pub(crate) connection: usize,
    pub(crate) from: Side,
    pub(crate) comment: String,
    /// Its receiver drops it, as its call is not in flight any more.
    #[serde(default)]
    pub(crate) dropped: bool,
    hex: Hex,
    /// So many zero bytes follow as the end of the body.
    #[serde(default)]
    zeros: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Side {
    Caller,
    Callee,
}

/// Bytes, two digits each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hex(pub(crate) Vec<u8>);

/// 64 bits as 16 digits, as JSON's numbers have 53 in most languages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wide(pub(crate) u64);

impl File {
    pub(crate) fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors/frames.json");
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
    }
}

impl Entry {
    pub(crate) fn value(&self) -> &[u8] {
        match (&self.text, &self.hex) {
            (Some(text), None) => text.as_bytes(),
            (None, Some(hex)) => &hex.0,
            _ => panic!("entry {} has one of `text` and `hex`", self.id),
        }
    }
}

impl Step {
    pub(crate) fn header(&self) -> Header {
        Header::parse(self.hex.0.first_chunk().unwrap()).unwrap()
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.hex.0.clone();
        bytes.resize(bytes.len() + self.zeros, 0);
        bytes
    }
}

impl std::fmt::Display for Hex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        let bytes = pairs.iter().map(byte).collect::<Option<_>>().filter(|_| rest.is_empty());
        bytes.map(Self).ok_or_else(|| D::Error::custom(format!("{text:?} is not hexadecimal")))
    }
}

impl<'de> Deserialize<'de> for Wide {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Hex(bytes) = Hex::deserialize(deserializer)?;
        let bytes = bytes.try_into().map_err(|_| D::Error::custom("not 16 digits"))?;
        Ok(Self(u64::from_be_bytes(bytes)))
    }
}
