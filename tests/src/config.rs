//! Text of configurations.

use std::{fmt::Display, net::SocketAddr, path::Path};

/// One service's section: its instances, and `policy` as further lines of it.
pub fn service(uri: &str, instances: &[SocketAddr], policy: &str) -> String {
    served_by(uri, instances, &[], policy)
}

/// One service's section: its instances, the peers that serve it, and `policy` as further lines of it. With neither, only applications
/// that offer it serve it.
pub fn served_by(uri: &str, instances: &[SocketAddr], agents: &[&str], policy: &str) -> String {
    let (instances, agents) = (list(instances), list(agents));
    format!("[services.\"{uri}\"]\ninstances = {instances}\nagents = {agents}\n{policy}\n")
}

/// The section of another agent, which listens for agents at `address`.
pub fn peer(name: &str, address: SocketAddr) -> String {
    format!("[peers.\"{name}\"]\naddress = \"{address}\"\n")
}

/// The section `[app]` with a unix socket, and further lines of it.
pub fn app_unix(path: &Path, more: &str) -> String {
    format!("[app]\nunix = \"{}\"\n{more}\n", path.display())
}

fn list(elements: &[impl Display]) -> String {
    let elements: Vec<_> = elements.iter().map(|element| format!("\"{element}\"")).collect();
    format!("[{}]", elements.join(", "))
}

/// Health checks off: for tests in which only the test's own calls may reach the backend.
pub const NO_HEALTH_CHECK: &str = "health = { check = \"off\" }";

/// Health checks that find a change within a tenth of a second.
pub const QUICK_HEALTH_CHECK: &str =
    "health = { check = \"ping\", interval_ms = 50, timeout_ms = 200, healthy_after = 2, unhealthy_after = 2 }";
