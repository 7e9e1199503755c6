//! `moa config`.

use std::{fmt::Write as _, fs, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use serde_json::json;

use super::{
    Global, Out,
    agent::{Addresses, DEFAULT_CONFIG, config_path},
    out::{ERR, OUT},
};
use crate::{
    api::{ConfigSource, EffectiveConfig},
    config::{self, ConfigError, Report, default_file, reference, schema, with_reference},
};

/// Check, show and reload configurations.
#[derive(Debug, Args)]
pub(super) struct Config {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Say everything that is wrong with a file.
    Check {
        /// The file [default: MOA_CONFIG, else /etc/moa/moa.toml].
        #[arg(value_name = "FILE", env = "MOA_CONFIG")]
        file: Option<PathBuf>,
    },
    /// Show what is in force in a running agent, and where each value came from.
    Show,
    /// Make a running agent read its file again; if anything in it is wrong, what is in force stays.
    Reload,
    /// Print the JSON schema of the file.
    Schema,
    /// Print a file with every key at its default.
    Default,
    /// Print the reference of all keys in Markdown.
    Reference {
        /// Put it into this document instead, between its marks.
        #[arg(long, value_name = "FILE")]
        write: Option<PathBuf>,
    },
}

impl Config {
    pub(super) fn run(self, global: &Global, out: &Out) -> Result<ExitCode> {
        match self.verb {
            Verb::Check { file } => return check(file, global, out),
            Verb::Show => out.show(&global.client().get::<EffectiveConfig>("/v1/config")?, show)?,
            Verb::Reload => out.show(&global.client().post::<ConfigSource>("/v1/config/reload")?, reloaded)?,
            Verb::Schema => out.text(&format!("{:#}\n", schema()))?,
            Verb::Default => out.text(&default_file())?,
            Verb::Reference { write: None } => out.text(&reference())?,
            Verb::Reference { write: Some(path) } => renew(path)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn check(file: Option<PathBuf>, global: &Global, out: &Out) -> Result<ExitCode> {
    let Some(path) = file.or_else(|| config_path(None)) else {
        bail!("there is no {DEFAULT_CONFIG}: name the file, as in `moa config check FILE`")
    };
    match config::load(&path, &Addresses::default().given(&global.name)?) {
        Ok(checked) => {
            let text = format!("{} is {}: {} services\n", path.display(), OUT.good("valid"), checked.services.len());
            out.show(&json!({ "file": path, "valid": true, "problems": [] }), |_| text)?;
            Ok(ExitCode::SUCCESS)
        }
        Err(ConfigError::Invalid(report)) if out.json => {
            out.data(&json!({ "file": path, "valid": false, "problems": report.problems }))?;
            Ok(ExitCode::FAILURE)
        }
        Err(ConfigError::Invalid(report)) => {
            out.complain(&excerpts(&report));
            Ok(ExitCode::FAILURE)
        }
        Err(error) => Err(error.into()),
    }
}

/// Every problem below its line.
fn excerpts(report: &Report) -> String {
    let mut text = String::new();
    for problem in &report.problems {
        let place = format!("{}:{}:{}", report.file, problem.line, problem.column);
        let (line, carets) = report.excerpt(problem);
        let number = problem.line.to_string();
        let bar = ERR.dim(&format!("{:1$} |", "", number.len()));
        let _ = writeln!(text, "{}: {problem}\n{bar}", ERR.bold(&place));
        let _ = writeln!(text, "{} {line}\n{bar} {}\n", ERR.dim(&format!("{number} |")), ERR.bad(&carets));
    }
    let count = report.problems.len();
    let _ = writeln!(text, "{} has {}", report.file, ERR.bad(&format!("{count} problem{}", if count == 1 { "" } else { "s" })));
    text
}

fn show(config: &EffectiveConfig) -> String {
    let path = config.source.path.as_deref().unwrap_or("no file");
    let mut text = format!("# Generation {}, from {path}\n", config.source.generation);
    let lines: Vec<_> =
        config.keys.iter().map(|entry| (format!("{} = {}", entry.key, in_toml(&entry.value)), &entry.from)).collect();
    let width = lines.iter().map(|(line, _)| line.chars().count()).filter(|width| *width <= 70).max().unwrap_or_default();
    for (line, from) in lines {
        let _ = writeln!(text, "{line:width$}  {}", OUT.dim(&format!("# {from}")));
    }
    text
}

fn in_toml(value: &serde_json::Value) -> String {
    toml::Value::try_from(value).map_or_else(|_| value.to_string(), |value| value.to_string())
}

fn reloaded(source: &ConfigSource) -> String {
    let path = source.path.as_deref().unwrap_or("the defaults");
    format!("{path} is in force (generation {})\n", source.generation)
}

fn renew(path: PathBuf) -> Result<()> {
    let document = fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
    let renewed = with_reference(&document).with_context(|| format!("{} lacks the marks of the reference", path.display()))?;
    fs::write(&path, renewed).with_context(|| format!("can't write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::ConfigKey,
        config::{Given, parse},
    };

    #[test]
    fn a_problem_stands_below_its_line() {
        let report = parse("[app]\nlisten = 7\n", "f.toml", &Given::default()).expect_err("no address");
        let expected = "\
f.toml:2:10: app.listen: found the number 7, expected an IP address with a port
  |
2 | listen = 7
  |          ^

f.toml has 1 problem
";
        assert_eq!(excerpts(&report), expected);
    }

    #[test]
    fn what_is_shown_is_a_valid_file() {
        let text = "[services.'/s']\ninstances = ['10.0.0.1:5000']\nhealth = { check = 'call', call = '{\"action\":\"/s\"}' }\n\
                    agents = ['b.c']\n[services.'/t']\n[peers.'b.c']\naddress = '10.0.0.2:13100'\n[app]\nunix = '/run/a.sock'\n";
        let rules = r#"
        [agent]
        zone = "a"
        [tracing]
        endpoint = "http://a:4318"
        [peers.z]
        address = "10.0.0.3:13100"
        zone = "b"
        [defaults]
        rate.callers = { shop = 5, "a b" = 6 }
        access.rules = [{ name = "a", when = { "entry.7" = ["x", "y*"], method = "get" }, verdict = "deny" }]
        [services."/u#blue"]
        instances = [{ address = "10.0.0.1:5000", weight = 5, labels = { "v.w" = "1" } }, "10.0.0.2:5000"]
        retry = { on = ["code"], codes = [7], methods = ["get*"] }
        routes = [{ name = "b", to.labels."v.w" = "1" }, { name = "c", split = [{ weight = 3, to = {} }, {}], sticky = true }]
        shadows = [{ name = "d", service = "/s" }]
        faults = [{ name = "e", delay_ms = 5 }, { name = "f", code = 504 }]
        "#;
        let checked = parse(&format!("{text}{rules}"), "f", &Given::default()).unwrap_or_else(|report| panic!("{report}"));
        let source = ConfigSource { path: Some("f".into()), generation: 2, loaded_unix_ms: 0, last_error: None };
        let shown = show(&EffectiveConfig { source, keys: config::effective(&checked) });
        let again = parse(&shown, "shown", &Given::default()).unwrap_or_else(|report| panic!("{report}\n{shown}"));
        assert_eq!((again.config, again.peers, again.services), (checked.config, checked.peers, checked.services));
    }

    #[test]
    fn origins_stand_in_a_column() {
        let key = |key: &str, value, from: &str| ConfigKey { key: key.into(), value, from: from.into() };
        let keys = vec![key("agent.workers", json!(0), "default"), key("app.listen", json!("127.0.0.1:1"), "f:3")];
        let source = ConfigSource { path: None, generation: 1, loaded_unix_ms: 0, last_error: None };
        let expected = "\
# Generation 1, from no file
agent.workers = 0           # default
app.listen = \"127.0.0.1:1\"  # f:3
";
        assert_eq!(show(&EffectiveConfig { source, keys }), expected);
    }
}
