//! `moa doctor`.

use std::{fmt::Write as _, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Result;
use clap::Args;

use super::{
    Global, Out,
    agent::{Addresses, config_path},
    client::Client,
    out::OUT,
    redis::{Reply, ask},
};
use crate::{
    api::Status,
    config::{self, Given},
    kernel::probe::{self, Check, Outcome, Roots},
};

/// How long the agent may take to answer a PING.
const PONG_WITHIN: Duration = Duration::from_secs(2);

/// Check this machine and the agent, and say how to mend what is wrong.
#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// The configuration to check [default: that of the running agent, else /etc/moa/moa.toml].
    #[arg(long, value_name = "FILE", env = "MOA_CONFIG")]
    config: Option<PathBuf>,
}

impl Doctor {
    pub(super) fn run(self, global: &Global, out: &Out) -> Result<ExitCode> {
        let mut checks = probe::all(&Roots::default());
        let client = global.client();
        let status = client.get::<Status>("/v1/status");
        checks.push(agent(&client, &status));
        let status = status.ok();
        let running = status.as_ref().and_then(|status| status.config.path.clone().map(PathBuf::from));
        let path = config_path(self.config.or(running));
        let given = Addresses::default().given(&global.name)?;
        let namespaces = path.as_ref().and_then(|path| config::load(path, &given).ok()).map(|checked| checked.config.namespaces);
        checks.push(configuration(path, &given));
        checks.extend(namespaces.filter(config::Namespaces::is_on).map(|config| probe::namespaces(&Roots::default(), &config)));
        checks.extend(status.map(|status| applications(&status.app.listen)));
        out.show(&checks, |checks| render(checks))?;
        let failed = checks.iter().any(|check| check.outcome == Outcome::Fail);
        Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

fn agent(client: &Client, status: &Result<Status>) -> Check {
    let name = "agent";
    match status {
        Ok(status) => {
            Check { name, outcome: Outcome::Ok, found: format!("{} runs, pid {}", status.name, status.pid), mend: None }
        }
        Err(error) if client.socket().exists() => Check {
            name,
            outcome: Outcome::Fail,
            found: format!("{error:#}"),
            mend: Some("if it was killed, start it again; if it hangs, restart it".into()),
        },
        Err(_) => Check {
            name,
            outcome: Outcome::Warn,
            found: format!("none named {} runs: there is no {}", client.name(), client.socket().display()),
            mend: Some("start it by `moa agent`".into()),
        },
    }
}

fn configuration(path: Option<PathBuf>, given: &Given) -> Check {
    let name = "configuration";
    let Some(path) = path else {
        let (found, mend) = ("there is no file: no service is known", "write one, beginning with `moa config default`");
        return Check { name, outcome: Outcome::Warn, found: found.into(), mend: Some(mend.into()) };
    };
    match config::load(&path, given) {
        Ok(checked) => {
            let found = format!("{} is valid, with {} services", path.display(), checked.services.len());
            Check { name, outcome: Outcome::Ok, found, mend: None }
        }
        Err(error) => {
            let mend = Some(format!("see `moa config check {}`", path.display()));
            Check { name, outcome: Outcome::Fail, found: error.to_string(), mend }
        }
    }
}

fn applications(listen: &str) -> Check {
    let name = "applications' port";
    let (found, mend) = match ask(listen, &[b"PING"], PONG_WITHIN) {
        Ok(Reply::Line(line)) if line == "+PONG" => {
            return Check { name, outcome: Outcome::Ok, found: format!("{listen} answers PING"), mend: None };
        }
        Ok(other) => (format!("{listen} answers PING with {other:?}"), "another server has taken the port: see `ss -ltnp`"),
        Err(error) => (format!("{error:#}"), "see the agent's log, and restart it"),
    };
    Check { name, outcome: Outcome::Fail, found, mend: Some(mend.into()) }
}

fn render(checks: &[Check]) -> String {
    let width = checks.iter().map(|check| check.name.chars().count()).max().unwrap_or_default();
    let mut text = String::new();
    for Check { name, outcome, found, mend } in checks {
        let mark = match outcome {
            Outcome::Ok => OUT.good("ok  "),
            Outcome::Warn => OUT.doubtful("warn"),
            Outcome::Fail => OUT.bad("FAIL"),
        };
        let indent = format!("\n{:1$}", "", width + 8);
        let _ = writeln!(text, "{mark}  {name:width$}  {}", found.replace('\n', &indent));
        if let Some(mend) = mend {
            let _ = writeln!(text, "{:2$}{} {mend}", "", OUT.dim("→"), width + 8);
        }
    }
    let count = |wanted| checks.iter().filter(|check| check.outcome == wanted).count();
    let _ = writeln!(text, "\n{} ok, {} to improve, {} failed", count(Outcome::Ok), count(Outcome::Warn), count(Outcome::Fail));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_check_says_what_was_found_and_how_to_mend_it() {
        let checks = [
            Check { name: "kernel", outcome: Outcome::Ok, found: "6.18".into(), mend: None },
            Check { name: "file limit", outcome: Outcome::Warn, found: "1024\nlow".into(), mend: Some("ulimit -n 65535".into()) },
            Check { name: "cgroup2", outcome: Outcome::Fail, found: "not mounted".into(), mend: Some("mount it".into()) },
        ];
        let expected = "\
ok    kernel      6.18
warn  file limit  1024
                  low
                  → ulimit -n 65535
FAIL  cgroup2     not mounted
                  → mount it

1 ok, 1 to improve, 1 failed
";
        assert_eq!(render(&checks), expected);
    }
}
