//! Network namespaces in numbers.

use std::fmt::Error;

use super::scrape::{Out, Scrape};

impl Scrape {
    pub(super) fn namespaces(&self, out: &mut Out<'_>) -> Result<(), Error> {
        let status = &self.namespaces;
        out.gauge("moa_namespaces_served", "Network namespaces that the agent listens in", None, status.served)?;
        out.gauge("moa_namespaces_failed", "Files of network namespaces that are not served", None, status.failed)?;
        let help = "Network namespaces that the agent began to listen in";
        out.counter("moa_namespaces_opened", help, None, status.opened_total)?;
        out.counter("moa_namespaces_closed", "Network namespaces that went", None, status.closed_total)?;
        let help = "Tries to listen in a network namespace that failed";
        out.counter("moa_namespaces_open_failures", help, None, status.failed_total)
    }
}
