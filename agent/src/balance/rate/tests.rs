use std::{
    sync::{Barrier, atomic::AtomicUsize},
    thread,
};

use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;
use crate::balance::seed;

fn us(us: u64) -> Duration {
    Duration::from_micros(us)
}

fn limiter(service_per_s: u32, caller_per_s: u32, start: Instant) -> Limiter {
    Limiter::new(&Options { service_per_s, caller_per_s, burst: Duration::from_millis(100), ..Options::default() }, start)
}

/// Says whether calls keep to a bound over every stretch of time: a bucket with a hole never holds more than the constant.
struct Meter {
    per_s: f64,
    level: f64,
    most: f64,
    last: Instant,
}

impl Meter {
    fn new(per_s: f64, start: Instant) -> Self {
        Self { per_s, level: 0.0, most: 0.0, last: start }
    }

    fn call(&mut self, now: Instant) {
        self.level = (self.level - self.per_s * now.duration_since(self.last).as_secs_f64()).max(0.0) + 1.0;
        self.most = self.most.max(self.level);
        self.last = now;
    }
}

#[test]
fn no_bound() {
    let start = Instant::now();
    assert!(Options { burst: us(1), callers: BTreeMap::from([("a".to_owned(), 0)]), ..Options::default() }.is_off());
    let limiter = limiter(0, 0, start);
    let share = limiter.caller("web", start);
    assert!((0..100_000).all(|_| limiter.admit(&share, start).is_ok()));
}

#[test]
fn a_caller_alone() {
    let start = Instant::now();
    let limiter = limiter(1000, 0, start);
    let share = limiter.caller("web", start);
    let burst = |now| (0..1000).filter(|_| limiter.admit(&share, now).is_ok()).count();
    assert_eq!(burst(start), 100, "the whole burst, although it would be shared with others");
    assert_eq!(burst(start + us(10_000)), 10);
    assert_eq!(burst(start + us(10_999)), 0);
    assert_eq!(burst(start + us(60_000_000)), 100);
}

#[test]
fn refusals_name_the_key() {
    let start = Instant::now();
    let callers = BTreeMap::from([("batch".to_owned(), 20), ("free".to_owned(), 0)]);
    let options = Options { service_per_s: 1000, caller_per_s: 100, callers, burst: us(100_000) };
    let limiter = Limiter::new(&options, start);
    let refused = |name| {
        let share = limiter.caller(name, start);
        (0..1000).find_map(|_| limiter.admit(&share, start).err()).unwrap().to_string()
    };
    assert_eq!(refused("web"), "the caller has had its 100 calls a second (rate.caller_per_s)");
    assert_eq!(refused("batch"), "the caller has had its 20 calls a second (rate.callers)");
    assert_eq!(
        refused("free"),
        "the service has had its 1000 calls a second (rate.service_per_s), of which the caller's share is 333"
    );
}

#[test]
fn a_small_rate_still_gives_one_call() {
    let start = Instant::now();
    let limiter = limiter(2, 1, start);
    let (a, b) = (limiter.caller("a", start), limiter.caller("b", start));
    assert!(limiter.admit(&a, start).is_ok() && limiter.admit(&a, start).is_err());
    assert_eq!(limiter.admit(&b, start), Err(Refused::Service { per_s: 2, share: 1 }));
    assert!(limiter.admit(&b, start + us(500_000)).is_ok());
    assert_eq!(limiter.admit(&a, start + us(999_999)), Err(Refused::Caller { per_s: 1, named: false }));
    assert!(limiter.admit(&a, start + us(1_000_000)).is_ok());
}

#[test]
fn counts_who_is_active() {
    let start = Instant::now();
    let limiter = limiter(1000, 0, start);
    let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
    let call = |name, seconds| _ = limiter.admit(&limiter.caller(name, at(seconds)), at(seconds));
    let active = |seconds| limiter.active(at(seconds));
    call("a", 0.1);
    call("a", 0.2);
    call("b", 0.9);
    assert_eq!((active(0.9), active(1.5), active(2.0)), (2, 2, 1));
    call("a", 1.1);
    call("c", 1.2);
    assert_eq!((active(1.9), active(2.1)), (3, 2));
    call("b", 2.5);
    call("c", 2.5);
    assert_eq!((active(2.9), active(3.1), active(4.1)), (3, 2, 1));
    call("a", 2.9);
    assert_eq!(active(3.0), 3, "a thread whose time is late is counted all the same");
}

#[test]
fn forgets_idle_callers_when_there_are_too_many() {
    let start = Instant::now();
    let options = Options { caller_per_s: 1, callers: BTreeMap::from([("vip".to_owned(), 7)]), ..Options::default() };
    let limiter = Limiter::new(&Options { service_per_s: 1_000_000, ..options }, start);
    let held: Vec<_> = (0..10).map(|i| limiter.caller(&format!("held-{i}"), start)).collect();
    (10..CALLERS_MAX).for_each(|i| _ = limiter.admit(&limiter.caller(&format!("name-{i}"), start), start));
    let (one, other) = (limiter.caller("late", start), limiter.caller("later", start));
    assert!(Arc::ptr_eq(&one, &other) && Arc::ptr_eq(&one, &limiter.others), "all others share one");
    assert_eq!((limiter.known(), limiter.caller("vip", start).per_s), (CALLERS_MAX + 1, 7));
    assert!(!Arc::ptr_eq(&limiter.caller("name-10", start), &one), "those that are known stay so");
    let later = start + Duration::from_secs(62);
    assert!(!Arc::ptr_eq(&limiter.caller("late", later), &limiter.others));
    assert_eq!(limiter.known(), 12, "those that are held, the named one and the new one");
    assert!(Arc::ptr_eq(&limiter.caller("held-3", later), &held[3]));
}

/// Calls of one caller: when the next one comes, and how long after that one the one after comes.
struct Caller {
    share: Arc<Share>,
    next: Instant,
    modest: bool,
    asked: u64,
    had: u64,
}

/// Lets modest callers, whose calls come in clumps that just keep to their share, call next to greedy ones for 20 seconds;
/// `together`: all begin at the same instant.
fn compete(modest: usize, greedy: usize, per_s: u32, together: bool, dice: &mut StdRng) -> (Vec<Caller>, Meter) {
    let start = Instant::now();
    let limiter = limiter(per_s, 0, start);
    let n = modest + greedy;
    let share = f64::from(per_s) / n as f64;
    let mut meter = Meter::new(per_s.into(), start);
    let caller = |i: usize| Caller {
        share: limiter.caller(&i.to_string(), start),
        next: start + Duration::from_secs_f64(if together { 0.0 } else { dice.random_range(0.0..1.0) / share }),
        modest: i < modest,
        asked: 0,
        had: 0,
    };
    let mut callers: Vec<_> = (0..n).map(caller).collect();
    // All are active from the beginning.
    callers.iter().for_each(|caller| _ = limiter.touch(&caller.share, 2));
    let clump = (u64::from(per_s) / 10 / n as u64).max(1);
    let end = start + Duration::from_secs(20);
    while let Some(caller) = callers.iter_mut().min_by_key(|caller| caller.next).filter(|caller| caller.next < end) {
        let now = caller.next;
        let calls = if caller.modest { dice.random_range(1..=clump) } else { 1 };
        for _ in 0..calls {
            caller.asked += 1;
            if limiter.admit(&caller.share, now).is_ok() {
                caller.had += 1;
                meter.call(now);
            }
        }
        // A little more than the clump's time, as the intervals are rounded up.
        let pause =
            if caller.modest { calls as f64 / share * 1.0001 } else { dice.random_range(0.0..0.5) / f64::from(per_s) * n as f64 };
        caller.next += Duration::from_secs_f64(pause).max(us(1));
    }
    (callers, meter)
}

/// Who keeps to the share is never refused, whatever the others do, and nothing is wasted.
#[test]
fn modest_callers_next_to_greedy_ones() {
    let mut dice = seed::rng("modest_callers_next_to_greedy_ones");
    for (modest, greedy, per_s) in [(1, 1, 1000), (1, 9, 1000), (9, 1, 1000), (25, 25, 1000), (3, 2, 50_000), (0, 5, 1000)] {
        let (callers, meter) = compete(modest, greedy, per_s, true, &mut dice);
        let share = f64::from(per_s) * 20.0 / callers.len() as f64;
        for caller in &callers {
            if caller.modest {
                assert_eq!(caller.asked, caller.had, "{modest} modest, {greedy} greedy, {per_s} a second");
            } else {
                assert!(caller.had as f64 >= share * 0.999 - 1.0, "{} of {share}", caller.had);
            }
        }
        let all: u64 = callers.iter().map(|caller| caller.had).sum();
        let most = f64::from(per_s) * 20.0;
        assert!(all as f64 >= most * 0.995 - 2.0, "{all} of {most}");
        assert!(meter.most <= f64::from(per_s) * 0.1 + 1e-6, "{} at once", meter.most);
        let greediest = callers.iter().map(|caller| caller.had).max().unwrap_or(0);
        println!(
            "{modest} modest + {greedy} greedy at {per_s}/s: {all} of {most} in 20 s, {:.1} at once at most, share {share:.0}, most {greediest}",
            meter.most
        );
    }
}

/// With more callers than fit in the burst shares still hold on average.
#[test]
fn many_callers_of_a_small_rate() {
    let mut dice = seed::rng("many_callers_of_a_small_rate");
    let (callers, meter) = compete(50, 50, 100, false, &mut dice);
    let refused: u64 = callers.iter().filter(|caller| caller.modest).map(|caller| caller.asked - caller.had).sum();
    let asked: u64 = callers.iter().filter(|caller| caller.modest).map(|caller| caller.asked).sum();
    println!("{refused} of {asked} modest calls were refused");
    assert!(refused * 20 <= asked, "one in twenty");
    assert!(meter.most <= 10.0 + 1e-6);
}

/// A caller that comes gets its share after a moment, and those that leave are not kept room for.
#[test]
fn a_caller_comes_and_goes() {
    let start = Instant::now();
    let limiter = limiter(10_000, 0, start);
    let (greedy, new) = (limiter.caller("greedy", start), limiter.caller("new", start));
    let mut had = [[0_u32; 2]; 50];
    for i in 0..50_000_u64 {
        let (now, tenth) = (start + us(i * 100), usize::try_from(i / 1000).unwrap());
        // 20,000 calls each second; the other one is there from the 1st to the 2nd second.
        let ask = |share: &Share| (0..2).map(|_| u32::from(limiter.admit(share, now).is_ok())).sum::<u32>();
        had[tenth][0] += ask(&greedy);
        if (10_000..20_000).contains(&i) {
            had[tenth][1] += ask(&new);
        }
    }
    println!("{:?} {:?} {:?} {:?}", had[9], had[10], had[11], had[40]);
    assert_eq!(had[9], [1000, 0]);
    assert!(had[10][1] >= 250 && had[11..20].iter().all(|had| had[1] >= 499), "{had:?}");
    let all = |tenths: &[[u32; 2]]| tenths.iter().flatten().sum::<u32>();
    assert!((1..50).zip(1..).all(|(tenths, count)| all(&had[..tenths]) >= 1000 * count - 1), "nothing is wasted: {had:?}");
    assert!(had[21..].iter().all(|had| had[0] >= 999), "nor on one that is gone: {had:?}");
}

proptest! {
    #[test]
    fn never_above_the_rates(
        service_per_s in 1_u32..5_000,
        caller_per_s in prop_oneof![Just(0_u32), 1_u32..2_000],
        burst_ms in 1_u64..2_000,
        callers in 1_usize..30,
        gap_us in 1_u64..20_000,
        seed in any::<u64>(),
    ) {
        let (mut dice, start) = (StdRng::seed_from_u64(seed), Instant::now());
        let options = Options { service_per_s, caller_per_s, burst: Duration::from_millis(burst_ms), ..Options::default() };
        let limiter = Limiter::new(&options, start);
        let shares: Vec<_> = (0..callers).map(|i| limiter.caller(&i.to_string(), start)).collect();
        let mut all = Meter::new(service_per_s.into(), start);
        let mut each: Vec<_> = (0..callers).map(|_| Meter::new(caller_per_s.into(), start)).collect();
        let mut now = start;
        for _ in 0..2_000 {
            now += us(dice.random_range(0..=gap_us));
            let i = dice.random_range(0..callers);
            for _ in 0..dice.random_range(1..20) {
                if limiter.admit(&shares[i], now).is_ok() {
                    all.call(now);
                    each[i].call(now);
                }
            }
        }
        let most = |per_s: u32| (f64::from(per_s) * burst_ms as f64 / 1000.0).max(1.0) + 1e-6;
        prop_assert!(all.most <= most(service_per_s), "{} at once", all.most);
        prop_assert!(caller_per_s == 0 || each.iter().all(|meter| meter.most <= most(caller_per_s)));
    }
}

/// The same from several threads at once, that meet after each simulated millisecond.
#[test]
fn from_several_threads() {
    const THREADS: usize = 4;
    const STEPS: u64 = 3_000;
    let (start, per_s, caller_per_s) = (Instant::now(), 20_000_u32, 12_000_u32);
    let limiter = limiter(per_s, caller_per_s, start);
    // Two that ask without end in all threads, two that keep to their share of 5,000 a second from two threads.
    let shares: Vec<_> = (0..4).map(|i| limiter.caller(&i.to_string(), start)).collect();
    shares.iter().for_each(|share| _ = limiter.touch(share, 2));
    let (barrier, refused) = (Barrier::new(THREADS), AtomicUsize::new(0));
    let had: [AtomicU64; 4] = Default::default();
    let mut dice = seed::rng("from_several_threads");
    let seeds: Vec<u64> = (0..THREADS).map(|_| dice.random()).collect();
    thread::scope(|scope| {
        for (thread, seed) in seeds.into_iter().enumerate() {
            let (limiter, shares, barrier, refused, had) = (&limiter, &shares, &barrier, &refused, &had);
            scope.spawn(move || {
                let mut dice = StdRng::seed_from_u64(seed);
                for step in 0..STEPS {
                    let now = start + us(step * 1000);
                    let modest = if thread < 2 { 2 } else { 3 };
                    // 2.5 each millisecond and thread: 5,000 a second of each of the two, less what the rounding takes.
                    let mut calls: u64 = if step % 500 == 499 { 2 } else { 2 + step % 2 };
                    for _ in 0..40 {
                        let greedy = dice.random_range(0..2_usize);
                        if limiter.admit(&shares[greedy], now).is_ok() {
                            had[greedy].fetch_add(1, Relaxed);
                        }
                        if calls > 0 {
                            calls -= 1;
                            match limiter.admit(&shares[modest], now) {
                                Ok(()) => had[modest].fetch_add(1, Relaxed),
                                Err(_) => refused.fetch_add(1, Relaxed) as u64,
                            };
                        }
                    }
                    barrier.wait();
                }
            });
        }
    });
    let had = had.map(AtomicU64::into_inner);
    let seconds = STEPS as f64 / 1000.0;
    println!("{had:?} in {seconds} s at {per_s}/s, {caller_per_s}/s each; {} modest calls refused", refused.load(Relaxed));
    let all: u64 = had.iter().sum();
    assert!(all as f64 <= f64::from(per_s) * (seconds + 0.1) + 1e-6, "{all}");
    assert!(all as f64 >= f64::from(per_s) * (seconds - 0.002), "{all}");
    for had in had {
        assert!(had as f64 <= f64::from(caller_per_s) * (seconds + 0.1) + THREADS as f64, "{had}");
        assert!(had as f64 >= 5_000.0 * seconds * 0.99, "{had}");
    }
    assert!(refused.into_inner() <= 30, "one call in a thousand");
}

/// What it costs: `cargo test --release -p agent --lib balance::rate -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn cost() {
    let start = Instant::now();
    let limiter = limiter(10_000_000, 10_000_000, start);
    let share = limiter.caller("web", start);
    let n = 5_000_000_u64;
    let admitted = (0..n).filter(|i| limiter.admit(&share, start + Duration::from_nanos(i * 100)).is_ok()).count();
    println!("{admitted} of {n} let through, {:.1} ns each", start.elapsed().as_nanos() as f64 / n as f64);
}
