//! `moa routes explain`.

use std::{fmt::Write, process::ExitCode};

use anyhow::Result;
use clap::Args;

use super::super::{
    Global, Out,
    client::encoded,
    out::OUT,
    services::level,
    table::{
        Side::{Left, Right},
        Table,
    },
    units::{count, percent, printable},
};
use crate::api::routes::{Candidate, Explained, Explanation, LookedAt, Misfit, Share, Subset, Way};

/// Instances of one subset that are shown; JSON has all.
const SHOWN_MAX: usize = 50;

/// What is said of a kind of rule if none fits.
const NONE: &str = "no rule is about it";

/// Show what becomes of a call: which rules are about it, and which instances it can go to.
#[derive(Debug, Args)]
pub(super) struct Explain {
    /// The service, such as /service/user, or /service/user#two for one of its groups.
    #[arg(value_name = "URI")]
    uri: String,
    /// The group.
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// Something that the call says of itself, by the name that rules use: a property, or such as `environment` or `entry.7`.
    #[arg(long, value_name = "NAME=VALUE", value_parser = name_and_value)]
    meta: Vec<String>,
    /// The method.
    #[arg(long, value_name = "NAME")]
    method: Option<String>,
    /// The calling application.
    #[arg(long, value_name = "NAME")]
    application: Option<String>,
    /// The hash key.
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
}

fn name_and_value(text: &str) -> Result<String, String> {
    let fits = text.split_once('=').is_some_and(|(name, _)| !name.is_empty());
    fits.then(|| text.to_owned()).ok_or_else(|| "a name, `=` and a value, such as user=7".to_owned())
}

impl Explain {
    pub(super) fn run(self, global: &Global, out: &Out) -> Result<ExitCode> {
        let explanation: Explanation = global.client().get(&self.path())?;
        out.show(&explanation, render)?;
        Ok(ExitCode::SUCCESS)
    }

    fn path(&self) -> String {
        let words = [("method", &self.method), ("application", &self.application), ("hash_key", &self.key)];
        let words = words.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", value.as_ref()?)));
        let mut path = format!("/v1/routes/explain?uri={}", encoded(&self.uri));
        path.extend(self.group.iter().map(|group| format!("&group={}", encoded(group))));
        path.extend(self.meta.iter().cloned().chain(words).map(|said| format!("&meta={}", encoded(&said))));
        path
    }
}

fn render(explanation: &Explanation) -> String {
    let rules = &explanation.rules;
    let mut text = format!("{} ({})\n", OUT.bold(&explanation.uri), explanation.balance);
    for (what, line) in lines(rules) {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{what:<12} {}", printable(&line));
    }
    for way in &explanation.ways {
        text += "\n";
        text += &render_way(way, explanation);
    }
    if !rules.access.allowed && !rules.access.dry_run {
        text += &format!("\n{}\n", OUT.bad("The call is refused, so it goes nowhere."));
    }
    text + &format!("\nAs worker {} sees it.\n", explanation.worker)
}

/// What the rules say: a word, and a line.
fn lines(rules: &Explained) -> Vec<(&'static str, String)> {
    let says: Vec<_> = rules.says.iter().map(|(name, value)| format!("{name} = {value:?}")).collect();
    let mut lines = Vec::new();
    lines.push(("says", if says.is_empty() { "nothing that a rule asks for".into() } else { says.join(", ") }));
    lines.push(("access", access(rules)));
    lines.extend(rules.access.looked_at.iter().filter_map(passed_over));
    if rules.stress.marked {
        let apart = if rules.stress.apart {
            "it goes to instances of environment \"stress\", and nowhere else"
        } else {
            "like any other"
        };
        lines.push(("stress", format!("it has the mark of a stress test: {apart}")));
    }
    if let Some(name) = &rules.environment.name {
        let served = if rules.environment.served { "" } else { ", which no instance is of" };
        lines.push(("environment", format!("{name:?}{served}")));
    }
    if rules.mesh_percent < 100.0 {
        let mesh = percent(rules.mesh_percent / 100.0);
        lines.push(("mesh", format!("the policy is for {mesh} of the calls; others go by chance to {}", list(&rules.outside))));
    }
    let sticky = if rules.route.sticky { ", by hash key" } else { "" };
    lines.push(("route", rules.route.rule.as_ref().map_or(NONE.into(), |rule| format!("rule {rule:?}{sticky}"))));
    lines.extend(rules.route.looked_at.iter().filter_map(passed_over));
    let only = rules.route.shares.len() == 1;
    lines.extend(rules.route.shares.iter().map(|share| ("  goes to", share_text(share, only))));
    match &rules.fault.rule {
        Some(rule) => {
            let faulty = percent(rules.fault.percent / 100.0);
            lines.push(("fault", format!("rule {rule:?}: {faulty} of them are {}", rules.fault.what)));
        }
        None if !rules.fault.looked_at.is_empty() => lines.push(("fault", NONE.into())),
        None => {}
    }
    lines.extend(rules.fault.looked_at.iter().filter_map(passed_over));
    for shadow in &rules.shadow.rules {
        let copied = percent(shadow.percent / 100.0);
        lines.push(("shadow", format!("rule {:?}: {copied} are copied to {}", shadow.rule, shadow.to.instances)));
    }
    if rules.shadow.rules.is_empty() && !rules.shadow.looked_at.is_empty() {
        lines.push(("shadow", NONE.into()));
    }
    lines.extend(rules.shadow.looked_at.iter().filter_map(passed_over));
    lines
}

fn access(rules: &Explained) -> String {
    let access = &rules.access;
    let by = if access.rule == "default" { "by default".to_owned() } else { format!("by rule {:?}", access.rule) };
    match (access.allowed, access.dry_run) {
        (true, _) => format!("allowed {by}"),
        (false, true) => format!("would be refused {by}, which is only counted: a dry run"),
        (false, false) => format!("refused {by}"),
    }
}

fn share_text(share: &Share, only: bool) -> String {
    let to = list(&share.to);
    match (only, share.certain) {
        (true, _) => to,
        (false, true) => format!("{} to {to}: this one", percent(share.percent / 100.0)),
        (false, false) => format!("{} to {to}", percent(share.percent / 100.0)),
    }
}

fn list(subsets: &[Subset]) -> String {
    subsets.iter().map(|subset| subset.instances.as_str()).collect::<Vec<_>>().join(", else to ")
}

/// A rule that is not about the call, and why.
fn passed_over(rule: &LookedAt) -> Option<(&'static str, String)> {
    let misfits: Vec<_> = rule.misfits.iter().map(misfit).collect();
    (!misfits.is_empty()).then(|| ("", format!("not rule {:?}: {}", rule.rule, misfits.join("; "))))
}

fn misfit(misfit: &Misfit) -> String {
    let expected: Vec<_> = misfit.expected.iter().map(|pattern| format!("{pattern:?}")).collect();
    let expected = expected.join(" or ");
    match &misfit.found {
        Some(found) => format!("{} is {found:?}, not {expected}", misfit.name),
        None => format!("it says no {}, which must be {expected}", misfit.name),
    }
}

fn render_way(way: &Way, explanation: &Explanation) -> String {
    let of = if way.service == explanation.uri { String::new() } else { format!(" of {}", way.service) };
    let title = format!("{}{of}", way.subset.instances);
    if let Some(missing) = &way.missing {
        return format!("{}: {}\n", OUT.bold(&title), OUT.bad(missing));
    }
    let fits = way.candidates.iter().filter(|candidate| candidate.fits).count();
    let take = way.candidates.iter().filter(|candidate| candidate.takes).count();
    let mut text = format!("{}: {take} of {fits} take the call", OUT.bold(&title));
    if let Some(picked) = &way.picked {
        text += &format!("; the hash key leads to {picked}");
    }
    if way.panic {
        text += &OUT.bad("; so few can be used that all are (balance.panic_percent)");
    }
    let mut table =
        Table::new(&[("INSTANCE", Left), ("IN", Left), ("LEVEL", Left), ("WEIGHT", Right), ("SHARE", Right), ("WHY", Left)]);
    let mut sorted: Vec<&Candidate> = way.candidates.iter().collect();
    sorted
        .sort_by(|a, b| (b.takes, b.fits, b.share).partial_cmp(&(a.takes, a.fits, a.share)).unwrap_or(std::cmp::Ordering::Equal));
    for candidate in sorted.iter().take(SHOWN_MAX) {
        table.row([
            candidate.address.clone(),
            if candidate.takes { OUT.good("yes") } else { OUT.bad("no") },
            level(candidate.level).to_owned(),
            format!("{:.0}", candidate.weight),
            if candidate.fits { percent(candidate.share) } else { "-".to_owned() },
            candidate.why.clone(),
        ]);
    }
    text = format!("{text}\n{}", table.render());
    if sorted.len() > SHOWN_MAX {
        text += &format!("and {} more; --json has all\n", count((sorted.len() - SHOWN_MAX) as u64));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{
        Level,
        routes::{Access, Environment, Fault, Route, Shadow, Shadows},
    };

    fn subset(index: usize, instances: &str) -> Subset {
        Subset { index, instances: instances.into() }
    }

    fn candidate(address: &str, (fits, takes): (bool, bool), share: f64, why: &str) -> Candidate {
        Candidate { address: address.into(), fits, takes, why: why.into(), share, weight: 100.0, level: Some(Level::Zone) }
    }

    fn explanation() -> Explanation {
        let looked_at = |rule: &str, found: Option<&str>| LookedAt {
            rule: rule.into(),
            misfits: vec![Misfit {
                name: "application".into(),
                expected: vec!["batch*".into(), "cron".into()],
                found: found.map(Into::into),
            }],
        };
        let pre = subset(1, "instances of environment \"pre\"");
        let home = subset(0, "instances without an environment");
        Explanation {
            uri: "/service/user".into(),
            balance: "peak-ewma".into(),
            worker: 0,
            rules: Explained {
                says: [("moa.env.pre".to_owned(), String::new())].into(),
                access: Access {
                    allowed: true,
                    rule: "default".into(),
                    looked_at: vec![looked_at("no-batch", Some("web"))],
                    ..Access::default()
                },
                environment: Environment { name: Some("pre".into()), served: true },
                mesh_percent: 100.0,
                route: Route {
                    rule: Some("canary".into()),
                    sticky: true,
                    shares: vec![
                        Share { percent: 90.0, certain: true, to: vec![pre.clone(), home.clone()] },
                        Share { percent: 10.0, certain: false, to: vec![home.clone()] },
                    ],
                    looked_at: vec![looked_at("first", None)],
                },
                fault: Fault { looked_at: vec![looked_at("drill", None)], ..Fault::default() },
                shadow: Shadows {
                    rules: vec![Shadow { rule: "copy".into(), percent: 5.0, to: home.clone() }],
                    ..Shadows::default()
                },
                ..Explained::default()
            },
            ways: vec![
                Way {
                    subset: pre,
                    service: "/service/user".into(),
                    picked: Some("10.0.0.1:5000".into()),
                    candidates: vec![
                        candidate("10.0.0.3:5000", (false, false), 0.0, "it has no environment, not \"pre\""),
                        candidate("10.0.0.2:5000", (true, false), 0.0, "ejected for 12 s more: 5 failures in a row"),
                        candidate("10.0.0.1:5000", (true, true), 1.0, ""),
                    ],
                    ..Way::default()
                },
                Way {
                    subset: home,
                    service: "/service/user#two".into(),
                    missing: Some("nobody serves it".into()),
                    ..Way::default()
                },
            ],
        }
    }

    #[test]
    fn every_rule_and_every_instance_has_its_reason() {
        let expected = "\
/service/user (peak-ewma)
says         moa.env.pre = \"\"
access       allowed by default
             not rule \"no-batch\": application is \"web\", not \"batch*\" or \"cron\"
environment  \"pre\"
route        rule \"canary\", by hash key
             not rule \"first\": it says no application, which must be \"batch*\" or \"cron\"
  goes to    90 % to instances of environment \"pre\", else to instances without an environment: this one
  goes to    10 % to instances without an environment
fault        no rule is about it
             not rule \"drill\": it says no application, which must be \"batch*\" or \"cron\"
shadow       rule \"copy\": 5 % are copied to instances without an environment

instances of environment \"pre\": 1 of 2 take the call; the hash key leads to 10.0.0.1:5000
INSTANCE       IN   LEVEL  WEIGHT  SHARE  WHY
10.0.0.1:5000  yes  zone      100  100 %
10.0.0.2:5000  no   zone      100    0 %  ejected for 12 s more: 5 failures in a row
10.0.0.3:5000  no   zone      100      -  it has no environment, not \"pre\"

instances without an environment of /service/user#two: nobody serves it

As worker 0 sees it.
";
        assert_eq!(render(&explanation()), expected);
    }

    #[test]
    fn a_refusal_says_which_rule() {
        let mut explanation = explanation();
        explanation.rules.access = Access { rule: "no-batch".into(), ..Access::default() };
        let text = render(&explanation);
        assert!(text.contains("refused by rule \"no-batch\"") && text.contains("goes nowhere"), "{text}");
        explanation.rules.fault =
            Fault { rule: Some("drill".into()), percent: 1.0, what: "answered with 504".into(), ..Fault::default() };
        explanation.rules.access.dry_run = true;
        let text = render(&explanation);
        assert!(text.contains("would be refused by rule \"no-batch\"") && !text.contains("goes nowhere"), "{text}");
        assert!(text.contains("rule \"drill\": 1 % of them are answered with 504"), "{text}");
    }

    #[test]
    fn the_call_is_put_into_the_path() {
        let explain = Explain {
            uri: "/s".into(),
            group: Some("a b".into()),
            meta: vec!["x=1=2".into()],
            method: Some("get".into()),
            application: None,
            key: Some("ü".into()),
        };
        let expected = "/v1/routes/explain?uri=/s&group=a%20b&meta=x%3D1%3D2&meta=method%3Dget&meta=hash_key%3D%C3%BC";
        assert_eq!(explain.path(), expected);
        assert!(name_and_value("=1").is_err() && name_and_value("x").is_err() && name_and_value("x=").is_ok());
    }
}
