//! What a fake server counts.

/// What a fake server has counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections taken.
    pub accepted: usize,
    /// Connections open.
    pub open: usize,
    /// Connections that the other side ended.
    pub ended_by_peer: usize,
    /// Calls, whole ones.
    pub calls: usize,
    /// PINGs.
    pub pings: usize,
    /// Calls that are neither answered nor lost with their connection.
    pub in_flight: usize,
    /// The most of them at the same time.
    pub in_flight_max: usize,
    /// The most of them at the same time on one connection.
    pub in_flight_max_per_connection: usize,
    /// Requests that a server of 2016 never answers, such as bad JSON.
    pub unanswerable: usize,
    /// Results that were not written when they were there: they wait for the next call, or for their turn.
    pub kept: usize,
    /// Bytes received.
    pub bytes: usize,
}

impl Counts {
    pub(super) fn arrived(&mut self, on_connection: usize) {
        self.calls += 1;
        self.in_flight += 1;
        self.in_flight_max = self.in_flight_max.max(self.in_flight);
        self.in_flight_max_per_connection = self.in_flight_max_per_connection.max(on_connection);
    }

    pub(super) fn left(&mut self, calls: usize) {
        self.in_flight -= calls;
    }
}
