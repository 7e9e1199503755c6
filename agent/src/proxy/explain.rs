//! What becomes of a call, and of an instance: asked by operators, answered with what a worker's own calls go by.
//!
//! A worker only looks; what people read is written by whoever asked, as a service can have thousands of instances.

use std::{collections::HashMap, sync::Arc};

use super::{
    choice::Choice,
    describe::{balance_name, ejected, level},
    frames::Scope,
    govern::{hash_key, meant_by},
    routes::{Instance, Member, ServiceRoute, service_key, shown},
    service::{Aim, Service},
    worker::Worker,
};
use crate::{
    api::{
        self,
        routes::{Candidate, Explanation, Way},
    },
    balance,
    rules::{Subset, Told},
};

/// What a worker says of a call.
pub(crate) struct Explained {
    route: Arc<ServiceRoute>,
    worker: usize,
    rules: api::routes::Explained,
    /// Where the call and its copies can go.
    ways: Vec<To>,
}

/// One of the places that a call can go to.
struct To {
    subset: api::routes::Subset,
    service: String,
    /// None if nobody serves that.
    view: Option<View>,
    /// Where the call's hash key leads.
    picked: Option<Arc<Instance>>,
}

/// A subset as a worker sees it.
pub(crate) struct View {
    route: Arc<ServiceRoute>,
    subset: u16,
    seen: Vec<Seen>,
}

/// An instance of the service.
struct Seen {
    instance: Arc<Instance>,
    /// What the balancer makes of it, if it belongs to the subset.
    balanced: Option<balance::Explained>,
    /// Why it can't take a call now, whether it is usable or not.
    full: Option<String>,
}

impl Worker {
    /// What becomes of a call to the service with this key; none if there is none.
    pub(super) fn explain(&self, key: &str, call: &Told) -> Option<Explained> {
        self.turn_begins();
        let service = self.service(key)?;
        let route = &service.route;
        let rules = route.plan.explain(call);
        let by_rule = rules.route.shares.iter().flat_map(|share| &share.to);
        let outside = rules.outside.iter().filter(|_| rules.mesh_percent < 100.0);
        let copies = rules.shadow.rules.iter().map(|shadow| &shadow.to);
        let mut ways: Vec<To> = Vec::new();
        for subset in by_rule.chain(outside).chain(copies) {
            if !ways.iter().any(|way| way.subset.index == subset.index) {
                ways.push(self.to(&service, subset, call));
            }
        }
        Some(Explained { route: route.clone(), worker: self.id(), rules, ways })
    }

    /// The subsets that calls of the service with this key go to that no rule is about.
    pub(super) fn views(&self, key: &str) -> Vec<View> {
        self.turn_begins();
        let Some(service) = self.service(key) else { return Vec::new() };
        let without_rule = |subset: &Subset| subset.labels.is_empty() && *subset == subset.at_home();
        let subsets = (0..).zip(service.route.plan.subsets());
        subsets.filter(|(_, subset)| without_rule(subset)).map(|(at, _)| self.view(&service, at)).collect()
    }

    /// One of the places that a call can go to.
    fn to(&self, service: &Service, subset: &api::routes::Subset, call: &Told) -> To {
        let route = &service.route;
        let wanted = route.plan.subsets().get(subset.index);
        let elsewhere = wanted.and_then(|wanted| wanted.elsewhere(&route.uri, &route.group));
        let (uri, group) = elsewhere.unwrap_or((&route.uri, &route.group));
        let other = elsewhere.map(|_| self.service(&service_key(uri, group)));
        let to = match &other {
            None => Some((service, u16::try_from(subset.index).unwrap_or(u16::MAX))),
            Some(other) => other.as_deref().map(|other| (other, meant_by(route, subset.index, other))),
        };
        To {
            subset: subset.clone(),
            service: shown(uri, group),
            picked: to.and_then(|(to, at)| self.picked(to, at, hash_key(&to.route, call)?)),
            view: to.map(|(to, at)| self.view(to, at)),
        }
    }

    fn view(&self, service: &Service, subset: u16) -> View {
        let now = self.now();
        let balanced = service.look(subset, now, |set| set.explain(now.into_std())).unwrap_or_default();
        let mut balanced = balanced.into_iter().peekable();
        // Both are in the order of the slots.
        let seen = service.placed().map(|(slot, instance)| {
            let balanced = balanced.next_if(|one| one.index == slot);
            let full = balanced.and_then(|_| service.why_not(slot, now));
            Seen { instance: instance.clone(), balanced, full }
        });
        View { route: service.route.clone(), subset, seen: seen.collect() }
    }

    /// Where a hash key leads to.
    fn picked(&self, service: &Service, subset: u16, key: u32) -> Option<Arc<Instance>> {
        let choice = Choice { subset, key: Some(key), ..Choice::default() };
        let aim = Aim { choice: &choice, scope: Scope::Mesh, now: self.now() };
        self.dice(|dice| service.pick(aim, &[], dice)).map(|picked| picked.instance().clone())
    }
}

impl Explained {
    /// For people and their tools.
    pub(super) fn describe(self) -> Explanation {
        Explanation {
            uri: shown(&self.route.uri, &self.route.group),
            balance: balance_name(self.route.policy.balance.policy).to_owned(),
            worker: self.worker,
            rules: self.rules,
            ways: self.ways.into_iter().map(To::describe).collect(),
        }
    }
}

impl To {
    fn describe(self) -> Way {
        Way {
            subset: self.subset,
            service: self.service,
            missing: self.view.is_none().then(|| "nobody serves that".to_owned()),
            panic: self.view.as_ref().is_some_and(View::panics),
            picked: self.picked.map(|instance| instance.name.to_string()),
            candidates: self.view.map(|view| view.candidates()).unwrap_or_default(),
        }
    }
}

impl View {
    /// The share of each instance of the subset in its calls, by name.
    pub(super) fn shares(&self) -> impl Iterator<Item = (&str, api::InstanceShare)> {
        self.seen.iter().filter_map(|Seen { instance, balanced, .. }| {
            let balance::Explained { share, weight_now, used, panic, .. } = (*balanced)?;
            Some((&*instance.name, api::InstanceShare { share, weight_now, used, panic }))
        })
    }

    fn panics(&self) -> bool {
        self.seen.iter().any(|seen| seen.balanced.is_some_and(|balanced| balanced.panic))
    }

    fn candidates(&self) -> Vec<Candidate> {
        let subset = self.route.plan.subsets().get(usize::from(self.subset));
        let members: HashMap<*const Instance, &Member> =
            self.route.members.iter().map(|member| (Arc::as_ptr(&member.instance), member)).collect();
        let described = self.seen.iter().filter_map(|seen| Some((seen, *members.get(&Arc::as_ptr(&seen.instance))?)));
        described.map(|(seen, member)| candidate(seen, member, subset)).collect()
    }
}

fn candidate(seen: &Seen, member: &Member, subset: Option<&Subset>) -> Candidate {
    let Member { instance, traits, .. } = member;
    let (address, level) = (instance.name.to_string(), level(member.level));
    let Some(balanced) = &seen.balanced else {
        let why = subset.and_then(|subset| subset.misfit(traits)).unwrap_or_default();
        return Candidate { address, level, why, weight: traits.weight.into(), ..Candidate::default() };
    };
    Candidate {
        address,
        fits: true,
        takes: balanced.used && seen.full.is_none(),
        why: why(instance, balanced, seen.full.as_deref()),
        share: balanced.share,
        weight: balanced.weight_now,
        level,
    }
}

/// Why an instance of the subset takes no calls, or what is to be said of one that does.
fn why(instance: &Instance, balanced: &balance::Explained, full: Option<&str>) -> String {
    let out = match ejected(instance) {
        Some(api::Ejected { for_ms, reason }) => Some(format!("ejected for {} s more: {reason}", for_ms.div_ceil(1000))),
        None if !instance.health.is_healthy() => Some(format!("unhealthy: {}", instance.health.reason())),
        None => None,
    };
    match (out, full) {
        (Some(out), None) if balanced.panic => {
            format!("used all the same, as too few can be (balance.panic_percent), although {out}")
        }
        (Some(out), _) => out,
        (None, Some(full)) => format!("not now: {full}"),
        (None, None) if balanced.share == 0.0 => "nearer instances take all calls".to_owned(),
        (None, None) => String::new(),
    }
}
