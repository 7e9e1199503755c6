//! What an operator sees of traffic policy: live state of instances, rules, what becomes of a call and why, metrics.

use std::{collections::HashSet, net::SocketAddr};

use moa_tests::{Agent, Answer, DEMO, FakeMoa, config, echo, envelope, fake::demo, machine::http, until};
use serde_json::Value;

/// The width that tables are readable at.
const COLUMNS: usize = 110;

/// Two instances for all, of which one is of version 2, and one of the pre-release environment.
struct Bed {
    agent: Agent,
    plain: FakeMoa,
    second: FakeMoa,
    pre: FakeMoa,
}

impl Bed {
    fn start(policy: &str) -> Self {
        let [plain, second, pre] = [(); 3].map(|()| FakeMoa::start());
        let instances = format!(
            r#"["{}", {{ address = "{}", weight = 300, labels = {{ version = "2" }} }}, {{ address = "{}", environment = "pre" }}]"#,
            plain.address(),
            second.address(),
            pre.address()
        );
        let health = config::NO_HEALTH_CHECK;
        let agent = Agent::start(&format!("[services.\"{DEMO}\"]\ninstances = {instances}\n{health}\n{policy}\n"));
        Self { agent, plain, second, pre }
    }

    fn explain(&self, words: &[&str]) -> Value {
        self.agent.json(&[&["routes", "explain", DEMO], words].concat())
    }
}

/// A call that says something of itself.
fn saying(method: &str, props: &str) -> String {
    format!(r#"{{"action":"{DEMO}","params":{{"m":"{method}","args":["x"]}},"props":{{{props}}}}}"#)
}

/// What is said of an instance among those of a subset.
fn candidate(way: &Value, address: SocketAddr) -> &Value {
    let all = way["candidates"].as_array().expect("a list");
    all.iter().find(|candidate| candidate["address"] == address.to_string()).unwrap_or_else(|| panic!("no {address} in {way}"))
}

/// The text of a verb, which is readable.
fn text(agent: &Agent, words: &[&str]) -> String {
    let outcome = agent.verb(words);
    assert!(outcome.status.success(), "moa {words:?}: {}{}", outcome.stdout, outcome.stderr);
    outcome.stdout
}

/// The series of the metrics, each with its value, after what `promtool check metrics` would look at.
fn metrics(agent: &Agent) -> Vec<(String, f64)> {
    let (status, text) = http(agent.metrics_address(), "/metrics");
    assert_eq!(status, 200);
    let (mut types, mut seen) = (HashSet::new(), HashSet::new());
    let mut series = Vec::new();
    for line in text.lines() {
        if let Some(of) = line.strip_prefix("# TYPE ") {
            assert!(types.insert(of.split(' ').next().unwrap_or_default().to_owned()), "two types: {line}");
        } else if !line.starts_with('#') {
            let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value: {line}"));
            assert!(seen.insert(name.to_owned()), "twice: {name}");
            let family = name.split('{').next().unwrap_or_default();
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| family.strip_suffix(suffix)).unwrap_or(family);
            assert!(types.contains(family), "no type: {line}");
            series.push((name.to_owned(), value.parse().unwrap_or_else(|error| panic!("{error}: {line}"))));
        }
    }
    series
}

/// The value of the only series of this name with these labels.
fn value(series: &[(String, f64)], name: &str, labels: &[(&str, &str)]) -> f64 {
    let of = |text: &str| {
        let has = |(label, value): &(&str, &str)| text.contains(&format!("{label}=\"{value}\""));
        text.split('{').next() == Some(name) && labels.iter().all(has)
    };
    let mut found = series.iter().filter(|(text, _)| of(text));
    let (_, value) = found.next().unwrap_or_else(|| panic!("no {name} with {labels:?}"));
    assert!(found.next().is_none(), "several {name} with {labels:?}");
    *value
}

#[test]
fn a_service_shows_the_state_of_each_instance() {
    let bed = Bed::start("balance.policy = \"round-robin\"");
    let mut client = bed.agent.connect();
    for _ in 0..40 {
        client.call(&echo("x"));
    }
    let second = until("its latency to be known", || {
        let services = bed.agent.json(&["services", DEMO]);
        let instances = services[0]["instances"].as_array()?;
        let second = instances.iter().find(|instance| instance["address"] == bed.second.address().to_string())?;
        (second["ewma_us"].as_u64()? > 0).then(|| second.clone())
    });
    assert_eq!((&second["weight"], &second["level"], &second["labels"]["version"]), (&300.into(), &"node".into(), &"2".into()));
    assert_eq!((&second["share"]["share"], &second["ejected"]), (&0.75.into(), &Value::Null), "{second}");
    let services = bed.agent.json(&["services", DEMO]);
    assert_eq!(services[0]["balance"], "round-robin");
    let pre = &services[0]["instances"][2];
    // Alone in its environment, it gets all calls for that.
    assert_eq!((&pre["environment"], &pre["share"]["share"], &pre["stats"]["calls"]), (&"pre".into(), &1.0.into(), &0.into()));
    // Of all services, shares are not worked out.
    assert_eq!(bed.agent.json(&["services"])[0]["instances"][1]["share"], Value::Null);
    let shown = text(&bed.agent, &["services", DEMO]);
    assert!(shown.contains("75 %") && shown.contains("version = \"2\"") && shown.contains("environment \"pre\""), "{shown}");
    for words in [&["services", DEMO][..], &["services"], &["routes"], &["services", DEMO, "--methods"]] {
        let shown = text(&bed.agent, words);
        assert!(shown.lines().all(|line| line.chars().count() <= COLUMNS), "{shown}");
    }
}

#[test]
fn calls_are_shown_by_method() {
    let bed = Bed::start("");
    let mut client = bed.agent.connect();
    for _ in 0..6 {
        client.call(&echo("x"));
    }
    client.call(&envelope(DEMO, "boom", ""));
    // More methods than are counted by themselves.
    for n in 0..100 {
        client.call(&envelope(DEMO, &format!("method-{n}"), ""));
    }
    let services = bed.agent.json(&["services", DEMO, "--methods"]);
    let methods = services[0]["methods"].as_array().expect("a list");
    let method = |name: &str| methods.iter().find(|method| method["name"] == name).map(|method| &method["stats"]);
    assert_eq!(
        (&method("echo").expect("echo")["calls"], &method("boom").expect("boom")["service_errors"]),
        (&6.into(), &1.into())
    );
    assert_eq!(methods.len(), 65, "{services}");
    let all: u64 = methods.iter().filter_map(|method| method["stats"]["calls"].as_u64()).sum();
    assert_eq!(all, 107);
    assert_eq!(bed.agent.json(&["services", DEMO])[0]["methods"], Value::Array(Vec::new()));
    let shown = text(&bed.agent, &["services", DEMO, "--methods"]);
    assert!(shown.contains("echo") && shown.contains("(all others)"), "{shown}");
    let series = metrics(&bed.agent);
    let echoed = [("service", DEMO), ("method", "echo"), ("by", "service")];
    assert_eq!(value(&series, "moa_method_calls_total", &[&echoed[..], &[("result", "ok")]].concat()), 6.);
    assert_eq!(value(&series, "moa_method_duration_seconds_count", &echoed[..2]), 6.);
    let named = series.iter().filter(|(name, _)| name.starts_with("moa_method_duration_seconds_count")).count();
    assert_eq!(named, 65);
}

#[test]
fn rules_are_listed_and_explained() {
    let policy = r#"
rate = { service_per_s = 100000 }
routes = [{ name = "new", when = { method = "get*", user = "7" }, to = { labels = { version = "2" } } }]
access = { rules = [{ name = "no-batch", when = { application = "batch*" }, verdict = "deny" }] }
"#;
    let bed = Bed::start(policy);
    let routes = bed.agent.json(&["routes", DEMO]);
    let of = &routes[0];
    assert_eq!((&of["uri"], &of["balance"], &of["instances"]), (&DEMO.into(), &"peak-ewma".into(), &3.into()));
    assert_eq!(of["limits"]["rate.service_per_s"], 100_000);
    assert!(of["budget_left"].as_u64() > Some(0) && of["events"]["retries"] == 0, "{of}");
    let rules: Vec<_> =
        of["rules"].as_array().expect("a list").iter().map(|rule| rule["name"].as_str().unwrap_or_default()).collect();
    assert_eq!(rules, ["no-batch", "default", "new", "pre"], "{routes}");
    let shown = text(&bed.agent, &["routes"]) + &text(&bed.agent, &["routes", DEMO]);
    assert!(shown.contains("route new") && shown.contains("rate.service_per_s = 100000"), "{shown}");

    let ruled = bed.explain(&["--method", "getUser", "--meta", "user=7"]);
    assert_eq!(ruled["rules"]["route"]["rule"], "new");
    assert_eq!(candidate(&ruled["ways"][0], bed.second.address())["takes"], true, "{ruled}");
    let other = candidate(&ruled["ways"][0], bed.plain.address());
    assert_eq!((&other["fits"], &other["why"]), (&false.into(), &"it has no label version".into()));
    // As calls themselves have it.
    let mut client = bed.agent.connect();
    for _ in 0..10 {
        client.call(&saying("getUser", r#""user":"7""#));
    }
    assert_eq!([&bed.plain, &bed.second, &bed.pre].map(|fake| fake.counts().calls), [0, 10, 0]);

    let passed = bed.explain(&["--method", "getUser", "--meta", "user=8"]);
    assert_eq!(passed["rules"]["route"]["rule"], Value::Null);
    let misfit = &passed["rules"]["route"]["looked_at"][0]["misfits"][0];
    assert_eq!((&misfit["name"], &misfit["found"]), (&"user".into(), &"8".into()));

    let denied = ["routes", "explain", DEMO, "--application", "batch-1"];
    assert_eq!(bed.agent.json(&denied)["rules"]["access"]["allowed"], false);
    assert!(text(&bed.agent, &denied).contains("refused by rule \"no-batch\""));
}

#[test]
fn the_environment_of_a_call_is_explained() {
    let bed = Bed::start("");
    let mut client = bed.agent.connect();
    let pre = bed.explain(&["--meta", "moa.env.pre=1"]);
    assert_eq!((&pre["rules"]["environment"]["name"], &pre["rules"]["environment"]["served"]), (&"pre".into(), &true.into()));
    let ways = pre["ways"].as_array().expect("a list");
    assert_eq!(ways.len(), 2, "{pre}");
    assert_eq!(
        (&candidate(&ways[0], bed.pre.address())["takes"], &candidate(&ways[0], bed.pre.address())["share"]),
        (&true.into(), &1.0.into())
    );
    assert_eq!(candidate(&ways[0], bed.plain.address())["why"], "it has no environment, not \"pre\"");
    assert_eq!(candidate(&ways[1], bed.pre.address())["why"], "it is of environment \"pre\"");
    client.call(&saying("echo", r#""moa.env.pre":"1""#));
    assert_eq!(bed.pre.counts().calls, 1);
    let shown = text(&bed.agent, &["routes", "explain", DEMO, "--meta", "moa.env.pre=1"]);
    assert!(shown.contains("instances of environment \"pre\": 1 of 1 take the call"), "{shown}");
    // Nobody is of it.
    let grey = bed.explain(&["--meta", "environment=grey"]);
    assert_eq!((&grey["rules"]["environment"]["served"], grey["ways"].as_array().map(Vec::len)), (&false.into(), Some(1)));
}

#[test]
fn a_hash_key_leads_where_its_calls_go() {
    let bed = Bed::start("balance.policy = \"ketama\"");
    let mut client = bed.agent.connect();
    for key in ["a", "b", "c", "d", "e", "f"] {
        let explained = bed.explain(&["--key", key]);
        let before = [&bed.plain, &bed.second].map(|fake| fake.counts().calls);
        client.call(&saying("echo", &format!(r#""hashid":"{key}""#)));
        let after = [&bed.plain, &bed.second].map(|fake| fake.counts().calls);
        let got = if after[0] > before[0] { &bed.plain } else { &bed.second };
        assert_eq!(explained["ways"][0]["picked"], got.address().to_string(), "{key}: {explained}");
    }
}

#[test]
fn an_ejected_instance_is_seen_everywhere() {
    let policy = "balance.policy = \"round-robin\"\nretry.tries_max = 1\noutlier = { consecutive = 5, ejection_ms = 60000 }";
    let bed = Bed::start(policy);
    bed.plain.script(|call| match call.method.as_str() {
        "echo" => Answer::envelope(301, "ill", "null"),
        _ => demo(call),
    });
    let mut client = bed.agent.connect();
    let plain = bed.plain.address();
    let instance = until("it to be taken out of traffic", || {
        client.call(&echo("x"));
        bed.agent.instance(DEMO, plain).filter(|instance| !instance["ejected"].is_null())
    });
    let left = instance["ejected"]["for_ms"].as_u64();
    assert!(left > Some(1_000) && left <= Some(60_000), "{instance}");
    assert_eq!(instance["ejected"]["reason"], "5 failures in a row");
    assert_eq!((&instance["healthy"], &instance["ejections"]), (&true.into(), &1.into()));
    let shown = text(&bed.agent, &["services"]) + &text(&bed.agent, &["services", DEMO]);
    assert_eq!(shown.matches("5 failures in a row").count(), 2, "{shown}");

    let explained = bed.explain(&[]);
    let out = candidate(&explained["ways"][0], plain);
    let why = out["why"].as_str().unwrap_or_default();
    assert!(why.starts_with("ejected for ") && why.ends_with("5 failures in a row"), "{explained}");
    assert_eq!((&out["fits"], &out["takes"], &out["share"]), (&true.into(), &false.into(), &0.0.into()));
    assert_eq!(candidate(&explained["ways"][0], bed.second.address())["share"], 1.0);

    let routes = bed.agent.json(&["routes", DEMO]);
    assert_eq!((&routes[0]["ejected"], &routes[0]["ejections"]), (&1.into(), &1.into()));
    let series = metrics(&bed.agent);
    let labels = [("service", DEMO), ("instance", &*plain.to_string())];
    assert_eq!(value(&series, "moa_instance_ejected", &labels), 1.);
    assert_eq!(value(&series, "moa_instance_ejections_total", &labels), 1.);
    assert_eq!(value(&series, "moa_instance_weight", &labels), 100.);
    assert!(value(&series, "moa_instance_ewma_seconds", &labels) > 0.);
    assert!(value(&series, "moa_retry_budget_left", &labels[..1]) > 0.);
    assert_eq!(value(&series, "moa_policy_events_total", &[labels[0], ("event", "retries")]), 0.);
    assert_eq!(value(&series, "moa_spans_sent_total", &[]), 0.);
}

#[test]
fn an_instance_that_cant_be_reached_is_explained() {
    let bed = Bed::start("outlier.consecutive = 0\nconnect_timeout_ms = 1000");
    bed.second.down(moa_tests::fake::End::Reset);
    let mut client = bed.agent.connect();
    // Each worker finds out by itself: it is asked what its own calls found.
    let why = until("the first worker to have failed there", || {
        (0..20).for_each(|_| drop(bed.agent.connect().call(&echo("x"))));
        client.call(&echo("x"));
        let explained = bed.explain(&[]);
        let second = candidate(&explained["ways"][0], bed.second.address());
        (second["takes"] == false).then(|| second["why"].as_str().unwrap_or_default().to_owned())
    });
    assert!(why.starts_with("not now: ") && why.to_lowercase().contains("refused"), "{why}");
}

#[test]
fn what_does_not_exist_is_said() {
    let bed = Bed::start("");
    for words in [&["services", "/service/dmo"][..], &["routes", "/service/dmo"], &["routes", "explain", "/service/dmo"]] {
        let outcome = bed.agent.verb(words);
        assert!(!outcome.status.success() && outcome.stdout.is_empty());
        assert!(outcome.stderr.contains("no service /service/dmo: did you mean `/service/demo`?"), "{}", outcome.stderr);
    }
    let group = bed.agent.verb(&["routes", "explain", DEMO, "--group", "two"]);
    assert!(!group.status.success() && group.stderr.contains("no service /service/demo#two"), "{}", group.stderr);
    let meta = bed.agent.verb(&["routes", "explain", DEMO, "--meta", "user"]);
    assert!(meta.status.code() == Some(2) && meta.stderr.contains("user=7"), "{}", meta.stderr);
}

#[test]
fn other_groups_and_copies_are_explained() {
    let [home, blue, red, copied] = [(); 4].map(|()| FakeMoa::start());
    let routes = "routes = [{ name = \"to-blue\", when = { tier = \"b\" }, to = { group = \"blue\", labels = { color = \"blue\" } } }, \
                  { name = \"to-none\", when = { tier = \"n\" }, to = { group = \"none\", fallback = false } }]";
    let shadows = "shadows = [{ name = \"twice\", service = \"/service/copy\", per_10k = 5000 }]";
    let policy = format!("{}\n{routes}\n{shadows}", config::NO_HEALTH_CHECK);
    let group = format!(
        "[services.\"{DEMO}#blue\"]\ninstances = [{{ address = \"{}\", labels = {{ color = \"blue\" }} }}, \"{}\"]\n{}\n",
        blue.address(),
        red.address(),
        config::NO_HEALTH_CHECK
    );
    let copy = config::service("/service/copy", &[copied.address()], config::NO_HEALTH_CHECK);
    let agent = Agent::start(&[config::service(DEMO, &[home.address()], &policy), group, copy].concat());
    let explained = agent.json(&["routes", "explain", DEMO, "--meta", "tier=b"]);
    let way = &explained["ways"][0];
    assert_eq!(way["service"], format!("{DEMO}#blue"), "{explained}");
    assert_eq!(candidate(way, blue.address())["takes"], true);
    assert_eq!(candidate(way, red.address())["why"], "it has no label color");
    agent.connect().call(&saying("echo", r#""tier":"b""#));
    assert_eq!([&home, &blue, &red].map(|fake| fake.counts().calls), [0, 1, 0]);
    let last = explained["ways"].as_array().and_then(|ways| ways.last()).expect("where copies go");
    assert_eq!((&last["service"], &candidate(last, copied.address())["takes"]), (&"/service/copy".into(), &true.into()));
    assert_eq!(
        (&explained["rules"]["shadow"]["rules"][0]["rule"], explained["ways"].as_array().map(Vec::len)),
        (&"twice".into(), Some(3))
    );

    let nobody = agent.json(&["routes", "explain", DEMO, "--meta", "tier=n"]);
    assert_eq!(
        (&nobody["rules"]["route"]["rule"], &nobody["ways"][0]["missing"]),
        (&"to-none".into(), &"nobody serves that".into())
    );
    // Both groups are of this URI, and each can be asked for by its name.
    assert_eq!(agent.json(&["services", DEMO]).as_array().map(Vec::len), Some(2));
    let blue = format!("{DEMO}#blue");
    assert_eq!(agent.json(&["routes", &blue])[0]["group"], "blue");
    assert_eq!(agent.json(&["routes", "explain", DEMO, "--group", "blue"])["uri"], blue);
}

#[test]
fn calls_outside_the_policy_are_explained() {
    let bed = Bed::start("mesh_per_10k = 2500");
    let explained = bed.explain(&[]);
    assert_eq!((&explained["rules"]["mesh_percent"], explained["ways"].as_array().map(Vec::len)), (&25.0.into(), Some(1)));
    let shown = text(&bed.agent, &["routes", "explain", DEMO]);
    assert!(
        shown.contains("the policy is for 25 % of the calls; others go by chance to instances without an environment"),
        "{shown}"
    );
}
