//! Where instances go on an Incus or LXD cluster: from a snapshot and a policy to a plan and a report.
//!
//! Owns the rules (hard constraints, groups, balance, few and cheap moves, in this order), the planner, an independent
//! checker of its plans, and the scriptlet that makes a server place by the same rules. Does not own how snapshots are
//! made or moves are carried out: nothing here opens a file, a socket or a clock, and the order of a snapshot's lists
//! changes nothing.

mod audit;
mod balance;
pub mod check;
mod exact;
mod item;
mod levels;
mod mend;
mod pile;
pub mod place;
pub mod plan;
mod planner;
pub mod policy;
mod problem;
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
