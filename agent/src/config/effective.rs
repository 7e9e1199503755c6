//! The configuration in force, key by key, each with where its value came from.

use serde::Serialize;
use serde_json::Value;

use super::{Checked, KeyPath, Origin};
use crate::api::ConfigKey;

/// Every key that has a value, the agent's own first, then those of each peer and of each service.
#[must_use]
pub fn effective(checked: &Checked) -> Vec<ConfigKey> {
    let mut keys = Keys { checked, keys: Vec::new() };
    keys.add(&KeyPath::default(), &KeyPath::default(), &to_value(&checked.config));
    let defaults = KeyPath::default().key("defaults");
    for peer in &checked.peers {
        let at = KeyPath::default().key("peers").key(&peer.name);
        let values =
            [("address", to_value(&peer.address)), ("zone", to_value(&peer.zone)), ("data_centre", to_value(&peer.data_centre))];
        for (key, value) in values {
            keys.add(&at.key(key), &at.key(key), &value);
        }
    }
    for service in &checked.services {
        let at = KeyPath::default().key("services").key(&service.name());
        keys.add(&at.key("instances"), &defaults, &to_value(&service.instances));
        keys.add(&at.key("agents"), &defaults, &to_value(&service.agents));
        keys.add(&at, &defaults, &to_value(&service.policy));
    }
    keys.keys
}

struct Keys<'a> {
    checked: &'a Checked,
    keys: Vec<ConfigKey>,
}

impl Keys<'_> {
    /// Adds what is below `at`; a key that is not written there is inherited from the same key below `base`.
    fn add(&mut self, at: &KeyPath, base: &KeyPath, value: &Value) {
        match value {
            Value::Null => {}
            Value::Object(table) => {
                for (key, value) in table {
                    self.add(&at.key(key), &base.key(key), value);
                }
            }
            leaf => {
                let from = self.from(at, base);
                self.keys.push(ConfigKey { key: at.to_string(), value: without_nulls(leaf), from });
            }
        }
    }

    fn from(&self, at: &KeyPath, base: &KeyPath) -> String {
        let origin = |path: &KeyPath| self.checked.origins.get(&path.to_string());
        match (origin(at), origin(base)) {
            (Some(own), _) => self.name(own),
            (None, Some(inherited)) => format!("[defaults], {}", self.name(inherited)),
            (None, None) => self.name(&Origin::Default),
        }
    }

    fn name(&self, origin: &Origin) -> String {
        match origin {
            Origin::Default => "default".into(),
            Origin::Ports => "the instance's ports".into(),
            Origin::Line(line) => match &self.checked.path {
                Some(path) => format!("{}:{line}", path.display()),
                None => format!("line {line}"),
            },
            Origin::Flag(flag) => flag.clone(),
        }
    }
}

/// A list without the keys of its tables that have no value.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Array(list) => list.iter().map(without_nulls).collect(),
        Value::Object(table) => {
            let set = table.iter().filter(|(_, value)| !value.is_null());
            set.map(|(key, value)| (key.clone(), without_nulls(value))).collect()
        }
        leaf => leaf.clone(),
    }
}

/// A configuration is plain data with texts as keys, which is always JSON.
fn to_value(data: &impl Serialize) -> Value {
    serde_json::to_value(data).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::{Given, parse};

    #[test]
    fn every_key_says_where_it_came_from() {
        let text = "[defaults]\ntimeout_ms = 800\nhealth.interval_ms = 70\n[services.'/s']\ninstances = ['10.0.0.1:5000']\npipelined = true\nagents = ['b.c']\n[peers.'b.c']\naddress = '10.0.0.2:13100'\n";
        let given = Given { app_listen: Some(([127, 0, 0, 1], 7000).into()), ..Given::default() };
        let mut checked = parse(text, "f", &given).expect("valid");
        checked.path = Some("/etc/moa/moa.toml".into());
        let keys = effective(&checked);
        let find = |key: &str| {
            let found = keys.iter().find(|entry| entry.key == key).unwrap_or_else(|| panic!("no {key}"));
            (found.value.to_string(), found.from.clone())
        };
        let is = |value: &str, from: &str| (value.to_owned(), from.to_owned());
        assert_eq!(find("agent.workers"), is("0", "default"));
        assert_eq!(find("app.listen"), is("\"127.0.0.1:7000\"", "--app-listen"));
        assert_eq!(find("tunnel.listen"), is("\"127.0.0.1:13100\"", "the instance's ports"));
        assert_eq!(find("metrics.listen"), is("\"127.0.0.1:13900\"", "the instance's ports"));
        assert_eq!(find("defaults.timeout_ms"), is("800", "/etc/moa/moa.toml:2"));
        assert_eq!(find("services.\"/s\".timeout_ms"), is("800", "[defaults], /etc/moa/moa.toml:2"));
        assert_eq!(find("services.\"/s\".health.interval_ms"), is("70", "[defaults], /etc/moa/moa.toml:3"));
        assert_eq!(find("services.\"/s\".pipelined"), is("true", "/etc/moa/moa.toml:6"));
        assert_eq!(find("services.\"/s\".instances"), is("[\"10.0.0.1:5000\"]", "/etc/moa/moa.toml:5"));
        assert_eq!(find("services.\"/s\".agents"), is("[\"b.c\"]", "/etc/moa/moa.toml:7"));
        assert_eq!(find("peers.\"b.c\".address"), is("\"10.0.0.2:13100\"", "/etc/moa/moa.toml:9"));
        assert_eq!(find("services.\"/s\".queue_max"), is("1024", "default"));
    }

    #[test]
    fn lists_of_tables_are_one_value_and_groups_are_in_the_name() {
        let text = "[defaults]\nfaults = [{ name = 'a', code = 504 }]\nrate.callers.shop = 5\n\
                    [services.'/s#g']\ninstances = [{ address = '10.0.0.1:5000', zone = 'z' }, '10.0.0.2:5000']\n\
                    [[services.'/s#g'.routes]]\nname = 'b'\nto.group = 'h'\n\
                    [[services.'/s#g'.routes]]\nname = 'c'\nto = {}\n\
                    [peers.b]\naddress = '10.0.0.2:13100'\nzone = 'y'\n";
        let keys = effective(&parse(text, "f", &Given::default()).unwrap_or_else(|report| panic!("{report}")));
        let find = |key: &str| {
            let found = keys.iter().find(|entry| entry.key == key).unwrap_or_else(|| panic!("no {key}"));
            (found.value.clone(), found.from.as_str())
        };
        let s = |key: &str| find(&format!("services.\"/s#g\".{key}"));
        let first = json!({ "address": "10.0.0.1:5000", "weight": 100, "zone": "z" });
        assert_eq!(s("instances"), (json!([first, "10.0.0.2:5000"]), "line 5"));
        let to = |group: &[(&str, &str)]| {
            let mut to = json!({ "labels": {}, "fallback": true });
            group.iter().for_each(|(key, group)| to[*key] = json!(group));
            to
        };
        let route = |name: &str, to: Value| json!({ "name": name, "when": {}, "to": to, "split": [], "sticky": false });
        assert_eq!(s("routes"), (json!([route("b", to(&[("group", "h")])), route("c", to(&[]))]), "line 6"));
        let fault = json!([{ "name": "a", "when": {}, "per_10k": 10_000, "delay_ms": 0, "code": 504 }]);
        assert_eq!(s("faults"), (fault, "[defaults], line 2"));
        assert_eq!(s("rate.callers.shop"), (json!(5), "[defaults], line 3"));
        assert_eq!(s("shadows"), (json!([]), "default"));
        assert_eq!((find("peers.b.zone"), find("peers.b.data_centre")), ((json!("y"), "line 14"), (json!(""), "default")));
    }
}
