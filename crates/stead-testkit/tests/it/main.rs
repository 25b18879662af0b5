//! The engine in memory passes what real ones must.

mod fake;
