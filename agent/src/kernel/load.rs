//! Loads the programs over their maps, new or adopted, and attaches them.

use std::{
    mem,
    path::Path,
    sync::{Arc, Mutex, atomic::AtomicBool},
};

use agent_common::{
    End, Offsets, WATCHED,
    lane::{LANES_MAX, slot},
    mode,
};
use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, Map, MapData, MapError, ProgramArray, SockHash},
    programs::{
        CgroupAttachMode, Program, ProgramError, SkMsg, SockOps,
        links::{FdLink, PinnedLink},
    },
};
use aya_log::EbpfLogger;
use tracing::level_filters::LevelFilter;

use super::{
    AttachError, Kernel, Options, btf,
    cgroup::Cgroup,
    connects,
    lanes::{Calls, Lanes, Places, Ring, Routes, Switch, Table},
    legs::Legs,
    owner::Owner,
    pins::{self, Pins},
    shared::SharedPage,
};
use crate::{diag::Diag, netns::thread};

/// Where the kernel's type information is.
const BTF: &str = "/sys/kernel/btf/vmlinux";
/// The programs.
const ESTABLISHED: &str = "established";
const STUB: &str = "stub";
/// What the slots hold. The first one runs the others, and is filled last.
const SLOTS: [(u32, &str); 3] = [(slot::STAY, "stay"), (slot::LANE, "lane"), (slot::LEG, "leg")];

/// Loads and attaches. What this process has pinned newly goes again if it fails.
pub(super) fn load(object: &[u8], cgroup: Cgroup, pins: Option<Pins>, options: &Options) -> Result<Kernel, AttachError> {
    let adopts = pins.as_ref().is_some_and(Pins::exist);
    if let Some(pins) = &pins {
        pins.make()?;
    }
    let loaded = try_load(object, cgroup, pins.clone(), options);
    if loaded.is_err() && !adopts {
        // Nobody could have been enrolled.
        let _ = pins.map(|pins| pins.remove());
    }
    loaded
}

fn try_load(object: &[u8], cgroup: Cgroup, pins: Option<Pins>, options: &Options) -> Result<Kernel, AttachError> {
    let offsets = btf::offsets(Path::new(BTF)).map_err(|source| AttachError::Btf { source })?;
    let mut programs = load_object(object, &offsets, pins.as_ref(), options.sockets_max)?;
    // Before any map is taken out, as programs name them by their descriptors.
    program::<SockOps>(&mut programs, ESTABLISHED)?.load().map_err(|error| AttachError::program(ESTABLISHED, error))?;
    let adopted = pins.as_ref().is_some_and(|pins| pins.stub().exists());
    let stub = (!adopted).then_some(STUB);
    for name in stub.into_iter().chain(SLOTS.map(|(_, name)| name)) {
        program::<SkMsg>(&mut programs, name)?.load().map_err(|error| AttachError::program(name, error))?;
    }
    connects::load(&mut programs)?;
    // Without it nothing is lost but words.
    let log = EbpfLogger::init(&mut programs).ok();
    let shared = shared_page(&mut programs)?;
    if shared.owner().is_another(shared.alive()) {
        return Err(AttachError::InUse { name: options.name.clone().unwrap_or_default() });
    }
    shared.set_owner(Owner::this().map_err(|source| AttachError::Process { source })?);
    exclude(&mut programs, &options.exclude_namespaces)?;
    let (socks, view) = take_socks(&mut programs)?;
    let stub = attach_stub(&mut programs, &socks, pins.as_ref())?;
    fill_slots(&mut programs)?;
    let legs = Legs {
        shared,
        legs: Mutex::new(take(&mut programs, "LEGS")?),
        reads: Mutex::new(take(&mut programs, "READS")?),
        blocking: Mutex::new(take(&mut programs, "BLOCKING")?),
        dials: Mutex::new(take(&mut programs, "DIALS")?),
        listeners: Mutex::new(take(&mut programs, "LISTENERS")?),
        socks: Mutex::new(socks),
        unenrols: AtomicBool::new(false),
        diags: Mutex::new(diags()?),
    };
    let (counts, verdicts) = (take(&mut programs, "COUNTS")?, take(&mut programs, "VERDICTS")?);
    let legs = Arc::new(legs);
    let lanes = Arc::new(lanes(&mut programs, legs.clone())?);
    let gates = Arc::new(connects::gates(&mut programs)?);
    let link = attach_established(&mut programs, &cgroup, pins.as_ref())?;
    connects::attach(&mut programs, &cgroup, pins.as_ref())?;
    Ok(Kernel {
        counts,
        verdicts,
        socks: view,
        legs,
        lanes,
        gates,
        cgroup: cgroup.path,
        pinned: pins.zip(link),
        stub,
        tried: None,
        speed: None,
        log,
        mode: mode::TO_AGENT | mode::FROM_AGENT,
        relieved: AtomicBool::new(false),
        redirected_before: 0,
        programs,
    })
}

/// What asks the kernel about the sockets of the agent's own namespace.
fn diags() -> Result<std::collections::HashMap<u64, Diag>, AttachError> {
    let cookie = thread::cookie().map_err(|source| AttachError::Namespace { source })?;
    let diag = Diag::open().map_err(|source| AttachError::Diag { source })?;
    Ok([(cookie, diag)].into())
}

/// Creates the maps, or opens those that are pinned.
fn load_object(object: &[u8], offsets: &Offsets, pins: Option<&Pins>, sockets_max: Option<u32>) -> Result<Ebpf, AttachError> {
    let mut loader = EbpfLoader::new();
    if let Some(sockets_max) = sockets_max {
        loader.map_max_entries("SOCKS", sockets_max);
    }
    loader.override_global("MOA_OFFSETS", offsets, true);
    let level = log_level();
    loader.override_global(aya_log::LEVEL, &level, false);
    for name in pins::MAPS {
        if let Some(pins) = pins {
            loader.map_pin_path(name, pins.map(name));
        }
    }
    loader.load(object).map_err(AttachError::load)
}

/// What the programs log: as much as the process does. It is fixed when they are loaded, so that what is not logged costs
/// nothing.
fn log_level() -> u8 {
    match LevelFilter::current() {
        LevelFilter::OFF => 0,
        LevelFilter::ERROR => 1,
        LevelFilter::WARN => 2,
        LevelFilter::INFO => 3,
        LevelFilter::DEBUG => 4,
        _ => 5,
    }
}

fn exclude(programs: &mut Ebpf, namespaces: &[std::path::PathBuf]) -> Result<(), AttachError> {
    let map = programs.map_mut("EXCLUDED").ok_or(AttachError::Incomplete { what: "the map EXCLUDED" })?;
    let mut excluded: HashMap<_, u64, u32> = map.try_into().map_err(|error| AttachError::map("EXCLUDED", error))?;
    let former: Vec<u64> = excluded.keys().flatten().collect();
    for cookie in former {
        // One that is gone already is as good.
        let _ = excluded.remove(&cookie);
    }
    for path in namespaces {
        let cookie = thread::cookie_of(path).map_err(|source| AttachError::OtherNamespace { path: path.clone(), source })?;
        excluded.insert(cookie, WATCHED, 0).map_err(|error| AttachError::map("EXCLUDED", error))?;
    }
    Ok(())
}

pub(super) fn take<T: TryFrom<Map, Error = MapError>>(programs: &mut Ebpf, name: &'static str) -> Result<T, AttachError> {
    let map = programs.take_map(name).ok_or(AttachError::Incomplete { what: name })?;
    map.try_into().map_err(|error| AttachError::map(name, error))
}

type Socks = SockHash<MapData, End>;

/// The map of sockets, and the same once more.
fn take_socks(programs: &mut Ebpf) -> Result<(Socks, Socks), AttachError> {
    const NAME: &str = "SOCKS";
    let Some(Map::SockHash(socks)) = programs.take_map(NAME) else { return Err(AttachError::Incomplete { what: NAME }) };
    let again = socks.info().and_then(|info| MapData::from_id(info.id()));
    let both = again.and_then(|again| Ok((Map::SockHash(socks).try_into()?, Map::SockHash(again).try_into()?)));
    both.map_err(|error| AttachError::map(NAME, error))
}

fn shared_page(programs: &mut Ebpf) -> Result<SharedPage, AttachError> {
    const NAME: &str = "SHARED";
    let Some(Map::Array(shared)) = programs.take_map(NAME) else { return Err(AttachError::Incomplete { what: NAME }) };
    SharedPage::map(shared.fd()).map_err(|source| AttachError::Mapping { source })
}

fn lanes(programs: &mut Ebpf, legs: Arc<Legs>) -> Result<Lanes, AttachError> {
    let mapping = |source| AttachError::Mapping { source };
    let Some(Map::Array(table)) = programs.take_map("LANE") else { return Err(AttachError::Incomplete { what: "LANE" }) };
    let Some(Map::Array(routing)) = programs.take_map("ROUTING") else { return Err(AttachError::Incomplete { what: "ROUTING" }) };
    let Some(Map::Array(calls)) = programs.take_map("CALLS") else { return Err(AttachError::Incomplete { what: "CALLS" }) };
    let Some(Map::Array(names)) = programs.take_map("NAMES") else { return Err(AttachError::Incomplete { what: "NAMES" }) };
    let routing = Arc::new(Switch::map(routing.fd()).map_err(mapping)?);
    Ok(Lanes {
        legs,
        table: Table::map(table.fd()).map_err(mapping)?,
        places: Mutex::new(Places::new(LANES_MAX)),
        sockets: Mutex::new(take(programs, "LANES")?),
        routes: Mutex::new(Routes::new(take(programs, "ROUTES")?, take(programs, "ACCESS")?)),
        routing,
        calls: Calls::map(names.fd(), calls.fd()).map_err(mapping)?,
        members: take(programs, "MEMBERS")?,
        routed: take(programs, "ROUTED")?,
        trace: Ring::new(take(programs, "TRACE")?),
    })
}

/// Attaches the program that sockets keep for as long as they live. One that is pinned is attached already: it is returned.
fn attach_stub(programs: &mut Ebpf, socks: &SockHash<MapData, End>, pins: Option<&Pins>) -> Result<Option<SkMsg>, AttachError> {
    let refused = |error| AttachError::program(STUB, error);
    if let Some(pins) = pins
        && pins.stub().exists()
    {
        return SkMsg::from_pin(pins.stub()).map(Some).map_err(refused);
    }
    let stub: &mut SkMsg = program(programs, STUB)?;
    let link = stub.attach(socks.fd()).map_err(refused)?;
    if let Some(pins) = pins {
        // It is attached for as long as the map lives, not this process.
        mem::forget(stub.take_link(link).map_err(refused)?);
        stub.pin(pins.stub()).map_err(|source| AttachError::pin(&pins.stub(), source))?;
    }
    Ok(None)
}

/// Puts the programs into the slots that the stub of every socket, old or new, looks into.
fn fill_slots(programs: &mut Ebpf) -> Result<(), AttachError> {
    for (slot, name) in SLOTS {
        let filling: &mut SkMsg = program(programs, name)?;
        let fd = filling.fd().and_then(|fd| fd.try_clone().map_err(ProgramError::from));
        let fd = fd.map_err(|error| AttachError::program(name, error))?;
        let slots = programs.map_mut("SLOTS").ok_or(AttachError::Incomplete { what: "the map SLOTS" })?;
        let mut slots: ProgramArray<_> = slots.try_into().map_err(|error| AttachError::map("SLOTS", error))?;
        slots.set(slot, &fd, 0).map_err(|error| AttachError::map("SLOTS", error))?;
    }
    Ok(())
}

/// Attaches the program that enrols, in place of one that a former process left.
fn attach_established(programs: &mut Ebpf, cgroup: &Cgroup, pins: Option<&Pins>) -> Result<Option<PinnedLink>, AttachError> {
    let established: &mut SockOps = program(programs, ESTABLISHED)?;
    if let Some(pins) = pins
        && pins.link().exists()
    {
        // The agent that it worked for is gone, and so are its listeners: nobody connects meanwhile.
        std::fs::remove_file(pins.link()).map_err(|source| AttachError::Pins { path: pins.link(), source })?;
    }
    // Links always leave room for other programs on the same cgroup, and take no flag that says so.
    let attached = established.attach(&cgroup.folder, CgroupAttachMode::Single);
    let link = attached.map_err(|error| AttachError::attach(&cgroup.path, error))?;
    let Some(pins) = pins else { return Ok(None) };
    let link = established.take_link(link).map_err(|error| AttachError::program(ESTABLISHED, error))?;
    let link = FdLink::try_from(link).map_err(|_| AttachError::NoLinks)?;
    link.pin(pins.link()).map(Some).map_err(|source| AttachError::pin(&pins.link(), source))
}

pub(super) fn program<'a, P>(programs: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, AttachError>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let program = programs.program_mut(name).ok_or(AttachError::Incomplete { what: name })?;
    program.try_into().map_err(|error| AttachError::program(name, error))
}
