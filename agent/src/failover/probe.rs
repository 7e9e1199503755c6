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
use crate::clock::in_ns;

/// How long an answer may take.
const WITHIN: Duration = Duration::from_secs(1);

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
        hooks.tell_down(address, if why.is_some() { in_ns(believed) } else { 0 });
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

/// An error is as good as `+PONG`: it says that this node has no application there.
async fn ask(address: SocketAddr) -> Result<(), String> {
    let asked = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"PING\r\n").await?;
        let mut answer = [0; 256];
        let len = stream.read(&mut answer).await?;
        // Its first byte says enough.
        Ok::<_, std::io::Error>(answer[..len].first().copied())
    };
    match timeout(WITHIN, asked).await {
        Err(_) => Err(format!("no answer within {} ms", WITHIN.as_millis())),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(Some(b'+' | b'-'))) => Ok(()),
        Ok(Ok(None)) => Err("it has closed the connection".to_owned()),
        Ok(Ok(Some(_))) => Err("what answers there is no agent".to_owned()),
    }
}
