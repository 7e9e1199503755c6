//! `moa drain`.

use std::{
    process::ExitCode,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use clap::Args;

use super::{
    Global, Out,
    client::Client,
    out::OUT,
    units::{age, count},
};
use crate::api::{Drain as Shown, Remains};

/// How often it is looked what is left.
const STEP: Duration = Duration::from_millis(100);

/// What the help says of it besides its options.
pub(super) const WHAT_IT_DOES: &str = "\
Other agents are asked to send no more calls, and turned away until the drain is taken back; /ready says 503. What is in flight is \
finished.

With --to-siblings applications are moved to siblings: new connects go there, connections that speak Redis are closed between two \
calls, those that speak frames are asked to go, and services follow when nobody calls any more. Without it, or where there is no \
sibling, no connection of an application is closed, as it would come back here: its calls are served as before, until it goes by itself.

It waits until nothing is left (exit code 0), or time is over (1). In either case the agent goes on draining, and does not end: stop \
it by SIGTERM, or take the drain back by --cancel. A drain that is under way is joined.";

/// Have an agent take no new work, finish what is in flight, and say what is left.
#[derive(Debug, Args)]
pub(super) struct Drain {
    /// How long to wait [default: agent.drain_timeout_ms of the configuration].
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<f64>,
    /// Move applications to siblings.
    #[arg(long, conflicts_with = "cancel")]
    to_siblings: bool,
    /// Take the drain back: the agent serves as before.
    #[arg(long, conflicts_with = "timeout")]
    cancel: bool,
}

impl Drain {
    pub(super) fn run(&self, global: &Global, out: &Out) -> Result<ExitCode> {
        let client = global.client();
        if self.cancel {
            let shown: Shown = client.post("/v1/drain/cancel")?;
            out.show(&shown, |_| "the drain was taken back: the agent serves as before\n".to_owned())?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut shown: Shown = client.post(&format!("/v1/drain?to_siblings={}", self.to_siblings))?;
        let within = self.within(shown.timeout_ms);
        let begun = Instant::now();
        let mut live = Live::new(out);
        while shown.draining && !shown.remains.is_nothing() {
            live.show(&shown)?;
            let Some(left) = within.checked_sub(begun.elapsed()) else { break };
            sleep(left.min(STEP));
            shown = ask(&client)?;
        }
        live.end()?;
        conclude(&shown, out)
    }

    fn within(&self, usual_ms: u64) -> Duration {
        match self.timeout.map(Duration::try_from_secs_f64) {
            None => Duration::from_millis(usual_ms),
            Some(Ok(within)) => within,
            Some(Err(_)) => super::usage_error("drain", "--timeout takes a number of seconds, such as 30 or 0.5"),
        }
    }
}

fn ask(client: &Client) -> Result<Shown> {
    client.get("/v1/drain")
}

/// Says how it ended.
fn conclude(shown: &Shown, out: &Out) -> Result<ExitCode> {
    if !shown.draining {
        bail!("somebody has taken the drain back: the agent serves as before");
    }
    let is_over = shown.remains.is_nothing();
    out.show(shown, |shown| {
        if is_over {
            return format!("{}: nothing is left here\n", OUT.good("drained"));
        }
        let why = if shown.to_siblings { "" } else { "; --to-siblings moves applications away" };
        format!("{}: {} still; the agent goes on draining{why}\n", OUT.doubtful("time is over"), left(&shown.remains))
    })?;
    Ok(if is_over { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What is left, in one line.
pub(super) fn left(remains: &Remains) -> String {
    let Remains { calls, redis, frames, services, agents } = *remains;
    let one = |n: u64, one: &str, many: &str| (n > 0).then(|| format!("{} {}", count(n), if n == 1 { one } else { many }));
    let all = [
        one(calls, "call in flight", "calls in flight"),
        one(redis, "Redis connection", "Redis connections"),
        one(frames, "connection that calls in frames", "connections that call in frames"),
        one(services, "connection of a service", "connections of services"),
        one(agents, "connection of another agent", "connections of other agents"),
    ];
    let all: Vec<_> = all.into_iter().flatten().collect();
    if all.is_empty() { "nothing".to_owned() } else { all.join(", ") }
}

/// One line that is rewritten on a terminal; elsewhere a line for each change.
struct Live<'a> {
    out: &'a Out,
    is_terminal: bool,
    last: Option<Remains>,
}

impl<'a> Live<'a> {
    fn new(out: &'a Out) -> Self {
        Self { out, is_terminal: out.is_terminal(), last: None }
    }

    fn show(&mut self, shown: &Shown) -> Result<()> {
        let changed = self.last.replace(shown.remains) != Some(shown.remains);
        if self.out.json || !(changed || self.is_terminal) {
            return Ok(());
        }
        let line = format!("draining for {}: {}", age(shown.since_ms), left(&shown.remains));
        // To the beginning of the line, which is cleared behind what is written.
        let text = if self.is_terminal { format!("\r{line}\x1b[K") } else { format!("{line}\n") };
        self.out.text(&text)
    }

    fn end(&self) -> Result<()> {
        if self.is_terminal && !self.out.json && self.last.is_some() { self.out.text("\r\x1b[K") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_one_line() {
        assert_eq!(left(&Remains::default()), "nothing");
        let remains = Remains { calls: 1_234, redis: 1, frames: 0, services: 2, agents: 1 };
        let expected = "1,234 calls in flight, 1 Redis connection, 2 connections of services, 1 connection of another agent";
        assert_eq!(left(&remains), expected);
    }
}
