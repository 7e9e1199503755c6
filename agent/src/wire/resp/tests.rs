//! The parser's rules, one by one.

use super::*;

const LIMITS: Limits = Limits { argument_bytes_max: 1000, command_bytes_max: 3000 };

/// A caller as it should be: feeds pieces, drops what is consumed, waits for as many bytes as are needed.
#[derive(Default)]
struct Caller {
    parser: CommandParser,
    buf: Vec<u8>,
    seen: Vec<Seen>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Command(Vec<Vec<u8>>),
    Refused(Refused),
    Error(ProtocolError),
}

impl Caller {
    fn feed(&mut self, piece: &[u8], limits: &Limits) {
        self.buf.extend_from_slice(piece);
        while !matches!(self.seen.last(), Some(Seen::Error(_))) {
            match self.parser.parse(&self.buf, limits) {
                Ok(Step::Command(command)) => {
                    let args = (0..command.args.len()).map(|index| command.arg(&self.buf, index).unwrap().to_vec());
                    self.seen.push(Seen::Command(args.collect()));
                    self.buf.drain(..command.len);
                }
                Ok(Step::Skip { bytes }) => {
                    assert!(bytes > 0);
                    self.buf.drain(..bytes);
                }
                Ok(Step::Refused(refused)) => self.seen.push(Seen::Refused(refused)),
                Ok(Step::Incomplete { need }) => {
                    assert!(need > self.buf.len());
                    return;
                }
                Err(error) => self.seen.push(Seen::Error(error)),
            }
        }
    }
}

/// What is seen of a whole text, however it is cut in two.
fn see(text: &[u8]) -> Vec<Seen> {
    let mut whole = Caller::default();
    whole.feed(text, &LIMITS);
    for cut in 0..text.len() {
        let mut halves = Caller::default();
        halves.feed(&text[..cut], &LIMITS);
        halves.feed(&text[cut..], &LIMITS);
        assert_eq!(halves.seen, whole.seen, "cut at {cut}");
    }
    let mut bytewise = Caller::default();
    text.chunks(1).for_each(|byte| bytewise.feed(byte, &LIMITS));
    assert_eq!(bytewise.seen, whole.seen, "cut everywhere");
    whole.seen
}

fn command(args: &[&str]) -> Seen {
    Seen::Command(args.iter().map(|arg| arg.as_bytes().to_vec()).collect())
}

#[test]
fn arrays_are_commands() {
    assert_eq!(see(b"*1\r\n$4\r\nPING\r\n*2\r\n$3\r\nGET\r\n$0\r\n\r\n"), [command(&["PING"]), command(&["GET", ""])]);
    let parsed = CommandParser::default().parse(b"*2\r\n$3\r\nGET\r\n$1\r\nx\r\n*", &LIMITS).unwrap();
    let args = Args::Ranges(SmallVec::from_vec(vec![8..11, 17..18]));
    assert_eq!(parsed, Step::Command(Command { len: 20, args, array: true }));
}

#[test]
fn arrays_of_nothing_and_empty_lines_are_passed_over() {
    let text = b"*0\r\n*-1\r\n\r\n\n \t\r\n*-123\r\n*1\r\n$4\r\nPING\r\n";
    assert_eq!(see(text), [command(&["PING"])]);
    assert_eq!(CommandParser::default().parse(b"*0\r\n*1", &LIMITS), Ok(Step::Skip { bytes: 4 }));
    assert_eq!(CommandParser::default().parse(b"\r\n*1", &LIMITS), Ok(Step::Skip { bytes: 2 }));
}

#[test]
fn lengths_are_read_strictly() {
    for bad in [
        "*\r\n",
        "*x\r\n",
        "*+1\r\n",
        "*01\r\n",
        "*-0\r\n",
        "* 1\r\n",
        "*1 \r\n",
        "*1\n",
        "*1\rx",
        "*1048577\r\n",
        "*9999999999\r\n",
    ] {
        assert_eq!(see(bad.as_bytes()), [Seen::Error(ProtocolError::MultibulkLength)], "{bad:?}");
    }
    for bad in ["$\r\n", "$x", "$-1\r\n", "$00\r\n", "$+1\r\n", "$1\n", "$536870913\r\n", "$18446744073709551617\r\n"] {
        assert_eq!(see(format!("*1\r\n{bad}").as_bytes()), [Seen::Error(ProtocolError::BulkLength)], "{bad:?}");
    }
    assert!(see(b"*1048576\r\n$536870912\r\n").is_empty());
}

#[test]
fn errors_have_the_texts_of_redis() {
    let text = |bytes: &[u8]| match see(bytes).pop() {
        Some(Seen::Error(error)) => error.to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(text(b"*a\r\n"), "Protocol error: invalid multibulk length");
    assert_eq!(text(b"*1\r\n$a\r\n"), "Protocol error: invalid bulk length");
    assert_eq!(text(b"*1\r\nx"), "Protocol error: expected '$', got 'x'");
    assert_eq!(text(b"*1\r\n\r"), "Protocol error: expected '$', got '\\r'");
    assert_eq!(text(b"*1\r\n$1\r\nab\r\n"), "Protocol error: expected CRLF at the end of a bulk");
    assert_eq!(text(b"SET \"a\r\n"), "Protocol error: unbalanced quotes in request");
    let mut caller = Caller::default();
    caller.feed(&[b'x'; INLINE_BYTES_MAX + 1], &LIMITS);
    assert_eq!(caller.seen, [Seen::Error(ProtocolError::InlineLength)]);
    assert_eq!(ProtocolError::InlineLength.to_string(), "Protocol error: too big inline request");
}

#[test]
fn inline_commands_are_split_as_redis_does() {
    assert_eq!(see(b"PING\r\n"), [command(&["PING"])]);
    assert_eq!(see(b" \t set\ta  b \n"), [command(&["set", "a", "b"])]);
    assert_eq!(see(b"ECHO \"a b\" 'c \"d'\r\n"), [command(&["ECHO", "a b", "c \"d"])]);
    assert_eq!(see(b"ECHO \"\\x41\\x4g\\n\\r\\t\\b\\a\\\\\\\"\"\n"), [command(&["ECHO", "Ax4g\n\r\t\x08\x07\\\""])]);
    assert_eq!(see(b"ECHO '\\n\\'' \"\" ''\n"), [command(&["ECHO", "\\n'", "", ""])]);
    assert_eq!(see(b"ECHO a\"b c\"\n"), [command(&["ECHO", "ab c"])]);
    for unbalanced in ["ECHO \"a\"b\n", "ECHO 'a\n", "ECHO '\\'\n", "ECHO \"a\\\n", "'a'b\n"] {
        assert_eq!(see(unbalanced.as_bytes()), [Seen::Error(ProtocolError::Quotes)], "{unbalanced:?}");
    }
    let parsed = CommandParser::default().parse(b"a b\r\n", &LIMITS).unwrap();
    let args = Args::Owned(vec![b"a".to_vec(), b"b".to_vec()]);
    assert_eq!(parsed, Step::Command(Command { len: 5, args, array: false }));
}

#[test]
fn a_call_can_be_typed_without_quoting_it() {
    assert_eq!(see(b" gEt  {\"action\": \"x y\"} \t\r\n"), [command(&["gEt", "{\"action\": \"x y\"}"])]);
    assert_eq!(see(b"GET {'\n"), [command(&["GET", "{'"])]);
    assert_eq!(see(b"GET '{\"a\": 1}'\n"), [command(&["GET", "{\"a\": 1}"])]);
    assert_eq!(see(b"SET {\"a b\"}\n"), [Seen::Error(ProtocolError::Quotes)]);
    assert_eq!(see(b"SET {a b}\n"), [command(&["SET", "{a", "b}"])]);
    assert_eq!(see(b"GET k {\"\n"), [Seen::Error(ProtocolError::Quotes)]);
}

#[test]
fn an_inline_command_may_be_as_long_as_redis_allows() {
    let wide = Limits { argument_bytes_max: 1 << 20, command_bytes_max: 1 << 20 };
    let mut line = vec![b'x'; INLINE_BYTES_MAX];
    line.push(b'\n');
    let mut caller = Caller::default();
    line.chunks(1000).for_each(|piece| caller.feed(piece, &wide));
    assert_eq!(caller.seen, [Seen::Command(vec![vec![b'x'; INLINE_BYTES_MAX]])]);
}

#[test]
fn what_is_needed_is_told_as_soon_as_it_is_known() {
    let need = |text: &[u8]| match CommandParser::default().parse(text, &LIMITS).unwrap() {
        Step::Incomplete { need } => need,
        other => panic!("{other:?}"),
    };
    assert_eq!(need(b""), 1);
    assert_eq!(need(b"*"), 2);
    assert_eq!(need(b"*2\r"), 4);
    assert_eq!(need(b"*2\r\n$3\r\nGET\r\n$62\r\n"), 18 + 62 + 2);
    assert_eq!(need(b"*2\r\n$3\r\nGET\r\n$62\r\n{\"acti"), 18 + 62 + 2);
    assert_eq!(need(b"*2\r\n$3\r\nGET\r"), 13);
    assert_eq!(need(b"PIN"), 4);
}

fn refused(refusal: Refusal, name: &str, args: usize) -> Seen {
    Seen::Refused(Refused { refusal, name: SmallVec::from_slice(name.as_bytes()), args })
}

#[test]
fn what_is_too_large_is_passed_over_and_the_next_command_is_served() {
    let long = "x".repeat(1001);
    let text = format!("*3\r\n$4\r\nMGET\r\n$1001\r\n{long}\r\n$1\r\na\r\nPING\r\n");
    assert_eq!(see(text.as_bytes()), [refused(Refusal::Argument { len: 1001 }, "MGET", 3), command(&["PING"])]);
    let text = format!("*1\r\n$1001\r\n{long}\r\n*1\r\n$4\r\nPING\r\n");
    assert_eq!(see(text.as_bytes()), [refused(Refusal::Argument { len: 1001 }, "", 1), command(&["PING"])]);
    let many = format!("$900\r\n{}\r\n", "x".repeat(900)).repeat(4);
    let text = format!("*5\r\n$20\r\naveryveryverylongone\r\n{many}PING\r\n");
    assert_eq!(see(text.as_bytes()), [refused(Refusal::Command, "averyveryverylon", 5), command(&["PING"])]);
    let text = format!("GET {{{long}\r\nPING\r\n");
    assert_eq!(see(text.as_bytes()), [refused(Refusal::Argument { len: 1002 }, "GET", 2), command(&["PING"])]);
}

#[test]
fn what_is_refused_is_still_read_as_a_command() {
    assert_eq!(see(b"*2\r\n$2000\r\nx\r\n"), []);
    let text = format!("*2\r\n$1001\r\n{}xx", "x".repeat(1001));
    assert_eq!(see(text.as_bytes()), [Seen::Error(ProtocolError::BulkEnd)]);
    let text = format!("*2\r\n$1001\r\n{}\r\n+", "x".repeat(1001));
    assert_eq!(see(text.as_bytes()), [Seen::Error(ProtocolError::Dollar(b'+'))]);
}

#[test]
fn a_refused_command_is_never_kept() {
    let mut parser = CommandParser::default();
    assert_eq!(parser.parse(b"*1\r\n$536870912\r\nxx", &LIMITS), Ok(Step::Skip { bytes: 16 }));
    assert!(parser.is_skipping());
    assert_eq!(parser.parse(b"xx", &LIMITS), Ok(Step::Skip { bytes: 2 }));
    assert_eq!(parser.parse(b"", &LIMITS), Ok(Step::Incomplete { need: 1 }));
}

#[test]
fn an_mget_of_512_keys_arrives_in_pieces() {
    let keys: Vec<String> = (0..512).map(|key| format!("{{\"action\":\"/service/{key}\"}}")).collect();
    let mut text = b"*513\r\n$4\r\nMGET\r\n".to_vec();
    keys.iter().for_each(|key| text.extend(format!("${}\r\n{key}\r\n", key.len()).into_bytes()));
    let limits = Limits { argument_bytes_max: 1000, command_bytes_max: 1 << 20 };
    let args: Vec<&str> = std::iter::once("MGET").chain(keys.iter().map(String::as_str)).collect();
    for size in [1, 7, 1000] {
        let mut caller = Caller::default();
        text.chunks(size).for_each(|piece| caller.feed(piece, &limits));
        assert_eq!(caller.seen, [command(&args)], "in pieces of {size}");
    }
}

#[test]
fn a_parser_stays_small() {
    assert!(size_of::<CommandParser>() <= 128, "{}", size_of::<CommandParser>());
}
