//! Plans: the steps from the observed to the desired state, and what each of them waits for.
//!
//! A plan is a value. [`plan()`] makes it without effects, [`crate::check`] checks it independently, and its execution
//! makes no choices: the member that a join or a removal goes through, a clean stop or a kill, and the node that
//! initialises the engine's cluster are all part of the steps.

mod make;
mod steps;
mod text;
mod view;

pub use make::plan;
pub use steps::{Action, NetworkChange, Plan, Step, StepId, StopHow};
#[cfg(test)]
pub(crate) use text::text;

#[cfg(test)]
mod tests;
