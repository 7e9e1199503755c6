//! How long the kernel programs run for a call that they route: a round of its own, as counting makes each of them slower.

use std::{path::Path, time::Duration};

use anyhow::Result;

use super::case::{Case, Size};
use crate::bench::{
    cpu::Placement,
    legs::programs::{count, rows},
    path::Kernel,
    rounds::{Study, TestBed},
    rows::Row,
    subject::Subject,
    workshop::Workshop,
};

/// Calls of one size on one CPU, with every run of a program counted.
pub(super) fn measure(size: Size, moa: &Path, workshop: &Workshop) -> Result<Vec<Row>> {
    let case = Case { size, connections: 1, placement: Placement::One, moa: moa.to_owned() };
    let bed = case.bed(workshop)?;
    let serving = bed.serve(Subject::AgentRouted, Some(moa))?;
    let counting = count(workshop)?;
    let before = Kernel::now(moa, serving.target.port)?;
    let found = case.measure(&serving.target, &bed, Duration::from_millis(300))?;
    let mut after = Kernel::now(moa, serving.target.port)?;
    drop(counting);
    after.programs.sort_by(|a, b| a.name.cmp(&b.name));
    let calls = found.calls as f64;
    Ok(after.programs.iter().flat_map(|program| rows(&size.name(), program, &before.programs, calls)).collect())
}
