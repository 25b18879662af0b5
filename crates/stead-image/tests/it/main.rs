//! The builder with real tools.

mod container;
mod debian;
mod hard_links;
mod programs;
mod store;
