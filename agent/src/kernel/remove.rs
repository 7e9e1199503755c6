//! Taking the kernel path away without losing a byte.
//!
//! A socket that leaves the map loses what waits in its queue. So nothing is removed before every application and service
//! has read what was redirected to it; then those that are still connected go on by TCP.

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use agent_common::End;
use aya::maps::{Map, MapData, SockHash};

use super::{
    pins::{BPFFS, CONNECTS, Pins, remove_connects, remove_folder, remove_links},
    shared::SharedPage,
};
use crate::{
    diag::{Diag, Unread},
    netns::thread::cookie,
};

/// How often it is looked whether everything has been read.
const EVERY: Duration = Duration::from_millis(5);

/// How long the kernel has to tell one end that the other is closed.
const TOLD_WITHIN: Duration = Duration::from_secs(1);

/// Why the pins of an agent are still there.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// Somebody has not read what was redirected.
    #[error(
        "{sockets} of the applications and services have not read what was sent to them: wait until they have, or end them; \
         --force drops those bytes"
    )]
    Unread {
        /// How many sockets.
        sockets: usize,
    },
    /// An agent lives that uses them.
    #[error("an agent of this name runs and uses them: stop it first, or turn the path off by `moa kernel off`")]
    InUse,
    /// The kernel refused.
    #[error("the pins cannot be removed ({source}): run as root")]
    Io {
        /// What it said.
        #[from]
        source: io::Error,
    },
}

/// Removes what an agent that no longer runs has left in the kernel. False if there was nothing.
///
/// # Errors
/// Somebody has not read everything after `within`, unless it is forced; or the kernel refused.
pub fn uninstall(name: &str, within: Duration, force: bool) -> Result<bool, RemoveError> {
    let pins = Pins::of(Path::new(BPFFS), name);
    if MapData::from_pin(pins.map("SHARED")).is_ok_and(|shared| is_in_use(&shared)) {
        return Err(RemoveError::InUse);
    }
    let former = pins.former();
    if !pins.exist() && former.is_empty() {
        return Ok(false);
    }
    let diags = HashMap::from([(cookie()?, Diag::open()?)]);
    for folder in former.iter().map(Path::new).chain([pins.folder()]) {
        remove(folder, &diags, within, force)?;
    }
    pins.remove()?;
    Ok(true)
}

/// Lets connects go where they are going: an agent of this name serves without the programs, which would not find its
/// listeners, and send everything to its siblings. False if there was nothing to remove.
///
/// # Errors
/// An agent lives that uses them, or the kernel refused.
pub fn unhook(name: &str) -> Result<bool, RemoveError> {
    let pins = Pins::of(Path::new(BPFFS), name);
    if MapData::from_pin(pins.map("SHARED")).is_ok_and(|shared| is_in_use(&shared)) {
        return Err(RemoveError::InUse);
    }
    let former = pins.former();
    let folders: Vec<&Path> = former.iter().map(Path::new).chain([pins.folder()]).collect();
    let any = folders.iter().any(|folder| CONNECTS.iter().any(|name| folder.join(name).exists()));
    folders.into_iter().try_for_each(remove_connects)?;
    Ok(any)
}

/// Removes the pins in one folder once everything was read, as far as `diags` can see: one for each namespace, by cookie.
pub(super) fn remove(folder: &Path, diags: &HashMap<u64, Diag>, within: Duration, force: bool) -> Result<(), RemoveError> {
    // Without them, nobody else is enrolled meanwhile, and no connect is decided for an agent that nobody waits for.
    remove_links(folder)?;
    if !force && let Some(socks) = open_socks(folder) {
        wait_until_read(&socks, diags, within)?;
    }
    Ok(remove_folder(folder)?)
}

/// Waits until no enrolled socket has anything left to read.
fn wait_until_read(socks: &SockHash<MapData, End>, diags: &HashMap<u64, Diag>, within: Duration) -> Result<(), RemoveError> {
    // Without it, whoever has not yet been told that the agent is gone counts as if it had something.
    let end_costs = diags.get(&cookie()?).and_then(|diag| end_costs(diag).ok()).unwrap_or(0);
    let deadline = Instant::now() + within;
    loop {
        // Sockets of other namespaces, and those that are not found, count as if they had something: who is in the map is not
        // closed.
        let unread = |end: &End| {
            let (own, other) = end.addresses();
            let unread = diags.get(&end.netns).and_then(|diag| diag.unread(own, other).ok().flatten());
            unread.is_none_or(|unread| is_some(unread, end_costs))
        };
        let sockets = socks.keys().flatten().filter(unread).count();
        if sockets == 0 {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(RemoveError::Unread { sockets });
        }
        thread::sleep(EVERY);
    }
}

/// Whether something waits beside the end of the stream, which an idle application does not read, and TCP keeps anyway.
fn is_some(unread: Unread, end_costs: u32) -> bool {
    unread.memory > 0 && !(unread.by_tcp == 1 && unread.memory <= end_costs)
}

/// What the end of a stream alone takes of the receive memory. No packet takes less.
fn end_costs(diag: &Diag) -> io::Result<u32> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let told = TcpStream::connect(listener.local_addr()?)?;
    drop(listener.accept()?);
    told.set_read_timeout(Some(TOLD_WITHIN))?;
    told.peek(&mut [0])?;
    Ok(diag.receive_bytes(told.local_addr()?, told.peer_addr()?)?.unwrap_or(0))
}

fn is_in_use(shared: &MapData) -> bool {
    SharedPage::map(shared.fd()).is_ok_and(|shared| shared.owner().is_another(shared.alive()))
}

fn open_socks(folder: &Path) -> Option<SockHash<MapData, End>> {
    Map::SockHash(MapData::from_pin(folder.join("SOCKS")).ok()?).try_into().ok()
}
