//! The log of the agent, on standard error: for a human on a terminal, as JSON for machines otherwise.
//!
//! Nothing is logged for each call: what calls do is in `/metrics` and `moa services`.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::{EnvFilter, filter::ParseError, fmt};

/// What is wrong with `--log`.
#[derive(Debug, thiserror::Error)]
#[error("--log {filter:?} is no filter: {source}; write error, warn, info, debug or trace, or such as info,agent::proxy=debug")]
pub struct FilterError {
    filter: String,
    #[source]
    source: ParseError,
}

/// Logs from now on what the filter lets through, such as `info` or `info,agent::proxy=debug`.
///
/// # Errors
/// The filter is not valid.
pub fn init(filter: &str) -> Result<(), FilterError> {
    // The loader of the kernel programs tells of every relocation; who wants to know names it.
    let quiet = if filter.contains("aya") { filter.to_owned() } else { format!("{filter},aya=info,aya_obj=info") };
    let parsed = EnvFilter::builder().parse(&quiet).map_err(|source| FilterError { filter: filter.to_owned(), source })?;
    let terminal = stderr().is_terminal();
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let log = fmt().with_env_filter(parsed).with_writer(stderr).with_ansi(terminal && !plain).with_target(false);
    // Fails only if there is a log already, which then stays.
    let _ = if terminal { log.try_init() } else { log.json().flatten_event(true).try_init() };
    Ok(())
}
