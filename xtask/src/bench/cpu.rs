//! Who used how much CPU: a subject, the whole bench, and everything else on the machine.

use std::{fs, path::Path, process::Command, sync::LazyLock, time::Instant};

use anyhow::{Context, Result};
use clap::ValueEnum;
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::resource::{UsageWho, getrusage},
    unistd::Pid,
};

/// The CPUs that a case uses.
#[derive(Debug, Clone, Copy)]
pub(super) enum Cpus {
    /// All of the machine.
    All,
    /// One of them.
    One(usize),
}

/// Where everything of a case runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Placement {
    /// All on one CPU
    #[value(name = "1cpu")]
    One,
    /// Wherever the scheduler puts them
    Free,
}

impl Placement {
    /// The name in reports, and on the command line.
    pub(super) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// The CPUs that it means.
    pub(super) fn cpus(self) -> Result<Cpus> {
        Ok(match self {
            Self::One => Cpus::One(last()?),
            Self::Free => Cpus::All,
        })
    }
}

impl Cpus {
    /// The CPU, if it is one.
    pub(super) fn one(self) -> Option<usize> {
        match self {
            Self::All => None,
            Self::One(cpu) => Some(cpu),
        }
    }
}

/// A measurement that is under way.
pub(super) struct Meter {
    cpus: Cpus,
    subject: Vec<u32>,
    started: Instant,
    idle_ns: u64,
    own_ns: u64,
    subject_ns: u64,
}

/// What was used between a meter's start and stop.
#[derive(Debug, Clone, Copy)]
pub(super) struct Used {
    /// CPU time of the subject with its descendants.
    pub(super) subject_ns: u64,
    /// CPU time of the client, the server and all subjects, of which one is called and the others idle.
    pub(super) own_ns: u64,
    /// The share of the case's CPUs that neither was idle nor went to the bench, the server or a subject.
    pub(super) foreign: f64,
}

impl Meter {
    /// Begins to measure. `subject` is the processes under test.
    pub(super) fn start(cpus: Cpus, subject: &[u32]) -> Result<Self> {
        let (idle_ns, own_ns) = (idle_ns(cpus)?, own_ns()?);
        let subject_ns = sum_ns(subject);
        Ok(Self { cpus, subject: subject.to_owned(), started: Instant::now(), idle_ns, own_ns, subject_ns })
    }

    /// Ends the measurement.
    pub(super) fn stop(self) -> Result<Used> {
        let subject_ns = sum_ns(&self.subject).saturating_sub(self.subject_ns);
        let wall_ns = nanos(self.started.elapsed().as_secs_f64()) * count(self.cpus)? as u64;
        let busy_ns = wall_ns.saturating_sub(idle_ns(self.cpus)?.saturating_sub(self.idle_ns));
        let own_ns = own_ns()?.saturating_sub(self.own_ns);
        let foreign_ns = busy_ns.saturating_sub(own_ns);
        Ok(Used { subject_ns, own_ns, foreign: foreign_ns as f64 / wall_ns as f64 })
    }
}

/// Runs `work` with this thread, and whatever it starts, bound to `cpus`.
pub(super) fn bound<T>(cpus: Cpus, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let Cpus::One(cpu) = cpus else { return work() };
    let this = Pid::from_raw(0);
    let before = sched_getaffinity(this)?;
    let mut one = CpuSet::new();
    one.set(cpu)?;
    sched_setaffinity(this, &one).with_context(|| format!("binding a thread to CPU {cpu}"))?;
    let result = work();
    sched_setaffinity(this, &before)?;
    result
}

/// The last CPU that we may use: interrupts tend to go to the first.
pub(super) fn last() -> Result<usize> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    (0..CpuSet::count()).rev().find(|cpu| set.is_set(*cpu) == Ok(true)).context("this process may use no CPU")
}

/// A process and its descendants.
pub(super) fn tree(root: u32) -> Vec<u32> {
    let mut all = vec![root];
    let mut next = 0;
    while let Some(pid) = all.get(next).copied() {
        next += 1;
        for thread in threads(pid) {
            let children = fs::read_to_string(thread.join("children")).unwrap_or_default();
            all.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
    }
    all
}

fn sum_ns(roots: &[u32]) -> u64 {
    roots.iter().map(|root| tree_ns(*root)).sum()
}

/// CPU time of a process and its descendants: nanoseconds, where `/proc/<pid>/stat` counts steps of 10 ms.
fn tree_ns(root: u32) -> u64 {
    tree(root).into_iter().flat_map(threads).map(|thread| thread_ns(&thread)).sum()
}

/// CPU time of this process and of all that it started, the ended ones included.
fn own_ns() -> Result<u64> {
    let ended = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(tree_ns(std::process::id()) + nanos(seconds(ended.user_time()) + seconds(ended.system_time())))
}

fn threads(pid: u32) -> Vec<std::path::PathBuf> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    entries.flatten().map(|entry| entry.path()).collect()
}

fn thread_ns(thread: &Path) -> u64 {
    let text = fs::read_to_string(thread.join("schedstat")).unwrap_or_default();
    text.split_whitespace().next().and_then(|ns| ns.parse().ok()).unwrap_or(0)
}

/// Time that did not go to tasks: idle, and the network's interrupts where the kernel counts them apart from tasks.
fn idle_ns(cpus: Cpus) -> Result<u64> {
    let name = match cpus {
        Cpus::All => "cpu".to_owned(),
        Cpus::One(cpu) => format!("cpu{cpu}"),
    };
    let stat = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
    let line = stat.lines().find(|line| line.split(' ').next() == Some(&name));
    let line = line.with_context(|| format!("/proc/stat has no line `{name}`"))?;
    let ticks: Vec<u64> = line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    let &[_, _, _, idle, iowait, irq, softirq, ..] = ticks.as_slice() else {
        anyhow::bail!("/proc/stat: fewer columns than expected: {line}")
    };
    let apart = if *IRQ_TIME_APART { irq + softirq } else { 0 };
    Ok((idle + iowait + apart) * 10_000_000)
}

fn count(cpus: Cpus) -> Result<usize> {
    match cpus {
        Cpus::One(_) => Ok(1),
        Cpus::All => Ok(fs::read_to_string("/proc/stat")?.lines().filter(|line| line.starts_with("cpu")).count() - 1),
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a run's seconds are positive and few")]
fn nanos(seconds: f64) -> u64 {
    (seconds * 1e9) as u64
}

/// Whether the kernel leaves the time of interrupts out of the tasks that they interrupt.
static IRQ_TIME_APART: LazyLock<bool> = LazyLock::new(|| {
    let script = "zcat /proc/config.gz 2>/dev/null || cat /boot/config-$(uname -r) 2>/dev/null";
    let config = Command::new("sh").args(["-c", script]).output().map(|out| out.stdout).unwrap_or_default();
    String::from_utf8_lossy(&config).contains("CONFIG_IRQ_TIME_ACCOUNTING=y")
});
