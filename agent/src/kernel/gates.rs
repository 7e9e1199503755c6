//! Gates and siblings in the kernel, and how the agent does, as the programs at connects read it.

use std::{
    collections::BTreeSet,
    io,
    mem::offset_of,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Mutex,
        atomic::{
            AtomicU32, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

use agent_common::{
    Listener,
    failover::{Decisions, Failover, Gate, PEERS_MAX, Peer, SIBLINGS_MAX, Sibling, WORKERS_MAX, socket_address},
};
use aya::maps::{HashMap, MapData, MapError, PerCpuArray};

use super::{
    legs::{lock, sum},
    mapped::Mapped,
};
use crate::{
    clock::nanos,
    failover::{GateLook, Hooks, PeerLook},
};

/// From what age on a beat is stale until somebody says something else.
const STALE: Duration = Duration::from_millis(500);
/// Longer than any that makes sense, and short enough to be added to any time.
const STALE_MAX: Duration = Duration::from_secs(3600);

/// The gates by their addresses.
type Named = HashMap<MapData, Listener, Gate>;

/// The maps by which agent and programs talk about connects.
pub(super) struct Gates {
    /// Held by whoever changes a gate or gives away a sibling's place.
    gates: Mutex<Named>,
    peers: Mapped,
    failover: MapData,
    page: Mapped,
    decisions: PerCpuArray<MapData, Decisions>,
}

impl Gates {
    /// Over the maps `GATES`, `PEERS`, `FAILOVER` and `DECISIONS`.
    pub(super) fn new(
        gates: Named,
        peers: &MapData,
        failover: MapData,
        decisions: PerCpuArray<MapData, Decisions>,
    ) -> io::Result<Self> {
        let page = Mapped::map(failover.fd(), size_of::<Failover>())?;
        let peers = Mapped::map(peers.fd(), PEERS_MAX as usize * size_of::<Peer>())?;
        Ok(Self { gates: Mutex::new(gates), peers, failover, page, decisions })
    }

    /// A process begins, which is neither away nor held, and in which nobody beats yet. Gates stay: until it listens, their
    /// connects go where they went while nobody was there.
    pub(super) fn begin(&self) {
        self.set_workers(0);
        self.set_away_until(0);
        self.set_hold_until(0);
        if self.time(offset_of!(Failover, stale_ns)).load(Relaxed) == 0 {
            // Nobody was here before who could have turned it off.
            self.set_stale(STALE);
            self.set_on(true);
        }
    }

    /// Whether any connect could go anywhere else.
    pub(super) fn have_siblings(&self) -> bool {
        lock(&self.gates).iter().flatten().any(|(_, gate)| gate.count > 0)
    }

    fn time(&self, offset: usize) -> &AtomicU64 {
        self.page.u64(offset)
    }

    fn peer_u64(&self, place: u32, offset: usize) -> &AtomicU64 {
        self.peers.u64(place as usize * size_of::<Peer>() + offset)
    }

    fn peer_u32(&self, place: u32, offset: usize) -> &AtomicU32 {
        self.peers.u32(place as usize * size_of::<Peer>() + offset)
    }

    /// Who has the place, if anybody does.
    fn peer(&self, place: u32) -> Option<SocketAddr> {
        let word = |at| self.peer_u32(place, offset_of!(Peer, address) + at * size_of::<u32>()).load(Relaxed);
        let port = self.peer_u32(place, offset_of!(Peer, port)).load(Relaxed);
        socket_address([0, 1, 2, 3].map(word), port).filter(|address| address.port() != 0)
    }

    fn place_of(&self, sibling: SocketAddr) -> Option<u32> {
        let sibling = canonical(sibling);
        (0..PEERS_MAX).find(|place| self.peer(*place) == Some(sibling))
    }

    /// The place of a sibling: its own, or one that nobody has, or else one of whom no gate names and `taken` does not have.
    fn give_place(&self, sibling: SocketAddr, gates: &Named, taken: &[Sibling]) -> io::Result<u32> {
        if let Some(place) = self.place_of(sibling) {
            return Ok(place);
        }
        let free = (0..PEERS_MAX).find(|place| self.peer(*place).is_none());
        let place = free.or_else(|| {
            let named = gates.iter().flatten().flat_map(|(_, gate)| gate.siblings.into_iter().take(gate.count as usize));
            let named: BTreeSet<u32> = named.chain(taken.iter().copied()).map(|sibling| sibling.peer).collect();
            (0..PEERS_MAX).find(|place| !named.contains(place))
        });
        let place = place.ok_or_else(|| {
            io::Error::other(format!("there is no room for the sibling {sibling}: {PEERS_MAX} others are named"))
        })?;
        let Sibling { address, port, .. } = Sibling::new(sibling, place);
        self.peer_u32(place, offset_of!(Peer, port)).store(0, Relaxed);
        for offset in [
            offset_of!(Peer, told_down_until_ns),
            offset_of!(Peer, failed_until_ns),
            offset_of!(Peer, diverted),
            offset_of!(Peer, failed),
        ] {
            self.peer_u64(place, offset).store(0, Relaxed);
        }
        for (at, word) in address.into_iter().enumerate() {
            self.peer_u32(place, offset_of!(Peer, address) + at * size_of::<u32>()).store(word, Relaxed);
        }
        self.peer_u32(place, offset_of!(Peer, port)).store(port, Relaxed);
        Ok(place)
    }
}

impl Hooks for Gates {
    fn set_on(&self, on: bool) {
        self.page.u32(offset_of!(Failover, on)).store(u32::from(on), Relaxed);
    }

    fn is_on(&self) -> bool {
        self.page.u32(offset_of!(Failover, on)).load(Relaxed) != 0
    }

    fn set_workers(&self, workers: usize) {
        let count = self.page.u32(offset_of!(Failover, workers));
        // None counts while they are forgotten.
        count.store(0, SeqCst);
        for worker in 0..WORKERS_MAX {
            self.time(offset_of!(Failover, beats) + worker * size_of::<u64>()).store(0, SeqCst);
        }
        count.store(u32::try_from(workers.min(WORKERS_MAX)).unwrap_or(0), SeqCst);
    }

    fn set_stale(&self, after: Duration) {
        self.time(offset_of!(Failover, stale_ns)).store(nanos(after.min(STALE_MAX)), Relaxed);
    }

    fn set_away_until(&self, until_ns: u64) {
        self.time(offset_of!(Failover, away_until_ns)).store(until_ns, Relaxed);
    }

    fn set_hold_until(&self, until_ns: u64) {
        self.time(offset_of!(Failover, hold_until_ns)).store(until_ns, Relaxed);
    }

    fn set_gate(&self, netns: u64, address: SocketAddr, siblings: &[SocketAddr]) -> io::Result<()> {
        let key = Listener::new(netns, address);
        let mut gates = lock(&self.gates);
        let mut places = Vec::new();
        for sibling in siblings.iter().take(SIBLINGS_MAX) {
            places.push(Sibling::new(*sibling, self.give_place(*sibling, &gates, &places)?));
        }
        let mut gate = Gate { count: u32::try_from(places.len()).map_err(io::Error::other)?, ..Gate::default() };
        for (place, sibling) in gate.siblings.iter_mut().zip(places) {
            *place = sibling;
        }
        // One that is as it should be is not written, as a program might look at it.
        if gates.get(&key, 0).is_ok_and(|there| there == gate) {
            return Ok(());
        }
        gates.insert(key, gate, 0).map_err(|error| io::Error::other(format!("the gate at {address} cannot be made: {error}")))
    }

    fn remove_gate(&self, netns: u64, address: SocketAddr) {
        match lock(&self.gates).remove(&Listener::new(netns, address)) {
            Ok(()) | Err(MapError::KeyNotFound) => {}
            Err(error) => tracing::warn!("the gate at {address} stays: {error}"),
        }
    }

    fn gates(&self) -> Vec<GateLook> {
        let look = |(key, gate): (Listener, Gate)| {
            let siblings = gate.siblings.iter().take(gate.count as usize);
            let siblings = siblings.filter_map(|sibling| socket_address(sibling.address, sibling.port)).collect();
            Some(GateLook { netns: key.netns, address: socket_address(key.address, key.port)?, siblings })
        };
        lock(&self.gates).iter().flatten().filter_map(look).collect()
    }

    fn tell_down(&self, sibling: SocketAddr, until_ns: u64) {
        let _gates = lock(&self.gates);
        if let Some(place) = self.place_of(sibling) {
            self.peer_u64(place, offset_of!(Peer, told_down_until_ns)).store(until_ns, Relaxed);
        }
    }

    fn peers(&self) -> Vec<PeerLook> {
        let _gates = lock(&self.gates);
        let look = |place| {
            let word = |offset| self.peer_u64(place, offset).load(Relaxed);
            Some(PeerLook {
                address: self.peer(place)?,
                told_down_until_ns: word(offset_of!(Peer, told_down_until_ns)),
                failed_until_ns: word(offset_of!(Peer, failed_until_ns)),
                diverted: word(offset_of!(Peer, diverted)),
                failed: word(offset_of!(Peer, failed)),
            })
        };
        (0..PEERS_MAX).filter_map(look).collect()
    }

    fn decisions(&self) -> io::Result<Decisions> {
        sum(&self.decisions).map_err(io::Error::other)
    }

    fn page(&self) -> io::Result<OwnedFd> {
        self.failover.fd().as_fd().try_clone_to_owned()
    }
}

/// An address as it is given back: IPv4 in IPv6 is IPv4.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
