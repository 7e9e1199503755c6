//! Files as operators write them, right and wrong, and what they are told.

mod mesh;
mod rules;
mod traffic;

use std::net::SocketAddr;

use super::*;

fn checked(text: &str) -> Checked {
    parse(text, "moa.toml", &Given::default()).unwrap_or_else(|report| panic!("{report}"))
}

/// The report on a wrong file, one problem a line.
fn report(text: &str) -> String {
    parse(text, "moa.toml", &Given::default()).expect_err("the file is wrong").to_string()
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// An instance of which only the address is known.
fn instance(text: &str) -> CheckedInstance {
    CheckedInstance { address: address(text), namespace: None, traits: Traits::default() }
}

#[test]
fn an_empty_file_gives_the_defaults() {
    let checked = checked("");
    assert_eq!(checked.config, Config::default());
    assert!(checked.services.is_empty());
}

#[test]
fn a_service_has_the_defaults_with_its_own_keys_laid_over_them() {
    let checked = checked(
        r#"
        [defaults]
        timeout_ms = 800
        health = { interval_ms = 500, healthy_after = 7 }

        [services."/service/user"]
        instances = ["10.0.0.1:5000", "[::1]:5000"]
        pipelined = true
        health.interval_ms = 100

        [services."/service/order"]
        instances = ["10.0.0.2:5000"]
        "#,
    );
    let [order, user] = &checked.services[..] else { panic!("two services") };
    assert_eq!((order.uri.as_str(), order.policy.timeout_ms, order.policy.pipelined), ("/service/order", 800, false));
    assert_eq!(order.policy, checked.config.defaults);
    assert_eq!((user.policy.timeout_ms, user.policy.pipelined), (800, true));
    assert_eq!((user.policy.health.interval_ms, user.policy.health.healthy_after), (100, 7));
    assert_eq!(user.policy.health.unhealthy_after, Health::default().unhealthy_after);
    assert_eq!(user.instances, [instance("10.0.0.1:5000"), instance("[::1]:5000")]);
}

#[test]
fn listeners_are_the_flags_else_the_files_else_the_names() {
    let given = Given {
        app_default: address("127.0.0.1:20000"),
        tunnel_default: address("127.0.0.1:20100"),
        metrics_listen: Some(address("127.0.0.1:7")),
        ..Given::default()
    };
    let named = parse("", "f", &given).expect("valid");
    assert_eq!(named.config.app.listen, address("127.0.0.1:20000"));
    assert_eq!(named.config.tunnel.listen, address("127.0.0.1:20100"));
    assert_eq!((&named.origins["app.listen"], &named.origins["tunnel.listen"]), (&Origin::Ports, &Origin::Ports));
    let written = parse("\n[app]\nlisten = '127.0.0.1:9'\n[metrics]\nlisten = '127.0.0.1:8'", "f", &given).expect("valid");
    assert_eq!((written.config.app.listen, &written.origins["app.listen"]), (address("127.0.0.1:9"), &Origin::Line(3)));
    assert_eq!(written.config.metrics.listen, address("127.0.0.1:7"));
    assert_eq!(written.origins["metrics.listen"], Origin::Flag("--metrics-listen".into()));
    let text = "[tunnel]\nlisten = '127.0.0.1:6'";
    let written = parse(text, "f", &given).expect("valid");
    assert_eq!((written.config.tunnel.listen, &written.origins["tunnel.listen"]), (address("127.0.0.1:6"), &Origin::Line(2)));
    let flag = parse(text, "f", &Given { tunnel_listen: Some(address("127.0.0.1:5")), ..given }).expect("valid");
    let origin = Origin::Flag("--tunnel-listen".into());
    assert_eq!((flag.config.tunnel.listen, &flag.origins["tunnel.listen"]), (address("127.0.0.1:5"), &origin));
}

#[test]
fn every_problem_of_shape_says_where_it_is_and_what_to_do() {
    let cases = [
        (
            "[agent]\nwokers = 3",
            "moa.toml:2:1: agent.wokers: found the unknown key `wokers`, expected one of workers, calls_in_flight_max, queued_bytes_max, \
             drain_timeout_ms, zone, data_centre; did you mean `workers`?",
        ),
        (
            "[colour]\n",
            "moa.toml:1:2: colour: found the unknown key `colour`, expected one of agent, app, tunnel, overload, kernel, namespaces, cgroups, failover, \
             metrics, tracing, defaults, peers, services; remove it",
        ),
        (
            "[defaults]\ntimeout_ms = '5s'",
            "moa.toml:2:14: defaults.timeout_ms: found the string \"5s\", expected a whole number of milliseconds from 1 to 86400000; \
             write 5000, without quotes",
        ),
        (
            "defaults.timeout_ms = 0",
            "moa.toml:1:23: defaults.timeout_ms: found the number 0, expected a whole number of milliseconds from 1 to 86400000; \
             use a number within the bounds",
        ),
        (
            "[app]\nargument_bytes_max = 99999999999999999999999",
            "moa.toml:2:22: app.argument_bytes_max: found the number 99999999999999999999999, expected a whole number of bytes from 64 to \
             536870912; use a number within the bounds",
        ),
        ("agent.workers = 1.5", "moa.toml:1:17: agent.workers: found the fraction 1.5, expected a whole number from 0 to 1024"),
        (
            "defaults.pipelined = 'true'",
            "moa.toml:1:22: defaults.pipelined: found the string \"true\", expected true or false; remove the quotes",
        ),
        (
            "defaults.health.check = 'pong'",
            "moa.toml:1:25: defaults.health.check: found the string \"pong\", expected one of \"off\", \"ping\", \"call\"",
        ),
        ("defaults.health = 1", "moa.toml:1:19: defaults.health: found the number 1, expected a table"),
        (
            "metrics.listen = 'localhost:13900'",
            "moa.toml:1:18: metrics.listen: found the string \"localhost:13900\", expected an IP address with a port; host names are not \
             resolved: write the IP address of localhost, such as \"10.0.0.1:13900\"",
        ),
        (
            "app.listen = '127.0.0.1'",
            "moa.toml:1:14: app.listen: found the string \"127.0.0.1\", expected an IP address with a port; write an address such as \
             \"10.0.0.1:5000\"",
        ),
        (
            "[services.'/s']\ninstances = ['10.0.0.1:5000', '10.0.0.2:0']",
            "moa.toml:2:31: services.\"/s\".instances[1]: found the string \"10.0.0.2:0\", expected an IP address with a port, or a table \
             that has one; use a port from 1 to 65535",
        ),
        (
            "[services.'/s']\ninstances = '10.0.0.1:5000'",
            "moa.toml:2:13: services.\"/s\".instances: found the string \"10.0.0.1:5000\", expected a list, each an IP address with a \
             port, or a table that has one; write [\"10.0.0.1:5000\"]",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(report(text), expected, "of {text}");
    }
}

#[test]
fn keys_that_do_not_fit_each_other_are_refused() {
    let service = |own: &str| format!("[services.'/s']\ninstances = ['10.0.0.1:5000']\n{own}");
    let cases = [
        (
            "[app]\ncommand_bytes_max = 1000".to_owned(),
            "moa.toml:2:21: app.command_bytes_max: found an argument of 1048576 bytes in a command of at most 1000 bytes, expected \
             argument_bytes_max to be at most command_bytes_max; raise command_bytes_max, or lower argument_bytes_max",
        ),
        (
            service("connections_min = 65"),
            "moa.toml:3:19: services.\"/s\".connections_min: found 65 to keep open of at most 64, expected connections_min to be at most \
             connections_max; raise connections_max, or lower connections_min",
        ),
        (
            service("health.check = 'call'"),
            "moa.toml:3:16: services.\"/s\".health.check: found check = \"call\" without a call, expected health.call, the JSON of the call \
             to send; add call = '{\"action\":\"…\",\"params\":{\"m\":\"…\",\"args\":[]}}', or use check = \"ping\"",
        ),
        (
            service("health.call = '{\"action\":\"/s\"}'"),
            "moa.toml:3:15: services.\"/s\".health.call: found a call that no check sends, expected check = \"call\", or no call; set check = \
             \"call\", or remove call",
        ),
        (
            "metrics.listen = '0.0.0.0:13000'".to_owned(),
            "moa.toml:1:18: metrics.listen: found 127.0.0.1:13000 for applications and 0.0.0.0:13000 for metrics, expected two addresses \
             that differ; give one of them another port",
        ),
        (
            "[services.'/s']\ninstances = ['10.0.0.1:5000', '10.0.0.1:5000']".to_owned(),
            "moa.toml:2:31: services.\"/s\".instances[1]: found 10.0.0.1:5000 for the second time, expected every instance once; remove it",
        ),
        (
            "[services.'/s']\ninstances = ['127.0.0.1:13000']".to_owned(),
            "moa.toml:2:14: services.\"/s\".instances[0]: found 127.0.0.1:13000, where this agent itself listens, expected the address of a \
             server of the service; calls would go in circles: remove it",
        ),
        (
            "[services.'/s']\ninstances = ['0.0.0.0:5000']".to_owned(),
            "moa.toml:2:14: services.\"/s\".instances[0]: found 0.0.0.0:5000, expected an address that can be called; write 127.0.0.1:5000",
        ),
        (
            "[services.user]\ninstances = ['10.0.0.1:5000']".to_owned(),
            "moa.toml:1:1: services.user: found the URI \"user\", which does not begin with `/` and a name, expected a URI such as \
             \"/service/user\", of at most 255 bytes; rename the section",
        ),
        (
            "[services.'/a b']\ninstances = ['10.0.0.1:5000']".to_owned(),
            "moa.toml:1:1: services.\"/a b\": found the URI \"/a b\" with a space, a quote, a backslash or a control character, expected a URI \
             such as \"/service/user\", of at most 255 bytes; rename the section",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(report(&text), expected, "of {text}");
    }
}

#[test]
fn a_health_call_is_a_call() {
    let with = |call: &str| {
        format!("[defaults.health]\ncheck = 'call'\ncall = '{call}'\n[services.'/s']\ninstances = ['10.0.0.1:5000']")
    };
    let good = checked(&with(r#"{"action":"/s","params":{"m":"ok"}}"#));
    assert_eq!(good.services[0].policy.health.call.as_deref(), Some(r#"{"action":"/s","params":{"m":"ok"}}"#));
    for wrong in [r#"{"action":"/s""#, r#"{"params":{}}"#, r#"{"action":7}"#, "PING"] {
        let report = report(&with(wrong));
        assert!(report.starts_with("moa.toml:3:8: defaults.health.call: found "), "{report}");
        assert_eq!(report.lines().count(), 1, "{report}");
    }
}

#[test]
fn a_service_may_check_in_another_way_than_the_defaults() {
    let checked = checked(
        "[defaults.health]\ncheck = 'call'\ncall = '{\"action\":\"/s\"}'\n[services.'/s']\ninstances = ['10.0.0.1:5000']\nhealth.check = 'off'",
    );
    assert_eq!((checked.services[0].policy.health.check, &checked.services[0].policy.health.call), (HealthCheck::Off, &None));
}

#[test]
fn a_conflict_in_the_defaults_is_reported_once() {
    let report = report("[defaults]\nconnections_min = 65\n[services.'/s']\ninstances = ['10.0.0.1:5000']");
    assert!(report.starts_with("moa.toml:2:19: defaults.connections_min:"), "{report}");
    assert_eq!(report.lines().count(), 1, "{report}");
}

#[test]
fn all_problems_are_reported_from_top_to_bottom() {
    let report = report(
        "[agent]\nworkers = 'all'\nthreads = 3\n[app]\nlisten = 7\n[services.'/s']\ninstances = ['a:1', 'b:2']\ntimeout_ms = -1\n[services.'/t']\nagents = ['b']\n",
    );
    let lines: Vec<_> = report.lines().map(|line| line.split(": ").nth(1).unwrap_or_default()).collect();
    let expected = [
        "agent.workers",
        "agent.threads",
        "app.listen",
        "services.\"/s\".instances[0]",
        "services.\"/s\".instances[1]",
        "services.\"/s\".timeout_ms",
        "services.\"/t\".agents[0]",
    ];
    assert_eq!(lines, expected, "{report}");
}

#[test]
fn broken_syntax_is_reported_alone() {
    for (text, position) in
        [("[agent\nworkers = 1", "moa.toml:1:7: "), ("a = \n[b]\nc = 1", "moa.toml:1:5: "), ("a = 1\na = 2", "moa.toml:2:1: ")]
    {
        let report = report(text);
        assert!(report.starts_with(position), "{report}");
        assert!(report.contains("found a syntax error ("), "{report}");
    }
}

#[test]
fn an_excerpt_points_at_the_value() {
    let report = parse("[app]\n\tlisten = '127.0.0.1'\n", "f", &Given::default()).expect_err("no port");
    let (line, carets) = report.excerpt(&report.problems[0]);
    assert_eq!((line, carets.as_str()), ("\tlisten = '127.0.0.1'", "\t         ^^^^^^^^^^^"));
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = load("/nonexistent/moa.toml".as_ref(), &Given::default()).expect_err("no such file");
    let expected = "can't read /nonexistent/moa.toml: No such file or directory (os error 2); name another file by --config";
    assert_eq!(error.to_string(), expected);
}
