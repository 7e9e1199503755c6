//! Random frames and bytes.

use std::{
    num::NonZeroU32,
    time::{SystemTime, UNIX_EPOCH},
};

use agent_common::frame::{
    Flags, HEADER_LEN, Header, Hello, Kind, Lane, MetaBuilder, Offer, Role, Traits, WEIGHT_MAX, WINDOW_MAX, WINDOW_MIN, Windows,
    entries, find, id, is_after, next_stream, property,
};
use proptest::{
    array,
    collection::{btree_map, vec},
    option,
    prelude::*,
    sample::{Index, select},
    test_runner::{Config, RngSeed, TestRunner},
};

use crate::check::{
    frame,
    reader::read,
    reference::{self, Seen},
};

/// Runs a property on random values; the seed is printed, and taken from `MOA_SEED` if that is set.
fn for_all<S: Strategy>(strategy: S, property: impl Fn(S::Value)) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = number("MOA_SEED").unwrap_or(u64::from(now.subsec_nanos()) ^ now.as_secs());
    println!("MOA_SEED={seed}");
    let cases = u32::try_from(number("MOA_CASES").unwrap_or(2000)).unwrap();
    let config = Config { cases, rng_seed: RngSeed::Fixed(seed), failure_persistence: None, ..Config::default() };
    let result = TestRunner::new(config).run(&strategy, |value| {
        property(value);
        Ok(())
    });
    if let Err(error) = result {
        panic!("MOA_SEED={seed}: {error}");
    }
}

const KINDS: [Kind; 9] =
    [Kind::Hello, Kind::Request, Kind::Response, Kind::Data, Kind::Cancel, Kind::Ping, Kind::Pong, Kind::Credit, Kind::GoAway];

/// Numbers in which every byte counts, and those at the ends of their range.
fn number32() -> impl Strategy<Value = u32> {
    prop_oneof![any::<u32>(), select(&[0, 1, 1 << 31, u32::MAX][..])]
}

/// A header that breaks no rule, with these lengths as far as its kind may have them.
fn header(meta_len: usize, body_len: usize) -> impl Strategy<Value = Header> {
    let kind = prop_oneof![9 => select(&KINDS[..]).prop_map(|kind| kind as u8), 1 => 128..=u8::MAX];
    let numbers = (number32(), any::<u64>(), any::<u64>(), number32(), number32());
    (kind, any::<u16>().prop_map(Flags), numbers).prop_map(move |(kind, flags, (stream, via, service, word, receipt))| {
        let known = Kind::from_u8(kind);
        let has_meta = !matches!(known, Some(Kind::Data | Kind::Ping | Kind::Pong | Kind::Credit));
        let has_body = known.is_none_or(Kind::needs_credit);
        Header {
            kind,
            flags: match known {
                Some(Kind::Request) => flags.without(Flags::TO_CALLER),
                Some(Kind::Response) => flags.with(Flags::TO_CALLER).without(Flags::ONE_WAY),
                _ => flags,
            },
            meta_len: u16::try_from(if has_meta { meta_len } else { 0 }).unwrap(),
            body_len: u32::try_from(if has_body { body_len } else { 0 }).unwrap(),
            stream: if known == Some(Kind::Request) { stream.max(1) } else { stream },
            via,
            service,
            word: if known == Some(Kind::Credit) { word.max(1) } else { word },
            receipt,
        }
    })
}

/// A header of any length that a frame may have.
fn valid_header() -> impl Strategy<Value = Header> {
    let meta_len = prop_oneof![0..=32_728_usize, select(&[0, 32_728][..])];
    let lengths = meta_len.prop_flat_map(|meta_len| {
        let body_max = 65_496 - meta_len;
        (Just(meta_len), prop_oneof![0..=body_max, Just(body_max)])
    });
    lengths.prop_flat_map(|(meta_len, body_len)| header(meta_len, body_len))
}

/// Entries, known and not, some of them properties.
fn metadata() -> impl Strategy<Value = Vec<(u8, Vec<u8>)>> {
    let entry = (prop_oneof![1..=18_u8, any::<u8>()], vec(any::<u8>(), 0..20));
    let property = ("[a-z]{0,4}", vec(any::<u8>(), 0..8))
        .prop_map(|(name, value)| (id::PROPERTY, [&[u8::try_from(name.len()).unwrap()], name.as_bytes(), &value].concat()));
    vec(prop_oneof![3 => entry, 1 => property], 0..8)
}

fn written(entries: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut meta = MetaBuilder::new();
    for (id, value) in entries {
        meta.put(*id, value);
    }
    meta.finish().to_vec()
}

/// Whole frames that break no rule, one after the other.
fn stream() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let frame = (metadata(), vec(any::<u8>(), 0..60)).prop_flat_map(|(entries, body)| {
        let meta = written(&entries);
        header(meta.len(), body.len()).prop_map(move |header| {
            let meta = &meta[..usize::from(header.meta_len)];
            let body = if header.body_len == 0 { &[] } else { &body[..] };
            [&header.bytes()[..], meta, body].concat()
        })
    });
    let hello = hello().prop_map(|hello| hello.encode().unwrap().to_vec());
    vec(prop_oneof![6 => frame, 1 => hello], 0..5)
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z0-9-]{0,12}", "[^\\p{Cc}]{0,60}", Just("x".repeat(255))]
}

fn hello() -> impl Strategy<Value = Hello> {
    let role = select(&[Role::Application, Role::Agent, Role::Lane][..]);
    let offer = (name(), name()).prop_map(|(uri, group)| Offer { uri: format!("/{}", uri.replace('x', "")), group });
    let size = || prop_oneof![WINDOW_MIN..=WINDOW_MAX, select(&[WINDOW_MIN, WINDOW_MAX][..])];
    let lane = option::of((array::uniform16(any::<u8>()), any::<u32>()));
    let who = (any::<(u8, u8)>(), role, name(), name(), vec(offer, 0..5));
    let numbers = (size(), size(), any::<u64>(), option::of(any::<u16>()), any::<u16>(), any::<u32>());
    let siblings = vec(any::<(std::net::IpAddr, u16)>().prop_map(Into::into), 0..=8);
    (who, numbers, lane, (traits(), siblings)).prop_map(
        |((versions, role, application, instance, offers), numbers, lane, (traits, siblings))| {
            let (stream, connection_window, features, connection, connections, calls_max) = numbers;
            Hello {
                versions: (versions.0.min(versions.1), versions.0.max(versions.1)),
                role,
                application,
                instance,
                offers,
                windows: Windows { stream, connection: connection_window },
                features,
                connection,
                connections,
                calls_max,
                lane: lane.map(|(token, body_max)| Lane { token, body_max }),
                traits,
                siblings,
            }
        },
    )
}

fn traits() -> impl Strategy<Value = Traits> {
    let weight = option::of(1..=WEIGHT_MAX).prop_map(|weight| weight.and_then(NonZeroU32::new));
    let labels = btree_map(name(), name(), 0..4);
    (weight, name(), labels).prop_map(|(weight, environment, labels)| Traits { weight, environment, labels })
}

/// Bytes with a few of them changed, dropped or put in.
fn mutated(bytes: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    (bytes, vec((any::<Index>(), 0..4, any::<u8>()), 0..3)).prop_map(|(mut bytes, edits)| {
        for (index, kind, byte) in edits {
            let at = index.index(bytes.len() + 1);
            match kind {
                0 => bytes.insert(at, byte),
                1 => bytes.truncate(at),
                2 if at < bytes.len() => drop(bytes.remove(at)),
                _ if at < bytes.len() => bytes[at] = byte,
                _ => bytes.push(byte),
            }
        }
        bytes
    })
}

#[test]
fn headers_come_back_as_they_were() {
    for_all(valid_header(), |header| {
        assert_eq!(Header::parse(&header.bytes()), Ok(header));
        frame::check_header(&header.bytes());
    });
}

#[test]
fn any_40_bytes_are_a_header_or_not_as_the_reference_has_it() {
    for_all(array::uniform32(any::<u8>()).prop_flat_map(|start| (Just(start), array::uniform8(any::<u8>()))), |(start, end)| {
        let mut bytes = [0; HEADER_LEN];
        bytes[..32].copy_from_slice(&start);
        bytes[32..].copy_from_slice(&end);
        frame::check_header(&bytes);
        bytes[..3].copy_from_slice(b"MO\x01");
        frame::check_header(&bytes);
        // Lengths that fit, so that it depends on the rest.
        (bytes[6], bytes[8], bytes[9]) = (bytes[6] & 0x7f, 0, 0);
        frame::check_header(&bytes);
        bytes[3] %= 11;
        frame::check_header(&bytes);
        bytes[6..12].fill(0);
        frame::check_header(&bytes);
    });
}

/// Where a rule looks whether a field is 0, random numbers hardly ever are next to it.
#[test]
fn small_numbers_in_every_kind_are_a_header_or_not_as_the_reference_has_it() {
    for kind in 0..=u8::MAX {
        for bits in 0..16_u8 {
            let bit = |at: u8| bits >> at & 1;
            for flags in (0..16).map(|at| Flags(1 << at)).chain([Flags::NONE, Flags::TO_CALLER | Flags::ONE_WAY]) {
                let (meta_len, body_len) = (bit(0).into(), bit(1).into());
                let (stream, word) = (bit(2).into(), bit(3).into());
                let header = Header { kind, flags, meta_len, body_len, stream, word, ..Header::new(Kind::Hello) };
                frame::check_header(&header.bytes());
            }
        }
    }
}

#[test]
fn a_header_with_one_byte_changed_is_one_or_not_as_the_reference_has_it() {
    for_all((valid_header(), 0..HEADER_LEN, any::<u8>()), |(header, at, byte)| {
        let mut bytes = header.bytes();
        bytes[at] = byte;
        frame::check_header(&bytes);
    });
}

#[test]
fn metadata_comes_back_as_it_was() {
    for_all(metadata(), |expected| {
        let meta = written(&expected);
        let found: Vec<_> = entries(&meta).map(|entry| entry.map(|(id, value)| (id, value.to_vec())).unwrap()).collect();
        assert_eq!(found, expected);
        for (id, _) in &expected {
            let first = expected.iter().find(|(other, _)| other == id).map(|(_, value)| &value[..]);
            assert_eq!(find(&meta, *id), first);
        }
        (0..=meta.len()).for_each(|cut| frame::check_meta(&meta[..cut]));
    });
}

#[test]
fn properties_are_found_by_their_names() {
    for_all(vec(("[a-c]{0,3}", vec(any::<u8>(), 0..9)), 0..6), |properties| {
        let mut meta = MetaBuilder::new();
        meta.put(id::URI, b"/service/user");
        for (name, value) in &properties {
            meta.put_property(name, value);
        }
        for name in properties.iter().map(|(name, _)| &**name).chain(["", "a", "abc", "other"]) {
            let first = properties.iter().find(|(other, _)| other == name).map(|(_, value)| &value[..]);
            assert_eq!(property(meta.as_ref(), name.as_bytes()), first);
        }
    });
}

#[test]
fn any_bytes_are_metadata_or_not_as_the_reference_has_it() {
    for_all(mutated(metadata().prop_map(|entries| written(&entries))), |meta| frame::check_meta(&meta));
    for_all(vec(any::<u8>(), 0..40), |meta| frame::check_meta(&meta));
}

#[test]
fn hellos_come_back_as_they_were() {
    for_all(hello(), |hello| {
        let frame = hello.encode().unwrap();
        assert_eq!(Hello::decode(&frame[HEADER_LEN..]), Ok(hello));
    });
}

#[test]
fn entries_of_a_hello_that_are_not_known_are_skipped_wherever_they_are() {
    let unknown = vec((any::<Index>(), 17..=u8::MAX, vec(any::<u8>(), 0..9)), 1..4);
    for_all((hello(), unknown), |(hello, unknown)| {
        let frame = hello.encode().unwrap();
        let mut all: Vec<_> =
            entries(&frame[HEADER_LEN..]).map(|entry| entry.map(|(id, value)| (id, value.to_vec())).unwrap()).collect();
        for (at, id, value) in unknown {
            all.insert(at.index(all.len() + 1), (id, value));
        }
        assert_eq!(Hello::decode(&written(&all)), Ok(hello));
    });
}

#[test]
fn a_hello_with_wrong_bytes_is_an_error_or_means_what_it_says() {
    for_all(mutated(hello().prop_map(|hello| hello.encode().unwrap()[HEADER_LEN..].to_vec())), |meta| frame::check_hello(&meta));
}

#[test]
fn frames_are_the_same_however_their_bytes_are_cut() {
    for_all((stream(), vec(1..90_usize, 1..10)), |(frames, sizes)| {
        let bytes = frames.concat();
        let seen = reference::frames(&bytes);
        let whole: Vec<_> = seen
            .iter()
            .filter_map(|seen| if let Seen::Frame(frame) | Seen::Skipped(frame) = seen { Some(frame) } else { None })
            .collect();
        assert_eq!(whole, frames.iter().collect::<Vec<_>>());
        let mut rest = &bytes[..];
        let pieces = sizes.iter().cycle().map_while(|size| {
            let piece = rest.split_off(..rest.len().min(*size))?;
            (!piece.is_empty()).then_some(piece)
        });
        assert_eq!(read(pieces), seen);
        frame::check(&bytes);
    });
}

#[test]
fn frames_that_end_anywhere_are_the_whole_ones_and_what_is_missing() {
    for_all(stream().prop_map(|frames| frames.into_iter().take(2).collect::<Vec<_>>().concat()), |bytes| {
        for cut in 0..bytes.len() {
            assert_eq!(read([&bytes[..cut]]), reference::frames(&bytes[..cut]));
        }
    });
}

#[test]
fn streams_with_wrong_bytes_are_what_the_reference_reads() {
    for_all(mutated(stream().prop_map(|frames| frames.concat())), |bytes| frame::check(&bytes));
}

#[test]
fn numbers_of_calls_are_in_order() {
    for_all((number32(), number32()), |(stream, other)| {
        assert!(next_stream(stream) != 0 && is_after(next_stream(stream), stream));
        let ahead = (u64::from(stream) + (1 << 32) - u64::from(other)) % (1 << 32);
        assert_eq!(is_after(stream, other), (1..1 << 31).contains(&ahead));
    });
}
