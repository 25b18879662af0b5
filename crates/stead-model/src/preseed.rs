//! The user's preseed: the shape of the engines' `admin init --preseed`, with each scalar as it was written.
//!
//! Owns reading it out of a cluster file. What a plain scalar such as `1.50` or `yes` means depends on the engine and its
//! version (Incus 6.0 keeps the text, LXD reads YAML 1.1), so that the node decides; here nothing is rewritten.

use crate::{
    cluster::EngineKind,
    text::{self, SpecError},
};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use serde_saphyr::Spanned;
use std::collections::BTreeMap;

/// A scalar of a preseed. As JSON a string, or `{"plain": "1.50"}` where a YAML reader may take it for something else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// Text for every reader: quoted, a block, or words.
    Text(String),
    /// Not quoted, and perhaps a number, a boolean or a date.
    Plain(String),
}

impl Written {
    /// A scalar that was not quoted.
    pub fn plain(text: String) -> Self {
        const WORDS: [&str; 9] = ["y", "yes", "on", "true", "n", "no", "off", "false", "~"];
        let number = text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c));
        match number || WORDS.iter().any(|word| text.eq_ignore_ascii_case(word)) {
            true => Self::Plain(text),
            false => Self::Text(text),
        }
    }

    /// The characters of the file.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Text(s) | Self::Plain(s) => s,
        }
    }
}

impl Serialize for Written {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Text(text) => s.serialize_str(text),
            Self::Plain(text) => s.collect_map([("plain", text)]),
        }
    }
}

/// Reads both forms, and the numbers and booleans of JSON.
impl<'de> Deserialize<'de> for Written {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> serde::de::Visitor<'de> for V {
            type Value = Written;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("text, a number or a boolean")
            }
            fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<Written, E> {
                Ok(Written::Text(v.to_owned()))
            }
            fn visit_bool<E: serde::de::Error>(self, v: bool) -> Result<Written, E> {
                Ok(Written::plain(v.to_string()))
            }
            fn visit_u64<E: serde::de::Error>(self, v: u64) -> Result<Written, E> {
                Ok(Written::plain(v.to_string()))
            }
            fn visit_u128<E: serde::de::Error>(self, v: u128) -> Result<Written, E> {
                Ok(Written::plain(v.to_string()))
            }
            fn visit_i64<E: serde::de::Error>(self, v: i64) -> Result<Written, E> {
                Ok(Written::plain(v.to_string()))
            }
            fn visit_i128<E: serde::de::Error>(self, v: i128) -> Result<Written, E> {
                Ok(Written::plain(v.to_string()))
            }
            fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<Written, E> {
                Ok(Written::plain(v.to_string()))
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Written, A::Error> {
                let other = || serde::de::Error::custom("a map where text, a number or a boolean belongs");
                let (key, text) = map.next_entry::<String, String>()?.ok_or_else(other)?;
                match key.as_str() {
                    "plain" if map.next_key::<String>()?.is_none() => Ok(Written::Plain(text)),
                    _ => Err(other()),
                }
            }
        }
        d.deserialize_any(V)
    }
}

/// A scalar, with its place in the cluster file until [`Scalars::each`] has looked there.
#[derive(Deserialize)]
#[serde(transparent)]
struct Found {
    scalar: Spanned<String>,
    #[serde(skip)]
    plain: bool,
}

impl Serialize for Found {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let text = self.scalar.value.clone();
        let written = if self.plain { Written::plain(text) } else { Written::Text(text) };
        written.serialize(s)
    }
}

/// Goes through all scalars of a value.
trait Scalars {
    fn each(&mut self, see: &mut dyn FnMut(&mut Found));
}
impl Scalars for Found {
    fn each(&mut self, see: &mut dyn FnMut(&mut Found)) {
        see(self);
    }
}

/// A scalar that is text for every reader.
#[derive(Deserialize, Serialize)]
#[serde(transparent)]
struct Label<S>(S);
impl<S> Scalars for Label<S> {
    fn each(&mut self, _: &mut dyn FnMut(&mut Found)) {}
}
/// Where nobody looks at scalars.
impl Scalars for Value {
    fn each(&mut self, _: &mut dyn FnMut(&mut Found)) {}
}
impl<T: Scalars> Scalars for Option<T> {
    fn each(&mut self, see: &mut dyn FnMut(&mut Found)) {
        self.iter_mut().for_each(|v| v.each(see));
    }
}
impl<T: Scalars> Scalars for Vec<T> {
    fn each(&mut self, see: &mut dyn FnMut(&mut Found)) {
        self.iter_mut().for_each(|v| v.each(see));
    }
}
impl<T: Scalars> Scalars for BTreeMap<String, T> {
    fn each(&mut self, see: &mut dyn FnMut(&mut Found)) {
        self.values_mut().for_each(|v| v.each(see));
    }
}

/// Settings; `null` takes a generated one away.
type Settings<S> = BTreeMap<String, Option<S>>;

/// `null` takes the generated one away, which an absent key does not.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(d: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(d).map(Some)
}

macro_rules! parts {
    ($($(#[$doc:meta])* struct $name:ident { $($(#[$attribute:meta])* $field:ident: $ty:ty,)* })*) => { $(
        $(#[$doc])*
        #[derive(Deserialize, Serialize)]
        #[serde(deny_unknown_fields, bound(deserialize = "S: Deserialize<'de>"))]
        struct $name<S> {
            $(
                $(#[$attribute])*
                #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
                $field: Option<Option<$ty>>,
            )*
        }
        impl<S: Scalars> Scalars for $name<S> {
            fn each(&mut self, see: &mut dyn FnMut(&mut Found)) {
                $(self.$field.each(see);)*
            }
        }
    )* };
}

parts! {
    /// `S` is how a scalar is read.
    struct Shape {
        config: Settings<S>,
        storage_pools: Vec<Pool<S>>,
        networks: Vec<Network<S>>,
        projects: Vec<Project<S>>,
        profiles: Vec<Profile<S>>,
        /// Accepted for preseeds made for the engines' own tool, and not used.
        cluster: Value,
    }
    struct Pool { name: Label<S>, driver: Label<S>, config: Settings<S>, description: Label<S>, }
    struct Network { name: Label<S>, #[serde(rename = "type")] kind: Label<S>, config: Settings<S>, description: Label<S>, project: Label<S>, }
    struct Project { name: Label<S>, config: Settings<S>, description: Label<S>, }
    struct Profile {
        name: Label<S>,
        config: Settings<S>,
        devices: BTreeMap<String, Option<Settings<S>>>,
        description: Label<S>,
        project: Label<S>,
    }
}

/// A preseed of the right shape, as it is; for `deserialize_with`.
pub(crate) fn shaped<'de, D: Deserializer<'de>>(d: D) -> Result<Value, D::Error> {
    match Option::<Shape<Written>>::deserialize(d)? {
        Some(shape) => serde_json::to_value(shape).map_err(serde::de::Error::custom),
        None => Ok(Value::Null),
    }
}

/// The preseed of a cluster file, each scalar as it was written.
///
/// # Errors
/// As of the cluster file, which was read before.
pub(crate) fn as_written(file: &str, yaml: &str) -> Result<Value, SpecError> {
    #[derive(Deserialize)]
    struct Top {
        engine: Engine,
    }
    #[derive(Deserialize)]
    struct Engine {
        preseed: Option<Shape<Found>>,
    }
    let mut shape = text::from_yaml::<Top>(file, yaml)?.engine.preseed;
    shape.each(&mut |found| found.plain = is_plain(yaml, found.scalar.defined.span().byte_offset()));
    serde_json::to_value(shape).map_err(|e| SpecError::about(file, yaml, "preseed", e.to_string()))
}

/// Server settings that both engines have, or one of them; others may exist in a version we do not know.
const SERVER_KEYS: [&str; 40] = [
    "acme.agree_tos",
    "acme.domain",
    "acme.email",
    "backups.compression_algorithm",
    "cluster.healing_threshold",
    "cluster.https_address",
    "cluster.images_minimal_replica",
    "cluster.join_token_expiry",
    "cluster.max_standby",
    "cluster.max_voters",
    "cluster.offline_threshold",
    "core.bgp_address",
    "core.bgp_asn",
    "core.bgp_routerid",
    "core.debug_address",
    "core.dns_address",
    "core.https_address",
    "core.https_allowed_credentials",
    "core.https_allowed_headers",
    "core.https_allowed_methods",
    "core.https_allowed_origin",
    "core.https_trusted_proxy",
    "core.metrics_address",
    "core.metrics_authentication",
    "core.proxy_http",
    "core.proxy_https",
    "core.proxy_ignore_hosts",
    "core.remote_token_expiry",
    "core.shutdown_timeout",
    "core.storage_buckets_address",
    "core.trust_ca_certificates",
    "core.trust_password",
    "images.auto_update_cached",
    "images.auto_update_interval",
    "images.compression_algorithm",
    "images.default_architecture",
    "images.remote_cache_expiry",
    "network.ovn.northbound_connection",
    "storage.backups_volume",
    "storage.images_volume",
];

/// The rules between keys of a preseed; the error is (path below the preseed, why). What depends on the engine's version is
/// the engine's to refuse.
pub(crate) fn check(kind: EngineKind, preseed: &Value) -> Result<(), (String, String)> {
    if preseed.is_null() {
        return Ok(());
    }
    if kind.is_none() {
        return Err((String::new(), "there is no engine that it could be for".to_owned()));
    }
    let settings = preseed.get("config").and_then(Value::as_object);
    for key in settings.iter().flat_map(|c| c.keys()) {
        let near = |known: &&&str| strsim::damerau_levenshtein(known, key) <= 2;
        if key.starts_with("user.") || SERVER_KEYS.contains(&key.as_str()) {
            continue;
        }
        if let Some(known) = SERVER_KEYS.iter().find(near) {
            let path = format!(".config.{key}");
            return Err((path, format!("{key:?} is not a server setting; did you mean {known:?}?")));
        }
        if !key.contains('.') {
            let path = format!(".config.{key}");
            return Err((
                path,
                format!("{key:?} is not a server setting: those have a group, as in core.proxy_http"),
            ));
        }
    }
    for section in ["storage_pools", "networks", "projects", "profiles"] {
        let list = preseed.get(section).and_then(Value::as_array);
        let mut seen = Vec::new();
        for (i, item) in list.into_iter().flatten().enumerate() {
            let fail = |why: String| Err((format!(".{section}[{i}]"), why));
            let text = |key| item.get(key).and_then(Value::as_str);
            let Some(name) = text("name").filter(|n| !n.is_empty()) else {
                return fail("has no name".to_owned());
            };
            if name.contains(['/', '\0', '\n']) || name.starts_with('.') {
                return fail(format!("{name:?} is not a name that an engine takes"));
            }
            let project = text("project").unwrap_or("default");
            if seen.contains(&(name, project)) {
                return fail(format!("{name} is listed twice"));
            }
            seen.push((name, project));
            // Ours has one already.
            if section == "storage_pools" && name != "default" && text("driver").is_none() {
                return fail(format!("{name} has no driver"));
            }
            let devices = item.get("devices").and_then(Value::as_object);
            for (device, settings) in devices.into_iter().flatten() {
                let generated =
                    section == "profiles" && name == "default" && ["root", "eth0"].contains(&device.as_str());
                if !settings.is_null() && settings.get("type").is_none() && !generated {
                    return fail(format!("device {device} of {name} has no type"));
                }
            }
        }
    }
    Ok(())
}

/// Whether the scalar at this byte of the text has neither quotes nor a tag, and is no block.
fn is_plain(yaml: &str, at: Option<u64>) -> bool {
    let Some((before, here)) = at.and_then(|at| yaml.split_at_checked(usize::try_from(at).ok()?)) else {
        return false;
    };
    let tagged = before.split_whitespace().rev().map_while(|word| {
        let property = word.rsplit([',', '[', '{', ':']).next().unwrap_or(word);
        property.starts_with(['!', '&']).then_some(property)
    });
    // The text of a block begins on the line after its header.
    let header = before.trim_end().lines().last().unwrap_or_default();
    let header = header.split(" #").next().and_then(|line| line.split_whitespace().last());
    let block = header.is_some_and(|word| word.starts_with(['|', '>']));
    !block
        && !here.starts_with(['"', '\'', '|', '>'])
        && !tagged.into_iter().any(|word| word.starts_with('!'))
}

#[cfg(test)]
mod tests {
    use crate::ClusterSpec;
    use serde_json::{Value, json};

    fn preseed(yaml: &str) -> Value {
        let indented = yaml.replace('\n', "\n    ");
        let file =
            format!("name: demo\nimage: x\nnodes: 1\nengine:\n  kind: incus\n  preseed:\n    {indented}\n");
        ClusterSpec::from_yaml("c.yaml", &file).unwrap().preseed()
    }

    #[test]
    fn scalars_are_kept_as_they_are_written() {
        let all = [
            "1.50",
            "0755",
            "1e3",
            "yes",
            "0x1F",
            "2001-12-14",
            "12345678901234567890",
            "123456789012345678901234567890",
            "0o755",
            "0b101",
            "1_000",
            ".inf",
            "-0",
            "+5",
            "190:20:30",
            "y",
            "TRUE",
            "-017",
            "1e400",
            "2001-12-14 21:59:43",
            ".nan",
            "-.INF",
            "00",
            "08",
            "N",
            "9223372036854775808",
            "-9223372036854775809",
        ];
        for text in all {
            let got = preseed(&format!(
                "config: {{user.a: {text}, user.b: \"{text}\", user.c: '{text}', user.d: !!str {text}}}"
            ));
            let want = json!({ "user.a": { "plain": text }, "user.b": text, "user.c": text, "user.d": text });
            assert_eq!(got["config"], want, "{text}");
        }
        assert_eq!(
            preseed("config:\n  u.a: |\n    1.50\n  u.b: >- # text\n    0755\n  u.c: words")["config"],
            json!({ "u.a": "1.50\n", "u.b": "0755", "u.c": "words" })
        );
        assert_eq!(
            preseed("config: {u.a: ~, u.b: , u.c: null, u.d: \"\", u.e: \"~\"}")["config"],
            json!({ "u.a": null, "u.b": null, "u.c": null, "u.d": "", "u.e": "~" })
        );
        assert_eq!(
            preseed("config: {u.a: &x 0755, u.b: *x, u.c: &y \"0755\", u.d: *y, u.e: !!str &z 0755}")["config"],
            json!({ "u.a": { "plain": "0755" }, "u.b": { "plain": "0755" }, "u.c": "0755", "u.d": "0755", "u.e": "0755" })
        );
    }

    #[test]
    fn every_scalar_of_a_preseed_is_kept() {
        let got = preseed(
            "storage_pools: [{name: p, driver: dir, config: {size: 010}}]\nprofiles:\n- name: 123\n  description: 1.50\n  devices: {root: {size: 010, type: disk}, eth0: null}\n  config: null",
        );
        assert_eq!(
            got,
            json!({
                "storage_pools": [{ "name": "p", "driver": "dir", "config": { "size": { "plain": "010" } } }],
                "profiles": [{ "name": "123", "description": "1.50",
                    "devices": { "root": { "size": { "plain": "010" }, "type": "disk" }, "eth0": null }, "config": null }],
            })
        );
    }

    #[test]
    fn other_shapes_are_refused_with_their_line() {
        let error = |yaml: &str| {
            let file =
                format!("name: demo\nimage: x\nnodes: 1\nengine:\n  kind: incus\n  preseed:\n    {yaml}\n");
            ClusterSpec::from_yaml("c.yaml", &file).unwrap_err().to_string()
        };
        assert!(error("storagepools: []").starts_with("c.yaml:7:5: unknown key \"storagepools\""));
        assert!(error("config: {a: [1]}").starts_with("c.yaml:7"), "{}", error("config: {a: [1]}"));
        assert!(error("profiles: {default: {}}").starts_with("c.yaml:7"));
    }
}
