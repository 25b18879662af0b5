//! Programs that a recipe adds to its base's packages: built from Go modules, downloaded, or taken from a path.

use crate::Digest;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use serde_untagged::UntaggedEnumVisitor;
use std::collections::{BTreeMap, BTreeSet};

/// The folder that programs are put in when a recipe names none.
pub const DEFAULT_FOLDER: &str = "/usr/local/bin";

/// Programs from one source: exactly one of `go`, `url` and `path`. They are root's, with mode 0755.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Programs {
    /// Built from a Go module.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub go: Option<GoSource>,
    /// Downloaded: an address with `https:` of one program, or, with `members`, of a tar (plain, gz, xz or zst).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// SHA-256 of what is downloaded, in hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// A file or a folder of programs, relative to the recipe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The files that are taken out of the tar or the folder. Of a folder all executable ones when this is empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<Pick>,
    /// Name of a single program; the last part of its address or path when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Further names of a single program: symbolic links beside it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<String>,
    /// The folder they are put in; `/usr/local/bin` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

/// A Go module to build programs from: `dir`, or `module` with `version` and `sum`.
///
/// Either way every byte that is compiled is pinned: by the `go.sum` in `dir`, or by `sum`, which covers the module's own
/// `go.sum`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GoSource {
    /// A folder with `go.mod` and `go.sum`, relative to the recipe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dir: Option<String>,
    /// Path of a published module, e.g. `github.com/containernetworking/plugins`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
    /// Its version, e.g. `v1.10.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Its hash as `go.sum` has it: `h1:…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sum: Option<String>,
    /// Main packages, each built into one program: relative to the module (`.`, `./cmd/x`), or by import path.
    pub packages: Vec<Pick>,
    /// Build tags.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Text variables set by the linker, `package.name: value`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub variables: BTreeMap<String, Variable>,
}

/// One program of several: a path, or a path with the name it gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pick {
    /// A Go package, or a file in a tar or folder.
    pub path: String,
    /// The program's name; the last part of `path` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Further names: symbolic links beside it, for programs that act by the name they are called by.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<String>,
}

impl Pick {
    fn placed(&self) -> Placed<'_> {
        Placed { name: self.name.as_deref().unwrap_or_else(|| last_part(&self.path)), links: &self.links }
    }
}

impl<'de> Deserialize<'de> for Pick {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        UntaggedEnumVisitor::new()
            .expecting("a path, or a path with \"name\" and \"links\"")
            .string(|path| Ok(Self { path: path.to_owned(), name: None, links: Vec::new() }))
            .map(|keys| {
                let PickKeys { path, name, links } = keys.deserialize()?;
                Ok(Self { path, name, links })
            })
            .deserialize(deserializer)
    }
}

/// [`Pick`] as a map.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct PickKeys {
    /// A Go package, or a file in a tar or folder.
    path: String,
    /// The program's name; the last part of `path` when absent.
    #[serde(default)]
    name: Option<String>,
    /// Further names: symbolic links beside it, for programs that act by the name they are called by.
    #[serde(default)]
    links: Vec<String>,
}

impl JsonSchema for Pick {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Pick".into()
    }
    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let keys = generator.subschema_for::<PickKeys>();
        schemars::json_schema!({
            "description": "One program of several: a path, or a path with the name it gets.",
            "anyOf": [{ "type": "string" }, keys]
        })
    }
}

/// The value of a linker variable: a text, or the version of a module that is built in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Variable {
    /// A text.
    Text(String),
    /// A version out of go.mod.
    VersionOf(VersionOf),
}

impl<'de> Deserialize<'de> for Variable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        UntaggedEnumVisitor::new()
            .expecting("a text in quotes, or \"version_of\" with a module")
            .string(|text| Ok(Self::Text(text.to_owned())))
            .map(|keys| keys.deserialize().map(Self::VersionOf))
            .deserialize(deserializer)
    }
}

/// The version of a module, or a part of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VersionOf {
    /// A module that go.mod requires.
    pub version_of: String,
    /// The part that is taken; the whole (`v1.37.2`) when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<VersionPart>,
}

/// A part of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum VersionPart {
    /// `1` of `v1.37.2`.
    Major,
    /// `37` of `v1.37.2`.
    Minor,
}

/// The names of one program in the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its other names.
    pub links: &'a [String],
}

impl Programs {
    /// The folder they are put in, absolute.
    pub fn folder(&self) -> &str {
        self.to.as_deref().unwrap_or(DEFAULT_FOLDER)
    }

    /// The source's name in steps and messages: the last part of its folder, module, address or path.
    pub fn label(&self) -> &str {
        let go = self.go.as_ref();
        let of = go
            .and_then(|g| g.dir.as_deref().or(g.module.as_deref()))
            .or(self.name.as_deref())
            .or(self.url.as_deref())
            .or(self.path.as_deref())
            .unwrap_or_default();
        last_part(of)
    }

    /// The programs that the recipe names, in its order. The names in a folder without `members` are not known here.
    pub fn placed(&self) -> Vec<Placed<'_>> {
        match &self.go {
            Some(go) => go
                .packages
                .iter()
                .map(|pick| match (&pick.name, pick.path.as_str()) {
                    // The module itself.
                    (None, "." | "./") => Placed { name: self.label(), links: &pick.links },
                    _ => pick.placed(),
                })
                .collect(),
            None if !self.members.is_empty() => self.members.iter().map(Pick::placed).collect(),
            None if self.url.is_some() || self.name.is_some() || !self.links.is_empty() => {
                vec![Placed {
                    name: self.name.as_deref().unwrap_or_else(|| self.label()),
                    links: &self.links,
                }]
            }
            None => Vec::new(),
        }
    }

    /// The rules between keys; the error is (key, why).
    pub(crate) fn check(&self) -> Result<(), (String, String)> {
        let err = |key: &str, why: String| Err((key.to_owned(), why));
        let ways = [self.go.is_some(), self.url.is_some(), self.path.is_some()];
        if ways.iter().filter(|w| **w).count() != 1 {
            return err("", "needs exactly one of \"go\", \"url\" and \"path\"".into());
        }
        if let Some(url) = &self.url {
            check_url(url).map_err(|why| ("url".to_owned(), why))?;
            if self.sha256.is_none() {
                return err("sha256", "is missing: a download is used only if it has this digest".into());
            }
        }
        if let Some(sum) = &self.sha256 {
            if self.url.is_none() {
                return err("sha256", "goes with \"url\"".into());
            }
            if format!("sha256:{sum}").parse::<Digest>().is_err() {
                return err("sha256", format!("{sum:?} is not 64 hexadecimal digits in lower case"));
            }
        }
        if let Some(go) = &self.go {
            if !self.members.is_empty() {
                return err("members", "goes with \"url\" or \"path\"; a Go module has \"packages\"".into());
            }
            go.check().map_err(|(key, why)| (format!("go.{key}"), why))?;
        }
        if let Some(path) = &self.path
            && !is_path(path)
        {
            return err("path", format!("{path:?} is not a path"));
        }
        for (key, set) in [("name", self.name.is_some()), ("links", !self.links.is_empty())] {
            if set && (self.go.is_some() || !self.members.is_empty()) {
                let why = "is for a single program; write it beside each one's \"path\"";
                return err(key, why.into());
            }
        }
        for member in &self.members {
            let relative = is_path(&member.path)
                && !member.path.starts_with('/')
                && member.path.split('/').all(|p| p != "..");
            if !relative {
                let why = format!("{:?} must be a relative path without \"..\"", member.path);
                return err("members", why);
            }
        }
        let to = self.folder();
        if !to.starts_with('/') || !is_path(to) || to.split('/').any(|p| p == "..") {
            return err("to", format!("{to:?} must be an absolute path without \"..\""));
        }
        for placed in self.placed() {
            for name in std::iter::once(placed.name).chain(placed.links.iter().map(String::as_str)) {
                if !is_name(name) {
                    return err("name", format!("{name:?} is not a program's name"));
                }
            }
        }
        Ok(())
    }
}

impl GoSource {
    fn check(&self) -> Result<(), (String, String)> {
        let err = |key: &str, why: String| Err((key.to_owned(), why));
        match (&self.dir, &self.module) {
            (Some(_), Some(_)) | (None, None) => {
                return err("dir", "needs exactly one of \"dir\" and \"module\"".into());
            }
            (Some(dir), None) => {
                if self.version.is_some() || self.sum.is_some() {
                    return err(
                        "dir",
                        "has its versions in go.mod and go.sum: no \"version\" and no \"sum\"".into(),
                    );
                }
                if !is_path(dir) {
                    return err("dir", format!("{dir:?} is not a path"));
                }
            }
            (None, Some(module)) => {
                if !is_import_path(module) {
                    return err("module", format!("{module:?} is not a module's path"));
                }
                let version = self.version.as_deref().unwrap_or_default();
                if !is_version(version) {
                    let why =
                        format!("{version:?} is not a version as v1.2.3: branches and \"latest\" change");
                    return err("version", why);
                }
                if let Some(sum) = &self.sum
                    && !is_sum(sum)
                {
                    return err(
                        "sum",
                        format!("{sum:?} is not a hash as go.sum has it (h1: and 44 characters)"),
                    );
                }
            }
        }
        if self.packages.is_empty() {
            return err("packages", "is empty: it lists the main packages to build".into());
        }
        for pick in &self.packages {
            let local = pick.path == "." || pick.path.starts_with("./");
            let inside = pick.path.split('/').all(|p| p != ".." && p != "...");
            if !inside || !(local || is_import_path(&pick.path)) {
                let why =
                    format!("{:?} is neither relative to the module (./cmd/x) nor an import path", pick.path);
                return err("packages", why);
            }
        }
        let word = |b: u8| b.is_ascii_alphanumeric() || b"_.".contains(&b);
        if let Some(bad) = self.tags.iter().find(|t| t.is_empty() || !t.bytes().all(word)) {
            return err("tags", format!("{bad:?} is not a build tag"));
        }
        for (name, value) in &self.variables {
            let named = name.rsplit_once('.').is_some_and(|(package, variable)| {
                (package == "main" || is_import_path(package))
                    && !variable.is_empty()
                    && variable.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            });
            if !named {
                return err(
                    "variables",
                    format!("{name:?} is not a package with a variable, as main.version"),
                );
            }
            // The linker's arguments travel as one text; with neither quotes nor blanks there is nothing to quote.
            let plain = |b: u8| b.is_ascii_graphic() && !b"'\"\\".contains(&b);
            match value {
                Variable::Text(text) if !text.bytes().all(plain) => {
                    return err("variables", format!("{name}: {text:?} has blanks, quotes or other signs"));
                }
                Variable::VersionOf(of) if !is_import_path(&of.version_of) => {
                    return err("variables", format!("{name}: {:?} is not a module's path", of.version_of));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Checks each source, and that no two programs have the same path. `taken` maps paths of other parts of the recipe to
/// their key. The error is (index, key, why).
pub(crate) fn check_all(
    all: &[Programs],
    taken: &BTreeMap<String, String>,
) -> Result<(), (usize, String, String)> {
    let mut seen = BTreeSet::new();
    for (n, programs) in all.iter().enumerate() {
        programs.check().map_err(|(key, why)| (n, key, why))?;
        for placed in programs.placed() {
            for name in std::iter::once(placed.name).chain(placed.links.iter().map(String::as_str)) {
                let path = image_path(programs.folder(), name);
                if let Some(what) = taken.get(&path) {
                    return Err((n, "name".into(), format!("{path} is also in {what}")));
                }
                if !seen.insert(path.clone()) {
                    return Err((n, "name".into(), format!("{path} is there twice")));
                }
            }
        }
    }
    Ok(())
}

/// An absolute path in the image, without empty parts and `.`, and as it is on a root whose `/bin`, `/sbin` and `/lib` are
/// links into `/usr`.
pub fn image_path(folder: &str, name: &str) -> String {
    let mut parts =
        folder.split('/').chain(name.split('/')).filter(|p| !p.is_empty() && *p != ".").peekable();
    let merged = parts.peek().is_some_and(|p| ["bin", "sbin", "lib", "lib64"].contains(p));
    parts.fold(if merged { "/usr".to_owned() } else { String::new() }, |path, part| path + "/" + part)
}

/// The last part of a path, an address or a Go package, where `/v2` at the end is a module's major version.
fn last_part(path: &str) -> &str {
    let major =
        |p: &str| p.strip_prefix('v').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    let path = path.split(['?', '#']).next().unwrap_or(path).trim_end_matches('/');
    match path.rsplit_once('/') {
        Some((above, last)) if major(last) => above.rsplit('/').next().unwrap_or(above),
        Some((_, last)) => last,
        None => path,
    }
}

fn is_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..")
        && name.len() <= 255
        && !name.starts_with('-')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.+@".contains(&b))
}

fn is_path(path: &str) -> bool {
    !path.is_empty() && path.len() < 4096 && !path.chars().any(char::is_control)
}

/// A module's or package's path: parts of letters, digits and `-._~`, none of them `.` or `..`.
fn is_import_path(path: &str) -> bool {
    let sign = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    path.len() < 1024
        && path.split('/').all(|p| !p.is_empty() && !p.starts_with(['.', '-']) && p.bytes().all(sign))
}

fn is_version(version: &str) -> bool {
    let Some(rest) = version.strip_prefix('v') else { return false };
    let end = rest.find(['-', '+']).unwrap_or(rest.len());
    let numbers: Vec<&str> = rest[..end].split('.').collect();
    numbers.len() == 3
        && numbers.iter().all(|n| !n.is_empty() && n.len() < 20 && n.bytes().all(|b| b.is_ascii_digit()))
        && rest[end..].bytes().all(|b| b.is_ascii_alphanumeric() || b"-+.".contains(&b))
}

fn is_sum(sum: &str) -> bool {
    let base64 = |b: u8| b.is_ascii_alphanumeric() || b"+/=".contains(&b);
    sum.strip_prefix("h1:").is_some_and(|h| h.len() == 44 && h.ends_with('=') && h.bytes().all(base64))
}

fn check_url(url: &str) -> Result<(), String> {
    let Some(rest) = url.strip_prefix("https://") else {
        return Err(format!("{url:?} does not begin with https://"));
    };
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if host.contains('@') {
        return Err("has a user or password in it, which would be in the image's recipe".into());
    }
    if host.is_empty()
        || host.starts_with(':')
        || url.len() > 4096
        || !url.bytes().all(|b| b.is_ascii_graphic())
    {
        return Err(format!("{url:?} is not an address"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::Recipe;

    fn recipe(programs: &str) -> Result<Recipe, String> {
        let yaml = format!(
            "name: x\nbase: {{tar: b}}\nfiles: [{{path: /bin/taken, contents: x}}]\nprograms:\n{programs}"
        );
        Recipe::from_yaml("r.yaml", &yaml).map_err(|e| e.to_string())
    }

    const SHA: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    const SUM: &str = "h1:4lwzpgsn5NdIneXrag/EEfKzhNSriJc1zTxZxfdfPLQ=";

    #[test]
    fn every_source_names_its_programs() {
        let read = recipe(&format!(
            "- {{go: {{dir: k8s, packages: [{{path: ., name: control, links: [kubelet, etcd-server]}}, ./cmd/worker], tags: [a_b],\n  \
             variables: {{main.version: v1, k8s.io/x/version.gitMinor: {{version_of: k8s.io/x, part: minor}}}}}}}}\n\
             - {{go: {{module: example.com/cni/v2, version: v1.10.0-rc.1+incompatible, sum: \"{SUM}\", packages: [., ./plugins/bridge]}}, to: /opt/cni/bin}}\n\
             - {{url: \"https://host/dl/kubectl?x=1\", sha256: {SHA}, links: [k]}}\n\
             - {{url: \"https://host/etcd.tar.gz\", sha256: {SHA}, members: [etcd-v3/etcd, {{path: etcd-v3/etcdctl, name: ctl}}]}}\n\
             - {{path: ../out/tool}}\n- {{path: bin, members: [a]}}\n"
        ))
        .unwrap();
        let names: Vec<Vec<&str>> =
            read.programs.iter().map(|p| p.placed().into_iter().map(|p| p.name).collect()).collect();
        let expected: [&[&str]; 6] =
            [&["control", "worker"], &["cni", "bridge"], &["kubectl"], &["etcd", "ctl"], &[], &["a"]];
        assert_eq!(names, expected);
        let labels: Vec<&str> = read.programs.iter().map(super::Programs::label).collect();
        assert_eq!(labels, ["k8s", "cni", "kubectl", "etcd.tar.gz", "tool", "bin"]);
        assert_eq!(read.programs[1].folder(), "/opt/cni/bin");
        assert_eq!(serde_json::from_str::<Recipe>(&serde_json::to_string(&read).unwrap()).unwrap(), read);
    }

    #[test]
    fn refuses_with_line_and_key() {
        let url = format!("url: \"https://h/a\", sha256: {SHA}");
        let go = "packages: [.]";
        for (programs, expected) in [
            (
                "- {path: a}\n- {to: /x}\n".to_owned(),
                "r.yaml:6:3: programs[1]: needs exactly one of \"go\", \"url\" and \"path\"",
            ),
            (format!("- {{path: a, {url}}}\n"), "r.yaml:5:3: programs[0]: needs exactly one"),
            (
                "- {path: a}\n- {url: \"http://h/a\"}\n".into(),
                "r.yaml:6:3: programs[1].url: \"http://h/a\" does not begin with https://",
            ),
            ("- {url: \"https://u:p@h/a\"}\n".into(), "has a user or password"),
            ("- {url: \"https://h/a\"}\n".into(), "programs[0].sha256: is missing"),
            ("- {url: \"https://h/a\", sha256: AB}\n".into(), "is not 64 hexadecimal digits"),
            (
                format!("- {{go: {{dir: d, module: a.b/c, {go}}}}}\n"),
                "programs[0].go.dir: needs exactly one of \"dir\" and \"module\"",
            ),
            (
                format!("- {{go: {{module: a.b/c, version: latest, {go}}}}}\n"),
                "\"latest\" is not a version as v1.2.3",
            ),
            (
                format!("- {{go: {{module: a.b/c, version: v1.0.0, sum: x, {go}}}}}\n"),
                "is not a hash as go.sum has it",
            ),
            (
                "- {go: {dir: d, packages: [-x]}}\n".into(),
                "is neither relative to the module (./cmd/x) nor an import path",
            ),
            ("- {go: {dir: d, packages: [./...]}}\n".into(), "is neither relative to the module"),
            ("- {go: {dir: d, packages: []}}\n".into(), "programs[0].go.packages: is empty"),
            (
                format!("- {{go: {{dir: d, variables: {{main.v: \"a b\"}}, {go}}}}}\n"),
                "has blanks, quotes or other signs",
            ),
            (
                format!("- {{go: {{dir: d, variables: {{-X: a}}, {go}}}}}\n"),
                "is not a package with a variable",
            ),
            (format!("- {{{url}, to: usr/bin}}\n"), "programs[0].to: \"usr/bin\" must be an absolute path"),
            (format!("- {{{url}, name: a/b}}\n"), "\"a/b\" is not a program's name"),
            (format!("- {{{url}, members: [../x]}}\n"), "must be a relative path without \"..\""),
            (format!("- {{{url}, members: [x], name: y}}\n"), "is for a single program"),
            (
                format!("- {{{url}}}\n- {{{url}, name: b, links: [a]}}\n"),
                "r.yaml:6:3: programs[1].name: /usr/local/bin/a is there twice",
            ),
            (format!("- {{{url}, to: /usr/bin, name: taken}}\n"), "/usr/bin/taken is also in \"files\""),
            ("- {pat: a}\n".into(), "did you mean \"path\"?"),
        ] {
            let error = recipe(&programs).unwrap_err();
            assert!(error.contains(expected), "{programs}: {error}");
        }
    }
}
