//! Text of configurations.

use std::net::SocketAddr;

/// One service's section: its instances, and `policy` as further lines of it.
pub fn service(uri: &str, instances: &[SocketAddr], policy: &str) -> String {
    let list = instances.iter().map(|address| format!("\"{address}\"")).collect::<Vec<_>>().join(", ");
    format!("[services.\"{uri}\"]\ninstances = [{list}]\n{policy}\n")
}

/// Health checks off: for tests in which only the test's own calls may reach the backend.
pub const NO_HEALTH_CHECK: &str = "health = { check = \"off\" }";

/// Health checks that find a change within a tenth of a second.
pub const QUICK_HEALTH_CHECK: &str =
    "health = { check = \"ping\", interval_ms = 50, timeout_ms = 200, healthy_after = 2, unhealthy_after = 2 }";
