//! What is to be done so that what is becomes what should be: steps, and what each of them waits for.
//!
//! A plan is a value. [`plan()`] makes it without effects, [`crate::check`] checks it without asking how it was made, and
//! whoever carries it out chooses nothing: who a join or a removal goes through, a clean stop or a kill, and the node that
//! initialises the engine's cluster all stand in the steps.

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
