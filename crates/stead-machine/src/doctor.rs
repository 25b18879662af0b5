//! What this host can do, and the mend for what it cannot.

/// What was seen of the host.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct HostFacts {}

/// Outcome of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Fine.
    Ok,
    /// Something optional is missing.
    Warn,
    /// Stead cannot work.
    Fail,
}

/// One line of `stead doctor`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// How it is.
    pub ok: Verdict,
    /// What was seen.
    pub detail: String,
    /// The mend, when there is one.
    pub fix: Option<String>,
}

/// Looks at the host.
pub fn observe() -> HostFacts {
    unimplemented!()
}
/// Judges what was seen. Pure.
pub fn checks(facts: &HostFacts) -> Vec<Check> {
    let _ = facts;
    unimplemented!()
}
