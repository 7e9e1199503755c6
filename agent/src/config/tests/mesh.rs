//! What a file says of other agents and of applications that speak frames.

use super::*;

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
    let peer = |name: &str, text| CheckedPeer {
        failover: None,
        name: name.into(),
        address: address(text),
        zone: String::new(),
        data_centre: String::new(),
    };
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
fn wrong_shapes_of_tunnels_and_peers_are_refused() {
    let cases = [
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
            "moa.toml:2:1: peers.b.adress: found the unknown key `adress`, expected one of address, failover, zone, data_centre; did you mean `address`?",
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
fn listeners_windows_and_paths_that_do_not_fit_are_refused() {
    let cases = [
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
            "moa.toml:3:1: peers.b.address: found no address, expected an IP address with a port; add address = \"10.0.0.2:13100\"",
        ),
        (
            b("[services.'/s']\nagents = ['node-b', 'node-b']"),
            "moa.toml:4:21: services.\"/s\".agents[1]: found \"node-b\" for the second time, expected each one once; remove it",
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
