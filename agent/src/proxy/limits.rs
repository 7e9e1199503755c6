//! The bounds of one worker.

use std::time::Duration;

use agent_common::frame::Windows;

use super::{frames::Bounds, routes::Routes};
use crate::{
    balance::overload::Places,
    config::{self, Checked, traffic::Priority},
    wire::resp,
};

/// Calls that may wait for a tunnel which is being opened.
const TUNNEL_QUEUE_MAX: usize = 1024;

/// The bounds of one worker: its share of those of the agent, and those of each connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WorkerLimits {
    pub(crate) calls_in_flight_max: usize,
    /// Where calls are refused that matter less.
    pub(crate) places: Places,
    pub(crate) worker_queued_bytes_max: usize,
    pub(crate) queued_bytes_max: usize,
    pub(crate) pipeline_max: usize,
    pub(crate) mget_keys_max: usize,
    pub(crate) mget_timeout_ms: u64,
    pub(crate) stall_timeout: Duration,
    /// Calls of a million that begin a trace.
    pub(crate) sample_per_million: u32,
    pub(crate) app: Bounds,
    pub(crate) tunnel: TunnelLimits,
    /// What a command may have while there is room in the worker.
    pub(crate) command: resp::Limits,
}

/// What concerns other agents.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TunnelLimits {
    pub(crate) bounds: Bounds,
    pub(crate) connections: usize,
    pub(crate) connect_timeout: Duration,
    pub(crate) keepalive: Duration,
    /// Calls that may wait for a tunnel which is being opened.
    pub(crate) queue_max: usize,
}

impl WorkerLimits {
    pub(super) fn of(routes: &Routes, workers: usize) -> Self {
        let config = &routes.checked.config;
        let (calls_in_flight_max, places) = places(&routes.checked, workers);
        Self {
            calls_in_flight_max,
            places,
            // At least one argument of any size must fit.
            worker_queued_bytes_max: (config.agent.queued_bytes_max / workers).max(config.app.argument_bytes_max),
            queued_bytes_max: config.app.queued_bytes_max,
            pipeline_max: config.app.pipeline_max,
            mget_keys_max: config.app.mget_keys_max,
            mget_timeout_ms: config.app.mget_timeout_ms,
            app: Bounds {
                windows: Windows { stream: config.app.stream_window_bytes, connection: config.app.connection_window_bytes },
                calls_max: config.app.pipeline_max,
                queued_bytes_max: config.app.queued_bytes_max,
                calls_bytes_max: config.app.queued_bytes_max.max(config.tunnel.queued_bytes_max),
            },
            tunnel: TunnelLimits::of(&config.tunnel),
            sample_per_million: config.tracing.sample_per_million,
            stall_timeout: Duration::from_millis(config.app.stall_timeout_ms),
            command: resp::Limits {
                argument_bytes_max: config.app.argument_bytes_max,
                command_bytes_max: config.app.command_bytes_max,
            },
        }
    }
}

/// Calls that a worker may have in flight, and where those are refused that matter less.
pub(super) fn places(checked: &Checked, workers: usize) -> (usize, Places) {
    let config = &checked.config;
    let max = (config.agent.calls_in_flight_max / workers.max(1)).max(1);
    let matters = |priority| priority == Priority::High;
    let keeps = matters(config.defaults.priority) || checked.services.iter().any(|service| matters(service.policy.priority));
    (max, Places::new(max, config.overload.calls_percent, keeps))
}

impl TunnelLimits {
    pub(super) fn of(tunnel: &config::Tunnel) -> Self {
        Self {
            bounds: Bounds {
                windows: Windows { stream: tunnel.stream_window_bytes, connection: tunnel.connection_window_bytes },
                calls_max: tunnel.calls_max,
                queued_bytes_max: tunnel.queued_bytes_max,
                calls_bytes_max: tunnel.queued_bytes_max,
            },
            connections: tunnel.connections,
            connect_timeout: Duration::from_millis(tunnel.connect_timeout_ms),
            keepalive: Duration::from_millis(tunnel.keepalive_ms),
            queue_max: tunnel.calls_max.min(TUNNEL_QUEUE_MAX),
        }
    }
}
