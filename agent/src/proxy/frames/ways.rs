//! The ways to instances that are reached in frames: to other agents, to applications that have dialled in, to other workers.

use std::{rc::Rc, sync::Arc};

use super::{
    tunnel::{To, Tunnel},
    upstream::{Remote, Target, pin_of},
};
use crate::proxy::{
    routes::{AgentRoute, Endpoint, Member},
    stats::CallCounters,
    worker::Worker,
};

impl Worker {
    /// Opens the ways to other agents, and closes those that are no longer wanted.
    pub(in crate::proxy) fn follow_agents(self: &Rc<Self>, agents: &[Arc<AgentRoute>]) {
        let mut tunnels = self.tunnels.borrow_mut();
        let mut former = std::mem::take(&mut *tunnels);
        for agent in agents {
            let known = former.remove(&agent.name).filter(|(route, tunnel)| {
                let same = Arc::ptr_eq(route, agent);
                if !same {
                    tunnel.retire();
                }
                same
            });
            let tunnel = known.map_or_else(|| self.tunnel_to(agent), |(_, tunnel)| tunnel);
            tunnels.insert(agent.name.clone(), (agent.clone(), tunnel));
        }
        former.into_values().for_each(|(_, tunnel)| tunnel.retire());
    }

    fn tunnel_to(self: &Rc<Self>, agent: &Arc<AgentRoute>) -> Rc<Tunnel> {
        let AgentRoute { name, address, health } = &**agent;
        let to = To::Agent { name: name.clone(), address: *address, health: health.clone() };
        let tunnel = Rc::new(Tunnel::new(to));
        tunnel.keep(self, self.limits().tunnel.connections);
        tunnel
    }

    /// The way to an instance that is reached in frames.
    pub(in crate::proxy) fn remote(self: &Rc<Self>, member: &Member, slot: u32, counters: Arc<CallCounters>) -> Option<Remote> {
        let mut pin = 0;
        let target = match &member.instance.endpoint {
            Endpoint::Redis(_) => return None,
            Endpoint::Agent(name) => Target::By(self.tunnels.borrow().get(name)?.1.clone()),
            Endpoint::Application(..) => {
                let frames = self.frames.borrow();
                let own = member.conns.iter().filter(|conn| conn.worker == self.id());
                let conns: Vec<_> = own.filter_map(|conn| frames.get(&conn.id).cloned()).collect();
                drop(frames);
                match member.conns.get(self.id() % member.conns.len().max(1)) {
                    _ if !conns.is_empty() => {
                        counters.connections.set(conns.len() as u64);
                        Target::Here(conns)
                    }
                    Some(conn) if conn.worker != self.id() => {
                        pin = pin_of(conn.id);
                        Target::By(self.tunnel_to_worker(conn.worker))
                    }
                    _ => return None,
                }
            }
        };
        Some(Remote { instance: member.instance.clone(), counters, slot, pin, target })
    }

    /// The way to another worker, which is opened when it is first needed.
    fn tunnel_to_worker(self: &Rc<Self>, worker: usize) -> Rc<Tunnel> {
        let mut tunnels = self.workers_tunnels.borrow_mut();
        let tunnel = tunnels.entry(worker).or_insert_with(|| {
            let tunnel = Rc::new(Tunnel::new(To::Worker(worker)));
            tunnel.keep(self, 1);
            tunnel
        });
        tunnel.clone()
    }
}
