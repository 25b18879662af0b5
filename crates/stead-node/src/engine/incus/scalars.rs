//! What the engine's own tool makes of a scalar of a preseed, by engine and version.
//!
//! Measured on `admin init --preseed` of LXD 5.0.2, Incus 6.0.4 and 7.0.2. They read YAML into Go's values: where the
//! target is text the file's characters arrive, else a number or boolean is read and printed again. Pure.

use serde_json::{Map, Value};
use stead_incus::Dialect;
use stead_model::preseed::Written;

/// How the scalars of one section are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// As text.
    Text,
    /// YAML 1.1, numbers printed by Go's `%v`.
    Yaml11,
    /// YAML 1.2 with octal numbers as in 1.1; whole numbers printed without an exponent.
    Yaml12,
}

/// How one engine's tool reads a preseed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Readings {
    /// Server settings.
    server: Reading,
    /// Settings of pools, networks, projects and profiles.
    config: Reading,
    /// Settings of devices.
    devices: Reading,
}

impl Readings {
    /// Of an engine and its version. Incus has read settings into values since 6.18, devices since 6.20.
    pub fn of(dialect: Dialect, version: &str) -> Self {
        use Reading::{Text, Yaml11, Yaml12};
        let mut numbers = version.split(['.', '-', '~']).map(|n| n.parse::<u32>().unwrap_or(0));
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        match dialect {
            Dialect::Lxd => Self { server: Yaml11, config: Text, devices: Text },
            Dialect::Incus if version >= (6, 20) => Self { server: Yaml12, config: Yaml12, devices: Yaml12 },
            Dialect::Incus if version >= (6, 18) => Self { server: Yaml12, config: Yaml12, devices: Text },
            Dialect::Incus => Self { server: Text, config: Text, devices: Text },
        }
    }

    /// The preseed with every scalar as the text that the engine is sent.
    pub fn apply(self, mut preseed: Value) -> Value {
        let Value::Object(sections) = &mut preseed else { return preseed };
        for (key, section) in sections.iter_mut() {
            match section {
                Value::Object(settings) if key == "config" => settle(settings, self.server),
                Value::Array(things) => things.iter_mut().for_each(|thing| self.thing(thing)),
                _ => {}
            }
        }
        preseed
    }

    fn thing(self, thing: &mut Value) {
        let Value::Object(fields) = thing else { return };
        for (key, field) in fields.iter_mut() {
            match (key.as_str(), field) {
                ("config", Value::Object(settings)) => settle(settings, self.config),
                ("devices", Value::Object(devices)) => {
                    for device in devices.values_mut().filter_map(Value::as_object_mut) {
                        settle(device, self.devices);
                    }
                }
                (_, field) => settle_one(field, Reading::Text),
            }
        }
    }
}

fn settle(settings: &mut Map<String, Value>, reading: Reading) {
    settings.values_mut().for_each(|value| settle_one(value, reading));
}

/// Leaves alone what is no scalar: reading the preseed into its types refuses it with its key.
fn settle_one(value: &mut Value, reading: Reading) {
    if !value.is_null()
        && let Ok(written) = serde_json::from_value::<Written>(value.clone())
    {
        *value = Value::String(sent(&written, reading));
    }
}

fn sent(written: &Written, reading: Reading) -> String {
    let text = written.as_str();
    let read = match (written, reading) {
        (Written::Text(_), _) | (_, Reading::Text) => None,
        (Written::Plain(_), _) => read(text, reading),
    };
    match read {
        None => text.to_owned(),
        Some(Scalar::Bool(b)) => b.to_string(),
        Some(Scalar::Int(n)) => n.to_string(),
        Some(Scalar::Float(f)) => match whole(f).filter(|_| reading == Reading::Yaml12) {
            Some(n) => n.to_string(),
            None => shortest(f),
        },
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Scalar {
    Bool(bool),
    Int(i128),
    Float(f64),
}

/// What plain text is other than text. Dates are text: LXD sends them so, and Incus since 6.18 refuses them.
fn read(text: &str, reading: Reading) -> Option<Scalar> {
    let is = |words: &[&str]| {
        let capital = |w: &str| w[..1].to_uppercase() + &w[1..];
        words.iter().any(|w| text == *w || text == capital(w) || text == w.to_uppercase())
    };
    if is(&["true"]) || (reading == Reading::Yaml11 && is(&["y", "yes", "on"])) {
        return Some(Scalar::Bool(true));
    }
    if is(&["false"]) || (reading == Reading::Yaml11 && is(&["n", "no", "off"])) {
        return Some(Scalar::Bool(false));
    }
    match text {
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => return Some(Scalar::Float(f64::INFINITY)),
        "-.inf" | "-.Inf" | "-.INF" => return Some(Scalar::Float(f64::NEG_INFINITY)),
        ".nan" | ".NaN" | ".NAN" => return Some(Scalar::Float(f64::NAN)),
        _ => {}
    }
    let digits = if text.starts_with('.') { text.to_owned() } else { text.replace('_', "") };
    integer(&digits).map(Scalar::Int).or_else(|| float(&digits).map(Scalar::Float))
}

/// As Go's `strconv.ParseInt` and `ParseUint` with base 0: the prefix says the base, and `0` alone means octal.
fn integer(text: &str) -> Option<i128> {
    let (signed, negative, rest) = match text.as_bytes().first()? {
        b'-' => (true, true, &text[1..]),
        b'+' => (true, false, &text[1..]),
        _ => (false, false, text),
    };
    let (base, digits) = match rest.as_bytes() {
        [b'0', b'x' | b'X', _, ..] => (16, &rest[2..]),
        [b'0', b'o' | b'O', _, ..] => (8, &rest[2..]),
        [b'0', b'b' | b'B', _, ..] => (2, &rest[2..]),
        [b'0', _, ..] => (8, &rest[1..]),
        _ => (10, rest),
    };
    // `from_str_radix` takes signs itself.
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return None;
    }
    let magnitude = i128::from_str_radix(digits, base).ok()?;
    let n = if negative { -magnitude } else { magnitude };
    let largest = if signed { i128::from(i64::MAX) } else { i128::from(u64::MAX) };
    (i128::from(i64::MIN)..=largest).contains(&n).then_some(n)
}

fn float(text: &str) -> Option<f64> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let known = unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && unsigned.bytes().all(|b| b.is_ascii_digit() || b".eE+-".contains(&b));
    text.parse::<f64>().ok().filter(|f| known && f.is_finite())
}

/// A whole number in the range of 64 bits.
fn whole(f: f64) -> Option<i64> {
    let range = -9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0;
    (range.contains(&f) && f.fract() == 0.0).then_some(f as i64)
}

/// As Go prints it by `%v`: the fewest digits that are exact, with an exponent from 10^6 on and below 10^-4.
fn shortest(f: f64) -> String {
    if f.is_nan() {
        return "NaN".to_owned();
    }
    if f.is_infinite() {
        return if f > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let scientific = format!("{f:e}");
    let Some((mantissa, exponent)) = scientific.split_once('e') else { return scientific };
    match exponent.parse::<i32>() {
        Ok(exponent) if !(-4..EXPONENT_FROM).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{mantissa}e{sign}{:02}", exponent.abs())
        }
        _ => f.to_string(),
    }
}

/// See [`shortest`].
const EXPONENT_FROM: i32 = 6;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Plain text, and what LXD 5.0.2 and Incus 7.0.2 send of it as a server setting. Incus 6.0.4 sends the text itself.
    const MEASURED: &[(&str, &str, &str)] = &[
        ("1.50", "1.5", "1.5"),
        ("0755", "493", "493"),
        ("1e3", "1000", "1000"),
        ("yes", "true", "yes"),
        ("0x1F", "31", "31"),
        ("2001-12-14", "2001-12-14", "2001-12-14"),
        ("12345678901234567890", "12345678901234567890", "12345678901234567890"),
        ("123456789012345678901234567890", "1.2345678901234568e+29", "1.2345678901234568e+29"),
        ("on", "true", "on"),
        ("No", "false", "No"),
        ("TRUE", "true", "true"),
        ("0o755", "493", "493"),
        ("0b101", "5", "5"),
        ("1_000", "1000", "1000"),
        (".inf", "+Inf", "+Inf"),
        (".nan", "NaN", "NaN"),
        ("-0", "0", "0"),
        ("+5", "5", "5"),
        ("1.0", "1", "1"),
        ("1e30", "1e+30", "1e+30"),
        ("190:20:30", "190:20:30", "190:20:30"),
        ("y", "true", "y"),
        ("1:2", "1:2", "1:2"),
        ("0.1", "0.1", "0.1"),
        ("123456789.123", "1.23456789123e+08", "1.23456789123e+08"),
        ("1e-7", "1e-07", "1e-07"),
        ("100000000.0", "1e+08", "100000000"),
        ("1e20", "1e+20", "1e+20"),
        ("1e21", "1e+21", "1e+21"),
        ("-9223372036854775809", "-9.223372036854776e+18", "-9223372036854775808"),
        ("9223372036854775808", "9223372036854775808", "9223372036854775808"),
        ("18446744073709551616", "1.8446744073709552e+19", "1.8446744073709552e+19"),
        ("08", "8", "8"),
        ("0.30000000000000004", "0.30000000000000004", "0.30000000000000004"),
        ("00", "0", "0"),
        ("-0x10", "-16", "-16"),
        ("-017", "-15", "-15"),
        ("3.14e+2", "314", "314"),
        (".5", "0.5", "0.5"),
        ("5.", "5", "5"),
        ("1E3", "1000", "1000"),
        ("2001-12-14 21:59:43", "2001-12-14 21:59:43", "2001-12-14 21:59:43"),
        ("-1.5", "-1.5", "-1.5"),
        ("0X1f", "31", "31"),
        ("True", "true", "true"),
        ("OFF", "false", "OFF"),
        ("n", "false", "n"),
        ("1__0", "10", "10"),
        ("-.INF", "-Inf", "-Inf"),
        ("+.inf", "+Inf", "+Inf"),
        ("0b", "0b", "0b"),
        ("0x", "0x", "0x"),
        ("-0b11", "-3", "-3"),
        ("0.", "0", "0"),
        ("1_0.5", "10.5", "10.5"),
        ("0o8", "0o8", "0o8"),
        ("-0o17", "-15", "-15"),
        ("+0x1", "1", "1"),
        ("0x1_F", "31", "31"),
        ("+1.5", "1.5", "1.5"),
        ("1e400", "1e400", "1e400"),
        ("07_7", "63", "63"),
    ];

    #[test]
    fn scalars_are_sent_as_the_engines_tool_sends_them() {
        for &(text, lxd, incus7) in MEASURED {
            let server = |dialect, version| {
                let preseed = json!({ "config": { "a": Written::plain(text.into()), "b": text } });
                let settled = Readings::of(dialect, version).apply(preseed);
                assert_eq!(settled["config"]["b"], text, "quoted");
                settled["config"]["a"].as_str().unwrap().to_owned()
            };
            assert_eq!(server(Dialect::Lxd, "5.0.2"), lxd, "{text} to LXD");
            assert_eq!(server(Dialect::Incus, "6.0.4"), text, "{text} to Incus 6.0");
            assert_eq!(server(Dialect::Incus, "7.0.2"), incus7, "{text} to Incus 7");
        }
    }

    #[test]
    fn each_section_is_read_in_its_own_way() {
        let plain = |text: &str| Written::plain(text.into());
        let preseed = json!({
            "config": { "a": plain("010") },
            "profiles": [{
                "name": "p", "description": plain("1.50"), "config": { "a": plain("010"), "b": null },
                "devices": { "root": { "size": plain("010") }, "eth0": null },
            }],
        });
        let sent = |dialect, version| {
            let p = Readings::of(dialect, version).apply(preseed.clone());
            let profile = &p["profiles"][0];
            assert_eq!(profile["description"], "1.50");
            assert_eq!((&profile["config"]["b"], &profile["devices"]["eth0"]), (&Value::Null, &Value::Null));
            [&p["config"]["a"], &profile["config"]["a"], &profile["devices"]["root"]["size"]]
                .map(|v| v.as_str().unwrap().to_owned())
        };
        assert_eq!(sent(Dialect::Lxd, "5.0.2"), ["8", "010", "010"]);
        assert_eq!(sent(Dialect::Incus, "6.0.4"), ["010", "010", "010"]);
        assert_eq!(sent(Dialect::Incus, "6.18"), ["8", "8", "010"]);
        assert_eq!(sent(Dialect::Incus, "7.0.2"), ["8", "8", "8"]);
    }
}
