//! `moa kernel`.

mod latency;
mod trace;

use std::{collections::BTreeMap, fmt::Write as _, process::ExitCode, time::Duration};

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use serde::Serialize;

use super::{
    Global, Out,
    out::OUT,
    table::{
        Side::{Left, Right},
        Table,
    },
    units::{bytes, count, micros},
};
use crate::{
    api::{Kernel as Shown, Routing, Sent},
    kernel,
};

/// Show the kernel path, turn it on and off, remove it.
#[derive(Debug, Args)]
pub(super) struct Kernel {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Take new connections onto the kernel path. Those that are open stay as they are.
    On,
    /// Have everything go by TCP, also what is open. Nothing is lost, and nobody reconnects.
    Off,
    /// Show how long routed calls took to their answers, service by service.
    Latency(latency::Latency),
    /// Show what the kernel programs decide about each call and answer of a service, as they do.
    Trace(trace::Trace),
    /// Remove what an agent that no longer runs has left in the kernel.
    Uninstall(Uninstall),
}

#[derive(Debug, Args)]
struct Uninstall {
    /// How long applications have for reading what was sent to them last.
    #[arg(long, value_name = "MS", default_value_t = 5_000)]
    within_ms: u64,
    /// Remove it even if they have not, and lose those bytes.
    #[arg(long)]
    force: bool,
}

/// What `moa kernel uninstall --json` says.
#[derive(Debug, Serialize)]
struct Uninstalled {
    removed: bool,
}

impl Kernel {
    pub(super) fn run(self, global: &Global, out: &Out) -> Result<ExitCode> {
        let shown: Shown = match self.verb {
            None => global.client().get("/v1/kernel")?,
            Some(Verb::On) => global.client().post("/v1/kernel/on")?,
            Some(Verb::Off) => global.client().post("/v1/kernel/off")?,
            Some(Verb::Latency(latency)) => return latency.run(global, out),
            Some(Verb::Trace(trace)) => return trace.run(global, out),
            Some(Verb::Uninstall(uninstall)) => return uninstall.run(global, out),
        };
        out.show(&shown, render)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Uninstall {
    fn run(&self, global: &Global, out: &Out) -> Result<ExitCode> {
        if global.client().get::<serde_json::Value>("/v1/status").is_ok() {
            bail!("the agent {} runs and uses them: stop it first, or turn the path off by `moa kernel off`", global.name);
        }
        let removed = kernel::uninstall(&global.name.to_string(), Duration::from_millis(self.within_ms), self.force)?;
        let text = if removed { "removed: nothing is left in the kernel\n" } else { "there was nothing to remove\n" };
        out.show(&Uninstalled { removed }, |_| text.to_owned())?;
        Ok(ExitCode::SUCCESS)
    }
}

fn render(shown: &Shown) -> String {
    let state = if shown.status.on { OUT.good("on") } else { OUT.doubtful("off: everything goes by TCP") };
    let mut lines = vec![("path", state)];
    lines.extend(shown.status.decision.clone().map(|decision| ("", decision)));
    let pins = shown.pins.as_deref().unwrap_or("nothing is pinned");
    lines.extend([
        ("cgroup", shown.cgroup.clone()),
        ("pins", pins.to_owned()),
        ("enrolled", format!("{} sockets now, {} ever", count(shown.enrolled), count(shown.enrolled_total))),
        ("bound", format!("{} at either end of a connection", bytes(shown.leg_bytes_max))),
        ("share", format!("{:.1} % of {} on both legs", shown.status.share * 100.0, bytes(shown.bytes_total))),
    ]);
    let mut text = lines.into_iter().fold(String::new(), |mut text, (title, line)| {
        let _ = writeln!(text, "{}  {line}", OUT.bold(&format!("{title:<8}")));
        text
    });
    for table in [paths(shown), reasons("GONE OVER TO TCP", &shown.fallbacks), reasons("NOT ENROLLED", &shown.refusals)] {
        text += &table;
    }
    text + &shown.routing.as_ref().map_or_else(String::new, routing) + &programs(shown) + &maps(shown) + &probes(shown)
}

fn paths(shown: &Shown) -> String {
    let mut table = Table::new(&[("PATH", Left), ("MESSAGES", Right), ("BYTES", Right)]);
    let all = [("kernel, to the agent", shown.to_agent), ("kernel, from the agent", shown.from_agent), ("TCP", shown.tcp)];
    for (path, Sent { messages, bytes: sent }) in all {
        table.row([path.to_owned(), count(messages), bytes(sent)]);
    }
    format!("\n{}", table.render())
}

/// Calls that go from application to application.
fn routing(routing: &Routing) -> String {
    let mut text = format!(
        "\n{}  {} calls and {} answers of {} in all; {} in flight; {} lanes\n",
        OUT.bold("ROUTED CALLS"),
        count(routing.calls),
        count(routing.answers),
        bytes(routing.bytes),
        count(routing.in_flight),
        count(routing.lanes),
    );
    text += &reasons("NOT ROUTED, BUT SENT TO THE AGENT", &routing.unrouted);
    if !routing.services.is_empty() {
        let mut table = Table::new(&[
            ("SERVICE", Left),
            ("ANSWERED", Right),
            ("P50", Right),
            ("P90", Right),
            ("P99", Right),
            ("MAX", Right),
            ("ROUTED", Left),
        ]);
        for service in &routing.services {
            let routed = service.why_not.as_ref().map_or_else(|| OUT.good("yes"), |why| OUT.doubtful(&format!("no: {why}")));
            let took = [service.p50_us, service.p90_us, service.p99_us, service.max_us].map(micros);
            table.row([service.service.clone(), count(service.answered)].into_iter().chain(took).chain([routed]));
        }
        let _ = write!(text, "\n{}", table.render());
    }
    text
}

/// Only what has happened; a line that says so if nothing has.
fn reasons(title: &str, reasons: &BTreeMap<String, u64>) -> String {
    let mut text = format!("\n{}", OUT.bold(title));
    let happened: Vec<_> = reasons.iter().filter(|(_, times)| **times > 0).collect();
    if happened.is_empty() {
        return text + "  nothing\n";
    }
    let width = happened.iter().map(|(reason, _)| reason.len()).max().unwrap_or_default();
    text += "\n";
    for (reason, times) in happened {
        let _ = writeln!(text, "{reason:width$}  {}", count(*times));
    }
    text
}

fn programs(shown: &Shown) -> String {
    let mut table = Table::new(&[("PROGRAM", Left), ("ID", Right), ("TAG", Left), ("RUNS", Right), ("NS PER RUN", Right)]);
    for program in &shown.programs {
        let each = program.run_ns.checked_div(program.runs).map_or_else(|| "-".into(), count);
        let runs = if program.runs == 0 { "-".into() } else { count(program.runs) };
        table.row([program.name.clone(), program.id.to_string(), program.tag.clone(), runs, each]);
    }
    format!("\n{}", table.render())
}

fn maps(shown: &Shown) -> String {
    let mut table = Table::new(&[("MAP", Left), ("ID", Right), ("ENTRIES", Right), ("OF", Right)]);
    for map in &shown.maps {
        let entries = map.entries.map_or_else(|| "-".into(), count);
        table.row([map.name.clone(), map.id.to_string(), entries, count(u64::from(map.entries_max))]);
    }
    format!("\n{}", table.render())
}

fn probes(shown: &Shown) -> String {
    if shown.probes.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&[("TRIED AT THE START", Left), ("", Left), ("SEEN", Left)]);
    for probe in &shown.probes {
        let mark = if probe.ok { OUT.good("ok") } else { OUT.bad("wrong") };
        table.row([probe.name.clone(), mark, probe.found.clone()]);
    }
    format!("\n{}", table.render())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{KernelMap, KernelProbe, KernelProgram, KernelStatus, RoutedService};

    fn services() -> Vec<RoutedService> {
        vec![
            RoutedService {
                service: "/service/a".into(),
                answered: 999,
                p50_us: 8,
                p90_us: 12,
                p99_us: 40,
                max_us: 1_310,
                ..RoutedService::default()
            },
            RoutedService { service: "/service/b#blue".into(), why_not: Some("rules".into()), ..RoutedService::default() },
        ]
    }

    #[test]
    fn everything_is_named_and_lines_up() {
        let some = |pairs: &[(&str, u64)]| pairs.iter().map(|(name, times)| ((*name).to_owned(), *times)).collect();
        let shown = Shown {
            status: KernelStatus { attached: true, on: true, share: 0.987, ..KernelStatus::default() },
            cgroup: "/sys/fs/cgroup".into(),
            pins: Some("/sys/fs/bpf/moa/default/v2".into()),
            leg_bytes_max: 2 << 20,
            enrolled: 4,
            enrolled_total: 1_004,
            to_agent: Sent { messages: 10, bytes: 1_024 },
            from_agent: Sent { messages: 9, bytes: 2_048 },
            tcp: Sent { messages: 1, bytes: 40 },
            bytes_total: 3_112,
            fallbacks: some(&[("bound-at-agent", 1), ("turned-off", 0)]),
            refusals: some(&[("remote", 0)]),
            programs: vec![KernelProgram {
                name: "leg".into(),
                id: 7,
                tag: "0a".into(),
                runs: 10,
                run_ns: 1_230,
                ..KernelProgram::default()
            }],
            maps: vec![KernelMap { name: "SOCKS".into(), id: 3, entries: Some(4), entries_max: 262_144 }],
            probes: vec![KernelProbe { name: "order".into(), ok: true, found: "kept".into() }],
            routing: Some(Routing {
                lanes: 2,
                in_flight: 1,
                calls: 1_000,
                answers: 999,
                bytes: 2_048,
                unrouted: some(&[("denied", 3), ("share", 0)]),
                services: services(),
            }),
        };
        let expected = "\
path      on
cgroup    /sys/fs/cgroup
pins      /sys/fs/bpf/moa/default/v2
enrolled  4 sockets now, 1,004 ever
bound     2.0 MiB at either end of a connection
share     98.7 % of 3.0 KiB on both legs

PATH                    MESSAGES    BYTES
kernel, to the agent          10  1.0 KiB
kernel, from the agent         9  2.0 KiB
TCP                            1     40 B

GONE OVER TO TCP
bound-at-agent  1

NOT ENROLLED  nothing

ROUTED CALLS  1,000 calls and 999 answers of 2.0 KiB in all; 1 in flight; 2 lanes

NOT ROUTED, BUT SENT TO THE AGENT
denied  3

SERVICE          ANSWERED   P50    P90    P99     MAX  ROUTED
/service/a            999  8 µs  12 µs  40 µs  1.3 ms  yes
/service/b#blue         0     -      -      -       -  no: rules

PROGRAM  ID  TAG  RUNS  NS PER RUN
leg       7  0a     10         123

MAP    ID  ENTRIES       OF
SOCKS   3        4  262,144

TRIED AT THE START      SEEN
order               ok  kept
";
        assert_eq!(render(&shown), expected);
    }
}
