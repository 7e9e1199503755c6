//! How much agents have to bear, as they tell each other: calls that one of them would refuse go to others.

use agent_common::frame::{Header, Kind};

use super::conn::{FrameConn, Side};
use crate::{balance::overload::Level, proxy::worker::Worker};

impl Worker {
    /// Tells all agents that send calls how much this one has to bear.
    pub(in crate::proxy) fn tell_agents(&self) {
        self.turn_begins();
        let level = self.pressure().level();
        let frames = self.frames.borrow();
        for conn in frames.values().filter(|conn| conn.side == Side::AgentIn && conn.hello().is_some()) {
            conn.tell_load(level);
        }
    }

    /// Tells an agent that has just connected, if there is anything to tell.
    pub(super) fn tell_agent(&self, conn: &FrameConn) {
        let level = self.pressure().level();
        if conn.side == Side::AgentIn && level > Level::Calm {
            conn.tell_load(level);
        }
    }
}

impl FrameConn {
    fn tell_load(&self, level: Level) {
        let header = Header { kind: Kind::LOAD, word: u32::from(level.number()), ..Header::new(Kind::Ping) };
        self.control(&header, &[]);
    }

    /// The agent at the other end says how much it has to bear.
    pub(super) fn told_load(&self, header: &Header) {
        if let Some(health) = self.health() {
            health.set_load(Level::of_number(u8::try_from(header.word).unwrap_or(u8::MAX)));
        }
    }
}
