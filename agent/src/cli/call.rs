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
    out::{bad, dim, good},
    redis::{Reply, ask},
    units::micros,
};
use crate::api::Status;

/// Call a service through an agent, as an application does.
#[derive(Debug, Args)]
#[command(after_help = "Example: moa call /service/demo echo '[\"hi\"]'")]
pub(super) struct Call {
    /// The service's URI, such as /service/demo.
    #[arg(value_name = "SERVICE", value_parser = uri)]
    service: String,
    /// The method.
    #[arg(value_name = "METHOD")]
    method: String,
    /// The arguments, as a JSON array.
    #[arg(value_name = "ARGS", default_value = "[]", value_parser = arguments)]
    args: Value,
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
        let address = match &self.addr {
            Some(address) => address.clone(),
            None => global.client().get::<Status>("/v1/status")?.app.listen,
        };
        let body = self.body();
        let started = Instant::now();
        let reply = ask(&address, &[b"GET", body.as_bytes()], Duration::from_millis(self.timeout_ms))?;
        let took_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        let answer = answer(reply, took_us)?;
        out.show(&answer, render)?;
        Ok(if answer.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn body(&self) -> String {
        let mut body = json!({ "action": self.service, "params": { "m": self.method, "args": self.args } });
        if !self.props.is_empty() {
            body["props"] = json!(self.props.iter().cloned().collect::<BTreeMap<_, _>>());
        }
        body.to_string()
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
    let mut text = if answer.is_success() { good(&ec) } else { bad(&ec) };
    match answer.em.as_str() {
        Some("") => {}
        Some(em) => drop(write!(text, ", em {em}")),
        None if answer.em.is_null() => {}
        None => drop(write!(text, ", em {}", answer.em)),
    }
    let took = dim(&format!("({})", micros(answer.took_us)));
    let pretty = std::io::stdout().is_terminal();
    let result = if pretty { format!("{:#}", answer.result) } else { answer.result.to_string() };
    format!("{text} {took}\n{result}\n")
}

fn uri(text: &str) -> Result<String, String> {
    if text.starts_with('/') { Ok(text.to_owned()) } else { Err("a service's URI begins with `/`, such as /service/demo".into()) }
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
    use crate::wire::envelope::scan_request;

    fn call(props: &[(&str, &str)]) -> Call {
        Call {
            service: "/service/demo".into(),
            method: "echo".into(),
            args: json!(["hi"]),
            props: props.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
            timeout_ms: 1,
            addr: None,
        }
    }

    #[test]
    fn the_body_is_that_of_an_application() {
        assert_eq!(call(&[]).body(), r#"{"action":"/service/demo","params":{"m":"echo","args":["hi"]}}"#);
        let body = call(&[("hashid", "7")]).body();
        let envelope = scan_request(body.as_bytes()).expect("a call");
        assert_eq!(envelope.action.and_then(|action| action.decode().ok()).as_deref(), Some("/service/demo"));
        assert!(body.ends_with(r#""props":{"hashid":"7"}}"#), "{body}");
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
        assert!(uri("demo").is_err());
    }
}
