//! `moa calls`.

use std::{fmt::Write, process::ExitCode, time::Duration};

use anyhow::{Result, bail};
use clap::Args;

use super::{
    Global, Out,
    client::{Client, Ended, encoded},
    growing::{Entry, Growing, Tone, each_line, left_out, time},
    table::Side::{Left, Right},
    units::{count, micros},
};
use crate::{
    api::Service,
    trace::{By, Line, Record},
};

/// How many calls are shown, unless the operator says otherwise.
const COUNT: u64 = 20;
/// How long is waited for them.
const WITHIN: Duration = Duration::from_secs(10);

/// Show calls as they end: at most 20 of the next ten seconds, unless told otherwise.
#[derive(Debug, Args)]
pub(super) struct Calls {
    /// Only those of this service, such as /service/user, or /service/user#two for one of its groups.
    #[arg(long, value_name = "URI")]
    service: Option<String>,
    /// Go on until Ctrl-C, or until --count.
    #[arg(long, short)]
    follow: bool,
    /// Only those that failed.
    #[arg(long)]
    errors: bool,
    /// Only those that took longer, in milliseconds.
    #[arg(long, value_name = "MS")]
    slower_than: Option<u64>,
    /// How many [default: 20; with --follow, any number].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

impl Calls {
    pub(super) fn run(self, global: &Global, out: &Out) -> Result<ExitCode> {
        let client = global.client();
        let most = self.count.or((!self.follow).then_some(COUNT)).unwrap_or(u64::MAX);
        let mut table = table();
        let title = if out.json { String::new() } else { table.title() };
        let mut seen = 0;
        let each = each_line(out, most, &mut seen, |line| match line {
            Line::Call(record) => Entry::Row(row(&mut table, record)),
            Line::Dropped { count: dropped } => left_out(&calls(*dropped)),
            Line::Unknown => Entry::Note(String::new()),
        });
        let ended = client.lines(&self.path(), (!self.follow).then_some(WITHIN), || out.text(&title), each)?;
        match ended {
            Ended::Agent => bail!("the agent {} has ended", global.name),
            Ended::Enough => {}
            Ended::Time | Ended::Interrupt if seen == 0 => out.complain(&self.nothing(ended, &client)?),
            Ended::Time => out.complain(&format!("{} within {WITHIN:?}; --follow goes on\n", calls(seen))),
            Ended::Interrupt => out.complain(&format!("{}\n", calls(seen))),
        }
        Ok(ExitCode::SUCCESS)
    }

    fn path(&self) -> String {
        let mut path = format!("/v1/calls?errors={}", self.errors);
        if let Some(service) = &self.service {
            path += "&service=";
            path += &encoded(service);
        }
        if let Some(slower_than) = self.slower_than {
            // Writing to a string does not fail.
            let _ = write!(path, "&slower_than_ms={slower_than}");
        }
        path
    }

    /// What to say if nothing was to be seen.
    fn nothing(&self, ended: Ended, client: &Client) -> Result<String> {
        let when = if ended == Ended::Time { format!("within {WITHIN:?}") } else { "meanwhile".to_owned() };
        let mut text = format!("no call{} {when}\n", self.wanted());
        if let Some(service) = &self.service {
            let services: Vec<Service> = client.get("/v1/services")?;
            let uri = service.split('#').next().unwrap_or_default();
            if !services.iter().any(|service| service.uri.split('#').next() == Some(uri)) {
                text +=
                    &format!("the agent {} knows no service {uri}: `moa services` lists those that it knows\n", client.name());
            }
        }
        Ok(text)
    }

    /// What was asked for.
    fn wanted(&self) -> String {
        let of = self.service.as_ref().map_or_else(String::new, |service| format!(" of {service}"));
        let what = if self.errors { " failed" } else { " ended" };
        let slower = self.slower_than.map_or_else(String::new, |ms| format!(" after more than {ms} ms"));
        format!("{of}{what}{slower}")
    }
}

fn table() -> Growing<8> {
    Growing::new([
        ("TIME (UTC)", Left, 12),
        ("CODE", Right, 4),
        ("BY", Left, 7),
        ("TOOK", Right, 8),
        ("TRIES", Right, 5),
        ("CALL", Left, 24),
        ("INSTANCE", Left, 16),
        ("CALLER, NOTES", Left, 0),
    ])
}

fn row(table: &mut Growing<8>, record: &Record) -> String {
    let tone = match record {
        Record { by: By::Service, code: 0, .. } => Tone::Good,
        Record { by: By::Mesh, .. } => Tone::Bad,
        _ => Tone::Doubtful,
    };
    let code = if record.code == 0 { "ok".to_owned() } else { record.code.to_string() };
    let group = record.group.as_ref().map(|group| format!("#{group}")).unwrap_or_default();
    let method = if record.method.is_empty() { String::new() } else { format!(" {}", record.method) };
    table.line([
        (time(record.unix_ms), Tone::Plain),
        (code, tone),
        (record.by.as_str().to_owned(), tone),
        (micros(record.duration_us), Tone::Plain),
        (record.tries.to_string(), Tone::Plain),
        (format!("{}{group}{method}", record.service), Tone::Plain),
        (record.instance.as_deref().unwrap_or("-").to_owned(), Tone::Plain),
        (notes(record), Tone::Plain),
    ])
}

/// Who called, and what is unusual about the call.
fn notes(record: &Record) -> String {
    let caller = match (&*record.application, &*record.peer) {
        ("", "") => "-".to_owned(),
        ("", peer) => peer.to_owned(),
        (application, peer) => format!("{application} {peer}").trim_end().to_owned(),
    };
    let named = |what: &str, name: Option<&str>| name.map(|name| format!("{what} {name}"));
    let flag = |what: &str, is: bool| is.then(|| what.to_owned());
    let notes = [
        Some(record.reason.clone()).filter(|reason| !reason.is_empty()),
        named("rule", record.rule.as_deref()),
        named("fault", record.fault.as_deref()),
        named("environment", record.environment.as_deref()),
        flag("hedged", record.hedged),
        flag("shadow", record.shadow),
        flag("stress", record.stress),
        named("trace", record.trace_id.as_deref().filter(|_| record.sampled)),
    ];
    std::iter::once(caller).chain(notes.into_iter().flatten()).collect::<Vec<_>>().join(", ")
}

fn calls(seen: u64) -> String {
    if seen == 1 { "1 call".to_owned() } else { format!("{} calls", count(seen)) }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        future::pending,
        ops::ControlFlow,
        path::Path,
        sync::{Arc, LazyLock, mpsc},
        thread,
        time::Instant,
    };

    use axum::{Router, routing::get};

    use super::*;
    use crate::{
        admin,
        instance::{Name, RunDir},
        trace::Taps,
    };

    /// How long anything may take that a test waits for.
    const PATIENCE: Duration = Duration::from_secs(20);

    static DEFAULT: LazyLock<Name> = LazyLock::new(|| "test".parse().expect("a name"));

    fn record() -> Record {
        Record {
            unix_ms: 1_700_000_000_123,
            peer: "127.0.0.1:40404".into(),
            application: "web".into(),
            service: "/service/user".into(),
            method: "get".into(),
            instance: Some("10.0.0.1:5000".into()),
            duration_us: 1_234,
            tries: 1,
            ..Record::default()
        }
    }

    #[test]
    fn lines_line_up_as_they_come() {
        let mut table = table();
        let failed = Record {
            code: 504,
            by: By::Mesh,
            reason: "no instance\tcan be used".into(),
            rule: Some("canary".into()),
            instance: None,
            tries: 0,
            application: String::new(),
            group: Some("two".into()),
            method: "a-method-with-a-long-name".into(),
            ..record()
        };
        let lines = table.title() + &row(&mut table, &record()) + &row(&mut table, &failed) + &row(&mut table, &record());
        let expected = "\
TIME (UTC)    CODE  BY           TOOK  TRIES  CALL                      INSTANCE          CALLER, NOTES
22:13:20.123    ok  service    1.2 ms      1  /service/user get         10.0.0.1:5000     web 127.0.0.1:40404
22:13:20.123   504  mesh       1.2 ms      0  /service/user#two a-method-with-a-long-name  -                 127.0.0.1:40404, no instance\u{fffd}can be used, rule canary
22:13:20.123    ok  service    1.2 ms      1  /service/user get                            10.0.0.1:5000     web 127.0.0.1:40404
";
        assert_eq!(lines, expected);
    }

    #[test]
    fn what_is_unusual_is_noted() {
        let record = Record {
            hedged: true,
            shadow: true,
            stress: true,
            fault: Some("drill".into()),
            environment: Some("pre".into()),
            trace_id: Some("4bf9".into()),
            sampled: true,
            ..record()
        };
        let expected = "web 127.0.0.1:40404, fault drill, environment pre, hedged, shadow, stress, trace 4bf9";
        assert_eq!(notes(&record), expected);
    }

    /// Those who look on, by way of an agent's admin socket in a folder.
    fn admin_socket(folder: &Path, taps: Arc<Taps>) -> Client {
        let (run_dir, name): (_, Name) = (RunDir::of_agent(Some(folder.to_owned()), &DEFAULT), DEFAULT.clone());
        let socket = run_dir.socket(&name);
        fs::create_dir_all(socket.parent().expect("a folder")).expect("made");
        let (ready, is_ready) = mpsc::channel();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let routes = Router::new().route("/v1/calls", get(admin::calls::calls)).with_state(taps);
                let _server = admin::serve(admin::bind(&socket).expect("bound"), move |_| routes.clone());
                ready.send(()).expect("awaited");
                pending::<()>().await;
            });
        });
        is_ready.recv().expect("ready");
        Client::new(run_dir, name)
    }

    #[test]
    fn calls_come_from_a_worker_to_the_operator() {
        let folder = tempfile::tempdir().expect("a folder");
        let taps = Arc::new(Taps::default());
        let client = admin_socket(folder.path(), taps.clone());
        let calls =
            Calls { service: Some("/service/user#two".into()), follow: true, errors: true, slower_than: None, count: None };
        let user = taps.watch("/service/user#two");
        let mut offered = 0;
        let begins = || {
            assert!(user.is_on());
            for code in 0..100 {
                user.offer(Record { code, group: Some("two".into()), ..record() });
            }
            Ok(())
        };
        let each = |text: &[u8]| {
            offered += 1;
            let Line::Call(record) = serde_json::from_slice(text)? else { panic!("{}", String::from_utf8_lossy(text)) };
            assert_eq!((record.code, record.group.as_deref()), (offered, Some("two")));
            Ok(if offered == 99 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        };
        let ended = client.lines(&calls.path(), Some(PATIENCE), begins, each).expect("lines");
        assert_eq!(ended, Ended::Enough);
        let deadline = Instant::now() + PATIENCE;
        while user.is_on() {
            assert!(Instant::now() < deadline, "that the operator hung up was not noticed");
            thread::yield_now();
        }
        let ended = client.lines(&calls.path(), Some(Duration::from_millis(1)), || Ok(()), |_| panic!("nothing was called"));
        assert_eq!(ended.expect("time is over"), Ended::Time);
        let close = || {
            taps.close();
            Ok(())
        };
        let ended = client.lines(&calls.path(), Some(PATIENCE), close, |_| panic!("nothing was called"));
        assert_eq!(ended.expect("the agent ends"), Ended::Agent);
    }

    #[test]
    fn the_parameters_are_encoded() {
        let calls =
            Calls { service: Some("/service/a b#two".into()), follow: false, errors: true, slower_than: Some(5), count: None };
        assert_eq!(calls.path(), "/v1/calls?errors=true&service=/service/a%20b%23two&slower_than_ms=5");
        assert_eq!(calls.wanted(), " of /service/a b#two failed after more than 5 ms");
    }
}
