//! What Prometheus wants to know of every process, under its own names.

use std::{
    fmt::Error,
    fs,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::{
    sys::resource::{Resource, UsageWho, getrlimit, getrusage},
    time::{ClockId, clock_gettime},
    unistd::{SysconfVar, sysconf},
};
use prometheus_client::{metrics::MetricType, registry::Unit};

use super::scrape::Out;

/// This process.
#[derive(Debug, Clone, Default)]
pub(super) struct Process {
    pub(super) cpu: Duration,
    pub(super) resident_bytes: u64,
    pub(super) virtual_bytes: u64,
    pub(super) open_fds: u64,
    pub(super) max_fds: u64,
    pub(super) started_unix: f64,
}

impl Process {
    /// What the kernel says; 0 for what it does not.
    pub(super) fn read() -> Self {
        let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let pages = |field| statm.split_whitespace().nth(field).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or_default();
        let page = system(SysconfVar::PAGE_SIZE);
        Self {
            cpu: cpu(),
            resident_bytes: pages(1) * page,
            virtual_bytes: pages(0) * page,
            // The one that reads the folder is not counted.
            open_fds: fs::read_dir("/proc/self/fd").map_or(0, |fds| (fds.count() as u64).saturating_sub(1)),
            max_fds: getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft),
            started_unix: started_unix().unwrap_or_default(),
        }
    }

    pub(super) fn encode(&self, out: &mut Out<'_>) -> Result<(), Error> {
        let (bytes, count, value) = (Some(&Unit::Bytes), MetricType::Counter, MetricType::Gauge);
        out.seconds("process_cpu", "User and system CPU time", count, self.cpu.as_secs_f64())?;
        out.seconds("process_start_time", "When the process started, since 1970", value, self.started_unix)?;
        out.gauge("process_resident_memory", "Memory in use", bytes, self.resident_bytes)?;
        out.gauge("process_virtual_memory", "Addresses in use", bytes, self.virtual_bytes)?;
        out.gauge("process_open_fds", "Open file descriptors", None, self.open_fds)?;
        out.gauge("process_max_fds", "The bound on open file descriptors", None, self.max_fds)
    }
}

fn system(what: SysconfVar) -> u64 {
    sysconf(what).ok().flatten().and_then(|value| u64::try_from(value).ok()).unwrap_or_default()
}

fn cpu() -> Duration {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return Duration::ZERO };
    [usage.user_time(), usage.system_time()].into_iter().map(|time| micros(time.tv_sec(), time.tv_usec())).sum()
}

fn micros(seconds: i64, micros: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0)) + Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

/// The 22nd field of `stat`, in ticks since boot, behind the name in parentheses.
fn started_unix() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let ticks: f64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    let since_boot = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?).as_secs_f64();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs_f64();
    let per_second = system(SysconfVar::CLK_TCK).max(1) as f64;
    Some(now - since_boot + ticks / per_second)
}
