//! Which step always comes before which: the transitive closure of waits.

use super::flaw::Flaw;
use crate::plan::{Step, StepId};
use std::collections::BTreeMap;

/// The order of the steps of a plan.
pub(super) struct Order {
    at: BTreeMap<StepId, usize>,
    /// For each step, a bit for each step that comes before it.
    before: Vec<Vec<u64>>,
}

impl Order {
    /// # Errors
    /// Two steps have the same number, or a step waits for one that is missing or does not come before it.
    pub(super) fn new(steps: &[Step]) -> Result<Self, Flaw> {
        let mut at = BTreeMap::new();
        let mut before: Vec<Vec<u64>> = Vec::with_capacity(steps.len());
        let all: BTreeMap<StepId, usize> = steps.iter().enumerate().map(|(i, s)| (s.id, i)).collect();
        for (i, step) in steps.iter().enumerate() {
            let mut bits = vec![0u64; steps.len().div_ceil(64)];
            for on in &step.after {
                let Some(j) = at.get(on) else {
                    return Err(match all.contains_key(on) {
                        true => Flaw::WaitsForLater { step: step.id, on: *on },
                        false => Flaw::WaitsForUnknown { step: step.id, on: *on },
                    });
                };
                let j: usize = *j;
                bits[j / 64] |= 1 << (j % 64);
                for (bits, more) in bits.iter_mut().zip(&before[j]) {
                    *bits |= more;
                }
            }
            before.push(bits);
            if at.insert(step.id, i).is_some() {
                return Err(Flaw::SameNumber { step: step.id });
            }
        }
        Ok(Self { at, before })
    }

    /// Whether `first` has always succeeded when `then` begins.
    pub(super) fn before(&self, first: StepId, then: StepId) -> bool {
        match (self.at.get(&first), self.at.get(&then)) {
            (Some(first), Some(then)) => self.before[*then][first / 64] & (1 << (first % 64)) != 0,
            _ => false,
        }
    }
}
