//! Versions of Go: what a host has, and what a module needs.

use std::{fmt, str::FromStr};

/// The oldest Go that builds the programs of every recipe that is shipped.
pub const SHIPPED_RECIPES_NEED: &str = "1.26.8";

/// A version of Go, ordered as Go orders them: `1.26` (the language) < `1.26rc1` < `1.26.0`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoVersion {
    major: u32,
    minor: u32,
    stage: Stage,
    number: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Language,
    Beta,
    Candidate,
    Release,
}

impl FromStr for GoVersion {
    type Err = ();
    /// With or without `go` before it; what a distribution appends is passed over.
    fn from_str(text: &str) -> Result<Self, ()> {
        let text = text.strip_prefix("go").unwrap_or(text);
        let text = text.split([' ', '-', '+']).next().unwrap_or(text);
        let number = |t: &str| t.parse::<u32>().map_err(|_| ());
        let (major, rest) = text.split_once('.').ok_or(())?;
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (minor, rest) = rest.split_at(end);
        let (stage, n) = if rest.is_empty() {
            (Stage::Language, 0)
        } else if let Some(n) = rest.strip_prefix("beta") {
            (Stage::Beta, number(n)?)
        } else if let Some(n) = rest.strip_prefix("rc") {
            (Stage::Candidate, number(n)?)
        } else {
            (Stage::Release, number(rest.strip_prefix('.').ok_or(())?)?)
        };
        Ok(Self { major: number(major)?, minor: number(minor)?, stage, number: n })
    }
}

impl fmt::Display for GoVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)?;
        match self.stage {
            Stage::Language => Ok(()),
            Stage::Beta => write!(f, "beta{}", self.number),
            Stage::Candidate => write!(f, "rc{}", self.number),
            Stage::Release => write!(f, ".{}", self.number),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_go_are_ordered_as_go_orders_them() {
        let ordered =
            ["1.9.7", "1.25", "1.26", "1.26beta1", "1.26rc1", "1.26rc2", "1.26.0", "1.26.8", "1.100"];
        let parsed: Vec<GoVersion> = ordered.iter().map(|v| v.parse().unwrap()).collect();
        assert!(parsed.is_sorted_by(|a, b| a < b), "{parsed:?}");
        assert_eq!(parsed.iter().map(ToString::to_string).collect::<Vec<_>>(), ordered);
        assert_eq!("go1.26.8 X:nocoverage".parse::<GoVersion>(), "1.26.8".parse());
        assert_eq!("go1.24.4-1+deb13".parse::<GoVersion>(), "1.24.4".parse());
        for bad in ["", "1", "devel", "1.x", "1.2rc", "1.2."] {
            assert!(bad.parse::<GoVersion>().is_err(), "{bad}");
        }
    }
}
