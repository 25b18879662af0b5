//! Checks of the whole repository.

mod dependencies;
mod fuzz_seeds;
mod seams;
