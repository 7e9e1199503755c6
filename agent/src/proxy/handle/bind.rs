//! Binds everything that is connected to, before anything is served.

use std::{io, net::SocketAddr, os::unix::net::UnixListener, path::PathBuf};

use crate::{
    config::Checked,
    proxy::{
        listen::{self, Listeners},
        path::KernelPath,
    },
};

/// Why the data plane does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address of the applications can't be listened on.
    #[error("can't listen on {address} for applications: {source}; is another agent running? Use another --name or app.listen")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The unix socket of the applications can't be listened on.
    #[error("can't listen on {path} for applications: {source}; is another agent running? Use another app.unix", path = path.display())]
    Unix {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The address of the other agents can't be listened on.
    #[error(
        "can't listen on {address} for other agents: {source}; is another agent running? Use another --name or tunnel.listen"
    )]
    Tunnel {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The address of other agents' applications can't be listened on.
    #[error(
        "can't listen on {address} for applications of other agents: {source}; is another agent running? Use another failover.listen"
    )]
    Foreign {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A thread can't be started.
    #[error("can't start worker {worker}: {source}")]
    Thread {
        /// Which.
        worker: usize,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Binds everything that applications and other agents connect to, for each worker.
pub(super) fn bind(checked: &Checked, workers: usize, kernel: Option<&dyn KernelPath>) -> Result<Vec<Listeners>, StartError> {
    let address = checked.config.app.listen;
    let apps = listen::bind(address, workers, kernel).map_err(|source| StartError::Listen { address, source })?;
    let address = checked.config.tunnel.listen;
    let agents = listen::bind(address, workers, kernel).map_err(|source| StartError::Tunnel { address, source })?;
    let unix = match &checked.config.app.unix {
        None => None,
        Some(path) => {
            let bound = listen::bind_unix(path);
            Some(bound.map_err(|source| StartError::Unix { path: path.clone(), source })?)
        }
    };
    let mut foreign = match checked.config.failover.listen {
        None => Vec::new(),
        // Not by way of the kernel: they come from other nodes.
        Some(address) => listen::bind(address, workers, None).map_err(|source| StartError::Foreign { address, source })?,
    };
    let listeners = apps.into_iter().zip(agents).map(|(app, agents)| {
        // Each worker has a descriptor of its own of the same socket.
        let unix = unix.as_ref().map(UnixListener::try_clone).transpose();
        let path = checked.config.app.unix.clone().unwrap_or_default();
        let unix = unix.map_err(|source| StartError::Unix { path, source })?;
        Ok(Listeners { app, agents, unix, foreign: foreign.pop() })
    });
    listeners.collect()
}
