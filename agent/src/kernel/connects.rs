//! The programs at connects: loads and attaches them, in place of those that a former process left.

use std::{fs, io};

use aya::{
    Ebpf,
    maps::{Map, MapData},
    programs::{CgroupAttachMode, CgroupSockAddr, links::FdLink},
};

use super::{
    AttachError,
    cgroup::Cgroup,
    gates::Gates,
    link::Link,
    load::{program, take},
    pins::{CONNECTS, Pins},
};

/// Loads them.
pub(super) fn load(programs: &mut Ebpf) -> Result<(), AttachError> {
    for name in CONNECTS {
        program::<CgroupSockAddr>(programs, name)?.load().map_err(|error| AttachError::program(name, error))?;
    }
    Ok(())
}

/// Takes their maps.
pub(super) fn gates(programs: &mut Ebpf) -> Result<Gates, AttachError> {
    let (peers, failover) = (array(programs, "PEERS")?, array(programs, "FAILOVER")?);
    let gates = Gates::new(take(programs, "GATES")?, &peers, failover, take(programs, "DECISIONS")?);
    gates.map_err(|source| AttachError::Mapping { source })
}

/// Attaches them. What a former process has attached goes only when its successor is there: in between connects are decided
/// twice, and never by nobody.
pub(super) fn attach(programs: &mut Ebpf, cgroup: &Cgroup, pins: Option<&Pins>) -> Result<(), AttachError> {
    for name in CONNECTS {
        let attaching: &mut CgroupSockAddr = program(programs, name)?;
        // Links always leave room for other programs on the same cgroup, and take no flag that says so.
        let attached = attaching.attach(&cgroup.folder, CgroupAttachMode::Single);
        let link = attached.map_err(|error| AttachError::attach(&cgroup.path, error))?;
        let Some(pins) = pins else { continue };
        let link = attaching.take_link(link).map_err(|error| AttachError::program(name, error))?;
        let link = FdLink::try_from(link).map_err(|_| AttachError::NoLinks)?;
        pin(link, pins, name)?;
    }
    Ok(())
}

/// Pins a link in place of another, which is detached.
fn pin(link: FdLink, pins: &Pins, name: &str) -> Result<(), AttachError> {
    let (path, next) = (pins.map(name), pins.map(&format!("{name}-next")));
    let refused = |source| AttachError::Pins { path: path.clone(), source };
    match fs::remove_file(&next) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(refused(error)),
        _ => {}
    }
    let former = Link::open(&path);
    link.pin(&next).map_err(|source| AttachError::pin(&next, source))?;
    fs::rename(&next, &path).map_err(refused)?;
    // If that fails, it goes a moment later.
    let _ = former.and_then(Link::detach);
    Ok(())
}

fn array(programs: &mut Ebpf, name: &'static str) -> Result<MapData, AttachError> {
    match programs.take_map(name) {
        Some(Map::Array(map)) => Ok(map),
        _ => Err(AttachError::Incomplete { what: name }),
    }
}
