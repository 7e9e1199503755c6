//! Everything that Redis clients say beside calls: what they send when they connect, and what people type.
//!
//! Pure code: a command and a session in, a reply out.

use std::time::Duration;

use super::socket::Peer;
use crate::wire::reply::Writer;

/// What a client said of itself.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Session {
    resp3: bool,
    name: String,
    library: String,
    library_version: String,
}

/// What replies tell of the connection and the agent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct About<'a> {
    pub(crate) id: u64,
    pub(crate) peer: Peer,
    pub(crate) agent: &'a str,
    pub(crate) connections: usize,
    pub(crate) uptime: Duration,
    pub(crate) age: Duration,
}

/// What becomes of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum After {
    GoOn,
    Close,
}

/// What clients look for when they decide what a server can do.
const REDIS_VERSION: &str = "7.0.0";
/// The longest name that a client may give itself, as it is shown in lists.
const NAME_MAX: usize = 256;
/// The commands with their arity, as COMMAND tells it.
const COMMANDS: [(&str, i64); 14] = [
    ("auth", -2),
    ("client", -2),
    ("command", -1),
    ("echo", 2),
    ("get", 2),
    ("hello", -1),
    ("info", -1),
    ("mget", -2),
    ("ping", -1),
    ("quit", -1),
    ("reset", 1),
    ("select", 2),
    ("time", 1),
    ("dbsize", 1),
];

impl Session {
    pub(crate) fn name(&self) -> Option<String> {
        self.own_name().map(ToOwned::to_owned)
    }

    /// What the application calls itself.
    pub(crate) fn own_name(&self) -> Option<&str> {
        (!self.name.is_empty()).then_some(&*self.name)
    }

    pub(crate) fn is_resp3(&self) -> bool {
        self.resp3
    }
}

/// Answers one command. `session` stays empty for clients that say nothing of themselves.
pub(crate) fn execute(session: &mut Option<Box<Session>>, about: &About<'_>, args: &[&[u8]], out: &mut Vec<u8>) -> After {
    let Some((name, rest)) = args.split_first() else { return After::GoOn };
    let name = name.to_ascii_uppercase();
    let mut reply = Writer::new(out, is_resp3(session));
    match (&name[..], rest) {
        (b"PING", []) => reply.simple("PONG"),
        (b"PING" | b"ECHO", [message]) => reply.bulk(message),
        (b"QUIT", _) => {
            reply.simple("OK");
            return After::Close;
        }
        (b"RESET", []) => {
            *session = None;
            Writer::new(out, false).simple("RESET");
        }
        (b"SELECT", [index]) => select(index, &mut reply),
        // The mesh knows its callers by where they are, not by what they say: a password that a client was given
        // for its former server must not keep it out.
        (b"AUTH", [_] | [_, _]) => reply.simple("OK"),
        (b"HELLO", rest) => hello(session, about, rest, out),
        (b"CLIENT", [subcommand, rest @ ..]) => client(session, about, subcommand, rest, out),
        (b"COMMAND", rest) => command(rest, &mut reply),
        (b"INFO", _) => reply.bulk(info(about).as_bytes()),
        (b"DBSIZE", []) => reply.integer(0),
        (b"TIME", []) => time(&mut reply),
        _ if COMMANDS.iter().any(|(known, _)| known.as_bytes().eq_ignore_ascii_case(&name)) => wrong_number(&name, &mut reply),
        _ => unknown(args, &mut reply),
    }
    After::GoOn
}

fn is_resp3(session: &Option<Box<Session>>) -> bool {
    session.as_ref().is_some_and(|session| session.resp3)
}

fn hello(session: &mut Option<Box<Session>>, about: &About<'_>, args: &[&[u8]], out: &mut Vec<u8>) {
    let mut next = session.as_deref().cloned().unwrap_or_default();
    let parsed = parse_hello(&mut next, args);
    let mut reply = Writer::new(out, if parsed.is_ok() { next.resp3 } else { is_resp3(session) });
    if let Err(text) = parsed {
        return reply.error(&text);
    }
    reply.map(7);
    for (key, value) in [("server", "redis"), ("version", REDIS_VERSION)] {
        reply.bulk(key.as_bytes());
        reply.bulk(value.as_bytes());
    }
    reply.bulk(b"proto");
    reply.integer(if next.resp3 { 3 } else { 2 });
    reply.bulk(b"id");
    reply.integer(i64::try_from(about.id).unwrap_or(i64::MAX));
    for (key, value) in [("mode", "standalone"), ("role", "master")] {
        reply.bulk(key.as_bytes());
        reply.bulk(value.as_bytes());
    }
    reply.bulk(b"modules");
    reply.array(0);
    keep(session, next);
}

fn parse_hello(session: &mut Session, args: &[&[u8]]) -> Result<(), String> {
    let Some((version, mut options)) = args.split_first() else { return Ok(()) };
    session.resp3 = match *version {
        b"2" => false,
        b"3" => true,
        other if other.iter().all(u8::is_ascii_digit) => return Err("NOPROTO unsupported protocol version".to_owned()),
        _ => return Err("ERR Protocol version is not an integer or out of range".to_owned()),
    };
    while let Some((option, rest)) = options.split_first() {
        options = match (&option.to_ascii_uppercase()[..], rest) {
            (b"AUTH", [_, _, rest @ ..]) => rest,
            (b"SETNAME", [name, rest @ ..]) => {
                session.name = printable(name, "Client names")?;
                rest
            }
            _ => return Err(format!("ERR Syntax error in HELLO option '{}'", excerpt(option))),
        };
    }
    Ok(())
}

fn client(session: &mut Option<Box<Session>>, about: &About<'_>, subcommand: &[u8], args: &[&[u8]], out: &mut Vec<u8>) {
    let mut next = session.as_deref().cloned().unwrap_or_default();
    let mut reply = Writer::new(out, next.resp3);
    let done = match (&subcommand.to_ascii_uppercase()[..], args) {
        (b"SETNAME", [name]) => printable(name, "Client names").map(|name| next.name = name),
        (b"SETINFO", [attribute, value]) => set_info(&mut next, attribute, value),
        (b"GETNAME", []) if next.name.is_empty() => return reply.null(),
        (b"GETNAME", []) => return reply.bulk(next.name.as_bytes()),
        (b"ID", []) => return reply.integer(i64::try_from(about.id).unwrap_or(i64::MAX)),
        (b"INFO" | b"LIST", []) => return reply.bulk(describe(&next, about).as_bytes()),
        (b"NO-EVICT" | b"NO-TOUCH", [_]) => Ok(()),
        (b"GETREDIR", []) => return reply.integer(-1),
        _ => Err(format!("ERR unknown subcommand or wrong number of arguments for '{}'", excerpt(subcommand))),
    };
    match done {
        Ok(()) => reply.simple("OK"),
        Err(text) => reply.error(&text),
    }
    keep(session, next);
}

fn set_info(session: &mut Session, attribute: &[u8], value: &[u8]) -> Result<(), String> {
    match &attribute.to_ascii_uppercase()[..] {
        b"LIB-NAME" => session.library = printable(value, "lib-name")?,
        b"LIB-VER" => session.library_version = printable(value, "lib-ver")?,
        _ => return Err(format!("ERR Unrecognized option '{}'", excerpt(attribute))),
    }
    Ok(())
}

fn describe(session: &Session, about: &About<'_>) -> String {
    format!(
        "id={} addr={} name={} age={} resp={} lib-name={} lib-ver={}\n",
        about.id,
        about.peer,
        session.name,
        about.age.as_secs(),
        if session.is_resp3() { 3 } else { 2 },
        session.library,
        session.library_version
    )
}

fn command(args: &[&[u8]], reply: &mut Writer<'_>) {
    match args {
        [] => {
            reply.array(COMMANDS.len());
            COMMANDS.iter().for_each(|command| describe_command(command, reply));
        }
        [sub] if sub.eq_ignore_ascii_case(b"COUNT") => reply.integer(COMMANDS.len() as i64),
        [sub, ..] if sub.eq_ignore_ascii_case(b"DOCS") => reply.map(0),
        [sub] if sub.eq_ignore_ascii_case(b"LIST") => {
            reply.array(COMMANDS.len());
            COMMANDS.iter().for_each(|(name, _)| reply.bulk(name.as_bytes()));
        }
        [sub, names @ ..] if sub.eq_ignore_ascii_case(b"INFO") => {
            reply.array(names.len());
            for name in names {
                match COMMANDS.iter().find(|(known, _)| known.as_bytes().eq_ignore_ascii_case(name)) {
                    Some(command) => describe_command(command, reply),
                    None => reply.null_array(),
                }
            }
        }
        [sub, ..] => reply.error(&format!("ERR unknown subcommand '{}'. Try COMMAND HELP.", excerpt(sub))),
    }
}

/// Name, arity, flags, first key, last key, step.
fn describe_command((name, arity): &(&str, i64), reply: &mut Writer<'_>) {
    let (first, last) = match *name {
        "get" => (1, 1),
        "mget" => (1, -1),
        _ => (0, 0),
    };
    reply.array(6);
    reply.bulk(name.as_bytes());
    reply.integer(*arity);
    reply.array(1);
    reply.simple("fast");
    reply.integer(first);
    reply.integer(last);
    reply.integer(first);
}

fn info(about: &About<'_>) -> String {
    format!(
        "# Server\r\nredis_version:{REDIS_VERSION}\r\nredis_mode:standalone\r\nmoa_mesh_version:{}\r\nmoa_mesh_agent:{}\r\nprocess_id:{}\r\n\
         uptime_in_seconds:{}\r\n\r\n# Clients\r\nconnected_clients:{}\r\n\r\n# Persistence\r\nloading:0\r\n\r\n# Replication\r\nrole:master\r\n",
        env!("CARGO_PKG_VERSION"),
        about.agent,
        std::process::id(),
        about.uptime.as_secs(),
        about.connections
    )
}

fn time(reply: &mut Writer<'_>) {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    reply.array(2);
    reply.bulk(now.as_secs().to_string().as_bytes());
    reply.bulk(now.subsec_micros().to_string().as_bytes());
}

fn select(index: &[u8], reply: &mut Writer<'_>) {
    // There is no data to select: any database that a client was configured with will do.
    match std::str::from_utf8(index).ok().and_then(|index| index.parse::<u32>().ok()) {
        Some(_) => reply.simple("OK"),
        None => reply.error("ERR value is not an integer or out of range"),
    }
}

fn wrong_number(name: &[u8], reply: &mut Writer<'_>) {
    reply.error(&format!("ERR wrong number of arguments for '{}' command", excerpt(name).to_ascii_lowercase()));
}

fn unknown(args: &[&[u8]], reply: &mut Writer<'_>) {
    let beginning: String = args[1..].iter().take(4).map(|arg| format!("'{}' ", excerpt(arg))).collect();
    reply.error(&format!("ERR unknown command '{}', with args beginning with: {beginning}", excerpt(args[0])));
}

fn keep(session: &mut Option<Box<Session>>, next: Session) {
    *session = (next != Session::default()).then(|| Box::new(next));
}

fn printable(value: &[u8], what: &str) -> Result<String, String> {
    match std::str::from_utf8(value) {
        Ok(text) if text.len() <= NAME_MAX && text.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(text.to_owned()),
        _ => Err(format!("ERR {what} cannot contain spaces, newlines or special characters, nor more than {NAME_MAX} bytes.")),
    }
}

fn excerpt(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(128)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about() -> About<'static> {
        About {
            id: 7,
            peer: Peer::Tcp(([127, 0, 0, 1], 5).into()),
            agent: "a@n",
            connections: 3,
            uptime: Duration::from_secs(99),
            age: Duration::from_secs(9),
        }
    }

    fn ask(session: &mut Option<Box<Session>>, command: &str) -> String {
        let args: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
        let mut out = Vec::new();
        let after = execute(session, &about(), &args, &mut out);
        assert_eq!(after == After::Close, command.eq_ignore_ascii_case("quit"));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_clients_send_when_they_connect_is_answered() {
        let session = &mut None;
        assert_eq!(ask(session, "ping"), "+PONG\r\n");
        assert_eq!(ask(session, "PING hi"), "$2\r\nhi\r\n");
        assert_eq!(ask(session, "AUTH secret"), "+OK\r\n");
        assert_eq!(ask(session, "SELECT 3"), "+OK\r\n");
        assert_eq!(ask(session, "SELECT x"), "-ERR value is not an integer or out of range\r\n");
        assert_eq!(*session, None, "a client that says nothing of itself costs no memory");
        assert_eq!(ask(session, "CLIENT GETNAME"), "$-1\r\n");
        assert_eq!(ask(session, "CLIENT SETNAME php-1"), "+OK\r\n");
        assert_eq!(ask(session, "CLIENT SETINFO LIB-NAME redis-py"), "+OK\r\n");
        assert_eq!(ask(session, "CLIENT GETNAME"), "$5\r\nphp-1\r\n");
        assert_eq!(ask(session, "CLIENT ID"), ":7\r\n");
        assert!(ask(session, "CLIENT INFO").contains("name=php-1 age=9 resp=2 lib-name=redis-py"));
        assert_eq!(ask(session, "COMMAND COUNT"), ":14\r\n");
        assert_eq!(ask(session, "QUIT"), "+OK\r\n");
    }

    #[test]
    fn hello_changes_the_protocol_only_if_all_of_it_is_right() {
        let session = &mut None;
        assert!(ask(session, "HELLO 3 AUTH u p SETNAME me").starts_with("%7\r\n"));
        assert_eq!(ask(session, "CLIENT GETNAME"), "$2\r\nme\r\n");
        assert_eq!(ask(session, "HELLO 4"), "-NOPROTO unsupported protocol version\r\n");
        assert_eq!(ask(session, "HELLO 2 SETNAME"), "-ERR Syntax error in HELLO option 'SETNAME'\r\n");
        assert!(session.as_ref().unwrap().is_resp3());
        assert_eq!(ask(session, "RESET"), "+RESET\r\n");
        assert!(ask(session, "HELLO").starts_with("*14\r\n"));
        assert_eq!(*session, None);
    }

    #[test]
    fn anything_else_is_a_proper_error() {
        let session = &mut None;
        assert_eq!(ask(session, "SET a b"), "-ERR unknown command 'SET', with args beginning with: 'a' 'b' \r\n");
        assert_eq!(ask(session, "GET"), "-ERR wrong number of arguments for 'get' command\r\n");
        assert_eq!(ask(session, "CLIENT KILL x"), "-ERR unknown subcommand or wrong number of arguments for 'KILL'\r\n");
        assert!(ask(session, "CLIENT SETNAME a\u{7f}b").starts_with("-ERR Client names cannot contain"));
    }
}
