//! What a call of pure code costs, and how often it allocates: for tests that are ignored as a rule, as they measure.
//!
//! `cargo xtask bench policy` runs them, and reads their lines: `measured CASE SUBJECT METRIC VALUE…`, with a value of each round.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    fmt::Write,
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};

const ROUNDS: u32 = 5;
const CALLS: u32 = 1_000_000;

/// Subjects that are measured next to each other: each has its turn in each round.
pub(crate) struct Measure<'a> {
    case: String,
    calls: u32,
    subjects: Vec<(String, Run<'a>)>,
}

/// Makes so many calls.
type Run<'a> = Box<dyn FnMut(u32) + 'a>;

impl<'a> Measure<'a> {
    /// Nothing yet, under a name without spaces.
    pub(crate) fn new(case: impl Into<String>) -> Self {
        Self { case: case.into(), calls: asked_for("MOA_BENCH_CALLS", CALLS), subjects: Vec::new() }
    }

    /// Calls that are so much longer are made so much more seldom.
    pub(crate) fn seldom(self, factor: u32) -> Self {
        Self { calls: (self.calls / factor).max(1), ..self }
    }

    /// One more; `call` gets its number, and must let the compiler drop nothing of what it does.
    pub(crate) fn add(&mut self, subject: impl Into<String>, mut call: impl FnMut(u32) + 'a) {
        self.subjects.push((subject.into(), Box::new(move |calls| (0..calls).for_each(&mut call))));
    }

    /// Measures, and prints what it finds.
    pub(crate) fn run(mut self) {
        let calls = self.calls;
        let mut found = vec![Vec::new(); self.subjects.len()];
        for (_, run) in &mut self.subjects {
            run(calls.div_ceil(10));
        }
        for _ in 0..asked_for("MOA_BENCH_ROUNDS", ROUNDS) {
            for ((_, run), found) in self.subjects.iter_mut().zip(&mut found) {
                let (before, began) = (allocations(), busy());
                run(calls);
                let (took, more) = (busy() - began, allocations() - before);
                found.push((took.as_secs_f64() * 1e9 / f64::from(calls), more as f64 / f64::from(calls)));
            }
        }
        for ((subject, _), found) in self.subjects.iter().zip(&found) {
            self.print(subject, "time", found.iter().map(|(ns, _)| *ns));
            self.print(subject, "allocations", found.iter().map(|(_, allocations)| *allocations));
        }
    }

    fn print(&self, subject: &str, metric: &str, values: impl Iterator<Item = f64>) {
        let mut line = format!("measured {} {subject} {metric}", self.case);
        for value in values {
            write!(line, " {value:.3}").unwrap();
        }
        println!("{line}");
    }
}

/// CPU time of this thread, which others that use the machine are not in.
fn busy() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

fn asked_for(variable: &str, otherwise: u32) -> u32 {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable} is {text:?}: expected a whole number")),
        Err(_) => otherwise,
    }
}

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// How often this thread has allocated.
pub(crate) fn allocations() -> u64 {
    ALLOCATIONS.with(Cell::get)
}

/// The allocator of all tests.
struct Counting;

#[expect(unsafe_code, reason = "an allocator is")]
// SAFETY: the system's allocator does everything; counting touches a thread-local number only, which needs no memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;
