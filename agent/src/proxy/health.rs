//! Active health checks: one task an instance, on a runtime of their own, away from the workers.

use std::{collections::HashMap, io, sync::Arc, time::Duration};

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tracing::{info, warn};

use super::{
    dial::{Dialled, Server},
    routes::{Endpoint, Instance, Routes},
};
use crate::{
    config::{Health as Policy, HealthCheck},
    netns::{Namespaces, absent},
    wire::{
        envelope::scan_reply_code,
        reply::{ReplyHead, array_of_bulks, parse_head},
    },
};

/// An answer to a check is not read further than this.
const ANSWER_MAX: usize = 1 << 20;

/// The checks that run.
#[derive(Debug)]
pub(crate) struct Checks {
    running: HashMap<(Arc<str>, Server), (Policy, JoinHandle<()>)>,
    namespaces: Arc<Namespaces>,
}

impl Checks {
    pub(crate) fn new(namespaces: Arc<Namespaces>) -> Self {
        Self { running: HashMap::new(), namespaces }
    }

    /// Follows a new configuration: checks of what stays as it was go on.
    pub(crate) fn apply(&mut self, routes: &Routes) {
        let mut former = std::mem::take(&mut self.running);
        for service in &routes.services {
            for instance in service.members.iter().map(|member| &member.instance) {
                // Others say themselves that they are there.
                let Endpoint::Redis(server) = &instance.endpoint else { continue };
                let key = (service.key.clone(), server.clone());
                let policy = &service.policy.health;
                let check = match former.remove(&key) {
                    Some((same, task)) if same == *policy => task,
                    other => {
                        if let Some((_, task)) = other {
                            task.abort();
                        }
                        let checked = Checked {
                            uri: service.uri.clone(),
                            server: server.clone(),
                            instance: instance.clone(),
                            policy: policy.clone(),
                            namespaces: self.namespaces.clone(),
                        };
                        tokio::spawn(checked.run())
                    }
                };
                self.running.insert(key, (policy.clone(), check));
            }
        }
        for (_, task) in former.into_values() {
            task.abort();
        }
    }
}

impl Drop for Checks {
    fn drop(&mut self) {
        self.running.values().for_each(|(_, task)| task.abort());
    }
}

/// An instance that is checked.
struct Checked {
    uri: Arc<str>,
    server: Server,
    instance: Arc<Instance>,
    policy: Policy,
    namespaces: Arc<Namespaces>,
}

impl Checked {
    /// Checks it for as long as its namespace is there. While it is not, no call can reach it.
    async fn run(self) {
        let Some(name) = &self.server.namespace else { return check(&self).await };
        let health = &self.instance.health;
        loop {
            if self.namespaces.find(name).is_none() {
                health.set(false, absent(name));
                info!(service = %self.uri, instance = %self.instance.name, "its namespace isn't there: it gets no calls");
            }
            let Some(namespace) = self.namespaces.wait_for(name).await else { return };
            health.set(true, "its namespace is there, and it is not checked yet");
            tokio::select! {
                () = namespace.gone() => {}
                () = async {
                    check(&self).await;
                    std::future::pending::<()>().await;
                } => {}
            }
        }
    }
}

async fn check(checked: &Checked) {
    let Checked { uri, server, instance, policy, namespaces } = checked;
    let request = match (policy.check, &policy.call) {
        (HealthCheck::Off, _) => return instance.health.set(true, "not checked"),
        (HealthCheck::Call, Some(call)) => array_of_bulks(&[b"GET", call.as_bytes()]),
        _ => array_of_bulks(&[b"PING"]),
    };
    let interval = Duration::from_millis(policy.interval_ms);
    let mut probe = Probe { server, namespaces, request, stream: None };
    let (mut good, mut bad) = (0u32, 0u32);
    // A thousand instances are not all asked in the same millisecond.
    sleep(interval.mul_f64(rand::random_range(0.0..0.2))).await;
    loop {
        let outcome = probe.ask(Duration::from_millis(policy.timeout_ms)).await;
        let healthy = instance.health.is_healthy();
        match outcome {
            Ok(()) => {
                (good, bad) = (good.saturating_add(1), 0);
                if !healthy && good >= policy.healthy_after {
                    info!(service = %uri, instance = %instance.name, "instance is healthy again");
                    instance.health.set(true, "answers its health check");
                } else if healthy {
                    instance.health.set(true, "answers its health check");
                }
            }
            Err(reason) => {
                (good, bad) = (0, bad.saturating_add(1));
                if healthy && bad >= policy.unhealthy_after {
                    warn!(service = %uri, instance = %instance.name, %reason, "instance is unhealthy: it gets no calls");
                    instance.health.set(false, format!("failed its health check {bad} times: {reason}"));
                } else if healthy {
                    instance
                        .health
                        .set(true, format!("failed its health check {bad} times of {}: {reason}", policy.unhealthy_after));
                }
            }
        }
        sleep(interval.mul_f64(rand::random_range(0.9..1.1))).await;
    }
}

/// One instance's check, over a connection that is kept.
struct Probe<'a> {
    server: &'a Server,
    namespaces: &'a Namespaces,
    request: Vec<u8>,
    stream: Option<Dialled>,
}

impl Probe<'_> {
    async fn ask(&mut self, within: Duration) -> Result<(), String> {
        let kept = self.stream.take();
        let was_kept = kept.is_some();
        let first = self.try_once(kept, within).await;
        match first {
            // A kept connection that the server has closed says nothing of its health.
            Err(Failed::Io(_)) if was_kept => self.try_once(None, within).await,
            other => other,
        }
        .map_err(|failed| match failed {
            Failed::Io(error) => error.to_string(),
            Failed::Late => format!("no answer within {} ms", within.as_millis()),
            Failed::Answer(answer) => answer,
        })
    }

    async fn try_once(&mut self, kept: Option<Dialled>, within: Duration) -> Result<(), Failed> {
        let asked = timeout(within, async {
            let mut dialled = match kept {
                Some(dialled) => dialled,
                None => self.server.connect(self.namespaces, None).await?,
            };
            dialled.stream.write_all(&self.request).await?;
            answer(&mut dialled.stream).await?;
            Ok::<_, Failed>(dialled)
        });
        self.stream = Some(asked.await.map_err(|_| Failed::Late)??);
        Ok(())
    }
}

enum Failed {
    Io(io::Error),
    Late,
    Answer(String),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

async fn answer(stream: &mut TcpStream) -> Result<(), Failed> {
    let mut buffer = BytesMut::new();
    loop {
        if stream.read_buf(&mut buffer).await? == 0 {
            return Err(Failed::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        let head = parse_head(&buffer).map_err(|error| Failed::Answer(error.to_string()))?;
        match head {
            Some(ReplyHead::Line { kind: b'+', .. }) => return Ok(()),
            Some(ReplyHead::Line { len, .. }) => {
                return Err(Failed::Answer(String::from_utf8_lossy(&buffer[..len]).trim_end().to_owned()));
            }
            Some(ReplyHead::Null { .. }) => return Err(Failed::Answer("a null reply".to_owned())),
            Some(ReplyHead::Bulk { header, len }) if buffer.len() >= header + len + 2 => {
                return match scan_reply_code(&buffer[header..header + len]) {
                    Some(0 | 200) => Ok(()),
                    Some(code) => Err(Failed::Answer(format!("it answered with ec {code}"))),
                    None => Err(Failed::Answer("its answer has no `ec`".to_owned())),
                };
            }
            _ if buffer.len() > ANSWER_MAX => return Err(Failed::Answer(format!("its answer has more than {ANSWER_MAX} bytes"))),
            _ => {}
        }
    }
}
