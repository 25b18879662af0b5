//! Reads the version of Go and the modules' versions in a go.mod. The rest is left to Go.

use std::collections::BTreeMap;
use stead_model::{
    GoVersion,
    programs::{VersionOf, VersionPart},
};

/// The largest go.mod that is read; Kubernetes' has 20 KiB.
pub const MAX_BYTES: usize = 1 << 20;

/// A go.mod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GoMod {
    /// Path of the module.
    pub module: String,
    /// The oldest Go that builds it.
    pub go: Option<GoVersion>,
    /// Required modules and their versions.
    pub require: BTreeMap<String, String>,
    /// Replaced modules, and what replaces them: a module and its version, or a folder.
    pub replace: BTreeMap<String, (String, Option<String>)>,
}

/// Reads a go.mod. Unknown lines are passed over: Go reports them.
pub fn parse(text: &str) -> GoMod {
    let mut out = GoMod::default();
    let mut block: Option<&str> = None;
    for line in text.lines() {
        let line = line.split("//").next().unwrap_or_default().trim();
        let words: Vec<&str> = line.split_whitespace().map(|w| w.trim_matches(['"', '`'])).collect();
        match (block, &words[..]) {
            (_, []) => {}
            (Some(_), [")"]) => block = None,
            (None, [verb, "("]) => block = Some(verb),
            (None, [verb, rest @ ..]) => out.line(verb, rest),
            (Some(verb), rest) => out.line(verb, rest),
        }
    }
    out
}

impl GoMod {
    fn line(&mut self, verb: &str, words: &[&str]) {
        match (verb, words) {
            ("module", [path]) => self.module = (*path).to_owned(),
            ("go", [version]) => self.go = version.parse().ok(),
            ("require", [path, version]) => {
                self.require.insert((*path).to_owned(), (*version).to_owned());
            }
            ("replace", _) => {
                let arrow = words.iter().position(|w| *w == "=>");
                if let Some((old, new)) = arrow.map(|at| (&words[..at], &words[at + 1..]))
                    && let (Some(old), Some(path)) = (old.first(), new.first())
                {
                    let version = new.get(1).map(|v| (*v).to_owned());
                    self.replace.insert((*old).to_owned(), ((*path).to_owned(), version));
                }
            }
            _ => {}
        }
    }

    /// The version, or a part of it, of a module that is built in; `None` if go.mod does not name it.
    pub fn version_of(&self, of: &VersionOf) -> Option<String> {
        let version = match self.replace.get(&of.version_of) {
            Some((_, version)) => version.as_ref()?,
            None => self.require.get(&of.version_of)?,
        };
        part(version, of.part)
    }

    /// Modules that are replaced by folders.
    pub fn folders(&self) -> impl Iterator<Item = (&str, &str)> {
        self.replace.iter().filter(|(_, (_, version))| version.is_none()).map(|(m, (p, _))| (&m[..], &p[..]))
    }
}

/// A part of a version as `v1.37.2`, or the whole.
pub fn part(version: &str, part: Option<VersionPart>) -> Option<String> {
    let mut numbers = version.strip_prefix('v')?.split(['.', '-', '+']);
    match part {
        None => Some(version.to_owned()),
        Some(VersionPart::Major) => numbers.next().map(str::to_owned),
        Some(VersionPart::Minor) => numbers.nth(1).map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "module example.com/k // ours\n\ngo 1.26.8\n\nrequire (\n\tk8s.io/kubernetes v1.37.2\n\t\
        k8s.io/api v0.0.0 // indirect\n)\nrequire a.b/c v1.0.0\nreplace (\n\tk8s.io/api => k8s.io/api v0.37.2\n\
        \ta.b/c v1.0.0 => ../c\n)\ntool (\n\tx/y\n)\n";

    #[test]
    fn reads_versions() {
        let m = parse(TEXT);
        assert_eq!(
            (m.module.as_str(), m.go.clone().unwrap().to_string()),
            ("example.com/k", "1.26.8".into())
        );
        let of = |module: &str, part| m.version_of(&VersionOf { version_of: module.into(), part });
        assert_eq!(of("k8s.io/kubernetes", None).as_deref(), Some("v1.37.2"));
        assert_eq!(of("k8s.io/kubernetes", Some(VersionPart::Minor)).as_deref(), Some("37"));
        assert_eq!(of("k8s.io/api", None).as_deref(), Some("v0.37.2"));
        assert_eq!(of("k8s.io/api", Some(VersionPart::Major)).as_deref(), Some("0"));
        assert_eq!((of("a.b/c", None), of("no.such", None)), (None, None));
        assert_eq!(m.folders().collect::<Vec<_>>(), [("a.b/c", "../c")]);
    }
}
