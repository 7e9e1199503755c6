//! How calls are shared between near and far instances, after Envoy's priorities.

/// This node, this zone, this data centre, elsewhere.
pub(crate) const LEVELS: usize = 4;

/// How many instances a level has, and how many of them can be used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) all: u32,
    pub(crate) usable: u32,
}

/// The share of calls that each level gets; they add up to 1, or all are 0 where nothing can be used.
pub(crate) type Shares = [f64; LEVELS];

/// The nearest level gets all calls as long as the share of it that can be used, times `overprovisioning` percent, is 100 % or
/// more; what it can't carry goes to the next, and so on. Levels without instances are left out.
///
/// With `local` the first level gets that percentage at most, and less in the measure that it can't carry it.
pub(crate) fn shares(counts: &[Count; LEVELS], overprovisioning: u16, local: Option<u8>) -> Shares {
    let healths = counts.map(|count| health(count, overprovisioning));
    let others = cascade([0.0, healths[1], healths[2], healths[3]]);
    match local {
        Some(percent) if others.iter().any(|share| *share > 0.0) => {
            let here = f64::from(percent.min(100)) / 100.0 * healths[0];
            [here, others[1] * (1.0 - here), others[2] * (1.0 - here), others[3] * (1.0 - here)]
        }
        _ => cascade(healths),
    }
}

/// The level for a draw in `0.0..1.0`; `None` where nothing can be used.
pub(crate) fn choose(shares: &Shares, draw: f64) -> Option<usize> {
    let mut below = 0.0;
    let last = shares.iter().rposition(|share| *share > 0.0)?;
    let found = shares.iter().position(|share| {
        below += share;
        draw < below
    });
    Some(found.unwrap_or(last).min(last))
}

/// How much of all calls a level could carry, 1 at most.
fn health(count: Count, overprovisioning: u16) -> f64 {
    if count.usable == 0 {
        return 0.0;
    }
    (f64::from(count.usable) / f64::from(count.all) * f64::from(overprovisioning) / 100.0).min(1.0)
}

/// Each takes what it can of what is left; if all together can't take everything, everyone takes more in proportion.
fn cascade(healths: [f64; LEVELS]) -> Shares {
    let mut left = 1.0;
    let mut shares = healths.map(|health| {
        let share = health.min(left);
        left -= share;
        share
    });
    let taken: f64 = shares.iter().sum();
    if taken > 0.0 {
        shares.iter_mut().for_each(|share| *share /= taken);
    }
    shares
}
