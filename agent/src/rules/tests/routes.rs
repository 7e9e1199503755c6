//! Where calls go.

use super::*;

#[test]
fn an_environment_comes_first_and_the_others_then() {
    let plan = plan("");
    assert_eq!(plan.subsets().len(), 3);
    assert_eq!(to(&plan, plan.route(&call(&[]), 7)), [DEFAULT]);
    assert_eq!(to(&plan, plan.route(&call(&[("moa.env.pre", "no")]), 7)), [PRE, DEFAULT]);
    assert_eq!(to(&plan, plan.route(&call(&[("environment", "pre")]), 7)), [PRE, DEFAULT]);
    assert_eq!(to(&plan, plan.route(&call(&[("environment", "nowhere")]), 7)), [DEFAULT]);
    assert_eq!(to(&plan, plan.route(&call(&[("environment", "")]), 7)), [DEFAULT]);
    assert_eq!(plan.route(&call(&[]), 7).rule, None);
}

#[test]
fn the_first_route_that_fits_counts() {
    let policy = r#"
        [[routes]]
        name = "vip"
        when = { user = "7*", method = "get*" }
        to = { labels = { size = "l" }, fallback = false }
        [[routes]]
        name = "group"
        when = { user = "*" }
        to = { group = "b", environment = "pre" }
        [[routes]]
        name = "never"
        when = { user = "*" }
        to = { environment = "grey" }
    "#;
    let plan = plan(policy);
    let vip = plan.route(&call(&[("user", "71"), ("method", "getUser")]), 1);
    assert_eq!((vip.rule, vip.group), (Some("vip"), None));
    assert_eq!(to(&plan, vip), [r#"instances without an environment with size = "l""#]);
    let group = plan.route(&call(&[("user", "71"), ("method", "setUser")]), 1);
    assert_eq!((group.rule, group.group.map(|group| &**group)), (Some("group"), Some("b")));
    assert_eq!(to(&plan, group), [r#"instances of environment "pre" in group "b""#, DEFAULT]);
    assert_eq!(plan.route(&call(&[("method", "getUser")]), 1).rule, None);
}

#[test]
fn who_falls_back_goes_where_it_would_have_gone() {
    let policy =
        r#"routes = [{ name = "l", to = { labels = { size = "l" } } }, { name = "never", to = { environment = "grey" } }]"#;
    let plan = plan(policy);
    let labelled = r#"instances without an environment with size = "l""#;
    assert_eq!(to(&plan, plan.route(&call(&[]), 1)), [labelled, DEFAULT]);
    assert_eq!(to(&plan, plan.route(&call(&[("moa.env.pre", "")]), 1)), [labelled, PRE, DEFAULT]);
}

#[test]
fn no_subset_is_tried_twice() {
    let plan = plan(r#"routes = [{ name = "a", when = { x = "1" }, to = {} }, { name = "b", to = { environment = "pre" } }]"#);
    assert_eq!(to(&plan, plan.route(&call(&[("x", "1")]), 1)), [DEFAULT]);
    assert_eq!(to(&plan, plan.route(&call(&[("x", "1"), ("moa.env.pre", "")]), 1)), [DEFAULT, PRE]);
    assert_eq!(to(&plan, plan.route(&call(&[("moa.env.pre", "")]), 1)), [PRE, DEFAULT]);
}

#[test]
fn a_route_that_leads_nowhere_is_as_none_but_counts() {
    for route in ["", ", split = []", ", split = [{ weight = 0, to = { environment = 'grey' } }]", ", split = [{ }]"] {
        let plan = plan(&format!("routes = [{{ name = 'a'{route} }}, {{ name = 'b', to = {{ environment = 'grey' }} }}]"));
        let routed = plan.route(&call(&[("moa.env.pre", "")]), 1);
        assert_eq!(routed.rule, Some("a"), "{route}");
        assert_eq!(to(&plan, routed), [PRE, DEFAULT], "{route}");
    }
}

#[test]
fn a_stress_test_goes_apart_whatever_else_is_said() {
    let policy = r#"
        stress = "apart"
        mesh_per_10k = 0
        routes = [{ name = "a", to = { environment = "pre" } }]
    "#;
    let apart = plan(policy);
    for mark in ["stress", "moa.stress"] {
        let routed = apart.route(&call(&[(mark, ""), ("moa.env.pre", "")]), 1);
        assert_eq!((routed.rule, routed.plain), (Some("stress"), false));
        assert_eq!(to(&apart, routed), [r#"instances of environment "stress""#]);
    }
    let together = plan(r#"stress = "together""#);
    assert_eq!(to(&together, together.route(&call(&[("moa.stress", "")]), 1)), [DEFAULT]);
}

#[test]
fn no_copies_are_made_of_a_stress_test_that_is_apart() {
    let shadows = r#"shadows = [{ name = "s", to = {} }]"#;
    let marked = call(&[("moa.stress", "")]);
    for (stress, copies) in [("apart", 0), ("together", 1)] {
        let plan = plan(&format!("stress = '{stress}'\n{shadows}"));
        assert_eq!(plan.shadows(&marked, 1).count(), copies);
        assert_eq!(plan.explain(&marked).shadow.rules.len(), copies);
        assert_eq!(plan.shadows(&call(&[]), 1).count(), 1);
    }
}

#[test]
fn outside_the_mesh_only_the_environment_counts() {
    let policy = r#"
        mesh_per_10k = 0
        routes = [{ name = "a", to = { environment = "grey" } }]
        shadows = [{ name = "s", to = { environment = "grey" } }]
        faults = [{ name = "f", code = 501 }]
    "#;
    let plan = plan(policy);
    for dice in [0, 1 << 31, u32::MAX] {
        let routed = plan.route(&call(&[("moa.env.pre", "")]), dice);
        assert_eq!((routed.rule, routed.plain), (None, true));
        assert_eq!(to(&plan, routed), [PRE, DEFAULT]);
        assert!(plan.fault(&call(&[]), dice).is_none());
        assert_eq!(plan.shadows(&call(&[]), dice).count(), 0);
    }
}

#[test]
fn only_the_first_fault_that_fits_counts() {
    let policy = r#"
        faults = [
            { name = "none", when = { user = "7" }, per_10k = 0, code = 501 },
            { name = "slow", when = { method = "get*" }, delay_ms = 20 },
            { name = "all", code = 503, delay_ms = 1 },
        ]
    "#;
    let plan = plan(policy);
    assert_eq!(plan.fault(&call(&[("user", "7"), ("method", "get")]), 1), None);
    let slow = plan.fault(&call(&[("method", "get")]), 1).unwrap();
    assert_eq!((&*slow.name, slow.delay, slow.code), ("slow", Duration::from_millis(20), None));
    assert_eq!(plan.fault(&call(&[]), 1).unwrap().code, Some(503));
}

#[test]
fn each_shadow_that_fits_makes_a_copy() {
    let policy = r#"
        shadows = [
            { name = "next", when = { method = "get*" }, to = { environment = "pre" }, service = "/service/next", in_flight_max = 3 },
            { to = { group = "b" } },
            { name = "none", per_10k = 0, to = { environment = "pre" } },
        ]
    "#;
    let plan = plan(policy);
    let get = call(&[("method", "get")]);
    let shadows: Vec<_> = plan.shadows(&get, 1).collect();
    let names: Vec<_> = shadows.iter().map(|shadow| (&*shadow.name, shadow.index, shadow.in_flight_max)).collect();
    assert_eq!(names, [("next", 0, 3), ("shadow 2", 1, 100)]);
    assert_eq!(shadows[0].service.as_deref(), Some("/service/next"));
    let subset = &plan.subsets()[shadows[0].subset];
    assert_eq!((subset.service.as_deref(), subset.environment.as_deref()), (Some("/service/next"), Some("pre")));
    assert_eq!(plan.subsets()[shadows[1].subset].group.as_deref(), Some("b"));
    assert_eq!(plan.shadows(&call(&[]), 1).count(), 1);
    assert_eq!(plan.shadow_count(), 3);
}
