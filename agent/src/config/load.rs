//! From a file to a checked configuration.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::Path,
};

use serde::de::DeserializeOwned;
use toml::{
    Spanned,
    de::{DeTable, DeValue, ValueDeserializer},
};

use super::{
    Checked, CheckedService, Config, ConfigError, Given, Origin, Report,
    check::Check,
    key::KeyPath,
    peers,
    problem::{Finding, Problems},
    schema::schema,
    shape,
    source::position,
};

/// The longest file.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Reads and checks a file.
///
/// # Errors
/// The file can't be read, or is not a valid configuration: then all its problems.
pub fn load(path: &Path, given: &Given) -> Result<Checked, ConfigError> {
    let text = read(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    let mut checked = parse(&text, &path.display().to_string(), given)?;
    checked.path = Some(path.to_owned());
    Ok(checked)
}

/// Checks the text of a file; `file` is what it is called in errors.
///
/// # Errors
/// All problems of the text.
pub fn parse(text: &str, file: &str, given: &Given) -> Result<Checked, Report> {
    let mut problems = Problems::new(text);
    let (root, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        problems.push(error.span().unwrap_or_default(), &KeyPath::default(), syntax(error.message()));
    }
    // Where the syntax is broken, keys land in tables that they are not meant for: nothing else that could be said would help.
    if !problems.is_empty() {
        return Err(problems.into_report(file.to_owned()));
    }
    let mut root = root.into_inner();
    shape::clean(&mut root, schema(), &KeyPath::default(), &mut problems);
    let checked = read_sections(&root, given, &mut problems);
    let mut check = Check { root: &root, problems: &mut problems };
    check.config(&checked.config);
    check.peers(&checked.peers, &checked.config);
    check.failover(&checked);
    check.services(&checked);
    if problems.is_empty() {
        Ok(Checked { origins: origins(&root, text, given), ..checked })
    } else {
        Err(problems.into_report(file.to_owned()))
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is larger than {} MiB", FILE_BYTES_MAX >> 20)));
    }
    Ok(text)
}

fn syntax(message: &str) -> Finding {
    let (found, expected) = message.split_once(", expected ").unwrap_or((message, "TOML"));
    Finding { found: format!("a syntax error ({found})"), expected: expected.to_owned(), advice: String::new() }
}

fn read_sections(root: &DeTable<'_>, given: &Given, problems: &mut Problems<'_>) -> Checked {
    let top = KeyPath::default();
    let empty = DeTable::new();
    let defaults = table(root, "defaults").unwrap_or(&empty);
    let mut config = Config {
        agent: section(table(root, "agent").unwrap_or(&empty), &top.key("agent"), problems),
        app: section(table(root, "app").unwrap_or(&empty), &top.key("app"), problems),
        tunnel: section(table(root, "tunnel").unwrap_or(&empty), &top.key("tunnel"), problems),
        overload: section(table(root, "overload").unwrap_or(&empty), &top.key("overload"), problems),
        kernel: section(table(root, "kernel").unwrap_or(&empty), &top.key("kernel"), problems),
        namespaces: section(table(root, "namespaces").unwrap_or(&empty), &top.key("namespaces"), problems),
        cgroups: section(table(root, "cgroups").unwrap_or(&empty), &top.key("cgroups"), problems),
        failover: section(table(root, "failover").unwrap_or(&empty), &top.key("failover"), problems),
        metrics: section(table(root, "metrics").unwrap_or(&empty), &top.key("metrics"), problems),
        tracing: section(table(root, "tracing").unwrap_or(&empty), &top.key("tracing"), problems),
        defaults: section(defaults, &top.key("defaults"), problems),
    };
    let written = |section| table(root, section).is_some_and(|table| table.contains_key("listen"));
    let default = |section, written_value, default| if written(section) { written_value } else { default };
    config.app.listen = given.app_listen.unwrap_or(default("app", config.app.listen, given.app_default));
    config.tunnel.listen = given.tunnel_listen.unwrap_or(default("tunnel", config.tunnel.listen, given.tunnel_default));
    config.metrics.listen = given.metrics_listen.unwrap_or(default("metrics", config.metrics.listen, given.metrics_default));
    config.failover.listen = given.failover_listen.or(config.failover.listen);
    config.kernel.mode = given.kernel_mode.unwrap_or(config.kernel.mode);
    let services = table(root, "services").into_iter().flatten();
    let services = services.filter_map(|(name, value)| Some((name.get_ref(), value.get_ref().as_table()?)));
    let services = services.map(|(name, own)| service(name, own, defaults, problems)).collect();
    Checked { path: None, config, peers: peers::read(root, problems), services, origins: BTreeMap::new() }
}

fn service(name: &str, own: &DeTable<'_>, defaults: &DeTable<'_>, problems: &mut Problems<'_>) -> CheckedService {
    let at = KeyPath::default().key("services").key(name);
    let mut merged = defaults.clone();
    lay_over(&mut merged, own);
    // The policy does not know them.
    let instances = merged.remove("instances");
    let instances = instances.map(|list| value(list, &at.key("instances"), problems)).unwrap_or_default();
    let agents = merged.remove("agents");
    let agents = agents.map(|list| value(list, &at.key("agents"), problems)).unwrap_or_default();
    let mut policy = section::<super::ServicePolicy>(&merged, &at, problems);
    let calls = policy.health.check == super::HealthCheck::Call;
    let own_call = table(own, "health").is_some_and(|health| health.contains_key("call"));
    if !calls && !own_call {
        policy.health.call = None;
    }
    let (uri, group) = name.split_once('#').unwrap_or((name, ""));
    CheckedService { uri: uri.to_owned(), group: group.to_owned(), instances, agents, policy }
}

/// Lays one table over another, key by key.
fn lay_over<'text>(base: &mut DeTable<'text>, over: &DeTable<'text>) {
    for (key, value) in over {
        match (base.get_mut(key).map(Spanned::get_mut), value.get_ref()) {
            (Some(DeValue::Table(base)), DeValue::Table(over)) => lay_over(base, over),
            _ => {
                base.insert(key.clone(), value.clone());
            }
        }
    }
}

pub(super) fn table<'a, 'text>(root: &'a DeTable<'text>, key: &str) -> Option<&'a DeTable<'text>> {
    root.get(key)?.get_ref().as_table()
}

fn section<T: DeserializeOwned + Default>(table: &DeTable<'_>, at: &KeyPath, problems: &mut Problems<'_>) -> T {
    value(Spanned::new(0..0, DeValue::Table(table.clone())), at, problems)
}

/// Reads a value whose shape has been checked; what serde finds all the same is a problem like any other.
pub(super) fn value<T: DeserializeOwned + Default>(value: Spanned<DeValue<'_>>, at: &KeyPath, problems: &mut Problems<'_>) -> T {
    T::deserialize(ValueDeserializer::from(value)).unwrap_or_else(|error| {
        let finding = Finding { found: error.message().to_owned(), expected: "a valid value".into(), advice: String::new() };
        problems.push(error.span().unwrap_or_default(), at, finding);
        T::default()
    })
}

fn origins(root: &DeTable<'_>, text: &str, given: &Given) -> BTreeMap<String, Origin> {
    let mut origins = BTreeMap::new();
    for key in ["app.listen", "tunnel.listen", "metrics.listen"] {
        origins.insert(key.to_owned(), Origin::Ports);
    }
    note_lines(root, text, &KeyPath::default(), &mut origins);
    let flags = [
        ("app.listen", "--app-listen", given.app_listen.is_some()),
        ("tunnel.listen", "--tunnel-listen", given.tunnel_listen.is_some()),
        ("metrics.listen", "--metrics-listen", given.metrics_listen.is_some()),
        ("failover.listen", "--failover-listen", given.failover_listen.is_some()),
        ("kernel.mode", "--kernel", given.kernel_mode.is_some()),
    ];
    for (key, flag, _) in flags.into_iter().filter(|(_, _, given)| *given) {
        origins.insert(key.to_owned(), Origin::Flag(flag.to_owned()));
    }
    origins
}

fn note_lines(table: &DeTable<'_>, text: &str, at: &KeyPath, origins: &mut BTreeMap<String, Origin>) {
    for (key, value) in table {
        let path = at.key(key.get_ref());
        match value.get_ref() {
            DeValue::Table(below) => note_lines(below, text, &path, origins),
            _ => {
                origins.insert(path.to_string(), Origin::Line(position(text, key.span().start).0));
            }
        }
    }
}
