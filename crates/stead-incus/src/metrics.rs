//! Parses the answer to `GET /1.0/metrics`: OpenMetrics text, of which the servers use lines of the form
//! `name{label="value",…} number`. Comments are ignored, and so are timestamps, which neither engine writes.

use std::collections::BTreeMap;

/// Limit on the length of a line; the engines' names, labels and values stay far below.
const MAX_LINE_BYTES: usize = 64 * 1024;

/// One measurement.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// `incus_memory_MemAvailable_bytes`, `lxd_cpu_seconds_total`, …
    pub name: String,
    /// Labels by name: `name`, `project`, `type`, `cpu`, `mode`, …
    pub labels: BTreeMap<String, String>,
    /// The value.
    pub value: f64,
}

/// The text is not in the OpenMetrics format.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MetricsError {
    /// Not UTF-8.
    #[error("metrics are not UTF-8")]
    Text,
    /// A line is not a sample.
    #[error("line {line} is not a sample: {why}")]
    Line {
        /// Number of the line, from 1.
        line: usize,
        /// What is wrong with the line.
        why: &'static str,
    },
}

/// Parses all samples.
///
/// # Errors
/// [`MetricsError`] for the first bad line.
pub fn parse(bytes: &[u8]) -> Result<Vec<Sample>, MetricsError> {
    let text = std::str::from_utf8(bytes).map_err(|_| MetricsError::Text)?;
    let mut samples = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if line.len() > MAX_LINE_BYTES {
            return Err(MetricsError::Line { line: index + 1, why: "it is too long" });
        }
        samples.push(sample(line).map_err(|why| MetricsError::Line { line: index + 1, why })?);
    }
    Ok(samples)
}

fn sample(line: &str) -> Result<Sample, &'static str> {
    let end = line.find(['{', ' ', '\t']).ok_or("no value")?;
    let (name, mut rest) = line.split_at(end);
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b':')) {
        return Err("no name");
    }
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = read_labels(inside, &mut labels)?;
    }
    let value = rest.split_whitespace().next().ok_or("no value")?;
    let value = match value {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        number => number.parse().map_err(|_| "the value is not a number")?,
    };
    Ok(Sample { name: name.to_owned(), labels, value })
}

/// Reads labels up to the closing brace; returns the text after it.
fn read_labels<'t>(
    mut rest: &'t str,
    labels: &mut BTreeMap<String, String>,
) -> Result<&'t str, &'static str> {
    loop {
        rest = rest.trim_start_matches([' ', ',']);
        if let Some(after) = rest.strip_prefix('}') {
            return Ok(after);
        }
        let (name, quoted) = rest.split_once("=\"").ok_or("a label without a value")?;
        let mut value = String::new();
        let mut chars = quoted.char_indices();
        let end = loop {
            match chars.next() {
                Some((at, '"')) => break at,
                Some((_, '\\')) => match chars.next() {
                    Some((_, 'n')) => value.push('\n'),
                    Some((_, c @ ('"' | '\\'))) => value.push(c),
                    _ => return Err("an unknown escape"),
                },
                Some((_, c)) => value.push(c),
                None => return Err("a value without a closing quote"),
            }
        };
        labels.insert(name.trim().to_owned(), value);
        rest = &quoted[end + 1..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn samples_are_read() {
        let text = "# HELP incus_x Something.\n# TYPE incus_x gauge\n\
            incus_x{cpu=\"0\",name=\"c\\\"1\",project=\"default\"} 1.5\nincus_up_total 12\n# EOF\n";
        let samples = parse(text.as_bytes()).unwrap();
        assert_eq!(samples.len(), 2);
        assert_eq!(samples[0].labels["name"], "c\"1");
        assert_eq!((samples[0].value, samples[1].name.as_str()), (1.5, "incus_up_total"));
        assert!(samples[1].labels.is_empty());
    }

    #[test]
    fn names_the_bad_line() {
        let line = |text: &str| match parse(text.as_bytes()) {
            Err(MetricsError::Line { line, why }) => (line, why),
            other => panic!("{other:?}"),
        };
        assert_eq!(line("a 1\nb"), (2, "no value"));
        assert_eq!(line("a{x=\"1} 1"), (1, "a value without a closing quote"));
        assert_eq!(line("a{x} 1"), (1, "a label without a value"));
        assert_eq!(line("a one"), (1, "the value is not a number"));
        assert_eq!(line("<html> 1"), (1, "no name"));
        assert_eq!(parse(b"\xff 1"), Err(MetricsError::Text));
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in "[a-z{}=\"\\\\, 0-9\n.]{0,200}") { let _ = parse(text.as_bytes()); }
    }
}
