//! How values, types and bounds are called in errors and in the reference.

use serde_json::Value;
use toml::de::DeValue;

use super::schema::{ADDRESS, bounds, choices, is};

/// Names further apart than this are no suggestion for each other.
const SIMILARITY_MIN: f64 = 0.7;

/// What a schema allows. The key's name says the unit of a number.
pub(super) fn expected(schema: &Value, key: &str) -> String {
    if let Some(choices) = choices(schema) {
        return format!("one of {}", choices.iter().map(|choice| format!("{choice:?}")).collect::<Vec<_>>().join(", "));
    }
    if schema["format"] == ADDRESS {
        let table = if is(schema, "object") { ", or a table that has one" } else { "" };
        return format!("an IP address with a port{table}");
    }
    if is(schema, "integer") {
        let (min, max) = bounds(schema);
        return format!("a whole number{} from {min} to {max}", unit(key).map_or(String::new(), |unit| format!(" of {unit}")));
    }
    if is(schema, "array") && is(schema, "string") {
        return "a string or a list of strings".into();
    }
    if is(schema, "array") {
        return format!("a list, each {}", expected(&schema["items"], key));
    }
    if schema["additionalProperties"].is_object() {
        return format!("a table, each {}", expected(&schema["additionalProperties"], ""));
    }
    let names = [("boolean", "true or false"), ("string", "a string"), ("object", "a table")];
    names.into_iter().find(|(kind, _)| is(schema, kind)).map_or("something else", |(_, name)| name).to_owned()
}

/// The unit of a number, which its key's name says.
pub(super) fn unit(key: &str) -> Option<&'static str> {
    let last = key.rsplit('.').next().unwrap_or(key);
    match last {
        _ if last.ends_with("_ms") => Some("milliseconds"),
        _ if last.split('_').any(|word| word == "bytes") => Some("bytes"),
        _ => None,
    }
}

/// A value as it is called when it is wrong.
pub(super) fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the string {text:?}"),
        DeValue::Integer(number) => format!("the number {number}"),
        DeValue::Float(number) => format!("the fraction {number}"),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(date) => format!("the date {date}"),
        DeValue::Array(array) if array.is_empty() => "an empty list".into(),
        DeValue::Array(_) => "a list".into(),
        DeValue::Table(_) => "a table".into(),
    }
}

/// What to do about a wrong value.
pub(super) fn advice(value: &DeValue<'_>, schema: &Value) -> String {
    let wants = |kind| is(schema, kind);
    let wants_each = |kind| wants("array") && is(&schema["items"], kind);
    match value {
        DeValue::String(text) if wants("integer") => match number_in(text) {
            Some(number) => format!("write {number}, without quotes"),
            None => "write the number, without quotes and unit".into(),
        },
        DeValue::String(text) if schema["format"] == ADDRESS => address_advice(text),
        DeValue::String(text) if wants("boolean") && ["true", "false"].contains(&text.as_ref()) => "remove the quotes".into(),
        DeValue::String(text) if wants_each("string") => format!("write [{text:?}]"),
        DeValue::Integer(number) if wants_each("integer") => format!("write [{number}]"),
        DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_) if wants("string") && schema["format"] != ADDRESS => {
            "write it in quotes".into()
        }
        DeValue::Table(_) if wants("string") && wants("array") => {
            "a name with dots in it stands in quotes, such as \"moa.env.pre\"".into()
        }
        DeValue::Table(_) if wants_each("object") => "write [{ … }], or two brackets around its header, as in [[routes]]".into(),
        DeValue::Integer(_) if wants("integer") => "use a number within the bounds".into(),
        _ => String::new(),
    }
}

/// Asks whether the most similar of the names that there are was meant, if one is similar at all.
pub(crate) fn suggestion<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    let similar = known.map(|known| (strsim::jaro_winkler(name, known), known));
    let (similarity, known) = similar.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (similarity >= SIMILARITY_MIN).then(|| format!("did you mean `{known}`?"))
}

fn address_advice(text: &str) -> String {
    let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
    match port.parse::<u16>() {
        Ok(0) => "use a port from 1 to 65535".into(),
        Ok(_) if host.contains(char::is_alphabetic) && !host.contains(':') => {
            format!("host names are not resolved: write the IP address of {host}, such as \"10.0.0.1:{port}\"")
        }
        Ok(_) if host.contains(':') => "write an IPv6 address in brackets, such as \"[::1]:5000\"".into(),
        _ => "write an address such as \"10.0.0.1:5000\"".into(),
    }
}

/// The plain number that a text such as `5s` or `64k` means.
fn number_in(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "ms" | "b" => 1,
        "s" => 1000,
        "m" | "min" => 60_000,
        "k" | "kb" | "kib" => 1 << 10,
        "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_with_a_unit_is_understood() {
        let cases =
            [("5s", Some(5000)), ("250 ms", Some(250)), ("64k", Some(65_536)), ("12", Some(12)), ("soon", None), ("", None)];
        for (text, number) in cases {
            assert_eq!(number_in(text), number, "{text}");
        }
    }

    #[test]
    fn units_come_from_names() {
        assert_eq!(unit("defaults.health.timeout_ms"), Some("milliseconds"));
        assert_eq!(unit("app.queued_bytes_max"), Some("bytes"));
        assert_eq!(unit("app.pipeline_max"), None);
    }
}
