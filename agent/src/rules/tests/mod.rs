//! Plans as a whole, from TOML.

mod any_policy;
mod explain;
mod routes;
mod shares;

use super::*;

/// A plan for a service whose instances have no environment.
pub(super) fn plan_of(policy: &str) -> Plan {
    Plan::new(&toml::from_str(policy).unwrap(), &[])
}

/// A plan for a service whose instances have the environments `pre` and `grey`.
fn plan(policy: &str) -> Plan {
    Plan::new(&toml::from_str(policy).unwrap(), &["", "pre", "grey", "pre"])
}

fn call(pairs: &[(&str, &str)]) -> Told {
    pairs.iter().copied().collect()
}

/// What is known of the subset, for people.
fn to(plan: &Plan, routed: Routed<'_>) -> Vec<String> {
    routed.subsets().map(|subset| plan.subsets()[subset].to_string()).collect()
}

const DEFAULT: &str = "instances without an environment";
const PRE: &str = r#"instances of environment "pre""#;

#[test]
fn a_policy_that_says_nothing_is_plain() {
    assert!(Plan::new(&ServicePolicy::default(), &[]).is_plain());
    assert!(Plan::new(&ServicePolicy::default(), &[""]).is_plain());
    assert!(!Plan::new(&ServicePolicy::default(), &["pre"]).is_plain());
    for policy in [
        "mesh_per_10k = 9_999",
        r#"stress = "apart""#,
        r#"access = { default = "deny" }"#,
        r#"access = { rules = [{ name = "a", verdict = "allow" }] }"#,
        r#"routes = [{ name = "a", to = { } }]"#,
        r#"shadows = [{ name = "a", to = { environment = "pre" } }]"#,
        r#"faults = [{ name = "a", code = 501 }]"#,
    ] {
        assert!(!Plan::new(&toml::from_str(policy).unwrap(), &[]).is_plain(), "{policy}");
    }
}

#[test]
fn the_first_access_rule_that_fits_counts() {
    let policy = r#"
        [access]
        default = "deny"
        rules = [
            { name = "no-writes", when = { application = "report*", method = ["set*", "del*"] }, verdict = "deny" },
            { name = "friends", when = { application = ["report*", "shop"] } },
            { name = "never", when = { application = "shop" }, verdict = "deny" },
        ]
    "#;
    let plan = plan(policy);
    let denied = |rule| Access::Denied { rule, dry_run: false };
    for (application, method, expected) in [
        ("shop", "setUser", Access::Allowed),
        ("report-1", "getUser", Access::Allowed),
        ("report-1", "setUser", denied("no-writes")),
        ("other", "getUser", denied("default")),
    ] {
        assert_eq!(plan.access(&call(&[("application", application), ("method", method)])), expected, "{application} {method}");
    }
    assert_eq!(plan.access(&call(&[])), denied("default"));
}

#[test]
fn a_dry_run_says_what_would_be() {
    let policy = r#"access = { mode = "dry-run", rules = [{ name = "b", when = { application = "" }, verdict = "deny" }] }"#;
    let plan = plan(policy);
    assert_eq!(plan.access(&call(&[])), Access::Denied { rule: "b", dry_run: true });
    assert_eq!(plan.access(&call(&[("application", "a")])), Access::Allowed);
    let explained = plan.explain(&call(&[])).access;
    assert!(!explained.allowed && explained.dry_run);
    assert_eq!(explained.rule, "b");
}

#[test]
fn access_holds_outside_the_mesh_too() {
    let plan = plan(
        r#"access = { default = "deny" }
        mesh_per_10k = 0"#,
    );
    assert_eq!(plan.access(&call(&[])), Access::Denied { rule: "default", dry_run: false });
}
