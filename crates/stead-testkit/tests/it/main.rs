//! Tests of the engine in memory.

mod fake;
