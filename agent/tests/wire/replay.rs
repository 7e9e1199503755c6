//! The bytes of real MOA peers, and the seeds and findings of the fuzz targets.

use std::fs;
use std::path::{Path, PathBuf};

use agent::wire::envelope::{scan_reply_code, scan_request};
use agent::wire::reply::{ReplyHead, parse_head};

use crate::check;
use crate::check::resp::see;
use crate::check::resp_reference::{Seen, read};

/// The files of a folder under `tests/` whose names end so.
fn files(folder: &str, end: &str) -> Vec<(String, Vec<u8>)> {
    let folder: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests").join(folder);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let name = |entry: &fs::DirEntry| entry.file_name().into_string().unwrap();
    let entries = entries.map(Result::unwrap).filter(|entry| name(entry).ends_with(end));
    let files: Vec<_> = entries.map(|entry| (name(&entry), fs::read(entry.path()).unwrap())).collect();
    assert!(!files.is_empty(), "no {end} in {}", folder.display());
    files
}

#[test]
fn requests_of_real_peers_are_read_however_they_are_cut() {
    let limits = &check::resp::LIMITS[1];
    for (name, text) in files("vectors/moa", ".req.bin") {
        let expected = read(&text, limits);
        assert!(matches!(expected.last(), Some(Seen::Missing(1))), "{name} ends within a command");
        assert_eq!(see(text.chunks(1), limits), expected, "{name} bytewise");
        for cut in 0..=text.len() {
            assert_eq!(see([&text[..cut], &text[cut..]], limits), expected, "{name} cut at {cut}");
        }
        for first in 0..text.len().min(200) {
            for second in first..text.len().min(200) {
                let pieces = [&text[..first], &text[first..second], &text[second..]];
                assert_eq!(see(pieces, limits), expected, "{name} cut at {first} and {second}");
            }
        }
    }
}

#[test]
fn calls_of_real_peers_are_understood() {
    let mut calls = 0;
    for (name, text) in files("vectors/moa", ".req.bin") {
        for seen in read(&text, &check::resp::LIMITS[1]) {
            let Seen::Command { args, .. } = seen else { continue };
            let [verb, body] = &args[..] else { continue };
            if !verb.eq_ignore_ascii_case(b"GET") {
                continue;
            }
            check::envelope::check(body);
            match scan_request(body) {
                Ok(call) => {
                    let (action, method) = (call.action.unwrap(), call.method.unwrap());
                    assert!(action.decode().unwrap().starts_with("/service/") && !method.raw.is_empty(), "{name}");
                    calls += 1;
                }
                Err(error) => assert!(name.contains("bad_json") || name.contains("empty_bulk"), "{name}: {error}"),
            }
        }
    }
    assert_eq!(calls, 84, "as many as `action` occurs in the files");
}

/// Frames a stream of replies as a reader does to whom it comes in pieces that end here.
fn frames(text: &[u8], ends: impl IntoIterator<Item = usize>) -> Vec<&[u8]> {
    let (mut start, mut frames) = (0, Vec::new());
    for end in ends {
        while let Some(head) = parse_head(&text[start..end]).unwrap() {
            let len = match head {
                ReplyHead::Bulk { header, len } => header + len + 2,
                ReplyHead::Line { len, .. } | ReplyHead::Null { len } => len,
            };
            if end - start < len {
                break;
            }
            frames.push(&text[start..start + len]);
            start += len;
        }
    }
    assert_eq!(start, text.len(), "the stream ends within a reply");
    frames
}

#[test]
fn replies_of_real_peers_are_framed_however_they_are_cut() {
    for (name, text) in files("vectors/moa", ".resp.bin") {
        let whole = frames(&text, [text.len()]);
        assert_eq!(whole.concat(), text);
        assert_eq!(frames(&text, 1..=text.len()), whole, "{name} bytewise");
        for cut in 0..=text.len() {
            assert_eq!(frames(&text, [cut, text.len()]), whole, "{name} cut at {cut}");
        }
    }
}

#[test]
fn codes_of_real_replies_are_found() {
    let codes = |case: &str| -> Vec<i64> {
        let (_, text) = files("vectors/moa", &format!("{case}.resp.bin")).remove(0);
        frames(&text, [text.len()])
            .iter()
            .filter_map(|frame| scan_reply_code(&frame[frame.iter().position(|byte| *byte == b'{')?..]))
            .collect()
    };
    assert_eq!(codes("get_ok_int"), [0]);
    assert_eq!(codes("args_count_wrong"), [302]);
    assert_eq!(codes("args_type_wrong"), [3021]);
    assert_eq!(codes("method_not_found"), [502]);
    assert_eq!(codes("service_not_found"), [501]);
    assert_eq!(codes("panic"), [503]);
    assert_eq!(codes("timeout_3041_slow_14000"), [3041]);
    assert_eq!(codes("pipelined_20_getuser"), [0; 20]);
    assert!(codes("moa16.ping").is_empty());
}

#[test]
fn seeds_and_findings_of_the_fuzz_targets_pass() {
    files("fuzz/seeds/resp", "").iter().for_each(|(_, text)| check::resp::check(text));
    files("fuzz/seeds/reply", "").iter().for_each(|(_, text)| check::reply::check(text));
    files("fuzz/seeds/envelope", "").iter().for_each(|(_, text)| check::envelope::check(text));
}
