//! Rules about calls, right and wrong.

use super::*;

#[test]
fn wrong_shapes_of_rules_are_shown_one_by_one() {
    let text = r#"
        [[services."/s".routes]]
        name = "a"
        when = { method = 5, entry.7 = "x", application = ["a", 7] }
        to = { enviroment = "pre" }
        [[services."/s".routes]]
        nme = "b"
        split = [{ weight = -1, to = { labels = { v = true } } }, 7]
        [services."/t".routes]
        name = "x"
        [services."/u"]
        routes = ["x"]
        retry = { on = ["connection", "never", "code", "code"], codes = [1, 70000, "x", 1], methods = "get" }
        outlier.codes = 500
        rate.callers = { shop = -1, app = "many" }
        [services."/v"]
        rate.callers = 7
        access = { mode = "dry", rules = [{ name = "x", verdict = "refuse" }, { verdict = "deny" }] }
        faults = [{ name = "x", code = 0 }]
        shadows = [{ name = "x", to = "y", servise = "b" }]
        "#;
    let expected = [
        "moa.toml:4:27: services.\"/s\".routes[0].when.method: found the number 5, expected a string or a list of strings; write \
         it in quotes",
        "moa.toml:4:30: services.\"/s\".routes[0].when.entry: found a table, expected a string or a list of strings; a name with \
         dots in it stands in quotes, such as \"moa.env.pre\"",
        "moa.toml:4:65: services.\"/s\".routes[0].when.application[1]: found the number 7, expected a string; write it in quotes",
        "moa.toml:5:16: services.\"/s\".routes[0].to.enviroment: found the unknown key `enviroment`, expected one of environment, \
         group, labels, fallback; did you mean `environment`?",
        "moa.toml:6:9: services.\"/s\".routes[1].name: found no name, expected a string; add name = \"new-search\"",
        "moa.toml:7:9: services.\"/s\".routes[1].nme: found the unknown key `nme`, expected one of name, when, to, split, sticky; \
         did you mean `name`?",
        "moa.toml:8:29: services.\"/s\".routes[1].split[0].weight: found the number -1, expected a whole number from 0 to \
         1000000; use a number within the bounds",
        "moa.toml:8:55: services.\"/s\".routes[1].split[0].to.labels.v: found true, expected a string; write it in quotes",
        "moa.toml:8:67: services.\"/s\".routes[1].split[1]: found the number 7, expected a table",
        "moa.toml:9:9: services.\"/t\".routes: found a table, expected a list, each a table; write [{ … }], or two brackets \
         around its header, as in [[routes]]",
        "moa.toml:12:19: services.\"/u\".routes[0]: found the string \"x\", expected a table",
        "moa.toml:13:39: services.\"/u\".retry.on[1]: found the string \"never\", expected one of \"connection\", \"timeout\", \
         \"not-executed\", \"code\"",
        "moa.toml:13:56: services.\"/u\".retry.on[3]: found \"code\" for the second time, expected each one once; remove it",
        "moa.toml:13:77: services.\"/u\".retry.codes[1]: found the number 70000, expected a whole number from 0 to 65535; use a \
         number within the bounds",
        "moa.toml:13:84: services.\"/u\".retry.codes[2]: found the string \"x\", expected a whole number from 0 to 65535; write \
         the number, without quotes and unit",
        "moa.toml:13:89: services.\"/u\".retry.codes[3]: found 1 for the second time, expected each one once; remove it",
        "moa.toml:13:103: services.\"/u\".retry.methods: found the string \"get\", expected a list, each a string; write \
         [\"get\"]",
        "moa.toml:14:25: services.\"/u\".outlier.codes: found the number 500, expected a list, each a whole number from 0 to \
         65535; write [500]",
        "moa.toml:15:33: services.\"/u\".rate.callers.shop: found the number -1, expected a whole number from 0 to 10000000; use \
         a number within the bounds",
        "moa.toml:15:43: services.\"/u\".rate.callers.app: found the string \"many\", expected a whole number from 0 to 10000000; \
         write the number, without quotes and unit",
        "moa.toml:17:24: services.\"/v\".rate.callers: found the number 7, expected a table, each a whole number from 0 to \
         10000000",
        "moa.toml:18:27: services.\"/v\".access.mode: found the string \"dry\", expected one of \"enforce\", \"dry-run\"",
        "moa.toml:18:67: services.\"/v\".access.rules[0].verdict: found the string \"refuse\", expected one of \"allow\", \
         \"deny\"",
        "moa.toml:18:79: services.\"/v\".access.rules[1].name: found no name, expected a string; add name = \"no-guests\"",
        "moa.toml:19:40: services.\"/v\".faults[0].code: found the number 0, expected a whole number from 1 to 65535; use a \
         number within the bounds",
        "moa.toml:20:39: services.\"/v\".shadows[0].to: found the string \"y\", expected a table",
        "moa.toml:20:44: services.\"/v\".shadows[0].servise: found the unknown key `servise`, expected one of name, when, to, \
         service, per_10k, in_flight_max; did you mean `service`?",
    ];
    assert_eq!(report(text).lines().collect::<Vec<_>>(), expected);
}

#[test]
fn rules_that_say_nothing_or_too_much_are_refused() {
    let text = r#"
        [[services."/s".routes]]
        name = "a"
        [[services."/s".routes]]
        name = "a"
        to = {}
        split = [{ weight = 1 }]
        [[services."/s".routes]]
        name = "A b"
        split = [{ weight = 0 }, { weight = 0 }]
        [[services."/s".routes]]
        name = ""
        to.environment = ""
        [[services."/s".routes]]
        name = "group"
        to.group = "a b"
        [[services."/s".faults]]
        name = "a"
        [[services."/s".access.rules]]
        name = "default"
        "#;
    let expected = [
        "moa.toml:2:9: services.\"/s\".routes[0]: found neither `to` nor `split`, expected one of the two; add to = { … }, or \
         split = [{ weight = …, to = { … } }, …]",
        "moa.toml:5:16: services.\"/s\".routes[1].name: found \"a\" for the second time, expected a name for each rule of the \
         list; rename one of the two",
        "moa.toml:7:17: services.\"/s\".routes[1].split: found both `to` and `split`, expected one of the two; remove one of the \
         two",
        "moa.toml:9:16: services.\"/s\".routes[2].name: found the name \"A b\", expected at most 64 lower-case letters, digits, \
         `-`, `_` and `.`; rename the rule",
        "moa.toml:10:17: services.\"/s\".routes[2].split: found shares of 0, expected a share with a weight; raise the weight of \
         one",
        "moa.toml:12:16: services.\"/s\".routes[3].name: found no name, expected a name for errors and lists; add name = \"…\"",
        "moa.toml:13:26: services.\"/s\".routes[3].to.environment: found an empty environment, expected the name of an \
         environment; remove it for instances without one",
        "moa.toml:16:20: services.\"/s\".routes[4].to.group: found the group \"a b\" with a space, a quote, a backslash, a `#` or \
         a control character, expected the name of a group; correct it",
        "moa.toml:17:9: services.\"/s\".faults[0]: found neither a delay nor a code, expected delay_ms, code, or both; add \
         delay_ms = … or code = …",
        "moa.toml:20:16: services.\"/s\".access.rules[0].name: found the name \"default\", which is what refusals call \
         access.default, expected another name; rename the rule",
    ];
    assert_eq!(report(text).lines().collect::<Vec<_>>(), expected);
}

#[test]
fn names_and_patterns_of_conditions_are_checked() {
    let text = r#"
        [[defaults.access.rules]]
        name = "a"
        [defaults.access.rules.when]
        "entry.0" = "x"
        "entry.255" = "x"
        "entry.256" = "x"
        "entry." = "x"
        "entry.07" = "x"
        "" = "x"
        "props." = "x"
        "props.method" = "x"
        method = []
        zone = ""
        content_type = ["a", ""]
        application = ""
        "#;
    let expected = [
        "moa.toml:7:23: defaults.access.rules[0].when.\"entry.256\": found the name \"entry.256\", expected entry.0 to entry.255; \
         name a number from 0 to 255, or write `props.` before it if it is a property",
        "moa.toml:8:20: defaults.access.rules[0].when.\"entry.\": found the name \"entry.\", expected entry.0 to entry.255; name \
         a number from 0 to 255, or write `props.` before it if it is a property",
        "moa.toml:9:22: defaults.access.rules[0].when.\"entry.07\": found the name \"entry.07\", expected entry.0 to entry.255; \
         name a number from 0 to 255, or write `props.` before it if it is a property",
        "moa.toml:10:14: defaults.access.rules[0].when.\"\": found the name \"\", expected the name of what a call says of \
         itself, such as `method`; write a name",
        "moa.toml:11:20: defaults.access.rules[0].when.\"props.\": found the name \"props.\", expected the name of what a call \
         says of itself, such as `method`; write a name",
        "moa.toml:13:18: defaults.access.rules[0].when.method: found an empty list, which nothing fits, expected at least one \
         pattern; write \"*\" for anything",
        "moa.toml:14:16: defaults.access.rules[0].when.zone: found an empty pattern, expected a pattern; write \"*\" for anything",
        "moa.toml:15:24: defaults.access.rules[0].when.content_type: found an empty pattern, expected a pattern; write \"*\" for \
         anything",
    ];
    assert_eq!(report(text).lines().collect::<Vec<_>>(), expected);
}

#[test]
fn a_shadow_goes_to_a_service_that_is_there() {
    let text = r#"
        [defaults]
        shadows = [{ name = "z", service = "/nowhere" }]
        [services."/service/s"]
        shadows = [
            { name = "a", service = "/service/other", to.group = "g" },
            { name = "b", service = "/service/other" },
            { name = "x", service = "/service/t", to.group = "g" },
            { name = "c", service = "/service/t" },
            { name = "d", service = "/service/oter", to.group = "g" },
            { name = "e", service = "/service/other#g" },
        ]
        [services."/service/t"]
        shadows = []
        [services."/service/other#g"]
        "#;
    let expected = [
        "moa.toml:3:44: defaults.shadows[0].service: found the service \"/nowhere\", which has no section, expected the URI of a \
         service that has one; add [services.\"/nowhere\"], or remove the rule",
        "moa.toml:7:37: services.\"/service/s\".shadows[1].service: found the service \"/service/other\", which has no section, \
         expected the URI of a service that has one; write to.group = \"g\"",
        "moa.toml:8:37: services.\"/service/s\".shadows[2].service: found the service \"/service/t\" of the group \"g\", which \
         has no section, expected the URI of a service that has one; remove to.group",
        "moa.toml:10:37: services.\"/service/s\".shadows[4].service: found the service \"/service/oter\" of the group \"g\", \
         which has no section, expected the URI of a service that has one; did you mean `/service/other`?",
        "moa.toml:11:37: services.\"/service/s\".shadows[5].service: found the service \"/service/other#g\", which has no \
         section, expected the URI of a service that has one; write service = \"/service/other\", and to.group = \"g\"",
    ];
    assert_eq!(report(text).lines().collect::<Vec<_>>(), expected);
}

#[test]
fn environments_and_labels_that_no_instance_has_are_refused() {
    let text = r#"
        [services."/s"]
        instances = [{ address = "10.0.0.1:5000", environment = "pre", labels = { version = "v1" } }, "10.0.0.2:5000"]
        routes = [
            { name = "a", to.environment = "per" },
            { name = "b", to.labels.version = "v2" },
            { name = "c", to.labels.verson = "v1" },
            { name = "d", split = [{ to.environment = "stress" }, { to.group = "g" }] },
            { name = "e", to = { environment = "pre", labels = { version = "v1" } } },
        ]
        shadows = [{ name = "a", service = "/t", to.environment = "none" }]
        [services."/t"]
        instances = [{ address = "10.0.0.1:5000", environment = "pre" }]
        "#;
    let expected = [
        "moa.toml:5:44: services.\"/s\".routes[0].to.environment: found the environment \"per\", which no instance has, expected \
         what an instance of \"/s\" has; known: pre",
        "moa.toml:6:47: services.\"/s\".routes[1].to.labels.version: found the label version = \"v2\", which no instance has, \
         expected what an instance of \"/s\" has; known: v1",
        "moa.toml:7:46: services.\"/s\".routes[2].to.labels.verson: found the label verson = \"v1\", which no instance has, \
         expected what an instance of \"/s\" has; did you mean `version`?",
        "moa.toml:8:55: services.\"/s\".routes[3].split[0].to.environment: found the environment \"stress\", which no instance \
         has, expected what an instance of \"/s\" has; known: pre",
        "moa.toml:11:67: services.\"/s\".shadows[0].to.environment: found the environment \"none\", which no instance has, \
         expected what an instance of \"/t\" has; known: pre",
    ];
    assert_eq!(report(text).lines().collect::<Vec<_>>(), expected);
}

#[test]
fn environments_and_labels_that_may_come_later_are_fine() {
    let rules = r#"routes = [{ name = "a", to = { environment = "pre", labels = { v = "2" } } }]"#;
    let peer = "[peers.b]\naddress = '10.0.0.2:13100'";
    for instances in [
        "",
        "instances = ['10.0.0.1:5000']",
        "instances = [{ address = '10.0.0.1:5000', zone = 'a' }]",
        "instances = [{ address = '10.0.0.1:5000', environment = 'blue', labels = { v = '1' } }]\nagents = ['b']",
    ] {
        assert_eq!(checked(&format!("[services.'/s']\n{instances}\n{rules}\n{peer}")).services[0].policy.routes.len(), 1);
    }
    // Rules for all services can name what only some of them have.
    let instances = "instances = [{ address = '10.0.0.1:5000', environment = 'blue' }]";
    assert_eq!(checked(&format!("[defaults]\n{rules}\n[services.'/s']\n{instances}")).services[0].policy.routes.len(), 1);
}

#[test]
fn a_wrong_rule_of_the_defaults_is_reported_once() {
    let report = report("[defaults]\nfaults = [{ name = 'a' }]\n[services.'/s']\n[services.'/t']");
    assert!(report.starts_with("moa.toml:2:11: defaults.faults[0]: found neither a delay nor a code"), "{report}");
    assert_eq!(report.lines().count(), 1, "{report}");
}

#[test]
fn a_rule_may_be_empty_of_conditions_and_called_like_one_of_another_kind() {
    let checked = checked(
        r#"
        [services."/s"]
        access = { mode = "dry-run", default = "deny", rules = [{ name = "a", when = { application = ["", "shop"] } }] }
        routes = [{ name = "a", to = {} }, { name = "b", split = [{ weight = 0 }, {}], sticky = true }]
        shadows = [{ name = "a", service = "/s", per_10k = 1 }]
        faults = [{ name = "a", delay_ms = 5 }, { name = "default", code = 504 }]
        "#,
    );
    let policy = &checked.services[0].policy;
    assert_eq!((policy.access.rules.len(), policy.routes.len(), policy.shadows.len(), policy.faults.len()), (1, 2, 1, 2));
}
