//! What people are told.

use super::*;
use crate::api::routes::RuleKind;

const POLICY: &str = r#"
    mesh_per_10k = 2_550
    stress = "apart"
    access = { mode = "dry-run", default = "deny", rules = [{ name = "friends", when = { application = ["shop", "report*"] } }] }
    shadows = [{ name = "next", when = { method = "get*" }, per_10k = 100, to = { group = "b" }, service = "/service/next" }]
    faults = [{ name = "drill", when = { user = "7" }, per_10k = 5, delay_ms = 20, code = 501 }]
    [[routes]]
    name = "vip"
    when = { user = "7*" }
    to = { labels = { size = "l" }, fallback = false }
    [[routes]]
    name = "canary"
    when = { method = "get*" }
    split = [{ weight = 5, to = { environment = "pre" } }, { weight = 95 }, { weight = 0, to = { environment = "grey" } }]
    sticky = true
"#;

#[test]
fn the_list_has_every_rule() {
    let list = plan(POLICY).list();
    let rows: Vec<_> = list.iter().map(|row| (row.kind, &*row.name, &*row.when, &*row.what)).collect();
    let then = "then to instances without an environment";
    let expected = [
        (RuleKind::Access, "friends", r#"application = "shop" or "report*""#, "allow"),
        (RuleKind::Access, "default", "", "deny (dry run: counted only)"),
        (RuleKind::Stress, "", "the mark of a stress test", r#"to instances of environment "stress", and nowhere else"#),
        (RuleKind::Mesh, "", "", "routes, faults and shadows are for 25.5 % of the calls"),
        (RuleKind::Route, "vip", r#"user = "7*""#, r#"to instances without an environment with size = "l", and nowhere else"#),
        (
            RuleKind::Route,
            "canary",
            r#"method = "get*""#,
            r#"5 % to instances of environment "pre"; 95 % to where they would go anyway; by hash key"#,
        ),
        (RuleKind::Environment, "pre", r#"environment = "pre""#, &format!("to {PRE}, {then}")),
        (RuleKind::Environment, "grey", r#"environment = "grey""#, &format!(r#"to instances of environment "grey", {then}"#)),
        (RuleKind::Fault, "drill", r#"user = "7""#, "0.05 % held up for 20 ms, then answered with 501"),
        (
            RuleKind::Shadow,
            "next",
            r#"method = "get*""#,
            r#"1 % copied to instances without an environment in group "b" of service /service/next, 100 in flight at most"#,
        ),
    ];
    assert_eq!(rows, expected);
    assert!(Plan::new(&ServicePolicy::default(), &[]).list().is_empty());
}

#[test]
fn a_call_is_told_what_did_not_fit() {
    let explained =
        plan(POLICY).explain(&call(&[("method", "getUser"), ("application", "web"), ("moa.env.pre", "1"), ("x", "")]));
    let says: Vec<_> = explained.says.iter().map(|(name, value)| (&**name, &**value)).collect();
    assert_eq!(says, [("application", "web"), ("environment", "pre"), ("method", "getUser")]);
    assert!(!explained.access.allowed && explained.access.dry_run);
    assert_eq!(explained.access.rule, "default");
    let misfit = &explained.access.looked_at[0].misfits[0];
    assert_eq!((&*misfit.name, misfit.found.as_deref()), ("application", Some("web")));
    assert_eq!(misfit.expected, ["shop", "report*"]);

    let route = &explained.route;
    let looked_at: Vec<_> = route.looked_at.iter().map(|looked| (&*looked.rule, looked.misfits.len())).collect();
    assert_eq!((route.rule.as_deref(), &*looked_at), (Some("canary"), &[("vip", 1), ("canary", 0)][..]));
    assert_eq!(route.looked_at[0].misfits[0].found, None);
    let shares: Vec<_> = route.shares.iter().map(|share| (share.percent, share.certain, share.to.len())).collect();
    assert_eq!(shares, [(5.0, false, 2), (95.0, false, 2)]);
    assert!(route.shares.iter().all(|share| share.to[0].instances == PRE));

    assert_eq!((explained.mesh_percent, explained.outside.len()), (25.5, 2));
    assert_eq!((explained.environment.name.as_deref(), explained.environment.served), (Some("pre"), true));
    assert_eq!((explained.stress.marked, explained.stress.apart), (false, true));
    assert_eq!((explained.fault.rule, explained.fault.looked_at[0].misfits.len()), (None, 1));
    assert_eq!((&*explained.shadow.rules[0].rule, explained.shadow.rules[0].percent), ("next", 1.0));
}

#[test]
fn a_hash_key_makes_the_share_certain() {
    let plan = plan(POLICY);
    let call = call(&[("method", "getUser"), ("hashid", "8")]);
    let explained = plan.explain(&call);
    let certain: Vec<_> = explained.route.shares.iter().filter(|share| share.certain).collect();
    assert_eq!(certain.len(), 1);
    let routed = (0..100).map(|dice| plan.route(&call, dice)).find(|routed| !routed.plain).unwrap();
    assert_eq!(certain[0].to[0].index, routed.subset);
}

#[test]
fn a_fault_and_a_stress_test_are_explained() {
    let explained = plan(POLICY).explain(&call(&[("user", "7"), ("moa.stress", "1")]));
    assert_eq!((explained.fault.rule.as_deref(), explained.fault.percent), (Some("drill"), 0.05));
    assert_eq!(explained.fault.what, "held up for 20 ms, then answered with 501");
    assert_eq!(explained.route.rule.as_deref(), Some("stress"));
    assert_eq!(explained.route.shares[0].to.len(), 1);
    assert!(explained.stress.marked && explained.outside == explained.route.shares[0].to);
}
