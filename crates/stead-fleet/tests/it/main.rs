//! Fleet work against an engine in memory.

mod rebalance;
mod unharmed;
