//! The shape of the file as a JSON schema, made from the types of its sections.

use std::{collections::BTreeMap, net::SocketAddr, sync::LazyLock};

use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Agent, App, Cgroups, CheckedInstance, Failover, Kernel, Metrics, Namespaces, Overload, ServicePolicy, Tracing, Traits, Tunnel,
};

/// The format of an address in the schema.
pub(super) const ADDRESS: &str = "ip:port";
/// The longest time that a key takes.
pub(super) const DAY_MS: u64 = 86_400_000;
/// The most of anything that is counted.
pub(super) const COUNT_MAX: u64 = 10_000_000;
/// The most bytes of anything.
pub(super) const BYTES_MAX: u64 = 1 << 40;
/// The longest name of an application.
pub(super) const APPLICATION_BYTES_MAX: usize = 255;
/// Redis's own bound on one argument.
pub(super) const REDIS_BULK_MAX: u64 = 512 << 20;

/// The JSON schema of the file (draft 2020-12).
#[must_use]
pub fn schema() -> &'static Value {
    static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
        let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
        settings.into_generator().into_root_schema_for::<File>().to_value()
    });
    &SCHEMA
}

/// The schema below `schema` that a key of a table has; none if there is no such key.
pub(super) fn of_key<'a>(schema: &'a Value, key: &str) -> Option<&'a Value> {
    schema["properties"].get(key).or_else(|| schema.get("additionalProperties").filter(|any| any.is_object()))
}

/// The least and the greatest number that a schema allows.
pub(super) fn bounds(schema: &Value) -> (i64, i64) {
    (schema["minimum"].as_i64().unwrap_or(i64::MIN), schema["maximum"].as_i64().unwrap_or(i64::MAX))
}

/// The texts that a schema allows, if it allows only certain ones.
pub(super) fn choices(schema: &Value) -> Option<Vec<&str>> {
    Some(schema["oneOf"].as_array()?.iter().filter_map(|choice| choice["const"].as_str()).collect())
}

/// The keys that a table must have.
pub(super) fn required(schema: &Value) -> impl Iterator<Item = &str> {
    schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// Whether a schema allows values of a JSON type.
pub(super) fn is(schema: &Value, kind: &str) -> bool {
    match &schema["type"] {
        Value::Array(kinds) => kinds.iter().any(|one| one == kind),
        one => one == kind,
    }
}

/// An address that can be listened on or called: an IP address with a port other than 0.
pub(super) fn address(text: &str) -> Option<SocketAddr> {
    text.parse().ok().filter(|address: &SocketAddr| address.port() != 0)
}

/// Configuration of the MOA agent.
#[derive(Default, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "moa.toml")]
struct File {
    agent: Agent,
    app: App,
    tunnel: Tunnel,
    overload: Overload,
    kernel: Kernel,
    namespaces: Namespaces,
    cgroups: Cgroups,
    failover: Failover,
    metrics: Metrics,
    tracing: Tracing,
    /// What every service has unless its own section says otherwise.
    defaults: ServicePolicy,
    /// The other agents, by the names that `agents` of services call them.
    peers: BTreeMap<String, Peer>,
    /// The services that can be called, by URI.
    services: BTreeMap<String, Service>,
}

/// One other agent, by the name that `agents` of services call it: lower-case letters, digits, `-` and `.`, at most 64.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used")]
struct Peer {
    /// The other agent's `tunnel.listen`, as it is reached from here.
    #[schemars(schema_with = "address_schema", example = "10.0.0.2:13100")]
    address: SocketAddr,
    /// The other agent's `failover.listen`, as it is reached from here: where applications of this node go when this agent is gone.
    /// Without it, they never go there.
    #[serde(default)]
    #[schemars(schema_with = "address_schema", example = "10.0.0.2:13001")]
    failover: Option<SocketAddr>,
    /// The zone that it is in.
    #[serde(default)]
    zone: String,
    /// The data centre that it is in.
    #[serde(default)]
    data_centre: String,
}

/// One service: who serves it, and whatever differs from `[defaults]`. Applications that offer it serve it, too.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used")]
struct Service {
    /// Where the service is served.
    #[serde(default)]
    #[schemars(schema_with = "instances")]
    instances: Vec<Address>,
    /// The other agents that serve it, each by its name in `[peers]`.
    #[serde(default)]
    #[schemars(extend("uniqueItems" = true))]
    agents: Vec<String>,
    #[serde(flatten)]
    policy: ServicePolicy,
}

/// An instance as the file has it.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Address {
    /// `"ip:port"`.
    Plain(SocketAddr),
    /// `{ address = "ip:port", weight = 50, … }`.
    With(Instance),
}

/// One instance with what is known of it. Without any of it, its address as a string is the same.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Instance {
    /// Where it listens.
    #[schemars(schema_with = "address_schema", example = "10.0.0.1:5000")]
    address: SocketAddr,
    /// The network namespace that it is in: the name of a file in `namespaces.folder`, or one of `namespaces.paths`. It is called from
    /// inside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = "pod-a")]
    namespace: Option<String>,
    /// Its share of the calls, in relation to the others'.
    #[serde(default = "weight")]
    #[schemars(range(min = 1, max = 10_000))]
    weight: u32,
    /// The zone that it is in.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    zone: String,
    /// The data centre that it is in.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    data_centre: String,
    /// Its environment, such as `pre`: it serves only calls that are meant for it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    environment: String,
    /// Whatever else rules can choose it by.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
}

fn weight() -> u32 {
    Traits::default().weight
}

impl From<Address> for CheckedInstance {
    fn from(address: Address) -> Self {
        match address {
            Address::Plain(address) => Self { address, namespace: None, traits: Traits::default() },
            Address::With(Instance { address, namespace, weight, zone, data_centre, environment, labels }) => {
                Self { address, namespace, traits: Traits { weight, zone, data_centre, environment, labels } }
            }
        }
    }
}

impl From<CheckedInstance> for Address {
    fn from(CheckedInstance { address, namespace, traits }: CheckedInstance) -> Self {
        if namespace.is_none() && traits == Traits::default() {
            return Self::Plain(address);
        }
        let Traits { weight, zone, data_centre, environment, labels } = traits;
        Self::With(Instance { address, namespace, weight, zone, data_centre, environment, labels })
    }
}

/// The schema of an address.
pub(super) fn address_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "format": ADDRESS })
}

/// A list of addresses and tables: what one says of texts is no matter for the other, so that one schema does for both.
fn instances(generator: &mut SchemaGenerator) -> Schema {
    let mut instance = generator.subschema_for::<Instance>();
    instance.insert("type".into(), json!(["string", "object"]));
    instance.insert("format".into(), ADDRESS.into());
    json_schema!({ "type": "array", "items": instance })
}
