//! Day-2 work on any Incus or LXD cluster, made by Stead or not: observe, plan, move.
//!
//! Owns how a cluster comes to trust this host ([`remote`]), how it becomes a snapshot and a plan ([`facts`], [`snapshot`],
//! [`plan`], [`ground`], [`quorum`], [`size`], [`power`]), by which ways programs run on members ([`shell`]), what engines write as amounts ([`amounts`]), how a plan is carried out so that nothing is lost when the tool
//! or a server dies in the middle ([`rebalance`](mod@rebalance), [`journal`]), when that may be ([`window`]), how what a cut move leaves behind is removed ([`repair`](mod@repair)), what instances
//! that do not exist yet would be ([`newcomers`]), and the server's own placement ([`scriptlet`]). Does not own where
//! instances should be: that is `stead-placement`, which plans from the snapshot.

pub mod amounts;
pub mod facts;
pub mod ground;
pub mod journal;
pub mod newcomers;
pub mod plan;
pub mod power;
mod preflight;
pub mod quorum;
pub mod rebalance;
pub mod remote;
pub mod repair;
pub mod scriptlet;
pub mod shell;
pub mod size;
pub mod snapshot;
pub mod window;
