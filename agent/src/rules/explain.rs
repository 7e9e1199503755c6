//! A plan for people: its rules as a list, and what it says about one call, whatever the dice.

use std::collections::BTreeMap;

use super::{
    DEFAULT_RULE, Plan, STRESS, Subset, Verdict, Ways, chance,
    name::{Name, Says, environment, is_stress, said},
    rule::{Rule, look},
    shares::Shares,
};
use crate::{
    api::routes::{self as api, Explained, RuleKind},
    config::traffic::AccessMode,
};

impl Plan {
    /// What becomes of a call.
    pub(crate) fn explain(&self, call: &impl Says) -> Explained {
        let (looked_at, found) = look(&self.faults, call);
        let fault = api::Fault {
            rule: found.map(|rule| rule.name.to_string()),
            percent: found.map_or(0.0, |rule| percent(rule.does.per_10k)),
            what: found.map(|rule| rule.does.text()).unwrap_or_default(),
            looked_at,
        };
        Explained {
            says: self.says(call),
            access: self.explain_access(call),
            stress: api::Stress { marked: is_stress(call), apart: self.apart.is_some() },
            environment: api::Environment {
                name: environment(call).map(|name| text_of(&name)),
                served: self.environment_of(call).is_some(),
            },
            mesh_percent: percent(self.mesh_per_10k),
            outside: self.ways(self.apart_for(call).map_or_else(|| self.home(call), |subset| [Some(subset), None, None])),
            route: self.explain_route(call),
            fault,
            shadow: self.explain_shadows(call),
        }
    }

    /// Its rules, in the order in which they count for a call.
    pub(crate) fn list(&self) -> Vec<api::Rule> {
        let mut list = self.list_access();
        if self.apart.is_some() {
            let what = format!("to instances of environment {STRESS:?}, and nowhere else");
            list.push(row(RuleKind::Stress, "", "the mark of a stress test".into(), what));
        }
        if self.mesh_per_10k < chance::WHOLE {
            let what = format!("routes, faults and shadows are for {} of the calls", share(percent(self.mesh_per_10k)));
            list.push(row(RuleKind::Mesh, "", String::new(), what));
        }
        list.extend(self.routes.iter().map(|rule| rule.row(RuleKind::Route, self.route_text(&rule.does))));
        for (name, subset) in &self.environments {
            let what = format!("to {}, then to {}", self.subset_text(*subset), Subset::default());
            list.push(row(RuleKind::Environment, name, format!("{} = {name:?}", Name::Environment), what));
        }
        list.extend(
            self.faults
                .iter()
                .map(|rule| rule.row(RuleKind::Fault, format!("{} {}", share(percent(rule.does.per_10k)), rule.does.text()))),
        );
        list.extend(self.shadows.iter().map(|rule| {
            let (to, copied) = (self.subset_text(rule.does.subset), share(percent(rule.does.per_10k)));
            rule.row(RuleKind::Shadow, format!("{copied} copied to {to}, {} in flight at most", rule.does.in_flight_max))
        }));
        list
    }

    fn list_access(&self) -> Vec<api::Rule> {
        if self.is_open() {
            return Vec::new();
        }
        let text = |verdict| match (verdict, self.mode) {
            (Verdict::Allow, _) => "allow".to_owned(),
            (Verdict::Deny, AccessMode::Enforce) => "deny".to_owned(),
            (Verdict::Deny, AccessMode::DryRun) => "deny (dry run: counted only)".to_owned(),
        };
        let rules = self.access.iter().map(|rule| rule.row(RuleKind::Access, text(rule.does)));
        rules.chain([row(RuleKind::Access, DEFAULT_RULE, String::new(), text(self.default))]).collect()
    }

    /// What the call says, of all that this plan asks for.
    fn says(&self, call: &impl Says) -> BTreeMap<String, String> {
        let always = [Name::Environment, Name::Stress, Name::HashKey];
        let access = self.access.iter().flat_map(|rule| rule.when.names());
        let routes = self.routes.iter().flat_map(|rule| rule.when.names());
        let faults = self.faults.iter().flat_map(|rule| rule.when.names());
        let shadows = self.shadows.iter().flat_map(|rule| rule.when.names());
        let names = always.iter().chain(access).chain(routes).chain(faults).chain(shadows);
        names.filter_map(|name| Some((name.to_string(), text_of(&said(call, name)?)))).collect()
    }

    fn explain_access(&self, call: &impl Says) -> api::Access {
        let (rule, verdict) = self.verdict(call);
        api::Access {
            allowed: verdict == Verdict::Allow,
            dry_run: self.mode == AccessMode::DryRun,
            rule: rule.to_owned(),
            looked_at: look(&self.access, call).0,
        }
    }

    fn explain_route(&self, call: &impl Says) -> api::Route {
        let whole = |ways| vec![api::Share { percent: 100.0, certain: true, to: self.ways(ways) }];
        if let Some(subset) = self.apart_for(call) {
            let shares = whole([Some(subset), None, None]);
            return api::Route { rule: Some(STRESS.into()), shares, ..api::Route::default() };
        }
        let home = self.home(call);
        let (looked_at, found) = look(&self.routes, call);
        let mut shares: Vec<_> = found.map(|rule| self.explain_shares(&rule.does, call, home)).unwrap_or_default();
        if shares.is_empty() {
            shares = whole(home);
        }
        let sticky = found.is_some_and(|rule| rule.does.sticky);
        api::Route { rule: found.map(|rule| rule.name.to_string()), sticky, shares, looked_at }
    }

    fn explain_shares(&self, shares: &Shares, call: &impl Says, home: Ways) -> Vec<api::Share> {
        let only = shares.parts().count() == 1;
        let by_key = shares.by_key(call).flatten();
        let explain = |(at, part, target): (usize, f64, Option<super::shares::Target>)| api::Share {
            percent: part * 100.0,
            certain: only || by_key == Some(at),
            to: self.ways(target.map_or(home, |target| target.ways(home))),
        };
        shares.parts().map(explain).collect()
    }

    fn explain_shadows(&self, call: &impl Says) -> api::Shadows {
        let asked = self.shadows_of(call);
        let rules = asked.iter().filter(|rule| rule.when.fits(call)).map(|rule| api::Shadow {
            rule: rule.name.to_string(),
            percent: percent(rule.does.per_10k),
            to: self.subset(rule.does.subset),
        });
        api::Shadows { rules: rules.collect(), looked_at: asked.iter().map(|rule| rule.looked_at(call)).collect() }
    }

    fn route_text(&self, shares: &Shares) -> String {
        let parts = shares.parts().map(|(_, part, target)| {
            let to = target.map_or("where they would go anyway".into(), |target| self.subset_text(target.subset()));
            let only = if target.is_some_and(|target| !target.has_fallback()) { ", and nowhere else" } else { "" };
            let part = if part < 1.0 { format!("{} ", share(part * 100.0)) } else { String::new() };
            format!("{part}to {to}{only}")
        });
        let mut parts: Vec<_> = parts.collect();
        if parts.is_empty() {
            parts.push("to where they would go anyway".into());
        }
        let sticky = if shares.sticky { "; by hash key" } else { "" };
        format!("{}{sticky}", parts.join("; "))
    }

    fn ways(&self, ways: Ways) -> Vec<api::Subset> {
        ways.into_iter().flatten().map(|subset| self.subset(subset)).collect()
    }

    fn subset(&self, index: usize) -> api::Subset {
        api::Subset { index, instances: self.subset_text(index) }
    }

    fn subset_text(&self, index: usize) -> String {
        self.subsets.get(index).map(ToString::to_string).unwrap_or_default()
    }
}

impl super::Fault {
    /// What is done to a call, for people.
    fn text(&self) -> String {
        let delay = (!self.delay.is_zero()).then(|| format!("held up for {} ms", self.delay.as_millis()));
        let code = self.code.map(|code| format!("answered with {code}"));
        let parts: Vec<_> = delay.into_iter().chain(code).collect();
        if parts.is_empty() { "left as they are".into() } else { parts.join(", then ") }
    }
}

impl<T> Rule<T> {
    fn row(&self, kind: RuleKind, what: String) -> api::Rule {
        row(kind, &self.name, self.when.text(), what)
    }
}

fn row(kind: RuleKind, name: &str, when: String, what: String) -> api::Rule {
    api::Rule { kind, name: name.to_owned(), when, what }
}

fn percent(per_10k: u32) -> f64 {
    f64::from(per_10k.min(chance::WHOLE)) / 100.0
}

/// `12.5 %`
fn share(percent: f64) -> String {
    format!("{} %", (percent * 100.0).round() / 100.0)
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
