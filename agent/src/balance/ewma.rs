//! A moving average of latency that takes a peak at once and forgets it slowly (peak EWMA, as in Finagle and linkerd2).

/// What is left of the weight of something seen so long ago; a third (1/e) after one time of decay.
pub(crate) fn left(elapsed_ns: u64, per_ns: f32) -> f32 {
    let x = elapsed_ns as f32 * per_ns;
    // Near zero the exponential is a straight line, to within 1/500,000.
    if x < 0.001 { 1.0 - x } else { (-x).exp() }
}

/// The average after one more latency; `left` is what the old average still counts.
pub(crate) fn after(average: f32, latency: f32, left: f32) -> f32 {
    if latency > average { latency } else { average * left + latency * (1.0 - left) }
}
