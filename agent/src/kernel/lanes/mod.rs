//! Routing in the kernel, as the data plane sees it.

mod calls;
mod places;
mod routes;
mod switch;
mod table;
mod trace;
mod turns;

use std::{
    io,
    os::fd::BorrowedFd,
    sync::{Arc, Mutex},
};

use agent_common::{
    End,
    lane::{Lane, Member, Routed, lane_state},
    mode,
};
use aya::maps::{Array, HashMap, MapData, MapError, PerCpuArray};
use nix::{getsockopt_impl, libc, sockopt_impl, sys::socket::getsockopt};

pub(super) use self::{calls::Calls, places::Places, routes::Routes, switch::Switch, table::Table, trace::Ring};
use super::legs::{Legs, clear, lock, sum};
use crate::proxy::{LaneId, LaneLook, LanePath, LaneRoute, LaneTrace, RoutedCall, RoutedMember};

/// Bytes that wait at a lane at most: less than the numbers in receipts go round at.
const BOUND_MAX: u64 = 8 << 20;

// `struct tcp_info` is longer than the C library has it.
sockopt_impl!(
    /// As many words of it as are looked at.
    TcpInfo,
    GetOnly,
    libc::IPPROTO_TCP,
    libc::TCP_INFO,
    [u64; 17]
);

/// Where it says how many bytes have come by TCP.
const BYTES_RECEIVED: usize = 16;

/// The maps and the mapped arrays by which agent and programs talk about lanes, routes and calls.
pub(super) struct Lanes {
    pub(super) legs: Arc<Legs>,
    pub(super) table: Table,
    /// Which places are free. Whoever changes a lane holds it.
    pub(super) places: Mutex<Places>,
    pub(super) sockets: Mutex<HashMap<MapData, End, u32>>,
    pub(super) routes: Mutex<Routes>,
    pub(super) routing: Arc<Switch>,
    pub(super) calls: Calls,
    pub(super) members: Array<MapData, Member>,
    pub(super) routed: PerCpuArray<MapData, Routed>,
    pub(super) trace: Ring,
}

impl Lanes {
    /// Ends what a former process has left: its lanes, its routes, and its calls, whose callers have lost their connection to
    /// it. Counters stay. Gives the table its key if it has none.
    pub(super) fn forget_former(&self) -> io::Result<()> {
        self.routing.set_on(false);
        self.routing.set_traced(0);
        self.routing.make_key()?;
        let mut places = lock(&self.places);
        for index in self.table.indexes() {
            if self.table.state(index) != lane_state::FREE {
                self.table.close(index);
                self.table.free(index);
            }
            if self.table.generation(index) > 0 {
                places.was_used(index);
            }
        }
        drop(places);
        clear(&mut lock(&self.sockets)).map_err(io::Error::other)?;
        lock(&self.routes).clear(&self.routing).map_err(io::Error::other)?;
        let mut left = Vec::new();
        self.calls.each(&mut |via, _| left.push(via));
        for via in left {
            self.calls.take(via);
        }
        Ok(())
    }

    /// The application's end, if nothing of either direction has gone by TCP.
    fn untouched_end(&self, socket: BorrowedFd<'_>, read: u64) -> Result<End, String> {
        let leg = self.legs.leg(socket).ok_or("the connection is not enrolled")?;
        if leg.tcp != 0 || leg.generation != self.legs.shared.generation() {
            return Err("what the agent sends goes by TCP".into());
        }
        // What has come not by TCP came from a socket that is enrolled.
        let info = getsockopt(&socket, TcpInfo).map_err(|errno| format!("TCP_INFO: {errno}"))?;
        match (read, info[BYTES_RECEIVED]) {
            (0, _) => Err("nothing has come on it".into()),
            (_, 0) => Ok(leg.peer),
            (_, by_tcp) => Err(format!("{by_tcp} bytes of {read} came by TCP")),
        }
    }
}

impl LanePath for Lanes {
    fn open(&self, socket: BorrowedFd<'_>, read: u64, label: u32, calls_max: u32) -> Result<LaneId, String> {
        let end = self.untouched_end(socket, read)?;
        let mut places = lock(&self.places);
        let index = places.take().ok_or("there are as many lanes as can be")?;
        let bound = self.legs.shared.bound().min(BOUND_MAX);
        let lane = Lane { end, label, calls_max, bound, ..Lane::default() };
        let generation = self.table.open(index, &lane);
        // Last of all: until then, the application's socket is none.
        if let Err(error) = lock(&self.sockets).insert(end, index, 0) {
            self.table.close(index);
            self.table.free(index);
            places.was_used(index);
            return Err(format!("LANES: {error}"));
        }
        Ok(LaneId { index, generation })
    }

    fn is_on(&self) -> bool {
        let both = mode::TO_AGENT | mode::FROM_AGENT;
        self.legs.shared.mode() & both == both
    }

    fn relabel(&self, lane: LaneId, label: u32) {
        let _places = lock(&self.places);
        if self.table.is_open(lane) {
            self.table.set_label(lane.index, label);
        }
    }

    fn pause(&self, lane: LaneId, paused: bool) {
        let _places = lock(&self.places);
        if self.table.is_open(lane) {
            self.table.set_state(lane.index, if paused { lane_state::PAUSED } else { lane_state::OPEN });
        }
    }

    fn settle(&self) {
        // A kernel that cannot say has nothing to wait for.
        let _ = calls::programs_have_ended();
    }

    fn close(&self, lane: LaneId) {
        let _places = lock(&self.places);
        if self.table.is_open(lane) {
            let end = self.table.end(lane.index);
            self.table.close(lane.index);
            // One that is not there was forgotten at the start.
            let _ = lock(&self.sockets).remove(&end);
        }
    }

    fn free(&self, lane: LaneId) {
        let mut places = lock(&self.places);
        let was = self.table.has(lane.index)
            && self.table.generation(lane.index) == lane.generation.wrapping_add(1)
            && self.table.state(lane.index) == lane_state::CLOSED;
        if was {
            self.table.free(lane.index);
            places.was_used(lane.index);
        }
    }

    fn publish(&self, routes: &[LaneRoute]) -> io::Result<Vec<u64>> {
        lock(&self.routes).publish(routes, &self.routing).map_err(io::Error::other)
    }

    fn set_on(&self, on: bool) {
        self.routing.set_on(on);
    }

    fn calls(&self, each: &mut dyn FnMut(u64, &RoutedCall)) {
        self.calls.each(each);
    }

    fn peek(&self, via: u64) -> Option<RoutedCall> {
        self.calls.look(via)
    }

    fn claim(&self, via: u64) -> Option<RoutedCall> {
        self.calls.take(via)
    }

    fn release(&self, call: &RoutedCall) {
        // Nobody gets the place meanwhile.
        let _places = lock(&self.places);
        let callee = LaneId { index: call.callee, generation: call.callee_generation };
        if self.table.is_open(callee) {
            self.table.release(call.callee, u64::from(call.bytes));
        }
    }

    fn look(&self, lane: LaneId) -> Option<LaneLook> {
        self.table.is_open(lane).then(|| self.table.look(lane.index))
    }

    fn member(&self, member: u32) -> Option<RoutedMember> {
        self.members.get(&member, 0).ok()
    }

    fn routed(&self) -> io::Result<Routed> {
        sum(&self.routed).map_err(|error: MapError| io::Error::other(error))
    }

    fn trace(&self, service: u64) -> Result<Box<dyn LaneTrace>, String> {
        self.trace.open(service, &self.routing)
    }
}
