//! For tests only: a cluster in memory that answers as Incus or LXD does ([`fake`]), a tiny image for real engines
//! ([`image`]), a kernel's counters ([`counters`]), and checks that the fake and real engines must pass ([`body`]). Also the
//! harness that tests of all crates share: waiting ([`wait`]), programs, disks and leftovers on the host ([`host`]), and
//! parts of a test ([`parts`]).
//!
//! The fake is for tests of code that uses the engines' API: fast, deterministic, with faults on demand. It never
//! stands in for a real engine where the claim is about one; `body` checks that it behaves as they do.

pub mod body;
pub mod counters;
pub mod fake;
pub mod host;
pub mod image;
pub mod parts;
pub mod wait;
