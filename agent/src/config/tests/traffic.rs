//! What a file says of instances, groups, places and spans, and how calls of a service are handled: right and wrong.

use super::*;
use crate::config::traffic::{BalancePolicy, Patterns, RetryOn, Split, To};

#[test]
fn an_instance_is_an_address_or_a_table() {
    let checked = checked(
        r#"
        [services."/s"]
        instances = [
            "10.0.0.1:5000",
            { address = "10.0.0.2:5000" },
            { address = "10.0.0.3:5000", weight = 7, zone = "a", data_centre = "d", environment = "pre", labels = { v = "2", "x.y" = "" } },
        ]
        [[services."/t".instances]]
        address = "10.0.0.4:5000"
        weight = 10_000
        "#,
    );
    let labels = [("v", "2"), ("x.y", "")].map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let traits = Traits { weight: 7, zone: "a".into(), data_centre: "d".into(), environment: "pre".into(), labels };
    let third = CheckedInstance { address: address("10.0.0.3:5000"), namespace: None, traits };
    assert_eq!(checked.services[0].instances, [instance("10.0.0.1:5000"), instance("10.0.0.2:5000"), third]);
    assert_eq!((checked.services[1].instances[0].traits.weight, Traits::default().weight), (10_000, 100));
}

#[test]
fn a_group_stands_behind_the_uri() {
    let checked = checked("[services.'/s']\ntimeout_ms = 1\n[services.'/s#blue']\ntimeout_ms = 2\n[services.'/s#ü.1']");
    let services: Vec<_> = checked.services.iter().map(|one| (&*one.uri, &*one.group, one.name())).collect();
    let service = |uri, group, name: &str| (uri, group, name.to_owned());
    assert_eq!(services, [service("/s", "", "/s"), service("/s", "blue", "/s#blue"), service("/s", "ü.1", "/s#ü.1")]);
    assert_eq!(checked.services[1].policy.timeout_ms, 2);
}

#[test]
fn places_and_spans_are_read() {
    let checked = checked(
        r#"
        [agent]
        zone = "a"
        data_centre = "d"
        [peers.b]
        address = "10.0.0.2:13100"
        zone = "b"
        data_centre = "e"
        [tracing]
        endpoint = "http://[::1]:4318/otlp"
        sample_per_million = 1_000_000
        "#,
    );
    assert_eq!((&*checked.config.agent.zone, &*checked.config.agent.data_centre), ("a", "d"));
    assert_eq!((&*checked.peers[0].zone, &*checked.peers[0].data_centre), ("b", "e"));
    let tracing =
        Tracing { endpoint: Some("http://[::1]:4318/otlp".into()), sample_per_million: 1_000_000, ..Tracing::default() };
    assert_eq!(checked.config.tracing, tracing);
    for good in ["http://a", "http://a_b.c-d:1/", "http://127.0.0.1:65535/x/%20y", "http://[::1]"] {
        parse(&format!("tracing.endpoint = '{good}'"), "f", &Given::default()).unwrap_or_else(|report| panic!("{report}"));
    }
}

#[test]
fn lists_of_a_service_replace_those_of_the_defaults_and_tables_are_laid_over_them() {
    let checked = checked(
        r#"
        [defaults]
        balance.policy = "ketama"
        retry = { on = ["code"], codes = [500], tries_max = 3 }
        rate.callers = { shop = 1, app = 2 }
        routes = [{ name = "a", to = { environment = "pre" } }]
        [services."/s"]
        retry.codes = [501, 502]
        rate.callers.app = 3
        balance.slow_start_ms = 7
        [services."/t"]
        retry.on = []
        [[services."/t".routes]]
        name = "b"
        when = { method = "get*", "moa.env.pre" = ["1", "2"] }
        split = [{ weight = 5, to = { labels = { v = "2" }, fallback = false } }, {}]
        "#,
    );
    let [s, t] = [&checked.services[0].policy, &checked.services[1].policy];
    assert_eq!((&s.retry.on[..], &s.retry.codes[..], s.retry.tries_max), (&[RetryOn::Code][..], &[501, 502][..], 3));
    assert_eq!((&t.retry.on[..], &t.retry.codes[..], t.retry.tries_max), (&[][..], &[500][..], 3));
    assert_eq!(s.rate.callers, [("shop".to_owned(), 1), ("app".to_owned(), 3)].into());
    assert_eq!((s.balance.policy, s.balance.slow_start_ms), (BalancePolicy::Ketama, 7));
    assert_eq!(s.routes, checked.config.defaults.routes);
    assert_eq!((&*s.routes[0].name, t.routes.len(), &*t.routes[0].name), ("a", 1, "b"));
    let patterns = |patterns: &[&str]| Patterns(patterns.iter().map(|&pattern| pattern.to_owned()).collect());
    let when = [("method", patterns(&["get*"])), ("moa.env.pre", patterns(&["1", "2"]))];
    assert_eq!(t.routes[0].when, when.map(|(name, patterns)| (name.to_owned(), patterns)).into());
    let to = To { labels: [("v".to_owned(), "2".to_owned())].into(), fallback: false, ..To::default() };
    assert_eq!(t.routes[0].split, [Split { weight: 5, to: Some(to) }, Split::default()]);
}

#[test]
fn what_a_service_inherits_and_does_not_use_is_no_conflict() {
    for text in [
        "[defaults]\nretry.codes = [500]\n[services.'/s']\nretry.on = ['code']\n[services.'/t']",
        "[defaults]\nretry.on = ['code']\n[services.'/s']\nretry.codes = [500]\n[services.'/t']",
        "[defaults]\nretry = { on = ['code'], codes = [500] }\n[services.'/s']\nretry.on = []\n[services.'/t']\nretry.codes = []",
        "[defaults]\nhedge.after_ms = 1000\ntry_timeout_ms = 1000\n[services.'/s']\ntimeout_ms = 500",
    ] {
        assert!(checked(text).services.len() <= 2, "{text}");
    }
}

#[test]
fn wrong_instances_are_shown_one_by_one() {
    let text = r#"
        [services."/s"]
        instances = [
            { address = "10.0.0.1:5000", wieght = 5 },
            { address = "10.0.0.2:5000", weight = 0, labels = { v = 1 } },
            { weight = 10_001 },
            { address = "b:1" },
            7,
        ]
        [services."/t"]
        instances = ["10.0.0.1:5000", { address = "10.0.0.1:5000", zone = "a" }]
        "#;
    let expected = [
        "moa.toml:4:42: services.\"/s\".instances[0].wieght: found the unknown key `wieght`, expected one of address, namespace, weight, \
         zone, data_centre, environment, labels; did you mean `weight`?",
        "moa.toml:5:51: services.\"/s\".instances[1].weight: found the number 0, expected a whole number from 1 to 10000; use a \
         number within the bounds",
        "moa.toml:5:69: services.\"/s\".instances[1].labels.v: found the number 1, expected a string; write it in quotes",
        "moa.toml:6:13: services.\"/s\".instances[2].address: found no address, expected an IP address with a port; add address = \
         \"10.0.0.1:5000\"",
        "moa.toml:6:24: services.\"/s\".instances[2].weight: found the number 10001, expected a whole number from 1 to 10000; use \
         a number within the bounds",
        "moa.toml:7:25: services.\"/s\".instances[3].address: found the string \"b:1\", expected an IP address with a port; host \
         names are not resolved: write the IP address of b, such as \"10.0.0.1:1\"",
        "moa.toml:8:13: services.\"/s\".instances[4]: found the number 7, expected an IP address with a port, or a table that has \
         one",
        "moa.toml:11:39: services.\"/t\".instances[1]: found 10.0.0.1:5000 for the second time, expected every instance once; \
         remove it",
    ];
    assert_eq!(report(text).lines().collect::<Vec<_>>(), expected);
}

#[test]
fn names_of_services_and_groups_that_do_not_fit_are_refused() {
    let cases = [
        (
            "[services.'/s#']",
            "moa.toml:1:1: services.\"/s#\": found an empty group, expected a group of at most 255 bytes behind the `#`, as in \
             \"/service/user#blue\"; rename the section",
        ),
        (
            "[services.'/s#a b']",
            "moa.toml:1:1: services.\"/s#a b\": found the group \"a b\" with a space, a quote, a backslash, a `#` or a control \
             character, expected a group of at most 255 bytes behind the `#`, as in \"/service/user#blue\"; rename the section",
        ),
        (
            "[services.'/s#a#b']",
            "moa.toml:1:1: services.\"/s#a#b\": found the group \"a#b\" with a space, a quote, a backslash, a `#` or a control \
             character, expected a group of at most 255 bytes behind the `#`, as in \"/service/user#blue\"; rename the section",
        ),
        (
            "[services.'s#a']",
            "moa.toml:1:1: services.\"s#a\": found the URI \"s\", which does not begin with `/` and a name, expected a URI such \
             as \"/service/user\", of at most 255 bytes; rename the section",
        ),
        (
            "[services.'/s#g']\ninstances = ['0.0.0.0:1']",
            "moa.toml:2:14: services.\"/s#g\".instances[0]: found 0.0.0.0:1, expected an address that can be called; write \
             127.0.0.1:1",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(report(text), expected, "of {text}");
    }
}

#[test]
fn collectors_that_can_not_be_reached_are_refused() {
    let cases = [
        (
            "tracing.endpoint = 'https://a'",
            "moa.toml:1:20: tracing.endpoint: found the URL \"https://a\", but TLS is not spoken, expected an http:// URL with a \
             host, and if need be a port and a path; write a URL such as \"http://127.0.0.1:4318\"",
        ),
        (
            "tracing.endpoint = 'a:4318'",
            "moa.toml:1:20: tracing.endpoint: found \"a:4318\", which does not begin with http://, expected an http:// URL with a \
             host, and if need be a port and a path; write a URL such as \"http://127.0.0.1:4318\"",
        ),
        (
            "tracing.endpoint = 'http://'",
            "moa.toml:1:20: tracing.endpoint: found the URL \"http://\" with a host or a port that is none, expected an http:// \
             URL with a host, and if need be a port and a path; write a URL such as \"http://127.0.0.1:4318\"",
        ),
        (
            "tracing.endpoint = 'http://a:0/x'",
            "moa.toml:1:20: tracing.endpoint: found the URL \"http://a:0/x\" with a host or a port that is none, expected an \
             http:// URL with a host, and if need be a port and a path; write a URL such as \"http://127.0.0.1:4318\"",
        ),
        (
            "tracing.endpoint = 'http://a:+1'",
            "moa.toml:1:20: tracing.endpoint: found the URL \"http://a:+1\" with a host or a port that is none, expected an \
             http:// URL with a host, and if need be a port and a path; write a URL such as \"http://127.0.0.1:4318\"",
        ),
        (
            "tracing.endpoint = 'http://[::g]'",
            "moa.toml:1:20: tracing.endpoint: found the URL \"http://[::g]\" with a host or a port that is none, expected an \
             http:// URL with a host, and if need be a port and a path; write a URL such as \"http://127.0.0.1:4318\"",
        ),
        (
            "tracing.endpoint = 'http://u@a/x'",
            "moa.toml:1:20: tracing.endpoint: found the URL \"http://u@a/x\" with a user, expected an http:// URL with a host, \
             and if need be a port and a path; write a URL such as \"http://127.0.0.1:4318\"",
        ),
        (
            "tracing.endpoint = 'http://a/x y'",
            "moa.toml:1:20: tracing.endpoint: found the URL \"http://a/x y\" with a path that is none, expected an http:// URL \
             with a host, and if need be a port and a path; write a URL such as \"http://127.0.0.1:4318\"",
        ),
        (
            "tracing.endpoint = 'http://a/x?y'",
            "moa.toml:1:20: tracing.endpoint: found the URL \"http://a/x?y\" with a query or a fragment, expected an http:// URL \
             with a host, and if need be a port and a path; write a URL such as \"http://127.0.0.1:4318\"",
        ),
        (
            "tracing.sample_per_million = 1000001",
            "moa.toml:1:30: tracing.sample_per_million: found the number 1000001, expected a whole number from 0 to 1000000; use \
             a number within the bounds",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(report(text), expected, "of {text}");
    }
}

#[test]
fn keys_of_traffic_policy_that_do_not_fit_each_other_are_refused() {
    let text = r#"
        [defaults]
        try_timeout_ms = 5000
        hedge.after_ms = 4500
        retry = { backoff_ms = 300, codes = [200] }
        outlier = { ejection_ms = 400_000, codes = [301, 0] }
        concurrency = { min = 20_000 }
        [services."/s"]
        timeout_ms = 10
        try_timeout_ms = 10
        retry = { on = ["code"], codes = [] }
        rate.callers = { "" = 1, "a*" = 2, ok = 3 }
        [services."/t"]
        retry = { codes = [3], backoff_max_ms = 299, methods = ["get*", ""] }
        outlier.ejection_max_ms = 200_000
        "#;
    let expected = [
        "moa.toml:3:26: defaults.try_timeout_ms: found a try of 5000 ms in a call of 4500 ms, expected try_timeout_ms to be below \
         timeout_ms; lower try_timeout_ms, or set it to 0, which is as long as the call",
        "moa.toml:4:26: defaults.hedge.after_ms: found a second copy after 4500 ms of a call of 4500 ms, expected hedge.after_ms \
         to be below timeout_ms; lower hedge.after_ms, or set it to 0, which is no second copies",
        "moa.toml:5:32: defaults.retry.backoff_ms: found a first wait of 300 ms, and 250 ms as the longest, expected backoff_ms \
         to be at most backoff_max_ms; raise backoff_max_ms, or lower backoff_ms",
        "moa.toml:5:45: defaults.retry.codes: found the code 200, which is no error, expected codes of errors; remove it",
        "moa.toml:6:35: defaults.outlier.ejection_ms: found 400000 ms for the first time, and 300000 ms at most, expected \
         ejection_ms to be at most ejection_max_ms; raise ejection_max_ms, or lower ejection_ms",
        "moa.toml:6:52: defaults.outlier.codes: found the code 0, which is no error, expected codes of errors; remove it",
        "moa.toml:7:31: defaults.concurrency.min: found 20000 calls in any case, and 10000 at most, expected min to be at most \
         max; raise max, or lower min",
        "moa.toml:10:26: services.\"/s\".try_timeout_ms: found a try of 10 ms in a call of 10 ms, expected try_timeout_ms to be \
         below timeout_ms; lower try_timeout_ms, or set it to 0, which is as long as the call",
        "moa.toml:11:24: services.\"/s\".retry.on: found \"code\" without any codes, expected retry.codes, the service's own \
         error codes after which a call is sent again; add codes = […], or remove \"code\" from retry.on",
        "moa.toml:12:31: services.\"/s\".rate.callers.\"\": found an empty name, expected the name of a calling application, of \
         at most 255 bytes; write the application's name",
        "moa.toml:12:41: services.\"/s\".rate.callers.\"a*\": found the pattern \"a*\", expected the name of a calling \
         application, of at most 255 bytes; use caller_per_s for all callers that are not named",
        "moa.toml:14:27: services.\"/t\".retry.codes: found codes, but no retries after codes, expected \"code\" in retry.on, or \
         no retry.codes; add \"code\" to retry.on, or remove retry.codes",
        "moa.toml:14:49: services.\"/t\".retry.backoff_max_ms: found a first wait of 300 ms, and 299 ms as the longest, expected \
         backoff_ms to be at most backoff_max_ms; raise backoff_max_ms, or lower backoff_ms",
        "moa.toml:14:73: services.\"/t\".retry.methods[1]: found an empty pattern, expected a method, or a pattern such as \
         \"get*\"; remove it, or write \"*\" for all methods",
        "moa.toml:15:35: services.\"/t\".outlier.ejection_max_ms: found 400000 ms for the first time, and 200000 ms at most, \
         expected ejection_ms to be at most ejection_max_ms; raise ejection_max_ms, or lower ejection_ms",
    ];
    assert_eq!(report(text).lines().collect::<Vec<_>>(), expected);
}

#[test]
fn codes_of_retries_go_with_retries_after_codes() {
    let cases = [
        (
            "defaults.retry.codes = [500]",
            "moa.toml:1:24: defaults.retry.codes: found codes, but no retries after codes, expected \"code\" in retry.on, or no \
             retry.codes; add \"code\" to retry.on, or remove retry.codes",
        ),
        (
            "defaults.retry.on = ['code']\n[services.'/s']",
            "moa.toml:1:21: defaults.retry.on: found \"code\" without any codes, expected retry.codes, the service's own error \
             codes after which a call is sent again; add codes = […], or remove \"code\" from retry.on",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(report(text), expected, "of {text}");
    }
}
