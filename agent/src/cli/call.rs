//! `moa call`.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::IsTerminal,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Global, Out,
    out::OUT,
    redis::{Reply, ask},
    units::micros,
    usage_error,
};
use crate::{api::Status, wire::envelope::scan_request};

/// Call a service through an agent, as an application does.
#[derive(Debug, Args)]
#[command(after_help = "Example: moa call /service/demo echo '[\"hi\"]'")]
pub(super) struct Call {
    /// The service's URI, such as /service/demo; or, instead of all that follows, the JSON of a whole call, which is sent as it is.
    #[arg(value_name = "SERVICE", value_parser = target)]
    target: Target,
    /// The method.
    #[arg(value_name = "METHOD")]
    method: Option<String>,
    /// The arguments, as a JSON array.
    #[arg(value_name = "ARGS", value_parser = arguments)]
    args: Option<Value>,
    /// A property of the call, such as hashid=42; as often as needed.
    #[arg(long = "prop", value_name = "KEY=VALUE", value_parser = property)]
    props: Vec<(String, String)>,
    /// How long to wait for the answer, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 5000, value_parser = clap::value_parser!(u64).range(1..))]
    timeout_ms: u64,
    /// Where to call, instead of the agent's address for applications.
    #[arg(long, value_name = "HOST:PORT")]
    addr: Option<String>,
}

/// What is called.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    Service(String),
    /// The JSON of a call.
    Whole(String),
}

/// What a call gave.
#[derive(Debug, Serialize)]
struct Answer {
    ec: i64,
    em: Value,
    result: Value,
    took_us: u64,
}

/// MOA's envelope of a result. Other keys are allowed.
#[derive(Debug, Deserialize)]
struct Envelope {
    ec: i64,
    #[serde(default)]
    em: Value,
    #[serde(default)]
    result: Value,
}

impl Call {
    pub(super) fn run(self, global: &Global, out: &Out) -> Result<ExitCode> {
        let body = self.body().unwrap_or_else(|wrong| usage_error("call", &wrong));
        let address = match &self.addr {
            Some(address) => address.clone(),
            None => global.client().get::<Status>("/v1/status")?.app.listen,
        };
        let started = Instant::now();
        let reply = ask(&address, &[b"GET", body.as_bytes()], Duration::from_millis(self.timeout_ms))?;
        let took_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        let answer = answer(reply, took_us)?;
        out.show(&answer, render)?;
        Ok(if answer.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// The JSON of the call, or what is wrong with the command line.
    fn body(&self) -> Result<String, String> {
        let rest = (&self.method, &self.args, &self.props[..]);
        let (service, method) = match (&self.target, rest) {
            (Target::Whole(json), (None, None, [])) => return Ok(json.clone()),
            (Target::Whole(_), _) => return Err("the JSON of a whole call takes no METHOD, ARGS and --prop beside it".into()),
            (Target::Service(service), (Some(method), ..)) => (service, method),
            (Target::Service(service), _) => return Err(format!("no METHOD of {service} is named")),
        };
        let args = self.args.clone().unwrap_or_else(|| json!([]));
        let mut body = json!({ "action": service, "params": { "m": method, "args": args } });
        if !self.props.is_empty() {
            body["props"] = json!(self.props.iter().cloned().collect::<BTreeMap<_, _>>());
        }
        Ok(body.to_string())
    }
}

impl Answer {
    /// Servers of 2016 say 0, newer ones 200.
    fn is_success(&self) -> bool {
        [0, 200].contains(&self.ec)
    }
}

fn answer(reply: Reply, took_us: u64) -> Result<Answer> {
    let body = match reply {
        Reply::Bulk(body) => body,
        Reply::Line(line) => bail!("the answer is no result of a call: {line}"),
    };
    let Envelope { ec, em, result } = serde_json::from_slice(&body)
        .with_context(|| format!("the answer is no MOA envelope: {}", String::from_utf8_lossy(&body[..body.len().min(200)])))?;
    Ok(Answer { ec, em, result, took_us })
}

fn render(answer: &Answer) -> String {
    let ec = format!("ec {}", answer.ec);
    let mut text = if answer.is_success() { OUT.good(&ec) } else { OUT.bad(&ec) };
    match answer.em.as_str() {
        Some("") => {}
        Some(em) => drop(write!(text, ", em {em}")),
        None if answer.em.is_null() => {}
        None => drop(write!(text, ", em {}", answer.em)),
    }
    let took = OUT.dim(&format!("({})", micros(answer.took_us)));
    let pretty = std::io::stdout().is_terminal();
    let result = if pretty { format!("{:#}", answer.result) } else { answer.result.to_string() };
    format!("{text} {took}\n{result}\n")
}

fn target(text: &str) -> Result<Target, String> {
    if text.starts_with('/') {
        return Ok(Target::Service(text.to_owned()));
    }
    match scan_request(text.as_bytes()) {
        Ok(_) => Ok(Target::Whole(text.to_owned())),
        Err(error) if text.starts_with('{') => Err(error.to_string()),
        Err(_) => Err("a service's URI begins with `/`, such as /service/demo".into()),
    }
}

fn arguments(text: &str) -> Result<Value, String> {
    match serde_json::from_str(text) {
        Ok(Value::Array(args)) => Ok(Value::Array(args)),
        Ok(_) => Err(format!("the arguments are a JSON array: write '[{text}]'")),
        Err(error) => Err(format!("{error}; the arguments are a JSON array, such as '[\"hi\", 1]'")),
    }
}

fn property(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    if key.is_empty() { Err("the key is empty".into()) } else { Ok((key.to_owned(), value.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(target: Target, method: Option<&str>, props: &[(&str, &str)]) -> Call {
        Call {
            target,
            method: method.map(str::to_owned),
            args: method.map(|_| json!(["hi"])),
            props: props.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
            timeout_ms: 1,
            addr: None,
        }
    }

    #[test]
    fn the_body_is_that_of_an_application() {
        let demo = || target("/service/demo").expect("a URI");
        let body = r#"{"action":"/service/demo","params":{"m":"echo","args":["hi"]}}"#;
        assert_eq!(call(demo(), Some("echo"), &[]).body().as_deref(), Ok(body));
        let with_props = call(demo(), Some("echo"), &[("hashid", "7")]).body().expect("complete");
        assert!(scan_request(with_props.as_bytes()).expect("a call").props.is_some());
        let whole = target(body).expect("a call");
        assert_eq!(call(whole.clone(), None, &[]).body().as_deref(), Ok(body));
        assert!(call(whole, None, &[("hashid", "7")]).body().is_err());
        assert_eq!(call(demo(), None, &[]).body(), Err("no METHOD of /service/demo is named".into()));
    }

    #[test]
    fn successes_and_failures_are_told_apart() {
        let bulk = |body: &str| answer(Reply::Bulk(body.into()), 1_200).expect("an envelope");
        let good = bulk(r#"{"ec":200,"em":"","result":{"a":[1]}}"#);
        assert!(good.is_success());
        assert_eq!(render(&good), "ec 200 (1.2 ms)\n{\"a\":[1]}\n");
        let bad = bulk(r#"{"ec":304,"em":"late"}"#);
        assert!(!bad.is_success());
        assert_eq!(render(&bad), "ec 304, em late (1.2 ms)\nnull\n");
        let error = answer(Reply::Line("-ERR unknown".into()), 1).expect_err("no result").to_string();
        assert_eq!(error, "the answer is no result of a call: -ERR unknown");
    }

    #[test]
    fn wrong_arguments_say_what_is_right() {
        assert_eq!(arguments("7").expect_err("no array"), "the arguments are a JSON array: write '[7]'");
        assert!(arguments("[1").expect_err("cut").contains("such as '[\"hi\", 1]'"));
        assert!(property("a").is_err() && property("=b").is_err());
        assert_eq!(property("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert!(target("demo").is_err() && target("{\"action\":").is_err());
    }
}
