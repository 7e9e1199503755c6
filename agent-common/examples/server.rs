//! Offers a service through an agent, and answers with what it is sent until a line, or the end, comes from the terminal:
//!
//! ```text
//! cargo run --release -p agent-common --features sdk --example server -- /service/user 127.0.0.1:13000
//! ```
//!
//! Further addresses are those of siblings, and one may be `unix:` and a path.

use agent_common::sdk::{Body, Call, Reply, Server};

/// Sends back what comes: at once if it has come, else piece by piece.
async fn echo(call: Call) -> Reply {
    let (sender, body) = Body::channel();
    let mut incoming = call.body;
    let Some(first) = incoming.next().await else { return Reply::new("") };
    match first {
        Ok(first) if incoming.is_empty() => return Reply::new(first),
        Ok(first) => tokio::spawn(async move {
            sender.send(first).await?;
            while let Some(piece) = incoming.next().await {
                sender.send(piece?).await?;
            }
            sender.finish().await?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
        }),
        Err(error) => return Reply::error(error.status(), error.text()),
    };
    Reply::new(body)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut words = std::env::args().skip(1);
    let uri = words.next().ok_or("usage: server URI [AGENT…]")?;
    let mut agents: Vec<String> = words.collect();
    if agents.is_empty() {
        agents.push("127.0.0.1:13000".to_owned());
    }
    let handle = Server::builder("example-server").agents(agents).offer(&uri).serve(echo).await?;
    println!("{uri} can be called");
    // A thread of its own: reading from the terminal blocks.
    let (tell, told) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || tell.send(std::io::stdin().read_line(&mut String::new())));
    let _ = told.await;
    handle.shutdown().await;
    Ok(())
}
