//! `moa status`.

use std::{
    fmt::Write as _,
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Result;

use super::{
    Global, Out,
    drain::left,
    out::OUT,
    units::{age, bytes, count, micros},
};
use crate::api::{AppStatus, CallStats, ConfigSource, Drain, KernelStatus, NamespacesStatus, Overload, State, Status};

pub(super) fn run(global: &Global, out: &Out) -> Result<ExitCode> {
    let status: Status = global.client().get("/v1/status")?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    out.show(&status, |status| render(status, now_ms))?;
    Ok(ExitCode::SUCCESS)
}

fn render(status: &Status, now_ms: u64) -> String {
    let state = match status.state {
        State::Serving => OUT.good("serving"),
        State::Draining => OUT.doubtful("draining"),
    };
    let Status { name, version, pid, workers, .. } = status;
    let mut lines = vec![
        ("agent", format!("{name}, {state} for {} (version {version}, pid {pid}, {workers} workers)", age(status.uptime_ms))),
        ("config", config(&status.config, now_ms)),
    ];
    if let Some(error) = &status.config.last_error {
        lines.push(("", OUT.bad(&format!("the latest reload was refused: {}", error.replace('\n', "\n            ")))));
    }
    lines.extend([("apps", app(&status.app)), ("calls", calls(&status.calls)), ("kernel", kernel(&status.kernel))]);
    lines.extend(status.namespaces.iter().map(|one| ("pods", namespaces(one))));
    lines.extend(status.drain.iter().map(|one| ("drain", drain(one))));
    lines.extend(status.overload.iter().filter(|one| one.level > 0 || one.refused > 0).map(|one| ("overload", overload(one))));
    lines.into_iter().fold(String::new(), |mut text, (title, line)| {
        // Padded before it is painted, as colours have no width.
        let _ = writeln!(text, "{}  {line}", OUT.bold(&format!("{title:<8}")));
        text
    })
}

fn config(source: &ConfigSource, now_ms: u64) -> String {
    let path = source.path.as_deref().unwrap_or("none, the defaults are in force");
    format!("{path} (generation {}, taken over {} ago)", source.generation, age(now_ms.saturating_sub(source.loaded_unix_ms)))
}

fn app(app: &AppStatus) -> String {
    format!(
        "{}, {} of {} connections ({} accepted, {} refused), {} queued",
        app.listen,
        count(app.connections),
        count(app.connections_max),
        count(app.accepted),
        count(app.refused),
        bytes(app.queued_bytes)
    )
}

fn calls(calls: &CallStats) -> String {
    format!(
        "{} answered ({} by the mesh with an error, {} by services with an error), {} in flight, {} retries, p50 {}, p99 {}",
        count(calls.calls),
        count(calls.mesh_errors),
        count(calls.service_errors),
        count(calls.in_flight),
        count(calls.retries),
        micros(calls.p50_us),
        micros(calls.p99_us)
    )
}

fn kernel(kernel: &KernelStatus) -> String {
    match &kernel.reason {
        Some(reason) => format!("{}: {reason}", OUT.doubtful("userspace only")),
        None => {
            let state = if kernel.on { OUT.good("on") } else { OUT.doubtful("off") };
            let share = format!(
                "{} through the kernel, {:.1} % of all on both legs",
                bytes(kernel.redirected_bytes),
                kernel.share * 100.0
            );
            let why = kernel.decision.as_ref().map_or(String::new(), |why| format!(" ({why})"));
            format!("{state}{why}, {} connections seen, {share}", count(kernel.established))
        }
    }
}

fn namespaces(status: &NamespacesStatus) -> String {
    let served = format!("{} network namespaces served", count(status.served));
    let failed = match status.failed {
        0 => String::new(),
        failed => OUT.bad(&format!(", {} not served: see `moa namespaces`", count(failed))),
    };
    let reason = status.reason.as_ref().map_or(String::new(), |reason| format!("; {}", OUT.doubtful(reason)));
    served + &failed + &reason
}

fn drain(drain: &Drain) -> String {
    let whither = if drain.to_siblings { ", applications go to siblings" } else { "" };
    let end = if drain.ending { ", and ends then" } else { "" };
    // Nobody asks the workers while it ends.
    let left = if drain.ending { String::new() } else { format!(": {} left", left(&drain.remains)) };
    format!("for {}{whither}{end}{left}", age(drain.since_ms))
}

fn overload(overload: &Overload) -> String {
    let so_far = format!("{} calls refused so far", count(overload.refused));
    let what = match overload.level {
        0 => return format!("none now; {so_far}"),
        3 => "all calls are refused".to_owned(),
        _ => format!("calls of priority {} are refused", overload.shedding),
    };
    let reason = overload.reason.as_deref().unwrap_or_default();
    format!("{}: {reason}; {so_far}", OUT.bad(&what))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Remains;

    #[test]
    fn everything_is_on_one_screen() {
        let status = Status {
            name: "default".into(),
            version: "0.1.0".into(),
            pid: 7,
            uptime_ms: 192_000,
            state: State::Serving,
            workers: 2,
            config: ConfigSource {
                path: Some("/etc/moa/moa.toml".into()),
                generation: 3,
                loaded_unix_ms: 1_000,
                last_error: Some("one\ntwo".into()),
            },
            app: AppStatus {
                listen: "127.0.0.1:13000".into(),
                connections: 12,
                connections_max: 18_976,
                accepted: 3_456,
                refused: 0,
                queued_bytes: 2_048,
            },
            calls: CallStats {
                calls: 1_234_567,
                mesh_errors: 1,
                service_errors: 2,
                in_flight: 3,
                retries: 4,
                p50_us: 87,
                p99_us: 1_200,
            },
            kernel: KernelStatus { reason: Some("no cgroup2".into()), ..KernelStatus::default() },
            namespaces: Some(NamespacesStatus { served: 12, failed: 1, ..NamespacesStatus::default() }),
            drain: Some(Drain {
                draining: true,
                since_ms: 3_000,
                remains: Remains { calls: 2, ..Remains::default() },
                ..Drain::default()
            }),
            overload: Some(Overload {
                level: 2,
                shedding: "normal".into(),
                reason: Some("its memory has reached overload.memory_bytes_max".into()),
                raised: 1,
                refused: 2_345,
                ..Overload::default()
            }),
        };
        let expected = "\
agent     default, serving for 3m12s (version 0.1.0, pid 7, 2 workers)
config    /etc/moa/moa.toml (generation 3, taken over 12s ago)
          the latest reload was refused: one
            two
apps      127.0.0.1:13000, 12 of 18,976 connections (3,456 accepted, 0 refused), 2.0 KiB queued
calls     1,234,567 answered (1 by the mesh with an error, 2 by services with an error), 3 in flight, 4 retries, p50 87 µs, p99 1.2 ms
kernel    userspace only: no cgroup2
pods      12 network namespaces served, 1 not served: see `moa namespaces`
drain     for 3s: 2 calls in flight left
overload  calls of priority normal are refused: its memory has reached overload.memory_bytes_max; 2,345 calls refused so far
";
        assert_eq!(render(&status, 13_000), expected);
    }
}
