//! PID 1 and agent of every Stead node.

pub mod api;
pub mod engine;
pub mod handle;
pub mod reaper;
