//! Every error of a teardown, not just the first.

use std::fmt;
use stead_os::Chain;

/// What could not be removed; each entry is one error with its causes.
#[derive(Debug)]
pub struct TeardownError(pub Vec<Box<dyn std::error::Error + Send + Sync>>);

impl fmt::Display for TeardownError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{}", Chain(&**error))?;
        }
        Ok(())
    }
}
impl std::error::Error for TeardownError {}

/// Collects errors while work goes on.
#[derive(Debug, Default)]
pub(crate) struct Failures(Vec<Box<dyn std::error::Error + Send + Sync>>);

impl Failures {
    /// Keeps the error of `result`.
    pub(crate) fn note<E: std::error::Error + Send + Sync + 'static>(&mut self, result: Result<(), E>) {
        if let Err(e) = result {
            self.0.push(Box::new(e));
        }
    }
    /// Takes over what another teardown could not do.
    pub(crate) fn absorb(&mut self, result: Result<(), TeardownError>) {
        if let Err(e) = result {
            self.0.extend(e.0);
        }
    }
    pub(crate) fn into_result(self) -> Result<(), TeardownError> {
        if self.0.is_empty() { Ok(()) } else { Err(TeardownError(self.0)) }
    }
}
