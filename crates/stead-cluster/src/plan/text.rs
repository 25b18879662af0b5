//! A plan for people: one line a step, with its number and the steps it waits for.

use super::steps::{Action, NetworkChange, Plan, StepId, StopHow};
use std::fmt;
use stead_model::{EngineKind, NodeName};

/// Widest column: steps with a longer text do not widen it.
const WIDEST: usize = 72;

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            write!(f, "cluster {}: nothing to do", self.cluster)?;
            let waited: Vec<&str> =
                self.steps.iter().filter_map(|s| s.action.node().map(NodeName::as_str)).collect();
            match waited.is_empty() {
                true => writeln!(f)?,
                false => writeln!(f, " but to wait for {}", waited.join(", "))?,
            }
        } else {
            writeln!(f, "cluster {}:", self.cluster)?;
            let texts: Vec<String> = self.steps.iter().map(|s| text(&s.action, self.engine)).collect();
            let width = texts.iter().map(String::len).filter(|w| *w <= WIDEST).max().unwrap_or(0);
            let digits = self.steps.len().to_string().len();
            for (step, text) in self.steps.iter().zip(texts) {
                match step.after.is_empty() {
                    true => writeln!(f, "  {:>digits$}  {text}", step.id)?,
                    false => {
                        writeln!(f, "  {:>digits$}  {text:<width$}  after {}", step.id, ids(&step.after))?
                    }
                }
            }
        }
        self.warnings.iter().try_for_each(|w| writeln!(f, "  warning: {w}"))
    }
}

/// The description of a step.
pub(crate) fn text(action: &Action, engine: EngineKind) -> String {
    match action {
        Action::Network { change: NetworkChange::Make } => "make the network".into(),
        Action::Network { change: NetworkChange::Update } => "update the network".into(),
        Action::Stop { node, how, why } => {
            let how = match how {
                StopHow::Clean => "stop cleanly",
                StopHow::Kill => "kill",
            };
            format!("{node}: {how} ({})", why.join(", "))
        }
        Action::Start { node, initialises: false } => format!("{node}: start"),
        Action::Start { node, initialises: true } => format!("{node}: start as the first of {engine}"),
        Action::AwaitServices { node } => format!("{node}: wait until its services run"),
        Action::AwaitAgent { node } => format!("{node}: wait for its agent"),
        Action::Initialise { node } => format!("{node}: initialise {engine}"),
        Action::AwaitMember { node } => format!("{node}: wait until {engine} is online"),
        Action::Readmit { node, through } if node == through => {
            format!("{node}: restore in {engine}: its removal was interrupted")
        }
        Action::Readmit { node, through } => {
            format!("{node}: restore in {engine} through {through}: its removal was interrupted")
        }
        Action::Join { node, through, anew: false } => format!("{node}: join {engine} through {through}"),
        Action::Join { node, through, anew: true } => {
            format!("{node}: rejoin {engine} through {through}")
        }
        Action::Evacuate { node, through } => {
            format!("{node}: evacuate, remove from {engine} through {through}")
        }
        Action::Remove { node, through } => {
            format!("{node}: remove from {engine} through {through} by force")
        }
        Action::Delete { node } => format!("{node}: delete"),
        Action::AwaitSteady { .. } => "wait until all members are online at once".into(),
    }
}

/// Numbers in order, with ranges: `1, 3-5`.
fn ids(ids: &[StepId]) -> String {
    let mut sorted: Vec<u32> = ids.iter().map(|i| i.0).collect();
    sorted.sort_unstable();
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for id in sorted {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == id => *last = id,
            _ => ranges.push((id, id)),
        }
    }
    let show = |(first, last): &(u32, u32)| match last - first {
        0 => first.to_string(),
        1 => format!("{first}, {last}"),
        _ => format!("{first}-{last}"),
    };
    ranges.iter().map(show).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_follow_each_other_are_a_range() {
        let text = |n: &[u32]| ids(&n.iter().map(|n| StepId(*n)).collect::<Vec<_>>());
        assert_eq!(text(&[1]), "1");
        assert_eq!(text(&[4, 1, 2]), "1, 2, 4");
        assert_eq!(text(&[1, 2, 3, 7, 8]), "1-3, 7, 8");
    }
}
