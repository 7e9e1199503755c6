//! What rules cost a call: `cargo xtask bench policy`.

use std::{fmt::Write, hint::black_box};

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::{Access, Plan, Told, tests::plan_of};
use crate::measure::Measure;

/// Everything that is asked of a plan before a call goes out.
fn ask(plan: &Plan, call: &Told, dice: u32) -> bool {
    if plan.is_plain() {
        return true;
    }
    let allowed = plan.access(call) == Access::Allowed;
    black_box((plan.route(call, dice), plan.fault(call, dice), plan.shadows(call, dice).count()));
    allowed
}

/// Ten rules about who may call, and ten routes: of each the last one is about the call.
fn many() -> String {
    let mut policy = "access.default = \"deny\"\n".to_owned();
    for n in (0..10).rev() {
        let when = format!("when = {{ application = [\"shop-{n}-*\", \"cart-{n}-*\"], method = \"get*\" }}");
        write!(
            policy,
            "[[access.rules]]\nname = \"a{n}\"\n{when}\n[[routes]]\nname = \"r{n}\"\n{when}\nto = {{ group = \"g{n}\" }}\n"
        )
        .unwrap();
    }
    policy
}

#[test]
#[ignore = "a measurement"]
fn ask_rules() {
    let call: Told =
        [("method", "getUser"), ("application", "shop-0-web"), ("group", "default"), ("hash_key", "4711"), ("user", "jane")]
            .into_iter()
            .collect();
    let route = r#"routes = [{ name = "a", when = { application = "shop-*" }, to = { environment = "grey" } }]"#;
    let split = r#"routes = [{ name = "a", sticky = true, split = [{ weight = 9 }, { to = { environment = "grey" } }] }]"#;
    let mut measure = Measure::new("rules");
    for (name, policy) in [
        ("none", String::new()),
        ("1-route", route.to_owned()),
        ("10-access-10-routes", many()),
        ("sticky-split", split.to_owned()),
    ] {
        let (plan, call) = (plan_of(&policy), call.clone());
        assert_eq!(plan.is_plain(), policy.is_empty());
        assert!(ask(&plan, &call, 0), "{name}: the call is refused");
        let mut dice = SmallRng::seed_from_u64(3);
        measure.add(name, move |_| {
            black_box(ask(&plan, black_box(&call), dice.random()));
        });
    }
    measure.run();
}
