//! `moa services`.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

use super::{
    Global, Out,
    client::encoded,
    out::OUT,
    table::{
        Side::{Left, Right},
        Table,
    },
    units::{age, count, micros, percent, printable},
};
use crate::api::{CallStats, Instance, Level, Method, Service};

/// Show services, their instances and their calls.
#[derive(Debug, Args)]
pub(super) struct Services {
    /// Only this service, such as /service/user, with all that is known of its instances; /service/user#two is one of its groups.
    #[arg(value_name = "URI")]
    uri: Option<String>,
    /// Show its calls by method.
    #[arg(long, requires = "uri")]
    methods: bool,
}

impl Services {
    pub(super) fn run(self, global: &Global, out: &Out) -> Result<ExitCode> {
        let Some(uri) = self.uri else {
            let services: Vec<Service> = global.client().get("/v1/services")?;
            out.show(&services, |services| render(services))?;
            return Ok(ExitCode::SUCCESS);
        };
        let path = format!("/v1/services?service={}&methods={}", encoded(&uri), self.methods);
        let mut services: Vec<Service> = global.client().get(&path)?;
        // Agents of former versions give all.
        services.retain(|service| service.uri == uri || service.uri.split('#').next() == Some(&uri));
        if services.is_empty() {
            bail!("the agent {} knows no service {uri}: `moa services` lists those that it knows", global.name);
        }
        let text = if self.methods { render_methods } else { render_one };
        out.show(&services, |services| services.iter().map(text).collect::<Vec<_>>().join("\n"))?;
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
        let sum = |of: fn(&Instance) -> u64| service.instances.iter().map(of).sum();
        let own = row(&service.uri, health(service), &service.stats, sum(|one| one.queued), sum(|one| one.connections));
        table.row(own.into_iter().chain([limits(service)]));
        for instance in &service.instances {
            let name = format!("  {}", instance.address);
            let own = row(&name, state(instance), &instance.stats, instance.queued, instance.connections);
            table.row(own.into_iter().chain([reason(instance)]));
        }
    }
    table.render()
}

fn row(name: &str, health: String, stats: &CallStats, queued: u64, connections: u64) -> [String; 9] {
    let numbers = [stats.calls, errors(stats), stats.in_flight, queued, connections].map(count);
    let [calls, errors, in_flight, queued, connections] = numbers;
    [name.to_owned(), health, calls, errors, in_flight, queued, connections, micros(stats.p50_us), micros(stats.p99_us)]
}

/// One service in detail. What there is to say of an instance stands below it.
fn render_one(service: &Service) -> String {
    let mut table = Table::new(&[
        ("INSTANCE", Left),
        ("STATE", Left),
        ("LEVEL", Left),
        ("WEIGHT", Right),
        ("SHARE", Right),
        ("EWMA", Right),
        ("P99", Right),
        ("CALLS", Right),
        ("ERRORS", Right),
        ("IN FLIGHT", Right),
        ("QUEUED", Right),
    ]);
    for instance in &service.instances {
        let stats = &instance.stats;
        table.row([
            instance.address.clone(),
            state(instance),
            level(instance.level).to_owned(),
            if instance.weight == 0 { "-".to_owned() } else { count(instance.weight.into()) },
            instance.share.map_or_else(|| "-".to_owned(), |share| percent(share.share)),
            micros(instance.ewma_us),
            micros(stats.p99_us),
            count(stats.calls),
            count(errors(stats)),
            count(stats.in_flight),
            count(instance.queued),
        ]);
        notes(instance).iter().for_each(|note| table.note(note));
    }
    head(service) + &table.render()
}

fn head(service: &Service) -> String {
    let CallStats { calls, mesh_errors, service_errors, in_flight, retries, p50_us, p99_us } = service.stats;
    let mut text = format!("{}: {} up, {}", OUT.bold(&service.uri), health(service), limits(service));
    if !service.balance.is_empty() {
        text += &format!(", {}", service.balance);
    }
    text += &format!(
        "\n{} calls, errors: {} of the mesh, {} of the service; {} in flight, {} retries, p50 {}, p99 {}\n",
        count(calls),
        count(mesh_errors),
        count(service_errors),
        count(in_flight),
        count(retries),
        micros(p50_us),
        micros(p99_us)
    );
    if service.instances.iter().any(|instance| instance.share.is_some_and(|share| share.panic)) {
        text += &OUT.bad("so few instances can be used that all get calls (balance.panic_percent)\n");
    }
    text
}

/// What is to be said of an instance besides its numbers.
fn notes(instance: &Instance) -> Vec<String> {
    let mut notes = vec![reason(instance)];
    let labels = instance.labels.iter().map(|(name, value)| format!("{name} = {value:?}"));
    let environment = (!instance.environment.is_empty()).then(|| format!("environment {:?}", instance.environment));
    let traits: Vec<_> = environment.into_iter().chain(labels).collect();
    if !traits.is_empty() {
        notes.push(traits.join(", "));
    }
    if instance.ejections > 0 {
        notes.push(format!("taken out of traffic {} since the start", times(instance.ejections)));
    }
    let starting = instance.share.filter(|share| share.weight_now < f64::from(instance.weight));
    notes.extend(starting.map(|share| format!("starts slowly: weighs {:.0} now", share.weight_now)));
    notes.retain(|note| !note.is_empty());
    notes
}

fn render_methods(service: &Service) -> String {
    let mut table = Table::new(&[
        ("METHOD", Left),
        ("CALLS", Right),
        ("SERVICE ERRORS", Right),
        ("MESH ERRORS", Right),
        ("P50", Right),
        ("P99", Right),
    ]);
    let mut methods: Vec<&Method> = service.methods.iter().filter(|method| method.stats.calls > 0).collect();
    methods.sort_by_key(|method| std::cmp::Reverse(method.stats.calls));
    for Method { name, stats } in methods {
        table.row([
            if name.is_empty() { OUT.dim("(all others)") } else { printable(name) },
            count(stats.calls),
            count(stats.service_errors),
            count(stats.mesh_errors),
            micros(stats.p50_us),
            micros(stats.p99_us),
        ]);
    }
    head(service) + &table.render()
}

fn times(n: u64) -> String {
    if n == 1 { "once".to_owned() } else { format!("{} times", count(n)) }
}

/// Why an instance gets calls or not.
fn reason(instance: &Instance) -> String {
    match &instance.ejected {
        Some(ejected) if instance.healthy => format!("out of traffic for {}: {}", age(ejected.for_ms), ejected.reason),
        _ => instance.reason.clone(),
    }
}

fn state(instance: &Instance) -> String {
    match (instance.healthy, &instance.ejected) {
        (true, None) => OUT.good("up"),
        (true, Some(_)) => OUT.bad("out"),
        (false, _) => OUT.bad("down"),
    }
}

/// How far something is, in a word.
pub(super) fn level(level: Option<Level>) -> &'static str {
    match level {
        Some(Level::Node) => "node",
        Some(Level::Zone) => "zone",
        Some(Level::DataCentre) => "centre",
        Some(Level::Elsewhere) => "far",
        None => "-",
    }
}

fn errors(stats: &CallStats) -> u64 {
    stats.mesh_errors + stats.service_errors
}

fn health(service: &Service) -> String {
    let is_up = |instance: &&Instance| instance.healthy && instance.ejected.is_none();
    let (all, up) = (service.instances.len(), service.instances.iter().filter(is_up).count());
    let text = format!("{up}/{all}");
    match up {
        _ if up == all => OUT.good(&text),
        0 => OUT.bad(&text),
        _ => OUT.doubtful(&text),
    }
}

fn limits(service: &Service) -> String {
    let pipelined = if service.pipelined { ", pipelined" } else { "" };
    format!("timeout {}{pipelined}", micros(service.timeout_ms.saturating_mul(1000)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Ejected, InstanceShare};

    fn stats(calls: u64) -> CallStats {
        CallStats { calls, mesh_errors: 1, service_errors: 2, in_flight: 4, retries: 0, p50_us: 870, p99_us: 12_300 }
    }

    fn instance(address: &str, healthy: bool, reason: &str, stats: CallStats) -> Instance {
        Instance {
            address: address.into(),
            healthy,
            reason: reason.into(),
            connections: 3,
            queued: 1,
            stats,
            ..Instance::default()
        }
    }

    fn service() -> Service {
        Service {
            uri: "/service/user".into(),
            timeout_ms: 4_500,
            pipelined: true,
            stats: stats(1_234_567),
            instances: vec![
                instance("10.0.0.1:5000", true, "answers PING", stats(1_234_560)),
                instance("10.0.0.2:5000", false, "connection refused", CallStats::default()),
                Instance {
                    ejected: Some(Ejected { for_ms: 12_300, reason: "5 failures in a row".into() }),
                    ..instance("10.0.0.3:5000", true, "answers PING", CallStats::default())
                },
            ],
            ..Service::default()
        }
    }

    #[test]
    fn instances_stand_below_their_service() {
        let expected = "\
SERVICE          HEALTH      CALLS  ERRORS  IN FLIGHT  QUEUED  CONNS     P50      P99  REASON
/service/user    1/3     1,234,567       3          4       3      9  870 µs  12.3 ms  timeout 4.5 s, pipelined
  10.0.0.1:5000  up      1,234,560       3          4       1      3  870 µs  12.3 ms  answers PING
  10.0.0.2:5000  down            0       0          0       1      3       -        -  connection refused
  10.0.0.3:5000  out             0       0          0       1      3       -        -  out of traffic for 12s: 5 failures in a row
";
        assert_eq!(render(&[service()]), expected);
    }

    #[test]
    fn one_service_shows_more_of_its_instances() {
        let mut service = service();
        service.balance = "peak-ewma".into();
        for instance in &mut service.instances {
            instance.weight = 100;
            instance.level = Some(Level::Zone);
        }
        let share = |share, weight_now| Some(InstanceShare { share, weight_now, used: share > 0.0, panic: false });
        service.instances[0].share = share(2.0 / 3.0, 100.0);
        service.instances[0].ewma_us = 1_500;
        service.instances[1].share = share(0.0, 100.0);
        service.instances[2].share = share(1.0 / 3.0, 40.0);
        service.instances[2].ejections = 2;
        service.instances[2].environment = "pre".into();
        service.instances[2].labels.insert("version".into(), "2".into());
        let expected = "\
/service/user: 1/3 up, timeout 4.5 s, pipelined, peak-ewma
1,234,567 calls, errors: 1 of the mesh, 2 of the service; 4 in flight, 0 retries, p50 870 µs, p99 12.3 ms
INSTANCE       STATE  LEVEL  WEIGHT   SHARE    EWMA      P99      CALLS  ERRORS  IN FLIGHT  QUEUED
10.0.0.1:5000  up     zone      100  66.7 %  1.5 ms  12.3 ms  1,234,560       3          4       1
    answers PING
10.0.0.2:5000  down   zone      100     0 %       -        -          0       0          0       1
    connection refused
10.0.0.3:5000  out    zone      100  33.3 %       -        -          0       0          0       1
    out of traffic for 12s: 5 failures in a row
    environment \"pre\", version = \"2\"
    taken out of traffic 2 times since the start
    starts slowly: weighs 40 now
";
        let text = render_one(&service);
        assert_eq!(text, expected);
        assert!(text.lines().all(|line| line.chars().count() <= 110));
    }

    #[test]
    fn methods_are_shown_by_their_calls() {
        let mut service = service();
        let method = |name: &str, calls| Method { name: name.into(), stats: stats(calls) };
        service.methods = vec![method("", 5), method("a", 0), method("g\u{1b}et", 1_000)];
        let text = render_methods(&service);
        let expected = "\
METHOD        CALLS  SERVICE ERRORS  MESH ERRORS     P50      P99
g\u{fffd}et          1,000               2            1  870 µs  12.3 ms
(all others)      5               2            1  870 µs  12.3 ms
";
        assert_eq!(text.split_inclusive('\n').skip(2).collect::<String>(), expected);
    }

    #[test]
    fn agents_of_former_versions_are_understood() {
        let json = r#"[{"uri":"/a","timeout_ms":1,"pipelined":false,"stats":{"calls":0,"mesh_errors":0,"service_errors":0,
            "in_flight":0,"retries":0,"p50_us":0,"p99_us":0},"instances":[{"address":"10.0.0.1:1","healthy":true,"reason":"ok",
            "connections":0,"queued":0,"stats":{"calls":0,"mesh_errors":0,"service_errors":0,"in_flight":0,"retries":0,
            "p50_us":0,"p99_us":0}}]}]"#;
        let services: Vec<Service> = serde_json::from_str(json).expect("as it was");
        let line = render_one(&services[0]).lines().nth(3).map(str::to_owned);
        assert_eq!(line.as_deref(), Some("10.0.0.1:1  up     -           -      -     -    -      0       0          0       0"));
    }

    #[test]
    fn no_services_say_what_to_do() {
        assert!(render(&[]).contains("moa config reload"));
    }
}
