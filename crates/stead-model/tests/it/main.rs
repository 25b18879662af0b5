//! The files that ship with Stead.

mod examples;
