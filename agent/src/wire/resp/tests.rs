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
