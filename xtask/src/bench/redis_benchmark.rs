//! redis-benchmark as a client: many connections, and pipelines.

use anyhow::{Context, Result};

use super::{
    call::Call,
    subject::installed,
    workshop::{Program, Workshop},
};

/// One run of it.
pub(super) struct RedisBenchmark {
    /// Connections.
    pub(super) connections: u32,
    /// Calls that are sent at once on each of them.
    pub(super) pipeline: u32,
    /// Calls in all.
    pub(super) calls: u64,
}

impl RedisBenchmark {
    /// Runs it; calls per second.
    pub(super) fn run(&self, workshop: &Workshop, port: u16, call: &Call) -> Result<f64> {
        let Self { connections, pipeline, calls } = self;
        let options = format!("-h 127.0.0.1 -p {port} -c {connections} -P {pipeline} -n {calls} --csv GET");
        let args = options.split(' ').chain([call.key.as_str()]).map(str::to_owned).collect();
        let printed = workshop.run("redis-benchmark", &Program { file: installed("redis-benchmark")?, args })?;
        calls_per_s(&printed).with_context(|| format!("redis-benchmark printed no result: {printed}"))
    }
}

/// The second column of the last line. The first is the command as it is, quotes and commas included, so count from the end.
fn calls_per_s(csv: &str) -> Option<f64> {
    let row = csv.lines().rfind(|line| line.starts_with("\"GET "))?;
    row.rsplit(',').nth(6)?.trim_matches('"').parse().ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn reads_the_csv_of_a_key_with_quotes_and_commas() {
        let csv = concat!(
            "\"test\",\"rps\",\"avg_latency_ms\",\"min_latency_ms\",\"p50_latency_ms\",\"p95_latency_ms\",",
            "\"p99_latency_ms\",\"max_latency_ms\"\n",
            "\"GET {\"action\":\"/service/bench\",\"params\":{\"m\":\"get\",\"args\":[\"1\",\"2\"]}}\",",
            "\"77399.38\",\"0.345\",\"0.096\",\"0.319\",\"0.487\",\"0.871\",\"6.071\"\n"
        );
        assert_eq!(super::calls_per_s(csv), Some(77399.38));
        assert_eq!(super::calls_per_s("Error: Server closed the connection\n"), None);
    }
}
