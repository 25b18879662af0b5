//! The builder with real tools.

mod debian;
mod store;
