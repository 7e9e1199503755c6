//! Checks a file's keys and the types and bounds of their values against the schema.
//!
//! What is wrong is taken out of the table, so that the rest can be read and checked further.

use std::collections::HashSet;

use serde_json::Value;
use toml::{
    Spanned,
    de::{DeInteger, DeTable, DeValue},
};

use super::{
    key::KeyPath,
    problem::{Finding, Problems},
    schema::{ADDRESS, address, bounds, choices, is, of_key, required},
    words,
};

/// Takes out of a table what its schema does not allow.
pub(super) fn clean(table: &mut DeTable<'_>, schema: &Value, at: &KeyPath, problems: &mut Problems<'_>) {
    let mut wrong = Vec::new();
    for (key, value) in table.iter_mut() {
        let path = at.key(key.get_ref());
        let kept = match of_key(schema, key.get_ref()) {
            Some(schema) => clean_value(value, schema, &path, problems),
            None => {
                problems.push(key.span(), &path, unknown_key(key.get_ref(), schema));
                false
            }
        };
        if !kept {
            wrong.push(key.clone());
        }
    }
    for key in wrong {
        table.remove(&key);
    }
}

/// Whether a value may stay.
fn clean_value(value: &mut Spanned<DeValue<'_>>, schema: &Value, at: &KeyPath, problems: &mut Problems<'_>) -> bool {
    let span = value.span();
    match value.get_mut() {
        DeValue::Table(table) if is(schema, "object") => {
            for missing in required(schema).filter(|key| !table.contains_key(*key)) {
                problems.push(span.clone(), &at.key(missing), missing_key(missing, schema));
            }
            clean(table, schema, at, problems);
            // Without what has no default either, the table can't be read.
            required(schema).all(|key| table.contains_key(key) || !schema["properties"][key]["default"].is_null())
        }
        DeValue::Array(array) if is(schema, "array") && !array.is_empty() => {
            let mut good = true;
            for (n, element) in array.iter_mut().enumerate() {
                good &= clean_value(element, &schema["items"], &at.index(n), problems);
            }
            if schema["uniqueItems"] == true {
                repeated(array, at, problems);
            }
            good
        }
        leaf if is_good(leaf, schema) => true,
        wrong => {
            let (expected, advice) = (words::expected(schema, &at.to_string()), words::advice(wrong, schema));
            problems.push(span, at, Finding { found: words::describe(wrong), expected, advice });
            false
        }
    }
}

/// Reports what stands in a list for the second time.
fn repeated(array: &[Spanned<DeValue<'_>>], at: &KeyPath, problems: &mut Problems<'_>) {
    let mut seen = HashSet::new();
    for (n, element) in array.iter().enumerate() {
        let text = match element.get_ref() {
            DeValue::String(text) => format!("{text:?}"),
            DeValue::Integer(number) => number.to_string(),
            _ => continue,
        };
        if seen.contains(&text) {
            let (found, expected) = (format!("{text} for the second time"), "each one once".into());
            problems.push(element.span(), &at.index(n), Finding { found, expected, advice: "remove it".into() });
        }
        seen.insert(text);
    }
}

fn is_good(value: &DeValue<'_>, schema: &Value) -> bool {
    match value {
        DeValue::Boolean(_) => is(schema, "boolean"),
        DeValue::Integer(number) => is(schema, "integer") && in_bounds(number, schema),
        DeValue::String(text) => match &schema["format"] {
            Value::String(format) if format == ADDRESS => address(text).is_some(),
            _ => choices(schema).map_or(is(schema, "string"), |choices| choices.contains(&text.as_ref())),
        },
        // A list that has elements was looked at one by one.
        DeValue::Array(_) => is(schema, "array"),
        _ => false,
    }
}

fn in_bounds(number: &DeInteger<'_>, schema: &Value) -> bool {
    let (min, max) = bounds(schema);
    i64::from_str_radix(number.as_str(), number.radix()).is_ok_and(|number| (min..=max).contains(&number))
}

fn missing_key(key: &str, schema: &Value) -> Finding {
    let schema = &schema["properties"][key];
    let example = &schema["examples"][0];
    let advice = if example.is_null() { format!("add {key}") } else { format!("add {key} = {example}") };
    Finding { found: format!("no {key}"), expected: words::expected(schema, key), advice }
}

fn unknown_key(key: &str, schema: &Value) -> Finding {
    let known: Vec<&str> = schema["properties"].as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect();
    let advice = words::suggestion(key, known.iter().copied()).unwrap_or_else(|| "remove it".into());
    let expected = if let [only] = known[..] { only.to_owned() } else { format!("one of {}", known.join(", ")) };
    Finding { found: format!("the unknown key `{key}`"), expected, advice }
}
