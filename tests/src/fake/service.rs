//! The service that the recorded server had.

use std::time::Duration;

use serde_json::Value;

use super::{answer::Answer, request::Call};

/// Answers as the recorded server did, byte for byte; the URI is `/service/demo` or any other but `/service/none`.
pub fn demo(call: &Call) -> Answer {
    if call.service == "/service/none" {
        return failure(501, &format!("No uri found: {}", call.service));
    }
    let (method, arity) = match call.method.as_str() {
        "echo" | "Echo" => ("echo", 1),
        "add" | "Add" => ("add", 2),
        "getUser" | "GetUser" => ("getUser", 1),
        "failOnly" => ("failOnly", 1),
        "failBoth" => ("failBoth", 1),
        "big" => ("big", 1),
        "slow" => ("slow", 1),
        "nop" => ("nop", 0),
        "boom" => ("boom", 0),
        other => return failure(502, &format!("Method not found: {other}.")),
    };
    if call.args.len() != arity {
        return failure(302, &format!("params number is not matched! {}/{arity}", call.args.len()));
    }
    invoke(method, &call.args)
        .unwrap_or_else(|| failure(3021, "Serialization exception: json: cannot unmarshal string into Go value of type int"))
}

/// The answer of a server of 2016 whose own timer has fired.
pub(super) fn timeout_3041(call: &Call) -> Answer {
    failure(3041, &format!("Timeout exception: {}#{}", call.service, call.method))
}

/// None: an argument is of the wrong type.
fn invoke(method: &str, args: &[Value]) -> Option<Answer> {
    let text = || args[0].as_str();
    let number = || args[0].as_u64();
    Some(match method {
        "echo" => success(&go_string(text()?)),
        "add" => success(&(args[0].as_i64()? + args[1].as_i64()?).to_string()),
        "getUser" => success(&format!(r#"{{"id":{0},"name":"u{0}A"}}"#, number()?)),
        "big" => success(&format!("\"{}\"", "x".repeat(usize::try_from(number()?).ok()?))),
        "slow" => success(&format!("\"slow-{}\"", number()?)).after(Duration::from_millis(number()?)),
        "failOnly" => Answer::envelope(0, "", "{}"),
        "failBoth" => Answer::envelope(0, text()?, "\"partial\""),
        "boom" => Answer::envelope(503, "Invoke FAIL \\u003cnil\\u003e", "null"),
        _ => Answer::envelope(0, "", "null"),
    })
}

fn success(result: &str) -> Answer {
    Answer::envelope(0, "\\u003cnil\\u003e", result)
}

fn failure(code: i64, text: &str) -> Answer {
    Answer::envelope(code, text, "null")
}

/// A string in JSON as Go writes it: with `<`, `>` and `&` escaped.
fn go_string(text: &str) -> String {
    Value::from(text).to_string().replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}
