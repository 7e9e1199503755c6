//! Consistent hashing as MOA's SDK does it: the same key goes to the same instance.

use std::io::Write;

use super::murmur3;

/// From so many positions on, each host has fewer: 4 Mi of them take 36 MiB. It is reached at 1,449 hosts; up to there picks are
/// the SDK's own.
const POSITIONS_MAX: usize = 4 << 20;

/// Hosts on a circle of hashes, each at many positions.
///
/// N hosts have 2 x N positions each, so a change of N moves some keys of hosts that stay: the rule is the SDK's, not ours.
#[derive(Debug)]
pub(crate) struct Ring {
    /// Each position's hash and, in the lower half, its host.
    points: Box<[u64]>,
    /// Where to look for a hash by its highest bits: so a look-up costs two cache misses however many hosts there are.
    starts: Box<[u32]>,
    shift: u32,
}

/// The place of a key on the ring.
pub(crate) fn hash(key: &[u8]) -> u32 {
    murmur3::first_word(key)
}

impl Ring {
    /// The ring of these hosts (`address:port`), which are known by their position in `names` from here on. With 1,449 hosts and
    /// more it takes half a second: not a thing to do on a thread that serves calls.
    pub(crate) fn new(names: &[impl AsRef<str>]) -> Self {
        let mut sorted: Vec<_> = (0_u32..).zip(names).map(|(owner, name)| (name.as_ref(), owner)).collect();
        sorted.sort_unstable();
        let mut points = sort(positions(&sorted));
        let shift = 32 - (points.len() / 4).max(2).ilog2();
        let starts = starts(&points, shift);
        for point in &mut points {
            *point = join(high(*point), sorted[low(*point) as usize].1);
        }
        Self { points: points.into(), starts, shift }
    }

    /// The host that owns this hash: the one at the first position that is not before it.
    #[cfg(test)]
    pub(crate) fn owner(&self, hash: u32) -> Option<u32> {
        self.from(hash).next()
    }

    /// The hosts at the positions from this hash on, once around; the same host comes many times.
    pub(crate) fn from(&self, hash: u32) -> impl Iterator<Item = u32> {
        let (before, after) = self.points.split_at(self.position(hash));
        after.iter().chain(before).map(|point| low(*point))
    }

    /// Each position's host and the share of all hashes that lead to it.
    pub(crate) fn arcs(&self) -> impl Iterator<Item = (u32, f64)> {
        let mut previous = self.points.last().map_or(0, |point| high(*point));
        self.points.iter().map(move |point| {
            let arc = if self.points.len() == 1 { 1.0 } else { f64::from(high(*point).wrapping_sub(previous)) / 2_f64.powi(32) };
            previous = high(*point);
            (low(*point), arc)
        })
    }

    fn position(&self, hash: u32) -> usize {
        let bucket = (hash >> self.shift) as usize;
        let (start, end) = (self.starts[bucket] as usize, self.starts[bucket + 1] as usize);
        start + self.points[start..end].partition_point(|point| high(*point) < hash)
    }
}

/// Every position as its hash and, below, the host's rank by name.
fn positions(sorted: &[(&str, u32)]) -> Vec<u64> {
    let hosts = sorted.len().max(1);
    let each = (2 * hosts).min(POSITIONS_MAX / hosts).max(1);
    let mut points = Vec::with_capacity(each * sorted.len());
    let mut text = Vec::with_capacity(64);
    for (rank, (name, _)) in (0_u32..).zip(sorted) {
        for i in 0..each {
            text.clear();
            // Cannot fail: it is memory.
            let _ = write!(text, "{name}#{i}");
            points.push(join(hash(&text), rank));
        }
    }
    points
}

/// In the order of the ring. Of hosts at one position the last by name has it, as in the SDK, which gets its list sorted.
fn sort(mut points: Vec<u64>) -> Vec<u64> {
    points.sort_unstable_by(|a, b| b.cmp(a));
    points.dedup_by_key(|point| high(*point));
    points.reverse();
    points
}

/// The first position of each run of hashes with the same highest bits, and the end.
fn starts(points: &[u64], shift: u32) -> Box<[u32]> {
    let buckets = 1_u64 << (32 - shift);
    let mut position = 0_u32;
    let first = |bucket: u64| {
        while points.get(position as usize).is_some_and(|point| u64::from(high(*point) >> shift) < bucket) {
            position += 1;
        }
        position
    };
    (0..=buckets).map(first).collect()
}

fn join(hash: u32, host: u32) -> u64 {
    u64::from(hash) << 32 | u64::from(host)
}

fn high(point: u64) -> u32 {
    (point >> 32) as u32
}

fn low(point: u64) -> u32 {
    (point & 0xffff_ffff) as u32
}
