//! What is in the kernel, for the operator.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::fd::{AsFd, AsRawFd},
    time::UNIX_EPOCH,
};

use agent_common::{Pass, Refusal, Sent, Verdicts};
use aya::{
    maps::MapInfo,
    programs::{ProgramFd, ProgramInfo},
};

use super::{Kernel, ReadError, legs::lock};
use crate::{api, failover::Hooks as _};

impl Kernel {
    /// The kernel path in detail, but for what only the agent knows.
    ///
    /// # Errors
    /// The kernel refused to read a map.
    pub fn describe(&self) -> Result<api::Kernel, ReadError> {
        let verdicts = self.verdicts()?;
        Ok(api::Kernel {
            status: api::KernelStatus::default(),
            cgroup: self.cgroup.display().to_string(),
            pins: self.pinned.as_ref().map(|(pins, _)| pins.folder().display().to_string()),
            leg_bytes_max: self.legs.shared.bound(),
            enrolled: self.enrolled()? as u64,
            enrolled_total: verdicts.enrolled,
            to_agent: sent(verdicts.to_agent),
            from_agent: sent(verdicts.from_agent),
            tcp: sent(verdicts.passed),
            bytes_total: 0,
            fallbacks: fallbacks(&verdicts),
            refusals: refusals(&verdicts),
            programs: self.programs(),
            maps: self.maps(),
            routing: None,
            probes: self.tried.as_ref().map_or_else(Vec::new, |tried| tried.probes.clone()),
        })
    }

    /// Those of this process, and the stub, which perhaps another one has loaded.
    fn programs(&self) -> Vec<api::KernelProgram> {
        // One whose facts the kernel does not tell is left out.
        let own = self.programs.programs().filter_map(|(name, program)| describe_program(name, &program.info().ok()?));
        let mut all: Vec<_> = own.collect();
        all.extend(self.stub.as_ref().and_then(|stub| describe_program("stub", &stub.info().ok()?)));
        all
    }

    fn maps(&self) -> Vec<api::KernelMap> {
        let programs = self.programs.programs().filter_map(|(_, program)| program.info().ok());
        let programs = programs.chain(self.stub.as_ref().and_then(|stub| stub.info().ok()));
        let ids: BTreeSet<u32> = programs.filter_map(|program| program.map_ids().ok()?).flatten().collect();
        ids.into_iter().filter_map(|id| MapInfo::from_id(id).ok()).map(|info| self.describe_map(&info)).collect()
    }

    fn describe_map(&self, info: &MapInfo) -> api::KernelMap {
        let name = info.name_as_str().unwrap_or_default().to_owned();
        let entries = match name.as_str() {
            "SOCKS" => self.enrolled().ok().map(|count| count as u64),
            "READS" => Some(lock(&self.legs.reads).keys().flatten().count() as u64),
            "GATES" => Some(self.gates.gates().len() as u64),
            "LISTENERS" => Some(lock(&self.legs.listeners).keys().flatten().count() as u64),
            _ => None,
        };
        api::KernelMap { name, id: info.id(), entries, entries_max: info.max_entries() }
    }
}

fn describe_program(name: &str, info: &ProgramInfo) -> Option<api::KernelProgram> {
    let since = info.loaded_at()?.duration_since(UNIX_EPOCH).ok()?;
    let (runs, run_ns) = info.fd().ok().and_then(|fd| run_time(&fd)).unwrap_or_default();
    Some(api::KernelProgram {
        name: name.to_owned(),
        id: info.id(),
        tag: format!("{:016x}", info.tag()),
        loaded_unix_ms: u64::try_from(since.as_millis()).ok()?,
        runs,
        run_ns,
    })
}

/// How often a program ran and how long altogether, which the kernel shows of descriptors of programs.
fn run_time(program: &ProgramFd) -> Option<(u64, u64)> {
    let shown = fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_fd().as_raw_fd())).ok()?;
    let field = |name| shown.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    Some((field("run_cnt:")?, field("run_time_ns:")?))
}

fn sent(sent: Sent) -> api::Sent {
    api::Sent { messages: sent.messages, bytes: sent.bytes }
}

fn fallbacks(verdicts: &Verdicts) -> BTreeMap<String, u64> {
    Pass::ALL.into_iter().zip(verdicts.passes).map(|(why, count)| (why.name().to_owned(), count)).collect()
}

fn refusals(verdicts: &Verdicts) -> BTreeMap<String, u64> {
    Refusal::ALL.into_iter().zip(verdicts.refusals).map(|(why, count)| (why.name().to_owned(), count)).collect()
}
