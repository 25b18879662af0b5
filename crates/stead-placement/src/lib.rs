//! Placement of instances on an Incus or LXD cluster: computes a plan and a report from a snapshot and a policy.
//!
//! Owns the rules (hard constraints, groups, balance, few and cheap moves, in this order), the planner, an independent
//! checker of its plans, and the scriptlet with which a server places by the same rules. Does not take snapshots or carry
//! out moves: nothing here opens a file, a socket or a clock. The order of a snapshot's lists does not change the result.

mod audit;
mod balance;
pub mod check;
mod exact;
mod exchange;
mod item;
mod levels;
pub mod place;
pub mod plan;
mod planner;
pub mod policy;
mod problem;
mod repair;
mod schedule;
pub mod scriptlet;
pub mod settings;
pub mod snapshot;
mod state;
mod why;

pub use check::check;
pub use place::place;
pub use plan::{Plan, Report};
pub use planner::plan;
pub use policy::Policy;
pub use problem::Resource;
pub use snapshot::Snapshot;
