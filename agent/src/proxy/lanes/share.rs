//! The share of a routed service's calls that the kernel gives to the agent, by chance: those that begin a trace, and those that
//! belong to instances on other nodes.

use std::time::Instant;

use crate::{
    balance::{Member as Place, Set},
    config::traffic::BalancePolicy,
    proxy::{
        choice::options,
        routes::{Endpoint, Member, ServiceRoute},
    },
};

const MILLION: f64 = 1e6;

/// What a call that has come as this share is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Drawn {
    /// It begins a trace, and is balanced as any other.
    pub(crate) sampled: bool,
    /// It goes to another node.
    pub(crate) away: bool,
}

/// The share of the calls that belongs to instances on other nodes, as the workers balance, or why the kernel cannot keep to it.
///
/// Those of this node share theirs by the policy in the kernel, and those of others theirs in the agent. So what they have as
/// one may not depend on their loads.
pub(super) fn away_share(route: &ServiceRoute) -> Result<f64, &'static str> {
    let is_away = |member: &Member| matches!(member.instance.endpoint, Endpoint::Agent(_));
    if !route.members.iter().any(is_away) {
        return Ok(0.0);
    }
    let by_weight = matches!(route.policy.balance.policy, BalancePolicy::RoundRobin | BalancePolicy::Random);
    if !route.policy.locality.failover && !by_weight {
        return Err("a share goes to other nodes by their load");
    }
    let now = Instant::now();
    let place = |(member, index): (&Member, u32)| Place { index, weight: member.traits.weight, level: member.level, since: None };
    let set = |fits: &dyn Fn(&Member) -> bool| {
        let members = route.members.iter().zip(0..).filter(|(member, _)| fits(member)).map(place).collect();
        let mut set = Set::new(options(&route.policy), members, None, now);
        set.refresh(now, |index| route.members.get(index as usize).is_some_and(|member| member.instance.is_usable()));
        set
    };
    let all = set(&|_| true);
    // Then the agent gives calls to those, too, that cannot be used.
    if all.is_panicking() {
        return Err("so few instances can be used that all are");
    }
    Ok(all.share_of(&set(&is_away), now))
}

/// Of a million calls, so many go to the agent: `traced` of a million begin a trace, and this share goes to other nodes.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to a million")]
pub(super) fn to_agent_per_million(traced: u32, away: f64) -> u32 {
    (to_agent(traced, away) * MILLION).round() as u32
}

fn to_agent(traced: u32, away: f64) -> f64 {
    let traced = f64::from(traced) / MILLION;
    1.0 - (1.0 - traced) * (1.0 - away.clamp(0.0, 1.0))
}

impl Drawn {
    /// By a number of 32 bits, drawn by chance. Of all calls, of which only those have come, `traced` of a million begin a trace;
    /// and as those that do are balanced as any other, the share of other nodes is what it should be.
    pub(crate) fn of(traced: u32, away: f64, draw: u32) -> Self {
        let of_all = f64::from(draw) / 2_f64.powi(32) * to_agent(traced, away);
        let sampled = of_all < f64::from(traced) / MILLION;
        Self { sampled, away: !sampled && away > 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn shares_are_added_as_chances_are() {
        assert_eq!(to_agent_per_million(0, 0.0), 0);
        assert_eq!(to_agent_per_million(1_000, 0.0), 1_000);
        assert_eq!(to_agent_per_million(0, 0.3), 300_000);
        assert_eq!(to_agent_per_million(500_000, 0.5), 750_000);
        assert_eq!(to_agent_per_million(1_000_000, 0.5), 1_000_000);
        assert_eq!(to_agent_per_million(0, 1.0), 1_000_000);
    }

    #[test]
    fn each_has_its_share_of_all_calls() {
        const CALLS: u32 = 1_000_000;
        let mut rng = StdRng::seed_from_u64(1);
        for (traced, away) in [(0, 0.3), (200_000, 0.0), (100_000, 0.4), (500_000, 0.9), (1_000_000, 0.5)] {
            let (mut sampled, mut gone) = (0, 0);
            let share = to_agent_per_million(traced, away);
            for _ in 0..CALLS {
                if rng.random_range(0..1_000_000) >= share {
                    continue;
                }
                let drawn = Drawn::of(traced, away, rng.random());
                sampled += u32::from(drawn.sampled);
                // Those that are traced are balanced as any other.
                gone += u32::from(drawn.away || (drawn.sampled && rng.random_bool(away)));
            }
            for (count, due) in [(sampled, f64::from(traced) / MILLION), (gone, away)] {
                let off = (f64::from(count) / f64::from(CALLS) - due).abs();
                assert!(off < 0.004, "{count} of {CALLS} for {due}: traced {traced}, away {away}");
            }
        }
    }
}
