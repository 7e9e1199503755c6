//! Calls a service through an agent, so many times with so many calls at once:
//!
//! ```text
//! cargo run --release -p agent-common --features sdk --example client -- \
//!     --agent 127.0.0.1:13000 --uri /service/user --method get --body '{"id":7}' --calls 1000 --at-once 128
//! ```
//!
//! `--agent` may be given again for siblings, and be `unix:` and a path. With one call the answer is printed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use agent_common::sdk::{Client, Error, Request};

struct Arguments {
    agents: Vec<String>,
    request: Request,
    calls: usize,
    at_once: usize,
}

fn arguments() -> Result<Arguments, String> {
    let (mut agents, mut uri, mut method, mut body) = (Vec::new(), None, None, String::new());
    let (mut calls, mut at_once) = (1, 1);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
        let number = || value.parse::<usize>().map_err(|_| format!("{word} needs a number"));
        match &word[..] {
            "--agent" => agents.push(value),
            "--uri" => uri = Some(value),
            "--method" => method = Some(value),
            "--body" => body = value,
            "--calls" => calls = number()?,
            "--at-once" => at_once = number()?.max(1),
            _ => return Err(format!("there is no option {word}: --agent, --uri, --method, --body, --calls, --at-once")),
        }
    }
    if agents.is_empty() {
        agents.push("127.0.0.1:13000".to_owned());
    }
    let mut request = Request::new(&uri.ok_or("--uri is missing")?).timeout(Duration::from_secs(5)).idempotent(true);
    if let Some(method) = method {
        request = request.method(&method);
    }
    Ok(Arguments { agents, request: request.body(body), calls, at_once })
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let Arguments { agents, request, calls, at_once } = arguments()?;
    let client = Client::builder("example-client").agents(agents).connect().await?;
    if calls == 1 {
        let answer = client.call(request).await?;
        println!("{}", String::from_utf8_lossy(&answer.body.bytes().await?));
        return Ok(());
    }
    let begun = Instant::now();
    let next = Arc::new(AtomicUsize::new(0));
    let callers: Vec<_> = (0..at_once)
        .map(|_| {
            let (client, request, next) = (client.clone(), request.clone(), Arc::clone(&next));
            tokio::spawn(async move {
                while next.fetch_add(1, Relaxed) < calls {
                    client.call(request.clone()).await?.body.bytes().await?;
                }
                Ok::<_, Error>(())
            })
        })
        .collect();
    for caller in callers {
        caller.await??;
    }
    let took = begun.elapsed();
    println!("{calls} calls in {took:?}: {:?} each", took / u32::try_from(calls)?);
    Ok(())
}
