//! The builder with real tools.

mod debian;
mod hard_links;
mod programs;
mod store;
