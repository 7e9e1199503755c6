//! Random texts.

use std::time::{SystemTime, UNIX_EPOCH};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};

use crate::check;

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

/// Text that means something to a parser, now and then.
fn token_soup(tokens: &'static [&'static str], len: usize) -> impl Strategy<Value = Vec<u8>> {
    let token = prop_oneof![
        8 => proptest::sample::select(tokens).prop_map(|token| token.as_bytes().to_vec()),
        1 => vec(any::<u8>(), 0..4),
    ];
    vec(token, 0..len).prop_map(|tokens| tokens.concat())
}

/// A text with a few bytes changed, dropped or put in.
fn mutated(text: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let edit =
        (any::<prop::sample::Index>(), 0..4, prop_oneof![any::<u8>(), proptest::sample::select(&b"{}[]:,\"\\u0-.e \r\n$*"[..])]);
    (text, vec(edit, 0..3)).prop_map(|(mut text, edits)| {
        for (index, kind, byte) in edits {
            let at = index.index(text.len() + 1);
            match kind {
                0 => text.insert(at, byte),
                1 => text.truncate(at),
                2 if at < text.len() => drop(text.remove(at)),
                _ if at < text.len() => text[at] = byte,
                _ => text.push(byte),
            }
        }
        text
    })
}

fn array_command() -> impl Strategy<Value = Vec<u8>> {
    let argument = prop_oneof![vec(any::<u8>(), 0..40), vec(Just(b'x'), 0..3), Just(b"GET".to_vec())];
    vec(argument, 1..7).prop_map(|args| {
        let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
        agent::wire::reply::array_of_bulks(&args)
    })
}

fn inline_command() -> impl Strategy<Value = Vec<u8>> {
    const TOKENS: &[&str] = &[
        "PING", "get", "GET {", "GET ", " ", "\t", "\x0b", "\"", "'", "\\", "\\x4", "\\x41", "\\n", "\\\"", "\\'", "}", "{",
        "\0", "\r", "a",
    ];
    token_soup(TOKENS, 8).prop_map(|line| [&line[..], b"\r\n"].concat())
}

fn commands() -> impl Strategy<Value = Vec<u8>> {
    let command = prop_oneof![
        4 => array_command(),
        2 => inline_command(),
        1 => proptest::sample::select(&["*0\r\n", "*-1\r\n", "\r\n", "\n", "*1\r\n$-1\r\n", "*-0\r\n", "*01\r\n"][..])
            .prop_map(|text| text.as_bytes().to_vec()),
    ];
    mutated(vec(command, 0..4).prop_map(|commands| commands.concat()))
}

#[test]
fn commands_are_what_the_reference_reads_however_they_are_cut() {
    for_all((commands(), vec(1..50_usize, 1..10)), |(text, sizes)| {
        check::resp::check_cuts(&text);
        let mut rest = &text[..];
        let pieces = sizes.iter().cycle().map_while(|size| {
            let piece = rest.split_off(..rest.len().min(*size))?;
            (!piece.is_empty()).then_some(piece)
        });
        let limits = &check::resp::LIMITS[0];
        assert_eq!(check::resp::see(pieces, limits), check::resp_reference::read(&text, limits));
    });
}

#[test]
fn any_bytes_are_commands_or_errors_as_the_reference_has_it() {
    const TOKENS: &[&str] =
        &["*", "$", "1", "2", "0", "-", "\r\n", "\r", "\n", "GET", "536870912", "536870913", "1048576", "1048577"];
    for_all(token_soup(TOKENS, 20), |text| check::resp::check(&text));
}

#[test]
fn reply_heads_are_what_the_reference_reads() {
    const TOKENS: &[&str] = &["$", "+", "-", ":", "_", "*", "1", "0", "-1", "\r\n", "\r", "\n", "536870912", "536870913", "PONG"];
    for_all(token_soup(TOKENS, 8), |text| check::reply::check(&text));
}

fn json_string() -> impl Strategy<Value = String> {
    const PIECES: &[&str] = &[
        "a",
        "/service/demo",
        "\\/",
        "\\\"",
        "\\\\",
        "\\u4e2d",
        "\\ud83d\\ude00",
        "\\ud83d",
        "\\udc00",
        "\\u0000",
        "\\n",
        "中",
        "\u{1f600}",
        "long enough for the blocks that go by at once, which begin behind thirty-two bytes; and longer than one of these blocks is",
    ];
    let pieces = vec(proptest::sample::select(PIECES), 0..4).prop_map(|pieces| pieces.concat());
    pieces.prop_map(|text| format!("\"{text}\""))
}

fn json_key() -> impl Strategy<Value = String> {
    const KEYS: &[&str] =
        &["action", "act\\u0069on", "params", "p\\u0061rams", "m", "\\u006d", "props", "args", "ec", "e\\u0063", "hashid"];
    prop_oneof![4 => proptest::sample::select(KEYS).prop_map(|key| format!("\"{key}\"")), 1 => json_string()]
}

fn json_value() -> impl Strategy<Value = String> {
    const SCALARS: &[&str] =
        &["null", "true", "false", "0", "-0", "-1.5e+3", "1e999", "200", "3041", "18446744073709551616", "[]", "{}"];
    let scalar = prop_oneof![proptest::sample::select(SCALARS).prop_map(str::to_owned), json_string()];
    scalar.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(" ,\n"))), object(inner)]
    })
}

fn object(value: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    let member = (json_key(), value).prop_map(|(key, value)| format!("{key} : {value}"));
    vec(member, 0..5).prop_map(|members| format!("{{{}}}", members.join(",")))
}

/// Objects that often are calls, with keys in any order, doubled, escaped, and of any type.
fn call() -> impl Strategy<Value = String> {
    let strings = object(json_string());
    let member = prop_oneof![
        json_string().prop_map(|action| format!("\"action\":{action}")),
        (object(json_value()), strings).prop_map(|(params, props)| format!("\"params\":{params},\"props\": {props}")),
        (json_string(), json_value()).prop_map(|(m, args)| format!("\"params\":{{\"args\":{args},\"m\":{m}}}")),
        (json_key(), json_value()).prop_map(|(key, value)| format!("{key}:{value}")),
    ];
    vec(member, 0..5).prop_map(|members| format!(" {{{}}}\t", members.join(",")))
}

#[test]
fn calls_are_what_serde_json_makes_of_them() {
    for_all(call(), |body| check::envelope::check(body.as_bytes()));
}

#[test]
fn calls_with_wrong_bytes_are_what_serde_json_makes_of_them() {
    for_all(mutated(call().prop_map(String::into_bytes)), |body| check::envelope::check(&body));
}

#[test]
fn any_bytes_are_json_or_not_as_serde_json_has_it() {
    const TOKENS: &[&str] =
        &["{", "}", "[", "]", ":", ",", "\"", "\"a\"", "\\u00", "0", "-", ".", "e", "null", "tru", " ", "\"m\":", "\u{7f}"];
    for_all(token_soup(TOKENS, 12), |body| check::envelope::check(&body));
}

#[test]
fn depth_is_bounded_where_serde_json_bounds_it() {
    for (open, close) in [("[", "]"), ("{\"\":", "}")] {
        for depth in 120..135 {
            let body = format!("{{\"args\":{}0{}}}", open.repeat(depth), close.repeat(depth));
            check::envelope::check(body.as_bytes());
            let params = format!("{{\"params\":{body},\"props\":{body}}}");
            check::envelope::check(params.as_bytes());
        }
    }
}
