//! For tests only: an in-memory cluster that answers as Incus or LXD does ([`fake`]), a tiny image for real ones
//! ([`image`]), a kernel's counters ([`counters`]), and the checks that all of them must pass alike ([`body`]).
//!
//! The fake is for tests of what uses the engines' API: fast, the same every time, and going wrong when told to. It
//! never stands in for a real engine where the claim is about one; `body` is what keeps it honest.

pub mod body;
pub mod counters;
pub mod fake;
pub mod image;
