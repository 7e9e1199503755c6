//! What becomes of a call, and of an instance: asked by operators, answered by a worker with what its own calls go by.

use std::{
    collections::{BTreeMap, HashMap},
    rc::Rc,
    sync::Arc,
};

use super::{
    choice::Choice,
    describe::{balance_name, ejected, level},
    frames::Scope,
    govern::{hash_key, meant_by},
    routes::{Instance, Member, service_key, shown},
    service::{Aim, Service},
    worker::Worker,
};
use crate::{
    api::{
        self,
        routes::{Candidate, Explanation, Way},
    },
    balance::Explained,
    config::traffic::BalancePolicy,
    rules::{Subset, Told},
};

/// The shares of instances by name.
pub(crate) type InstanceShares = HashMap<Arc<str>, api::InstanceShare>;

impl Worker {
    /// What becomes of a call to the service with this key; none if there is none.
    pub(super) fn explain(&self, key: &str, call: &Told) -> Option<Explanation> {
        self.turn_begins();
        let service = self.service(key)?;
        let route = &service.route;
        let rules = route.plan.explain(call);
        let by_rule = rules.route.shares.iter().flat_map(|share| &share.to);
        let outside = rules.outside.iter().filter(|_| rules.mesh_percent < 100.0);
        let mut ways: Vec<Way> = Vec::new();
        let copies = rules.shadow.rules.iter().map(|shadow| &shadow.to);
        for subset in by_rule.chain(outside).chain(copies) {
            if !ways.iter().any(|way| way.subset.index == subset.index) {
                ways.push(self.way(&service, subset, hash_key(route, call)));
            }
        }
        Some(Explanation {
            uri: shown(&route.uri, &route.group),
            balance: balance_name(route.policy.balance.policy).to_owned(),
            worker: self.id(),
            rules,
            ways,
        })
    }

    /// What calls each instance of the service with this key gets that no rule is about.
    pub(super) fn shares(&self, key: &str) -> InstanceShares {
        self.turn_begins();
        let Some(service) = self.service(key) else { return InstanceShares::default() };
        let names: HashMap<u32, &Arc<Instance>> = service.placed().collect();
        let subsets = service.route.plan.subsets().iter().enumerate();
        let by_environment = subsets.filter(|(_, subset)| {
            let Subset { service, group, labels, .. } = subset;
            service.is_none() && group.is_none() && labels.is_empty()
        });
        let explained = by_environment.flat_map(|(at, _)| self.seen(&service, at));
        explained.filter_map(|(slot, seen)| Some((names.get(&slot)?.name.clone(), share(&seen)))).collect()
    }

    /// What the balancer makes of a subset, by slot.
    fn seen(&self, service: &Service, subset: usize) -> BTreeMap<u32, Explained> {
        let now = self.now();
        let seen = u16::try_from(subset).ok().and_then(|at| service.look(at, now, |set| set.explain(now.into_std())));
        seen.unwrap_or_default().into_iter().map(|one| (one.index, one)).collect()
    }

    /// One of the places that a call can go to.
    fn way(&self, service: &Rc<Service>, subset: &api::routes::Subset, key: Option<u32>) -> Way {
        let route = &service.route;
        let wanted = route.plan.subsets().get(subset.index);
        let elsewhere = wanted.and_then(|wanted| wanted.elsewhere(&route.uri, &route.group));
        let (uri, group) = elsewhere.unwrap_or((&route.uri, &route.group));
        let way = Way { subset: subset.clone(), service: shown(uri, group), ..Way::default() };
        let (to, at) = match elsewhere {
            None => (service.clone(), u16::try_from(subset.index).unwrap_or(u16::MAX)),
            Some(_) => match self.service(&service_key(uri, group)) {
                Some(other) => (other.clone(), meant_by(route, subset.index, &other)),
                None => return Way { missing: Some("nobody serves that".to_owned()), ..way },
            },
        };
        let seen = self.seen(&to, at.into());
        let slots: HashMap<*const Instance, u32> = to.placed().map(|(slot, instance)| (Arc::as_ptr(instance), slot)).collect();
        let fits = to.route.plan.subsets().get(usize::from(at));
        let candidates = to.route.members.iter().filter_map(|member| {
            let slot = slots.get(&Arc::as_ptr(&member.instance))?;
            Some(self.candidate(&to, member, *slot, fits, seen.get(slot)))
        });
        Way {
            panic: seen.values().any(|one| one.panic),
            candidates: candidates.collect(),
            picked: key.and_then(|key| self.picked(&to, at, key)),
            ..way
        }
    }

    /// Where a hash key leads to.
    fn picked(&self, service: &Service, subset: u16, key: u32) -> Option<String> {
        if service.route.policy.balance.policy != BalancePolicy::Ketama {
            return None;
        }
        let choice = Choice { subset, key: Some(key), ..Choice::default() };
        let aim = Aim { choice: &choice, scope: Scope::Mesh, now: self.now() };
        let picked = self.dice(|dice| service.pick(aim, &[], dice))?;
        Some(picked.instance().name.to_string())
    }

    fn candidate(
        &self,
        service: &Service,
        member: &Member,
        slot: u32,
        subset: Option<&Subset>,
        seen: Option<&Explained>,
    ) -> Candidate {
        let address = member.instance.name.to_string();
        let level = level(member.level);
        let Some(seen) = seen else {
            let why = subset.and_then(|subset| subset.misfit(&member.traits)).unwrap_or_default();
            return Candidate { address, level, why, weight: member.traits.weight.into(), ..Candidate::default() };
        };
        let full = service.why_not(slot, self.now());
        let takes = seen.used && full.is_none();
        Candidate {
            address,
            fits: true,
            takes,
            why: why(&member.instance, seen, full),
            share: seen.share,
            weight: seen.weight_now,
            level,
        }
    }
}

/// Why an instance of the subset takes no calls, or what is to be said of one that does.
fn why(instance: &Instance, seen: &Explained, full: Option<String>) -> String {
    let out = match ejected(instance) {
        Some(api::Ejected { for_ms, reason }) => Some(format!("ejected for {} s more: {reason}", for_ms.div_ceil(1000))),
        None if !instance.health.is_healthy() => Some(format!("unhealthy: {}", instance.health.reason())),
        None => None,
    };
    match (out, full) {
        (Some(out), None) if seen.panic => {
            format!("used all the same, as too few can be (balance.panic_percent), although {out}")
        }
        (Some(out), _) => out,
        (None, Some(full)) => format!("not now: {full}"),
        (None, None) if seen.share == 0.0 => "nearer instances take all calls".to_owned(),
        (None, None) => String::new(),
    }
}

fn share(seen: &Explained) -> api::InstanceShare {
    api::InstanceShare { share: seen.share, weight_now: seen.weight_now, used: seen.used, panic: seen.panic }
}
