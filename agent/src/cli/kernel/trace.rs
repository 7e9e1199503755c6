//! `moa kernel trace`.

use std::{process::ExitCode, time::Duration};

use anyhow::{Result, bail};
use clap::Args;

use crate::{
    cli::{
        Global, Out,
        client::{Ended, encoded},
        growing::{Entry, Growing, Tone, each_line, left_out, time},
        table::Side::{Left, Right},
        units::{count, nanos},
    },
    proxy::{Decision, TraceLine},
};

/// Show what the kernel programs decide about each call and answer of a service, as they do: until Ctrl-C, unless told otherwise.
/// One service can be traced at a time; calls that do not come by a lane are not seen.
#[derive(Debug, Args)]
pub(super) struct Trace {
    /// The service, such as /service/user, or /service/user#two for one of its groups.
    #[arg(value_name = "SERVICE")]
    service: String,
    /// How many calls and answers.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// For how long.
    #[arg(long = "for", value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    within: Option<u64>,
}

impl Trace {
    pub(super) fn run(self, global: &Global, out: &Out) -> Result<ExitCode> {
        let client = global.client();
        let most = self.count.unwrap_or(u64::MAX);
        let mut table = table();
        let title = if out.json { String::new() } else { table.title() };
        let mut seen = 0;
        let each = each_line(out, most, &mut seen, |line| match line {
            TraceLine::Call(decision) => Entry::Row(row(&mut table, "call", decision)),
            TraceLine::Answer(decision) => Entry::Row(row(&mut table, "answer", decision)),
            TraceLine::Dropped { count: dropped } => left_out(&count(*dropped)),
            TraceLine::Unknown => Entry::Note(String::new()),
        });
        let path = format!("/v1/kernel/trace?service={}", encoded(&self.service));
        match client.lines(&path, self.within.map(Duration::from_secs), || out.text(&title), each)? {
            Ended::Agent => bail!("the agent {} has ended", global.name),
            Ended::Enough => {}
            Ended::Time | Ended::Interrupt if seen == 0 => {
                let service = &self.service;
                out.complain(&format!("no call of {service} came by a lane: `moa kernel` says whether it is routed\n"));
            }
            Ended::Time | Ended::Interrupt => out.complain(&format!("{} calls and answers\n", count(seen))),
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn table() -> Growing<7> {
    Growing::new([
        ("TIME (UTC)", Left, 15),
        ("WHAT", Left, 6),
        ("BYTES", Right, 6),
        ("TOOK", Right, 8),
        ("VERDICT", Left, 14),
        ("CALLER", Left, 20),
        ("INSTANCE", Left, 0),
    ])
}

fn row(table: &mut Growing<7>, what: &str, decision: &Decision) -> String {
    let name = |name: &Option<std::sync::Arc<str>>| name.as_deref().unwrap_or("-").to_owned();
    let at = format!("{}{:03}", time(decision.unix_us / 1_000), decision.unix_us % 1_000);
    let tone = if decision.verdict == "routed" { Tone::Good } else { Tone::Doubtful };
    table.line([
        (at, Tone::Plain),
        (what.to_owned(), Tone::Plain),
        (count(decision.bytes), Tone::Plain),
        (decision.took_ns.map_or_else(|| "-".to_owned(), nanos), Tone::Plain),
        (decision.verdict.clone(), tone),
        (name(&decision.caller), Tone::Plain),
        (name(&decision.instance), Tone::Plain),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_line_up() {
        let mut table = table();
        let call = Decision {
            unix_us: 1_700_000_000_123_456,
            caller: Some("web/web-1".into()),
            instance: Some("user/user-1".into()),
            stream: 3,
            bytes: 1_104,
            verdict: "routed".into(),
            took_ns: None,
        };
        let answer = Decision { took_ns: Some(8_250), bytes: 40, ..call.clone() };
        let denied = Decision { instance: None, verdict: "denied".into(), ..call.clone() };
        let lines = table.title() + &row(&mut table, "call", &call) + &row(&mut table, "answer", &answer);
        let lines = lines + &row(&mut table, "call", &denied);
        let expected = "\
TIME (UTC)       WHAT     BYTES      TOOK  VERDICT         CALLER                INSTANCE
22:13:20.123456  call     1,104         -  routed          web/web-1             user/user-1
22:13:20.123456  answer      40    8.2 µs  routed          web/web-1             user/user-1
22:13:20.123456  call     1,104         -  denied          web/web-1             -
";
        assert_eq!(lines, expected);
    }
}
