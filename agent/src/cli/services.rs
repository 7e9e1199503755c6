//! `moa services`.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

use super::{
    Global, Out,
    out::OUT,
    table::{
        Side::{Left, Right},
        Table,
    },
    units::{count, micros},
};
use crate::api::{CallStats, Service};

/// Show services, their instances and their calls.
#[derive(Debug, Args)]
pub(super) struct Services {
    /// Only this service, such as /service/user.
    #[arg(value_name = "URI")]
    uri: Option<String>,
}

impl Services {
    pub(super) fn run(self, global: &Global, out: &Out) -> Result<ExitCode> {
        let mut services: Vec<Service> = global.client().get("/v1/services")?;
        if let Some(uri) = self.uri {
            services.retain(|service| service.uri == uri);
            if services.is_empty() {
                bail!("the agent {} knows no service {uri}: `moa services` lists those that it knows", global.name);
            }
        }
        out.show(&services, |services| render(services))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn render(services: &[Service]) -> String {
    if services.is_empty() {
        return "no services: add [services.\"/service/…\"] to the configuration, and `moa config reload`\n".into();
    }
    let mut table = Table::new(&[
        ("SERVICE", Left),
        ("HEALTH", Left),
        ("CALLS", Right),
        ("ERRORS", Right),
        ("IN FLIGHT", Right),
        ("QUEUED", Right),
        ("CONNS", Right),
        ("P50", Right),
        ("P99", Right),
        ("REASON", Left),
    ]);
    for service in services {
        let sum = |of: fn(&crate::api::Instance) -> u64| service.instances.iter().map(of).sum();
        let own = row(&service.uri, health(service), &service.stats, sum(|one| one.queued), sum(|one| one.connections));
        table.row(own.into_iter().chain([format!(
            "timeout {}{}",
            micros(service.timeout_ms.saturating_mul(1000)),
            pipelined(service)
        )]));
        for instance in &service.instances {
            let health = if instance.healthy { OUT.good("up") } else { OUT.bad("down") };
            let own = row(&format!("  {}", instance.address), health, &instance.stats, instance.queued, instance.connections);
            table.row(own.into_iter().chain([instance.reason.clone()]));
        }
    }
    table.render()
}

fn row(name: &str, health: String, stats: &CallStats, queued: u64, connections: u64) -> [String; 9] {
    let errors = stats.mesh_errors + stats.service_errors;
    let numbers = [stats.calls, errors, stats.in_flight, queued, connections].map(count);
    let [calls, errors, in_flight, queued, connections] = numbers;
    [name.to_owned(), health, calls, errors, in_flight, queued, connections, micros(stats.p50_us), micros(stats.p99_us)]
}

fn health(service: &Service) -> String {
    let (all, up) = (service.instances.len(), service.instances.iter().filter(|instance| instance.healthy).count());
    let text = format!("{up}/{all}");
    match up {
        _ if up == all => OUT.good(&text),
        0 => OUT.bad(&text),
        _ => OUT.doubtful(&text),
    }
}

fn pipelined(service: &Service) -> &'static str {
    if service.pipelined { ", pipelined" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Instance;

    #[test]
    fn instances_stand_below_their_service() {
        let instance = |address: &str, healthy, reason: &str, stats| Instance {
            address: address.into(),
            healthy,
            reason: reason.into(),
            connections: 3,
            queued: 1,
            stats,
        };
        let stats =
            |calls| CallStats { calls, mesh_errors: 1, service_errors: 2, in_flight: 4, retries: 0, p50_us: 870, p99_us: 12_300 };
        let services = [Service {
            uri: "/service/user".into(),
            timeout_ms: 4_500,
            pipelined: true,
            stats: stats(1_234_567),
            instances: vec![
                instance("10.0.0.1:5000", true, "answers PING", stats(1_234_560)),
                instance("10.0.0.2:5000", false, "connection refused", CallStats::default()),
            ],
        }];
        let expected = "\
SERVICE          HEALTH      CALLS  ERRORS  IN FLIGHT  QUEUED  CONNS     P50      P99  REASON
/service/user    1/2     1,234,567       3          4       2      6  870 µs  12.3 ms  timeout 4.5 s, pipelined
  10.0.0.1:5000  up      1,234,560       3          4       1      3  870 µs  12.3 ms  answers PING
  10.0.0.2:5000  down            0       0          0       1      3       -        -  connection refused
";
        assert_eq!(render(&services), expected);
    }

    #[test]
    fn no_services_say_what_to_do() {
        assert!(render(&[]).contains("moa config reload"));
    }
}
