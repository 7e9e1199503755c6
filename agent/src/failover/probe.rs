//! Whether a sibling takes applications: asked again and again, while there is an agent to ask.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    time::{sleep, timeout},
};
use tracing::{info, warn};

use super::hooks::Hooks;
use crate::clock::now_ns;

/// How long an answer may take.
const WITHIN: Duration = Duration::from_secs(1);
/// What an agent that leaves, or has too much to do, says to whoever connects.
const LOADING: &str = "-LOADING ";

/// What was seen of a sibling.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) alive: bool,
    /// Why it is not.
    pub(crate) why: Option<String>,
}

/// Looks at a sibling until it is aborted, and tells the kernel.
pub(crate) async fn keep_looking(hooks: Arc<dyn Hooks>, address: SocketAddr, every: Duration, told: watch::Sender<Seen>) {
    // The kernel believes in it from the start, and learns otherwise by itself, too.
    let mut known = None;
    loop {
        let why = ask(address).await.err();
        // Believed for as long as it takes to ask again, and again.
        let believed = every * 3 + WITHIN;
        let until = u64::try_from(believed.as_nanos()).map_or(u64::MAX, |time| now_ns().saturating_add(time));
        hooks.tell_down(address, if why.is_some() { until } else { 0 });
        match (&known, &why) {
            (Some(Some(_)), None) => info!(sibling = %address, "takes applications again"),
            (None | Some(None), Some(why)) => warn!(sibling = %address, why, "takes no applications"),
            _ => {}
        }
        told.send_replace(Seen { alive: why.is_none(), why: why.clone() });
        known = Some(why);
        sleep(every.mul_f64(rand::random_range(0.9..1.1))).await;
    }
}

/// An error of any other kind than [`LOADING`] is as good as `+PONG`: it says that this node has no application there.
async fn ask(address: SocketAddr) -> Result<(), String> {
    let asked = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"PING\r\n").await?;
        let mut answer = [0; 256];
        let len = stream.read(&mut answer).await?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer[..len]).trim_end().to_owned())
    };
    match timeout(WITHIN, asked).await {
        Err(_) => Err(format!("no answer within {} ms", WITHIN.as_millis())),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(answer)) => match answer.strip_prefix(LOADING) {
            Some(why) => Err(why.to_owned()),
            None if answer.starts_with(['+', '-']) => Ok(()),
            None if answer.is_empty() => Err("it has closed the connection".to_owned()),
            None => Err("what answers there is no agent".to_owned()),
        },
    }
}
