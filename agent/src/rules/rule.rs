//! A rule: which calls it is about, and what it does with them.

use std::sync::Arc;

use super::{chance, name::Says, when::When};
use crate::{api::routes::LookedAt, config::traffic};

/// A rule.
#[derive(Debug, Clone)]
pub(super) struct Rule<T> {
    pub(super) name: Arc<str>,
    pub(super) when: When,
    pub(super) does: T,
    /// Makes its own dice of the call's.
    salt: u64,
}

/// What all rules of the configuration have.
pub(super) trait Configured {
    /// What it is called.
    fn name(&self) -> &str;
    /// Which calls.
    fn when(&self) -> &traffic::When;
}

/// Compiles rules. One without a name is called after its kind and position.
pub(super) fn all<C: Configured, T>(kind: &str, rules: &[C], mut does: impl FnMut(&C, Arc<str>, usize) -> T) -> Vec<Rule<T>> {
    let compile = |(index, rule): (usize, &C)| {
        let name: Arc<str> = match rule.name() {
            "" => format!("{kind} {}", index + 1).into(),
            name => name.into(),
        };
        let salt = chance::hash(&[kind.as_bytes(), &index.to_le_bytes()]);
        Rule { when: When::new(rule.when()), does: does(rule, name.clone(), index), name, salt }
    };
    rules.iter().enumerate().map(compile).collect()
}

/// The first rule that is about the call.
pub(super) fn first<'r, T>(rules: &'r [Rule<T>], call: &impl Says) -> Option<&'r Rule<T>> {
    rules.iter().find(|rule| rule.when.fits(call))
}

/// Each rule up to the first that is about the call, with what does not fit, and that first one.
pub(super) fn look<'r, T>(rules: &'r [Rule<T>], call: &impl Says) -> (Vec<LookedAt>, Option<&'r Rule<T>>) {
    let found = rules.iter().position(|rule| rule.when.fits(call));
    let looked = found.map_or(rules.len(), |found| found + 1);
    (rules.iter().take(looked).map(|rule| rule.looked_at(call)).collect(), found.and_then(|found| rules.get(found)))
}

impl<T> Rule<T> {
    /// The rule's own dice.
    pub(super) fn dice(&self, dice: u32) -> u64 {
        chance::own(dice, self.salt)
    }

    /// Whether these dice of a call are within the rule's share.
    pub(super) fn hits(&self, dice: u32, per_10k: u32) -> bool {
        chance::hits(self.dice(dice), per_10k)
    }

    pub(super) fn looked_at(&self, call: &impl Says) -> LookedAt {
        LookedAt { rule: self.name.to_string(), misfits: self.when.misfits(call) }
    }
}

macro_rules! configured {
    ($($rule:ty),*) => {$(
        impl Configured for $rule {
            fn name(&self) -> &str {
                &self.name
            }

            fn when(&self) -> &traffic::When {
                &self.when
            }
        }
    )*};
}

configured!(traffic::AccessRule, traffic::Route, traffic::Fault, traffic::Shadow);
