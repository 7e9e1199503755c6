//! Takes over a new configuration, one reload at a time, whoever asks for it.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use tokio::sync::{mpsc, oneshot};

use super::Node;
use crate::{
    api,
    config::{self, Checked, ConfigError, Given},
    proxy::ApplyError,
};

/// Reloads that may wait for each other.
const WAITING_MAX: usize = 8;

/// Why a configuration was not taken over; what was in force stays.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The file can't be read, or is not valid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// It changes what only a restart can change, or a worker does not answer.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// It moves the metrics.
    #[error("metrics.listen can't be changed while the agent runs (it is {now}): restart it, or keep the former value")]
    Metrics {
        /// Where they are.
        now: SocketAddr,
    },
    /// Too many wait, or the agent ends.
    #[error("the agent takes no more reloads: {WAITING_MAX} are waiting, or it is about to end; try again")]
    Busy,
}

/// Asks for reloads.
#[derive(Debug, Clone)]
pub struct Reloader(mpsc::Sender<oneshot::Sender<Result<api::ConfigSource, ReloadError>>>);

/// A handle to ask for reloads, and the task that does them: it reads the file at `path`, or takes the defaults if there is none.
pub fn reloader(node: Arc<Node>, path: Option<PathBuf>, given: Given) -> (Reloader, impl Future<Output = ()>) {
    let (asks, mut asked) = mpsc::channel::<oneshot::Sender<_>>(WAITING_MAX);
    let task = async move {
        while let Some(answer) = asked.recv().await {
            let result = reload(&node, path.clone(), given).await;
            match &result {
                Ok(source) => tracing::info!(generation = source.generation, "configuration taken over"),
                Err(error) => {
                    tracing::error!(%error, "configuration refused; the former one stays in force");
                    node.refuse(&error.to_string());
                }
            }
            // Whoever asked may have given up.
            let _ = answer.send(result);
        }
    };
    (Reloader(asks), task)
}

impl Reloader {
    /// Reads the file again and takes it over if all of it is valid.
    ///
    /// # Errors
    /// Why what was in force stays.
    pub async fn reload(&self) -> Result<api::ConfigSource, ReloadError> {
        let (answer, answered) = oneshot::channel();
        self.0.try_send(answer).map_err(|_| ReloadError::Busy)?;
        answered.await.unwrap_or(Err(ReloadError::Busy))
    }
}

async fn reload(node: &Node, path: Option<PathBuf>, given: Given) -> Result<api::ConfigSource, ReloadError> {
    let checked = Arc::new(read(path, given).await?);
    let now = node.loaded().checked.config.metrics.listen;
    if checked.config.metrics.listen != now {
        return Err(ReloadError::Metrics { now });
    }
    node.proxy.apply(checked.clone()).await?;
    Ok(node.take_over(checked))
}

/// Reads a file away from the thread that checks health and answers operators.
async fn read(path: Option<PathBuf>, given: Given) -> Result<Checked, ReloadError> {
    let read = move || match path {
        Some(path) => config::load(&path, &given),
        None => config::parse("", "the defaults", &given).map_err(ConfigError::from),
    };
    Ok(tokio::task::spawn_blocking(read).await.map_err(|_| ReloadError::Busy)??)
}
