//! The default file and the tables of `docs/configuration.md`, made from the schema.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::{
    schema::{bounds, is, required, schema},
    words,
};

/// What stands before and after the part of `docs/configuration.md` that is made here.
const MARKS: [&str; 2] = ["<!-- made by `moa config reference`: begin -->\n", "<!-- made by `moa config reference`: end -->\n"];

const HEAD: &str = "\
# Configuration of the MOA agent, with every key at its default.
#
# A key that begins with `#` is not set. `moa config check FILE` says what is wrong with a file, and a running agent takes
# over a new one by `moa config reload` or SIGHUP.
";

const PEERS_AND_SERVICES: &str = r#"
# One section for each other agent, by a name of this file's choice: its tunnel.listen, as it is reached from here.
#[peers.b]
#address = "10.0.0.9:13100"
#zone = "b"

# One section for each service that can be called, by its URI, as often as needed: its instances, the other agents that
# serve it, and any key of [defaults] that is different for it. Applications that offer it serve it, too.
#[services."/service/user"]
#instances = ["10.0.0.1:5000", { address = "10.0.0.2:5000", weight = 50, zone = "a", environment = "pre" }]
#agents = ["b"]
#timeout_ms = 800
#health.interval_ms = 500

# Rules about calls, in the order in which they count: routes, shadows, faults and access.rules.
#[[services."/service/user".routes]]
#name = "new-search"
#when = { method = "search*", application = ["shop", "app"] }
#split = [{ weight = 5, to = { environment = "pre" } }, { weight = 95 }]
"#;

/// A section with its own table: its header, its description and its keys.
struct Section<'a> {
    header: String,
    description: String,
    keys: Vec<(String, &'a Value)>,
}

/// A file with every key at its default, in comments.
#[must_use]
pub fn default_file() -> String {
    let mut out = HEAD.to_owned();
    for section in sections() {
        let _ = write!(out, "\n# {}\n[{}]\n", section.description, section.header);
        for (key, schema) in section.keys {
            // A key without a default is shown by what it could be.
            let default = if schema["default"].is_null() { &schema["examples"][0] } else { &schema["default"] };
            let _ = writeln!(out, "# {}{}", text(&schema["description"]), bounds_in_words(&key, schema));
            let _ = writeln!(out, "#{key} = {}", in_toml(default));
        }
    }
    out + PEERS_AND_SERVICES
}

/// The reference of all keys, in Markdown.
#[must_use]
pub fn reference() -> String {
    let mut out = String::new();
    let sections = sections();
    for section in &sections {
        let _ = write!(out, "### `[{}]`\n\n{}\n\n", section.header, section.description);
        table(&mut out, &section.keys, &Value::Null);
    }
    for section in &sections {
        lists(&mut out, &section.header, &section.keys);
    }
    let peer = &schema()["properties"]["peers"]["additionalProperties"];
    let _ = write!(out, "### `[peers.b]`\n\n{}\n\n", text(&peer["description"]));
    table(&mut out, &rows("", peer), peer);
    let service = &schema()["properties"]["services"]["additionalProperties"];
    let header = r#"services."/service/user""#;
    let _ = write!(out, "### `[{header}]`\n\n{} Every key of `[defaults]`, and:\n\n", text(&service["description"]));
    let own = ["instances", "agents"].map(|key| (key.to_owned(), &service["properties"][key]));
    table(&mut out, &own, service);
    lists(&mut out, header, &own);
    out.truncate(out.trim_end().len());
    out + "\n"
}

/// Puts the reference of all keys between the marks of a document; none if it lacks the marks.
#[must_use]
pub fn with_reference(document: &str) -> Option<String> {
    let (before, rest) = document.split_once(MARKS[0])?;
    let (_, after) = rest.split_once(MARKS[1])?;
    Some([before, MARKS[0], "\n", &reference(), "\n", MARKS[1], after].concat())
}

/// Every section but `peers` and `services`, those within others behind them.
fn sections() -> Vec<Section<'static>> {
    let mut sections = Vec::new();
    for (name, schema) in properties(schema()) {
        if schema.get("properties").is_some() {
            add_section(&mut sections, name.to_owned(), schema);
        }
    }
    sections
}

fn add_section(sections: &mut Vec<Section<'static>>, header: String, schema: &'static Value) {
    let (tables, keys): (Vec<_>, Vec<_>) = properties(schema).partition(|(_, schema)| schema.get("properties").is_some());
    let inner = tables.into_iter().map(|(name, schema)| (format!("{header}.{name}"), schema)).collect::<Vec<_>>();
    let keys = keys.into_iter().map(|(key, schema)| (key.to_owned(), schema)).collect();
    sections.push(Section { header, description: text(&schema["description"]), keys });
    for (header, schema) in inner {
        add_section(sections, header, schema);
    }
}

fn properties(schema: &'static Value) -> impl Iterator<Item = (&'static str, &'static Value)> {
    schema["properties"].as_object().into_iter().flat_map(Map::iter).map(|(key, schema)| (key.as_str(), schema))
}

/// The keys of a table, and those of the tables in it.
fn rows(before: &str, schema: &'static Value) -> Vec<(String, &'static Value)> {
    let mut rows = Vec::new();
    for (key, schema) in properties(schema) {
        let name = format!("{before}{key}");
        let inner = self::rows(&format!("{name}."), schema);
        rows.push((name, schema));
        rows.extend(inner);
    }
    rows
}

/// A heading and a table for each of the keys that is a list of tables.
fn lists(out: &mut String, header: &str, keys: &[(String, &'static Value)]) {
    for (key, schema) in keys {
        let element = &schema["items"];
        if element.get("properties").is_some() {
            let header = format!("{header}.{key}");
            let _ = write!(out, "### `[[{header}]]`\n\n{}\n\n", text(&element["description"]));
            let keys = rows("", element);
            table(out, &keys, element);
            lists(out, &header, &keys);
        }
    }
}

/// The keys of a schema, or of several.
fn table(out: &mut String, keys: &[(String, &Value)], of: &Value) {
    out.push_str("| key | type | default | unit | meaning |\n|---|---|---|---|---|\n");
    for (key, schema) in keys {
        // The keys of a table within have their own lines.
        let none = schema["default"].is_null() || schema.get("properties").is_some() || required(of).any(|needed| needed == key);
        let default = if none { "—".to_owned() } else { format!("`{}`", in_toml(&schema["default"])) };
        let unit = words::unit(key).unwrap_or("—");
        let _ = writeln!(
            out,
            "| `{key}` | {} | {default} | {unit} | {}{} |",
            kind(schema),
            text(&schema["description"]),
            choices(schema)
        );
    }
    out.push('\n');
}

/// What the default file says about a value beyond its meaning.
fn bounds_in_words(key: &str, schema: &Value) -> String {
    if !is(schema, "integer") {
        return choices(schema);
    }
    let (min, max) = bounds(schema);
    match words::unit(key) {
        Some(unit) => format!(" {}, from {min} to {max}.", capitalised(unit)),
        None => format!(" From {min} to {max}."),
    }
}

/// A type as the table has it: without the unit, which has a column of its own.
fn kind(schema: &Value) -> String {
    if is(schema, "integer") {
        let (min, max) = bounds(schema);
        return format!("number, {min} to {max}");
    }
    if is(schema, "array") {
        return format!("list, each {}", words::expected(&schema["items"], ""));
    }
    words::expected(schema, "").trim_start_matches("one of ").trim_start_matches("an ").trim_start_matches("a ").to_owned()
}

/// What each of the values that a key, or an element of its list, can have means.
fn choices(schema: &Value) -> String {
    let schema = if is(schema, "array") { &schema["items"] } else { schema };
    let choices = schema["oneOf"].as_array().into_iter().flatten();
    choices.map(|choice| format!(" `{}`: {}", in_toml(&choice["const"]), lower(&text(&choice["description"])))).collect()
}

fn in_toml(value: &Value) -> String {
    match value {
        Value::String(text) if text.contains('"') => format!("'{text}'"),
        other => other.to_string(),
    }
}

/// A description as one line.
fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().replace('\n', " ")
}

fn capitalised(text: &str) -> String {
    first_letter(text, |letter| letter.to_ascii_uppercase())
}

fn lower(text: &str) -> String {
    first_letter(text, |letter| letter.to_ascii_lowercase())
}

fn first_letter(text: &str, change: impl Fn(char) -> char) -> String {
    let mut chars = text.chars();
    chars.next().map(change).into_iter().chain(chars).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Given, parse};

    #[test]
    fn the_default_file_is_a_valid_one() {
        let checked = parse(&default_file(), "default", &Given::default()).unwrap_or_else(|report| panic!("{report}"));
        assert_eq!(checked.config, Config::default());
    }

    #[test]
    fn the_default_file_has_every_key_at_its_default() {
        let set: String = default_file()
            .lines()
            .map(|line| {
                if ["#call =", "#unix =", "#endpoint =", "#folder =", "#listen = \"10."].iter().any(|key| line.starts_with(key)) {
                    line
                } else {
                    line.strip_prefix('#').filter(|key| !key.starts_with(' ')).unwrap_or(line)
                }
            })
            .map(|line| format!("{line}\n"))
            .collect();
        let checked = parse(&set, "default", &Given::default()).unwrap_or_else(|report| panic!("{report}\n{set}"));
        assert_eq!(checked.config, Config::default());
        assert_eq!((checked.peers.len(), checked.services.len()), (1, 1));
        // As many keys as the sections have fields: `app.unix`, `health.call`, `tracing.endpoint`, `namespaces.folder` and
        // `failover.listen` are those without a default.
        let all = serde_json::to_value(&checked.config).expect("plain data");
        let own = |key: &&String| !key.starts_with("peers") && !key.starts_with("services");
        assert_eq!(checked.origins.keys().filter(own).count() + 5, leaves(&all));
    }

    fn leaves(value: &Value) -> usize {
        value.as_object().map_or(1, |object| object.values().map(leaves).sum())
    }

    #[test]
    fn the_document_has_the_reference_of_this_version() {
        let document = include_str!("../../../docs/configuration.md");
        let renewed = with_reference(document).expect("docs/configuration.md has the marks");
        assert!(renewed == document, "docs/configuration.md is stale: run `moa config reference --write docs/configuration.md`");
    }
}
