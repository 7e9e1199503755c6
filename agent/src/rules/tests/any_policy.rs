//! Whatever a policy says, a plan of it does not panic, and keeps to what it promises.

use proptest::{option, prelude::*};

use super::*;
use crate::{
    api::routes,
    config::traffic::{AccessRule, Patterns, Route, Split, Stress, To, When},
    rules::name::said,
};

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[ab]{0,1}", Just("pre".into()), Just("stress".into())]
}

fn when() -> impl Strategy<Value = When> {
    let name =
        prop_oneof![Just("method"), Just("application"), Just("user"), Just("environment"), Just("entry.1"), Just("stress")];
    let patterns = prop::collection::vec("[ab*]{0,2}", 0..3).prop_map(Patterns);
    prop::collection::btree_map(name.prop_map(Into::into), patterns, 0..3)
}

fn target() -> impl Strategy<Value = To> {
    (option::of(text()), option::of(text()), prop::collection::btree_map("[ab]", "[ab]", 0..2), any::<bool>())
        .prop_map(|(environment, group, labels, fallback)| To { environment, group, labels, fallback })
}

fn share() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0), 0..10_000_u32, Just(10_000), any::<u32>()]
}

fn route() -> impl Strategy<Value = Route> {
    let split = (share(), option::of(target())).prop_map(|(weight, to)| Split { weight, to });
    let parts = (text(), when(), option::of(target()), prop::collection::vec(split, 0..4), any::<bool>());
    parts.prop_map(|(name, when, to, split, sticky)| Route { name, when, to, split, sticky })
}

fn verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![Just(Verdict::Allow), Just(Verdict::Deny)]
}

fn access() -> impl Strategy<Value = traffic::Access> {
    let rule = (text(), when(), verdict()).prop_map(|(name, when, verdict)| AccessRule { name, when, verdict });
    (verdict(), prop::collection::vec(rule, 0..4)).prop_map(|(default, rules)| traffic::Access {
        mode: AccessMode::Enforce,
        default,
        rules,
    })
}

fn policy() -> impl Strategy<Value = ServicePolicy> {
    let shadow = (text(), when(), target(), option::of(text()), share(), any::<u32>()).prop_map(
        |(name, when, to, service, per_10k, in_flight_max)| traffic::Shadow { name, when, to, service, per_10k, in_flight_max },
    );
    let fault = (text(), when(), share(), any::<u64>(), option::of(any::<u16>()))
        .prop_map(|(name, when, per_10k, delay_ms, code)| traffic::Fault { name, when, per_10k, delay_ms, code });
    let rules = (
        prop::collection::vec(route(), 0..4),
        prop::collection::vec(shadow, 0..3),
        prop::collection::vec(fault, 0..3),
        share(),
        any::<bool>(),
    );
    (access(), rules).prop_map(|(access, (routes, shadows, faults, mesh_per_10k, apart))| {
        let stress = if apart { Stress::Apart } else { Stress::Together };
        ServicePolicy { access, routes, shadows, faults, mesh_per_10k, stress, ..ServicePolicy::default() }
    })
}

fn any_call() -> impl Strategy<Value = Told> {
    let name = prop_oneof![
        Just("method"),
        Just("application"),
        Just("user"),
        Just("environment"),
        Just("entry.1"),
        Just("stress"),
        Just("hash_key"),
    ];
    prop::collection::btree_map(name, text(), 0..5).prop_map(|pairs| pairs.into_iter().collect())
}

/// Whether a rule is about the call, by the words of the documentation.
fn fits_plainly(when: &When, call: &Told) -> bool {
    when.iter().all(|(name, patterns)| match said(call, &Name::parse(name)) {
        Some(found) => patterns.0.iter().any(|pattern| Pattern::new(pattern).fits(&found)),
        None if name == "method" || name == "application" => {
            patterns.0.iter().any(|pattern| pattern.bytes().all(|byte| byte == b'*'))
        }
        None => patterns.0.contains(&String::new()),
    })
}

proptest! {
    #[test]
    fn nothing_panics_and_indices_are_good(policy in policy(), environments in prop::collection::vec(text(), 0..3), call in any_call(), dice: u32) {
        let environments: Vec<_> = environments.iter().map(String::as_str).collect();
        let plan = Plan::new(&policy, &environments);
        let routed = plan.route(&call, dice);
        let tried: Vec<_> = routed.subsets().collect();
        prop_assert!(tried.iter().all(|subset| *subset < plan.subsets().len()));
        prop_assert!(tried.iter().enumerate().all(|(at, subset)| !tried[..at].contains(subset)));
        prop_assert!(plan.shadows(&call, dice).all(|shadow| shadow.subset < plan.subsets().len() && shadow.index < plan.shadow_count()));
        prop_assert_eq!(routed.group, plan.subsets()[routed.subset].group.as_ref());
        if plan.is_plain() {
            prop_assert_eq!((plan.access(&call), &*tried), (Access::Allowed, &[DEFAULT_SUBSET][..]));
            prop_assert!(plan.fault(&call, dice).is_none() && plan.shadows(&call, dice).next().is_none() && plan.list().is_empty());
        }
    }

    #[test]
    fn the_first_rule_that_fits_counts(policy in policy(), call in any_call(), dice: u32) {
        let plan = Plan::new(&policy, &[]);
        let rule = policy.access.rules.iter().find(|rule| fits_plainly(&rule.when, &call));
        let verdict = rule.map_or(policy.access.default, |rule| rule.verdict);
        prop_assert_eq!(plan.access(&call) == Access::Allowed, verdict == Verdict::Allow);
        let routed = plan.route(&call, dice);
        if !routed.plain && routed.rule != Some(STRESS) {
            let route = policy.routes.iter().position(|route| fits_plainly(&route.when, &call));
            let name = route.map(|at| Some(policy.routes[at].name.clone()).filter(|name| !name.is_empty()).unwrap_or(format!("route {}", at + 1)));
            prop_assert_eq!(routed.rule, name.as_deref());
        }
    }

    #[test]
    fn what_happens_is_among_what_is_explained(policy in policy(), call in any_call(), dice: u32) {
        let plan = Plan::new(&policy, &["pre"]);
        let (explained, routed) = (plan.explain(&call), plan.route(&call, dice));
        let tried: Vec<_> = routed.subsets().collect();
        let is_so = |to: &[routes::Subset]| to.iter().map(|subset| subset.index).eq(tried.iter().copied());
        if routed.plain {
            prop_assert!(explained.mesh_percent < 100.0 && is_so(&explained.outside));
        } else {
            prop_assert_eq!(routed.rule, explained.route.rule.as_deref());
            prop_assert!(explained.route.shares.iter().any(|share| is_so(&share.to)));
            let certain = explained.route.shares.iter().find(|share| share.certain);
            prop_assert!(certain.is_none_or(|share| is_so(&share.to)));
        }
        let whole: f64 = explained.route.shares.iter().map(|share| share.percent).sum();
        prop_assert!((whole - 100.0).abs() < 1e-6);
        prop_assert_eq!(explained.access.allowed, plan.access(&call) == Access::Allowed);
        if let Some(fault) = plan.fault(&call, dice) {
            prop_assert_eq!(Some(&*fault.name), explained.fault.rule.as_deref());
        }
        for shadow in plan.shadows(&call, dice) {
            prop_assert!(explained.shadow.rules.iter().any(|rule| *rule.rule == *shadow.name && rule.to.index == shadow.subset));
        }
        let text = serde_json::to_string(&explained).unwrap();
        prop_assert_eq!(serde_json::from_str::<routes::Explained>(&text).unwrap().route.rule, explained.route.rule);
    }
}
