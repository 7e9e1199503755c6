//! Rules of traffic policy: each by itself, and what it says of services and instances.

use std::collections::HashSet;

use super::{Check, wrong_group};
use crate::config::{
    CheckedService, ServicePolicy,
    key::KeyPath,
    problem::Finding,
    schema::APPLICATION_BYTES_MAX,
    source::find,
    traffic::{AccessRule, Fault, Patterns, Route, Shadow, To, When},
    words,
};

/// The longest name of a rule.
const RULE_BYTES_MAX: usize = 64;
/// What refusals call `access.default`.
const ACCESS_DEFAULT: &str = "default";

/// Whose policy it is.
#[derive(Clone, Copy)]
pub(super) struct Scope<'a> {
    /// The section.
    pub(super) at: &'a KeyPath,
    /// Its service; none for `[defaults]`.
    pub(super) own: Option<&'a CheckedService>,
    /// Every service of the file.
    pub(super) services: &'a [CheckedService],
}

/// What rules of all kinds have in common.
trait Rule {
    fn name(&self) -> &str;
    fn when(&self) -> &When;
    /// Why it may not be called what it is.
    fn reserved(&self) -> Option<&'static str> {
        None
    }
    /// What is wrong with it by itself, and below which key.
    fn wrong(&self) -> Option<(&'static str, Finding)> {
        None
    }
    /// Another service that it is about.
    fn service(&self) -> Option<&str> {
        None
    }
    /// The instances that it is about, with their keys.
    fn targets(&self, _at: &KeyPath) -> Vec<(KeyPath, &To)> {
        Vec::new()
    }
}

impl Check<'_, '_> {
    /// Checks the rules of one section; those that it has from `[defaults]` are checked there.
    pub(super) fn rules(&mut self, policy: &ServicePolicy, scope: Scope<'_>) {
        self.list(&policy.routes, "routes", scope);
        self.list(&policy.shadows, "shadows", scope);
        self.list(&policy.faults, "faults", scope);
        self.list(&policy.access.rules, "access.rules", scope);
        self.patterns_of_methods(&policy.retry.methods, scope);
        for caller in policy.rate.callers.keys() {
            let at = scope.at.dotted("rate.callers").key(caller);
            if find(self.root, &at).is_some()
                && let Some(finding) = wrong_caller(caller)
            {
                self.push(&at, finding);
            }
        }
    }

    fn list<R: Rule>(&mut self, rules: &[R], key: &str, scope: Scope<'_>) {
        let list = scope.at.dotted(key);
        if find(self.root, &list).is_none() {
            return;
        }
        let mut names = HashSet::new();
        for (n, rule) in rules.iter().enumerate() {
            let at = list.index(n);
            let first = names.insert(rule.name());
            // What has the wrong shape was taken out, and is no longer what was meant.
            if !self.problems.concern(&at) {
                self.rule(rule, first, &at, scope);
            }
        }
    }

    fn rule<R: Rule>(&mut self, rule: &R, first: bool, at: &KeyPath, scope: Scope<'_>) {
        if let Some(finding) = wrong_name(rule, first) {
            self.push(&at.key("name"), finding);
        }
        for (name, patterns) in rule.when() {
            self.condition(name, patterns, &at.key("when").key(name));
        }
        if let Some((key, finding)) = rule.wrong() {
            self.push(&if key.is_empty() { at.clone() } else { at.key(key) }, finding);
        }
        let targets = rule.targets(at);
        let group = targets.first().and_then(|(_, to)| to.group.as_deref()).unwrap_or_default();
        if let Some(finding) = rule.service().and_then(|uri| unknown_service(uri, group, scope.services)) {
            self.push(&at.key("service"), finding);
            return;
        }
        for (at, to) in targets {
            self.target(to, &at, rule.service(), scope);
        }
    }

    fn condition(&mut self, name: &str, patterns: &Patterns, at: &KeyPath) {
        if let Some(finding) = wrong_condition(name) {
            self.push(at, finding);
        }
        let advice = || "write \"*\" for anything".to_owned();
        if patterns.0.is_empty() {
            let (found, expected) = ("an empty list, which nothing fits".into(), "at least one pattern".into());
            self.push(at, Finding { found, expected, advice: advice() });
        }
        // Who calls can be unknown, and a call can be for no group.
        let may_be_empty = ["application", "instance", "group"].contains(&name);
        if !may_be_empty && patterns.0.iter().any(String::is_empty) {
            self.push(at, Finding { found: "an empty pattern".into(), expected: "a pattern".into(), advice: advice() });
        }
    }

    fn patterns_of_methods(&mut self, methods: &[String], scope: Scope<'_>) {
        let list = scope.at.dotted("retry.methods");
        let written = find(self.root, &list).is_some();
        for (n, _) in methods.iter().enumerate().filter(|(_, method)| written && method.is_empty()) {
            let (found, expected) = ("an empty pattern".into(), "a method, or a pattern such as \"get*\"".into());
            self.push(&list.index(n), Finding { found, expected, advice: "remove it, or write \"*\" for all methods".into() });
        }
    }

    /// Checks that the instances which a rule names could be there.
    fn target(&mut self, to: &To, at: &KeyPath, service: Option<&str>, scope: Scope<'_>) {
        if to.environment.as_deref() == Some("") {
            let (found, expected) = ("an empty environment".into(), "the name of an environment".into());
            self.push(&at.key("environment"), Finding { found, expected, advice: "remove it for instances without one".into() });
            return;
        }
        if let Some(found) = to.group.as_deref().filter(|group| !group.is_empty()).and_then(wrong_group) {
            let expected = "the name of a group".into();
            self.push(&at.key("group"), Finding { found, expected, advice: "correct it".into() });
            return;
        }
        let own = scope.own;
        let Some(uri) = service.or(own.map(|own| own.uri.as_str())) else { return };
        let own_group = own.filter(|_| service.is_none()).map(|own| own.group.as_str());
        let group = to.group.as_deref().or(own_group).unwrap_or_default();
        let Some(target) = scope.services.iter().find(|other| other.uri == uri && other.group == group) else { return };
        let instances = KeyPath::default().key("services").key(&target.name()).key("instances");
        // Other agents may know instances that this file does not.
        if target.agents.is_empty()
            && !self.problems.concern(&instances)
            && let Some((key, finding)) = nobody(to, target)
        {
            let at = key.iter().fold(at.clone(), |at, key| at.key(key));
            self.push(&at, finding);
        }
    }
}

/// What is wrong with what a rule is called. `first`: no other one of its list before it is called the same.
fn wrong_name<R: Rule>(rule: &R, first: bool) -> Option<Finding> {
    let name = rule.name();
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
    let plain = name.len() <= RULE_BYTES_MAX && name.bytes().all(good);
    let (found, expected, advice) = if name.is_empty() {
        ("no name".into(), "a name for errors and lists".into(), "add name = \"…\"")
    } else if !plain {
        let expected = format!("at most {RULE_BYTES_MAX} lower-case letters, digits, `-`, `_` and `.`");
        (format!("the name {name:?}"), expected, "rename the rule")
    } else if !first {
        (format!("{name:?} for the second time"), "a name for each rule of the list".into(), "rename one of the two")
    } else if let Some(what) = rule.reserved() {
        (format!("the name {name:?}, which is what refusals call {what}"), "another name".into(), "rename the rule")
    } else {
        return None;
    };
    Some(Finding { found, expected, advice: advice.into() })
}

/// What is wrong with the name of something that a call says of itself.
fn wrong_condition(name: &str) -> Option<Finding> {
    let number = |text: &str| text.parse::<u8>().is_ok_and(|number| number.to_string() == text);
    let expected = if let Some(entry) = name.strip_prefix("entry.") {
        if number(entry) {
            return None;
        }
        "entry.0 to entry.255"
    } else if name.is_empty() || name == "props." {
        "the name of what a call says of itself, such as `method`"
    } else {
        return None;
    };
    let advice = "name a number from 0 to 255, or write `props.` before it if it is a property".to_owned();
    let advice = if name.starts_with("entry.") { advice } else { "write a name".into() };
    Some(Finding { found: format!("the name {name:?}"), expected: expected.into(), advice })
}

fn wrong_caller(name: &str) -> Option<Finding> {
    let (found, advice) = if name.is_empty() {
        ("an empty name".to_owned(), "write the application's name")
    } else if name.contains('*') {
        (format!("the pattern {name:?}"), "use caller_per_s for all callers that are not named")
    } else if name.len() > APPLICATION_BYTES_MAX || name.contains(char::is_control) {
        (format!("the name {name:?}"), "correct it")
    } else {
        return None;
    };
    let expected = format!("the name of a calling application, of at most {APPLICATION_BYTES_MAX} bytes");
    Some(Finding { found, expected, advice: advice.into() })
}

fn unknown_service(uri: &str, group: &str, services: &[CheckedService]) -> Option<Finding> {
    if services.iter().any(|service| service.uri == uri && service.group == group) {
        return None;
    }
    let other_group = services.iter().find(|service| service.uri == uri).map(|service| service.group.as_str());
    let advice = match (uri.split_once('#'), other_group) {
        (Some((uri, group)), _) => format!("write service = {uri:?}, and to.group = {group:?}"),
        (None, Some("")) => "remove to.group".into(),
        (None, Some(group)) => format!("write to.group = {group:?}"),
        (None, None) => {
            let named = if group.is_empty() { uri.to_owned() } else { format!("{uri}#{group}") };
            let known = services.iter().filter(|service| service.group == group).map(|service| service.uri.as_str());
            words::suggestion(uri, known).unwrap_or_else(|| format!("add [services.{named:?}], or remove the rule"))
        }
    };
    let of_group = if group.is_empty() { String::new() } else { format!(" of the group {group:?}") };
    let found = format!("the service {uri:?}{of_group}, which has no section");
    Some(Finding { found, expected: "the URI of a service that has one".into(), advice })
}

/// Says that no instance of a service is one of those that a rule names, if the file knows enough of its instances: where only
/// applications offer it, or none of its instances has an environment or labels, they may come later.
fn nobody<'a>(to: &'a To, service: &CheckedService) -> Option<(Vec<&'a str>, Finding)> {
    let all = || service.instances.iter().map(|instance| &instance.traits);
    let of = format!("of {:?}", service.name());
    if let Some(environment) = to.environment.as_deref()
        && all().any(|traits| !traits.environment.is_empty())
        && all().all(|traits| traits.environment != environment)
    {
        let known = all().map(|traits| traits.environment.as_str()).filter(|known| !known.is_empty());
        let found = format!("the environment {environment:?}, which no instance has");
        return Some((vec!["environment"], absent(found, &of, environment, known)));
    }
    if all().all(|traits| traits.labels.is_empty()) {
        return None;
    }
    for (key, value) in &to.labels {
        let known = all().filter_map(|traits| traits.labels.get(key)).map(String::as_str);
        if known.clone().any(|known| known == value) {
            continue;
        }
        let found = format!("the label {key} = {value:?}, which no instance has");
        let finding = if known.clone().next().is_some() {
            absent(found, &of, value, known)
        } else {
            absent(found, &of, key, all().flat_map(|traits| traits.labels.keys()).map(String::as_str))
        };
        return Some((vec!["labels", key.as_str()], finding));
    }
    None
}

fn absent<'a>(found: String, of: &str, name: &str, known: impl Iterator<Item = &'a str> + Clone) -> Finding {
    let mut names: Vec<_> = known.clone().collect();
    names.sort_unstable();
    names.dedup();
    names.truncate(5);
    let advice = words::suggestion(name, known).unwrap_or_else(|| format!("known: {}", names.join(", ")));
    Finding { found, expected: format!("what an instance {of} has"), advice }
}

impl Rule for Route {
    fn name(&self) -> &str {
        &self.name
    }

    fn when(&self) -> &When {
        &self.when
    }

    fn wrong(&self) -> Option<(&'static str, Finding)> {
        let (key, found, advice) = match (&self.to, &self.split[..]) {
            (None, []) => ("", "neither `to` nor `split`", "add to = { … }, or split = [{ weight = …, to = { … } }, …]"),
            (Some(_), [_, ..]) => ("split", "both `to` and `split`", "remove one of the two"),
            (None, shares @ [_, ..]) if shares.iter().all(|share| share.weight == 0) => {
                let expected = "a share with a weight".into();
                let finding = Finding { found: "shares of 0".into(), expected, advice: "raise the weight of one".into() };
                return Some(("split", finding));
            }
            _ => return None,
        };
        Some((key, Finding { found: found.into(), expected: "one of the two".into(), advice: advice.into() }))
    }

    fn targets(&self, at: &KeyPath) -> Vec<(KeyPath, &To)> {
        let shares = self.split.iter().enumerate();
        let shares = shares.filter_map(|(n, share)| Some((at.key("split").index(n).key("to"), share.to.as_ref()?)));
        self.to.iter().map(|to| (at.key("to"), to)).chain(shares).collect()
    }
}

impl Rule for Shadow {
    fn name(&self) -> &str {
        &self.name
    }

    fn when(&self) -> &When {
        &self.when
    }

    fn service(&self) -> Option<&str> {
        self.service.as_deref()
    }

    fn targets(&self, at: &KeyPath) -> Vec<(KeyPath, &To)> {
        vec![(at.key("to"), &self.to)]
    }
}

impl Rule for Fault {
    fn name(&self) -> &str {
        &self.name
    }

    fn when(&self) -> &When {
        &self.when
    }

    fn wrong(&self) -> Option<(&'static str, Finding)> {
        let (found, expected) = ("neither a delay nor a code".into(), "delay_ms, code, or both".into());
        let finding = || Finding { found, expected, advice: "add delay_ms = … or code = …".into() };
        (self.delay_ms == 0 && self.code.is_none()).then(|| ("", finding()))
    }
}

impl Rule for AccessRule {
    fn name(&self) -> &str {
        &self.name
    }

    fn when(&self) -> &When {
        &self.when
    }

    fn reserved(&self) -> Option<&'static str> {
        (self.name == ACCESS_DEFAULT).then_some("access.default")
    }
}
