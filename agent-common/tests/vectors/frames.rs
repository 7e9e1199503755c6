//! Frames that are right: read and written, field by field.

use std::collections::{BTreeMap, BTreeSet};

use agent_common::frame::{
    FRAME_MAX, Flags, HEADER_LEN, Header, Hello, Kind, Lane, MetaBuilder, Offer, Role, Traits, VERSION, Windows, entries, id,
    offset, service_hash,
};

use crate::file::{Entry, Fields, File, Frame, HelloFields, Hex};
use crate::invalid::refusal;

pub(crate) const KINDS: [(Kind, &str); 9] = [
    (Kind::Hello, "HELLO"),
    (Kind::Request, "REQUEST"),
    (Kind::Response, "RESPONSE"),
    (Kind::Data, "DATA"),
    (Kind::Cancel, "CANCEL"),
    (Kind::Ping, "PING"),
    (Kind::Pong, "PONG"),
    (Kind::Credit, "CREDIT"),
    (Kind::GoAway, "GOAWAY"),
];

const FLAGS: [(Flags, &str); 9] = [
    (Flags::END_STREAM, "END_STREAM"),
    (Flags::ONE_WAY, "ONE_WAY"),
    (Flags::IDEMPOTENT, "IDEMPOTENT"),
    (Flags::COMPRESSED, "COMPRESSED"),
    (Flags::SHADOW, "SHADOW"),
    (Flags::SLOW_PATH, "SLOW_PATH"),
    (Flags::VERIFIED, "VERIFIED"),
    (Flags::TO_CALLER, "TO_CALLER"),
    (Flags::NOT_EXECUTED, "NOT_EXECUTED"),
];

const METADATA: [(u8, &str); 18] = [
    (id::URI, "uri"),
    (id::METHOD, "method"),
    (id::GROUP, "group"),
    (id::SOURCE_APPLICATION, "source_application"),
    (id::SOURCE_INSTANCE, "source_instance"),
    (id::TRACEPARENT, "traceparent"),
    (id::TRACESTATE, "tracestate"),
    (id::BAGGAGE, "baggage"),
    (id::HASH_KEY, "hash_key"),
    (id::ENVIRONMENT, "environment"),
    (id::ZONE, "zone"),
    (id::STRESS, "stress"),
    (id::CONTENT_TYPE, "content_type"),
    (id::ERROR_TEXT, "error_text"),
    (id::RETRY_COUNT, "retry_count"),
    (id::AUTH, "auth"),
    (id::BODY_LEN, "body_len"),
    (id::PROPERTY, "property"),
];

/// The codec keeps these numbers to itself; that they are right is seen by what it reads and writes.
const HELLO: [(u8, &str); 16] = [
    (1, "versions"),
    (2, "role"),
    (3, "application"),
    (4, "instance"),
    (5, "offer"),
    (6, "windows"),
    (7, "features"),
    (8, "connection"),
    (9, "connections"),
    (10, "calls_max"),
    (11, "lane_token"),
    (12, "lane_body_max"),
    (13, "weight"),
    (14, "environment"),
    (15, "label"),
    (16, "sibling"),
];

#[test]
fn frames_are_read_as_they_are_described() {
    for vector in File::read().frames {
        let bytes = &vector.hex.0;
        let header = Header::parse(bytes.first_chunk().unwrap()).unwrap_or_else(|error| panic!("{}: {error}", vector.name));
        check_header(&vector.name, &vector.header, &header, bytes);
        check_names(&vector);
        assert_eq!(header.frame_len(), bytes.len(), "{}", vector.name);
        let (meta, body) = bytes[HEADER_LEN..].split_at(usize::from(header.meta_len));
        let found: Vec<_> = entries(meta).map(Result::unwrap).collect();
        let expected: Vec<_> = vector.entries.iter().map(|entry| (entry.id, entry.value())).collect();
        assert_eq!(found, expected, "{}", vector.name);
        assert_eq!(body, vector.body.0, "{}", vector.name);
        let service = vector.service.as_ref().map_or(0, |service| service_hash(service.uri.as_bytes(), service.group.as_bytes()));
        assert_eq!(header.service, service, "{}", vector.name);
        assert_eq!(header.kind() == Some(Kind::Hello), vector.hello.is_some(), "{}", vector.name);
        if let Some(fields) = &vector.hello {
            assert_eq!(Hello::decode(meta), Ok(hello(fields)), "{}", vector.name);
        }
        assert_eq!(refusal(bytes), None, "{}", vector.name);
    }
}

#[test]
fn frames_are_written_as_they_are_described() {
    for vector in File::read().frames {
        let mut meta = MetaBuilder::new();
        for entry in &vector.entries {
            meta.put(entry.id, entry.value());
        }
        let header = Header {
            meta_len: u16::try_from(meta.len()).unwrap(),
            body_len: u32::try_from(vector.body.0.len()).unwrap(),
            ..header(&vector.header)
        };
        same(&vector.name, &vector.hex, [&header.bytes()[..], meta.as_ref(), &vector.body.0].concat());
        if let Some(fields) = vector.hello.filter(|fields| !fields.read_only) {
            same(&vector.name, &vector.hex, hello(&fields).encode().unwrap().to_vec());
        }
    }
}

#[test]
fn headers_are_read_and_written_as_they_are_described() {
    for vector in File::read().headers {
        assert!(!vector.description.is_empty(), "{}", vector.name);
        same(&vector.name, &vector.hex, header(&vector.header).bytes().to_vec());
        let bytes = &vector.hex.0;
        let header = Header::parse(bytes.first_chunk().unwrap()).unwrap_or_else(|error| panic!("{}: {error}", vector.name));
        check_header(&vector.name, &vector.header, &header, bytes);
        assert!(header.frame_len() <= FRAME_MAX);
    }
}

#[test]
fn every_kind_flag_and_entry_has_a_vector() {
    let file = File::read();
    let named: BTreeSet<&str> = file.frames.iter().filter_map(|frame| frame.header.kind_name.as_deref()).collect();
    assert_eq!(named, KINDS.map(|(_, name)| name).into());
    let flags = file.frames.iter().filter_map(|frame| frame.header.flag_names.as_ref()).flatten();
    assert_eq!(flags.map(String::as_str).collect::<BTreeSet<_>>(), FLAGS.map(|(_, name)| name).into());
    for (is_hello, names) in [(true, &HELLO[..]), (false, &METADATA[..])] {
        let frames = file.frames.iter().filter(|frame| frame.hello.is_some() == is_hello);
        let named = frames.flat_map(|frame| &frame.entries).filter_map(|entry| entry.name.as_deref());
        assert_eq!(named.collect::<BTreeSet<_>>(), names.iter().map(|(_, name)| *name).collect());
    }
}

#[test]
fn names_occur_once() {
    let file = File::read();
    let frames = file.frames.iter().map(|vector| (&vector.name, &vector.description));
    let conversations = file.conversations.iter().map(|vector| (&vector.name, &vector.description));
    let invalid = file.invalid.iter().map(|vector| (&vector.name, &vector.rule));
    let mut seen = BTreeMap::new();
    for (name, text) in frames.chain(conversations).chain(invalid) {
        assert!(!text.is_empty() && seen.insert(name, text).is_none(), "{name}");
    }
}

/// The bytes that the codec writes are those of the file.
fn same(name: &str, vector: &Hex, written: Vec<u8>) {
    let written = Hex(written);
    assert!(*vector == written, "{name} is not what the codec writes:\n{vector}\n{written}");
}

fn check_header(name: &str, fields: &Fields, header: &Header, bytes: &[u8]) {
    assert_eq!(*header, self::header(fields), "{name}");
    assert_eq!((fields.version, bytes[offset::VERSION]), (VERSION, VERSION), "{name}");
    assert_eq!(header.bytes(), bytes[..HEADER_LEN], "{name}");
}

fn check_names(vector: &Frame) {
    let kind = KINDS.iter().find(|(kind, _)| *kind as u8 == vector.header.kind).map(|(_, name)| *name);
    assert_eq!(vector.header.kind_name.as_deref(), kind, "{}", vector.name);
    let flags = FLAGS.iter().filter(|(flag, _)| Flags(vector.header.flags).has(*flag)).map(|(_, name)| *name);
    assert_eq!(vector.header.flag_names.as_deref().unwrap_or_default(), flags.collect::<Vec<_>>(), "{}", vector.name);
    let names = if vector.hello.is_some() { &HELLO[..] } else { &METADATA };
    for Entry { id, name, .. } in vector.entries.iter().filter(|entry| entry.name.is_some()) {
        assert_eq!(names.iter().find(|(known, _)| known == id).map(|(_, name)| *name), name.as_deref(), "{}", vector.name);
    }
}

fn header(fields: &Fields) -> Header {
    Header {
        kind: fields.kind,
        flags: Flags(fields.flags),
        meta_len: fields.meta_len,
        body_len: fields.body_len,
        stream: fields.stream,
        via: fields.via.0,
        service: fields.service.0,
        word: fields.word,
        receipt: fields.receipt,
    }
}

fn hello(fields: &HelloFields) -> Hello {
    let role = match fields.role.as_str() {
        "application" => Role::Application,
        "agent" => Role::Agent,
        "lane" => Role::Lane,
        other => panic!("there is no role {other}"),
    };
    let offer = |offer: &crate::file::Service| Offer { uri: offer.uri.clone(), group: offer.group.clone() };
    Hello {
        versions: fields.versions,
        role,
        application: fields.application.clone(),
        instance: fields.instance.clone(),
        offers: fields.offers.iter().map(offer).collect(),
        windows: Windows { stream: fields.windows.message, connection: fields.windows.connection },
        features: fields.features.0,
        connection: fields.connection,
        connections: fields.connections,
        calls_max: fields.calls_max,
        lane: fields.lane.as_ref().map(|lane| Lane { token: lane.token.0[..].try_into().unwrap(), body_max: lane.body_max }),
        siblings: fields.siblings.clone(),
        traits: Traits { weight: fields.weight, environment: fields.environment.clone(), labels: fields.labels.clone() },
    }
}
