//! Plans: scenarios, properties over random clusters, batches of new instances.

mod common;
mod place;
mod properties;
mod scenarios;
