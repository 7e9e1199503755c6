//! Files as operators write them, right and wrong, and what they are told.

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
    assert_eq!(user.instances, [address("10.0.0.1:5000"), address("[::1]:5000")]);
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
fn a_service_is_served_by_instances_and_agents_or_by_who_offers_it() {
    let checked = checked(
        r#"
        [services."/a"]
        [services."/b"]
        instances = []
        agents = ["z", "node-2.rack"]
        timeout_ms = 70
        [peers.z]
        address = "10.0.0.9:13100"
        [peers."node-2.rack"]
        address = "[::2]:13100"
        "#,
    );
    let peer = |name: &str, text| CheckedPeer { name: name.into(), address: address(text) };
    assert_eq!(checked.peers, [peer("node-2.rack", "[::2]:13100"), peer("z", "10.0.0.9:13100")]);
    let [a, b] = &checked.services[..] else { panic!("two services") };
    assert!(a.instances.is_empty() && a.agents.is_empty() && b.instances.is_empty());
    assert_eq!((&b.agents[..], b.policy.timeout_ms), (&["z".to_owned(), "node-2.rack".to_owned()][..], 70));
}

#[test]
fn the_tunnel_and_frame_applications_have_bounds_of_their_own() {
    let text = "[app]\nunix = '/run/moa/a.sock'\nstream_window_bytes = 65536\n[tunnel]\nconnections = 16\ncalls_max = 7\n";
    let config = checked(text).config;
    let app = App { unix: Some("/run/moa/a.sock".into()), stream_window_bytes: 65_536, ..App::default() };
    assert_eq!((config.app, config.tunnel), (app, Tunnel { connections: 16, calls_max: 7, ..Tunnel::default() }));
    let longest = format!("/{}", "x".repeat(106));
    assert_eq!(checked(&format!("app.unix = '{longest}'")).config.app.unix, Some(longest.into()));
}

#[test]
fn every_problem_of_shape_says_where_it_is_and_what_to_do() {
    let cases = [
        (
            "[agent]\nwokers = 3",
            "moa.toml:2:1: agent.wokers: found the unknown key `wokers`, expected one of workers, calls_in_flight_max, queued_bytes_max, \
             drain_timeout_ms; did you mean `workers`?",
        ),
        (
            "[colour]\n",
            "moa.toml:1:2: colour: found the unknown key `colour`, expected one of agent, app, tunnel, kernel, metrics, \
             defaults, peers, services; remove it",
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
            "moa.toml:2:31: services.\"/s\".instances[1]: found the string \"10.0.0.2:0\", expected an IP address with a port; use a port \
             from 1 to 65535",
        ),
        (
            "[services.'/s']\ninstances = '10.0.0.1:5000'",
            "moa.toml:2:13: services.\"/s\".instances: found the string \"10.0.0.1:5000\", expected a list, each an IP address with a \
             port; write [\"10.0.0.1:5000\"]",
        ),
        (
            "[services.'/s']\nagents = 'b'",
            "moa.toml:2:10: services.\"/s\".agents: found the string \"b\", expected a list, each a string; write [\"b\"]",
        ),
        (
            "tunnel.stream_window_bytes = 65535",
            "moa.toml:1:30: tunnel.stream_window_bytes: found the number 65535, expected a whole number of bytes from 65536 to 1073741824; \
             use a number within the bounds",
        ),
        (
            "app.connection_window_bytes = 1073741825",
            "moa.toml:1:31: app.connection_window_bytes: found the number 1073741825, expected a whole number of bytes from 65536 to \
             1073741824; use a number within the bounds",
        ),
        (
            "tunnel.connections = 17",
            "moa.toml:1:22: tunnel.connections: found the number 17, expected a whole number from 1 to 16; use a number within the bounds",
        ),
        (
            "tunnel.keepalive_ms = 99",
            "moa.toml:1:23: tunnel.keepalive_ms: found the number 99, expected a whole number of milliseconds from 100 to 86400000; use a \
             number within the bounds",
        ),
        (
            "[peers.b]\nadress = '10.0.0.2:13100'\naddress = '10.0.0.2:13100'",
            "moa.toml:2:1: peers.b.adress: found the unknown key `adress`, expected address; did you mean `address`?",
        ),
        (
            "[peers.b]\naddress = 'b:13100'\n[services.'/s']\nagents = ['b']",
            "moa.toml:2:11: peers.b.address: found the string \"b:13100\", expected an IP address with a port; host names are not resolved: \
             write the IP address of b, such as \"10.0.0.1:13100\"",
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
            "app.listen = '127.0.0.1:13100'".to_owned(),
            "moa.toml:1:14: app.listen: found 127.0.0.1:13100 for applications and 127.0.0.1:13100 for other agents, expected two addresses \
             that differ; give one of them another port",
        ),
        (
            "tunnel.listen = '0.0.0.0:13900'".to_owned(),
            "moa.toml:1:17: tunnel.listen: found 0.0.0.0:13900 for other agents and 127.0.0.1:13900 for metrics, expected two addresses \
             that differ; give one of them another port",
        ),
        (
            "[tunnel]\nconnection_window_bytes = 65536".to_owned(),
            "moa.toml:2:27: tunnel.connection_window_bytes: found a window of 1048576 bytes for a call on a connection with one of 65536, \
             expected stream_window_bytes to be at most connection_window_bytes; raise connection_window_bytes, or lower \
             stream_window_bytes",
        ),
        (
            "[app]\nstream_window_bytes = 4194305".to_owned(),
            "moa.toml:2:23: app.stream_window_bytes: found a window of 4194305 bytes for a call on a connection with one of 4194304, \
             expected stream_window_bytes to be at most connection_window_bytes; raise connection_window_bytes, or lower \
             stream_window_bytes",
        ),
        (
            "app.unix = 'a.sock'".to_owned(),
            "moa.toml:1:12: app.unix: found the relative path \"a.sock\", expected an absolute path of at most 107 bytes; write a path such \
             as \"/run/moa/app.sock\"",
        ),
        (
            format!("app.unix = '/{}'", "x".repeat(107)),
            "moa.toml:1:12: app.unix: found a path of 108 bytes, expected an absolute path of at most 107 bytes; write a path such as \
             \"/run/moa/app.sock\"",
        ),
        (
            "[services.'/s']\ninstances = ['127.0.0.1:13100']".to_owned(),
            "moa.toml:2:14: services.\"/s\".instances[0]: found 127.0.0.1:13100, where this agent itself listens, expected the address of a \
             server of the service; calls would go in circles: remove it",
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
fn peers_that_do_not_fit_are_refused() {
    let b = |rest: &str| format!("[peers.node-b]\naddress = '10.0.0.2:13100'\n{rest}");
    let cases = [
        (
            b("[peers.a]\naddress = '10.0.0.2:13100'"),
            "moa.toml:2:11: peers.node-b.address: found 10.0.0.2:13100, which is the address of `a`, expected an address for each peer; \
             remove one of the two, or correct its address",
        ),
        (
            "[peers.b]\naddress = '127.0.0.1:13100'".to_owned(),
            "moa.toml:2:11: peers.b.address: found 127.0.0.1:13100, where this agent itself listens, expected the address of another \
             agent; calls would go in circles: remove the section",
        ),
        (
            "[peers.b]\naddress = '127.0.0.1:7'\n[tunnel]\nlisten = '0.0.0.0:7'".to_owned(),
            "moa.toml:2:11: peers.b.address: found 127.0.0.1:7, where this agent itself listens, expected the address of another agent; \
             calls would go in circles: remove the section",
        ),
        (
            "[peers.b]\naddress = '0.0.0.0:7'".to_owned(),
            "moa.toml:2:11: peers.b.address: found 0.0.0.0:7, expected an address that can be called; write 127.0.0.1:7",
        ),
        (
            "[services.'/s']\nagents = ['b']\n[peers.b]".to_owned(),
            "moa.toml:3:1: peers.b.address: found no address, expected the address where the other agent is called; add address = \
             \"10.0.0.2:13100\"",
        ),
        (
            b("[services.'/s']\nagents = ['node-b', 'node-b']"),
            "moa.toml:4:21: services.\"/s\".agents[1]: found \"node-b\" for the second time, expected every agent once; remove it",
        ),
        (
            b("[services.'/s']\nagents = ['nodeb']"),
            "moa.toml:4:11: services.\"/s\".agents[0]: found the agent \"nodeb\", which has no section, expected the name of a peer; did \
             you mean `node-b`?",
        ),
        (
            b("[services.'/s']\nagents = ['x.y']"),
            "moa.toml:4:11: services.\"/s\".agents[0]: found the agent \"x.y\", which has no section, expected the name of a peer; add \
             [peers.\"x.y\"] with its address, or remove it",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(report(&text), expected, "of {text}");
    }
}

#[test]
fn names_of_peers_are_plain() {
    let with = |name: &str| format!("[peers.'{name}']\naddress = '10.0.0.2:13100'\n[services.'/s']\nagents = ['{name}']");
    for good in ["a", "7", "node-2.rack", &"x".repeat(64)] {
        assert_eq!(checked(&with(good)).peers[0].name, good);
    }
    for bad in ["", "B", "-a", ".a", "a_b", "a b", "ü", &"x".repeat(65)] {
        let expected = format!(
            "moa.toml:1:1: {}: found the name {bad:?}, expected 1 to 64 lower-case letters, digits, `-` and `.`, the first one a \
             letter or a digit; rename the section",
            KeyPath::default().key("peers").key(bad)
        );
        assert_eq!(report(&with(bad)), expected);
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
