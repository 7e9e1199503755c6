//! Both formats, read as a scraper would.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use super::*;
use crate::{
    api,
    proxy::stats::{BUCKETS, CallSums, InstanceSnapshot, MethodSums, PolicySums, ServiceSnapshot, Snapshot},
};

fn sums(calls: u64) -> CallSums {
    let mut sums = CallSums { calls, in_flight: 2, queued: 1, connections: 3, retries: 4, ..CallSums::default() };
    sums.mesh_errors = vec![(304, 1), (504, 2)];
    sums.service_errors = vec![(0, 1), (300, 1)];
    for n in 0..calls {
        sums.latency.counts[usize::try_from(n).expect("few") * 7 % BUCKETS] += 1;
    }
    sums.latency.sum = Duration::from_millis(calls);
    sums
}

fn example() -> Scrape {
    let instance = |address: &str, healthy| InstanceSnapshot {
        address: address.into(),
        healthy,
        weight: 100,
        ejected: !healthy,
        ejections: 3,
        sums: CallSums { ewma: (Duration::from_millis(30), 2), ..sums(50) },
    };
    let method = |name: &str, calls| MethodSums {
        name: name.into(),
        calls,
        mesh_errors: calls / 10,
        service_errors: calls / 5,
        latency: sums(calls).latency,
    };
    let service = |uri: &str| ServiceSnapshot {
        uri: uri.into(),
        unsent: sums(5),
        instances: vec![instance("10.0.0.1:1", true), instance("[::1]:2", false)],
        methods: vec![method("", 0), method("get", 50), method("odd \\ \"name", 20)],
        policy: PolicySums { counts: vec![("retries", 7), ("denied", 0)], budget_left: 4, limit: u64::from(uri == "/a") * 60 },
    };
    Scrape {
        calls: Snapshot {
            services: vec![service("/a"), service("/b")],
            unrouted: vec![(401, 3), (501, 7)],
            closed: vec![("peer", 9), ("drain", 0)],
            frames_dropped: 6,
        },
        app: api::AppStatus { connections: 10, connections_max: 100, accepted: 20, ..api::AppStatus::default() },
        workers: 2,
        drain: Some(api::Drain { remains: api::Remains { calls: 3, ..api::Remains::default() }, ..api::Drain::default() }),
        overload: api::Overload { level: 2, memory_per_mille: 1_600, raised: 1, refused: 8, ..api::Overload::default() },
        config: api::ConfigSource { path: None, generation: 3, loaded_unix_ms: 1_500, last_error: Some("bad".into()) },
        reloads_taken: 2,
        reloads_refused: 1,
        kernel: Some(KernelCounts::default()),
        namespaces: api::NamespacesStatus::default(),
        failover: Some(api::failover::Failover {
            on: true,
            gates: Vec::new(),
            siblings: vec![api::failover::Sibling {
                name: "b".into(),
                address: "10.0.0.2:13001".into(),
                alive: true,
                reason: None,
                diverted_total: 4,
                failed_total: 1,
            }],
            decisions: [("local".to_owned(), 9), ("stale".to_owned(), 4)].into(),
            foreign: None,
        }),
        foreign: (6, 2),
        spans: SpanCounts { sent: 10, dropped: 2, failed: 1 },
        process: Process::read(),
    }
}

/// Series by name and labels, after the checks that `promtool check metrics` makes.
fn parse(text: &str) -> BTreeMap<String, f64> {
    let (mut types, mut helps) = (HashMap::new(), HashSet::new());
    let mut series = BTreeMap::new();
    for line in text.lines() {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["#", "HELP", name, _, ..] => assert!(helps.insert(name.to_owned()), "two helps of {name}"),
            ["#", "TYPE", name, kind] => assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "two types of {name}"),
            ["#", "UNIT", name, unit] => assert!(name.ends_with(unit), "{line}"),
            ["#", "EOF"] => {}
            _ => {
                let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value: {line}"));
                assert!(
                    series.insert(name.to_owned(), value.parse().unwrap_or_else(|_| panic!("{line}"))).is_none(),
                    "twice: {name}"
                );
            }
        }
    }
    for name in series.keys() {
        let name = name.split('{').next().expect("a name");
        let suffixes = ["", "_total", "_info", "_bucket", "_sum", "_count"];
        let family = suffixes.iter().find_map(|suffix| name.strip_suffix(suffix).filter(|family| types.contains_key(*family)));
        let family = family.unwrap_or_else(|| panic!("{name} has no type"));
        assert!(helps.contains(family), "{name} has no help");
        assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
    }
    series
}

fn check_buckets(series: &BTreeMap<String, f64>, family: &str, labels: &str) -> usize {
    let of = |name: &str| name.starts_with(&format!("{family}_seconds_bucket{{")) && name.contains(labels);
    let bound = |name: &str| -> f64 {
        let text =
            name.split("le=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_else(|| panic!("no bound: {name}"));
        if text == "+Inf" { f64::INFINITY } else { text.parse().expect("a number") }
    };
    let mut buckets: Vec<(f64, f64)> =
        series.iter().filter(|(name, _)| of(name)).map(|(name, value)| (bound(name), *value)).collect();
    buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
    assert!(buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{buckets:?}");
    let is_count = |name: &str| name.starts_with(&format!("{family}_seconds_count{{")) && name.contains(labels);
    let count = series.iter().find(|(name, _)| is_count(name));
    assert_eq!(buckets.last().map(|(bound, value)| (*bound, *value)), count.map(|(_, count)| (f64::INFINITY, *count)));
    buckets.len()
}

#[test]
fn open_metrics_are_well_formed() {
    let text = render(example()).expect("written");
    assert!(text.ends_with("# EOF\n"));
    let series = parse(&text);
    for service in ["/a", "/b"] {
        for instance in ["10.0.0.1:1", "[::1]:2", ""] {
            check_buckets(&series, "moa_call_duration", &format!("service=\"{service}\",instance=\"{instance}\""));
        }
    }
}

#[test]
fn prometheus_has_the_same_series() {
    let open = render(example()).expect("written");
    let own = text::prometheus(&open);
    assert_eq!(parse(&open).keys().collect::<Vec<_>>(), parse(&own).keys().collect::<Vec<_>>());
    assert!(own.contains("# TYPE moa_calls_total counter\n") && own.contains("# TYPE moa_build_info gauge\n"), "{own}");
    assert!(!own.contains("# EOF") && !own.contains("# UNIT"), "{own}");
}

#[test]
fn calls_are_counted_once_by_code() {
    let series = parse(&render(example()).expect("written"));
    let instance = |by: &str, code: &str| {
        let name = format!("moa_calls_total{{service=\"/a\",instance=\"10.0.0.1:1\",by=\"{by}\",code=\"{code}\"}}");
        *series.get(&name).unwrap_or_else(|| panic!("no {name}"))
    };
    assert_eq!(
        [instance("mesh", "304"), instance("mesh", "504"), instance("service", "other"), instance("service", "300")],
        [1., 2., 1., 1.]
    );
    assert_eq!(instance("service", "ok"), 45.);
    assert_eq!(series["moa_unrouted_calls_total{code=\"501\"}"], 7.);
    assert_eq!(series["moa_instance_healthy{service=\"/b\",instance=\"[::1]:2\"}"], 0.);
    assert_eq!(series["moa_config_reloads_total{result=\"failure\"}"], 1.);
    assert_eq!(series["moa_queued_bytes"], 0.);
    assert_eq!(series["moa_config_loaded_timestamp_seconds"], 1.5);
}

#[test]
fn methods_have_few_series() {
    let series = parse(&render(example()).expect("written"));
    assert_eq!(check_buckets(&series, "moa_method_duration", "service=\"/a\",method=\"get\""), BUCKETS / 8);
    let calls = |by: &str, result: &str| {
        series[&format!("moa_method_calls_total{{service=\"/b\",method=\"get\",by=\"{by}\",result=\"{result}\"}}")]
    };
    assert_eq!([calls("service", "ok"), calls("service", "error"), calls("mesh", "error")], [35., 10., 5.]);
    // Nobody has called any of the others.
    assert!(!series.keys().any(|name| name.contains("method=\"\"")));
    assert!(series.keys().any(|name| name.contains(r#"method="odd \\ \"name""#)), "{series:?}");
}

#[test]
fn policies_and_their_instances_are_measured() {
    let series = parse(&render(example()).expect("written"));
    for (name, value) in [
        ("moa_policy_events_total{service=\"/a\",event=\"retries\"}", 7.),
        ("moa_policy_events_total{service=\"/b\",event=\"denied\"}", 0.),
        ("moa_retry_budget_left{service=\"/a\"}", 4.),
        ("moa_concurrency_limit{service=\"/a\"}", 60.),
        ("moa_instance_ejected{service=\"/a\",instance=\"[::1]:2\"}", 1.),
        ("moa_instance_ejections_total{service=\"/a\",instance=\"[::1]:2\"}", 3.),
        ("moa_instance_weight{service=\"/a\",instance=\"[::1]:2\"}", 100.),
        ("moa_instance_ewma_seconds{service=\"/a\",instance=\"[::1]:2\"}", 0.015),
        ("moa_spans_sent_total", 10.),
        ("moa_spans_dropped_total", 2.),
        ("moa_spans_failed_total", 1.),
    ] {
        assert_eq!(series.get(name), Some(&value), "{name}");
    }
    assert!(!series.contains_key("moa_concurrency_limit{service=\"/b\"}"));
}

#[test]
fn the_process_is_this_one() {
    let process = Process::read();
    assert!(process.resident_bytes > 1 << 20 && process.virtual_bytes >= process.resident_bytes, "{process:?}");
    assert!(process.open_fds >= 3 && process.open_fds < process.max_fds, "{process:?}");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs_f64();
    assert!((0. ..86_400.).contains(&(now - process.started_unix)), "{process:?}");
}
