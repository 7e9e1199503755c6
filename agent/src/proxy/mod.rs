//! The data plane: workers, application connections, backends, calls in flight.
