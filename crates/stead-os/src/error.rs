//! The error of an operation on a path, and how an error is shown with its causes.

use std::{
    error::Error,
    fmt, io,
    path::{Path, PathBuf},
};

/// An operation on a path failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", .path.display())]
pub struct PathError {
    /// What was tried, as a verb that the path completes: `read`, `attach a loop device to`.
    pub operation: &'static str,
    /// The path.
    pub path: PathBuf,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

impl PathError {
    /// For `map_err`: adds operation and path to an I/O error.
    pub fn new<E: Into<io::Error>>(operation: &'static str, path: &Path) -> impl FnOnce(E) -> Self + Copy {
        move |source| Self { operation, path: path.to_owned(), source: source.into() }
    }

    /// The kind of the I/O error.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }
}

/// Adds operation and path to the error of a result.
pub trait PathContext<T> {
    /// Turns the error into a [`PathError`].
    ///
    /// # Errors
    /// The result's own.
    fn at(self, operation: &'static str, path: impl AsRef<Path>) -> Result<T, PathError>;
}

impl<T, E: Into<io::Error>> PathContext<T> for Result<T, E> {
    fn at(self, operation: &'static str, path: impl AsRef<Path>) -> Result<T, PathError> {
        self.map_err(PathError::new(operation, path.as_ref()))
    }
}

/// Shows an error and its causes as `error: cause: cause`. A cause whose text is already shown is left out.
#[derive(Debug, Clone, Copy)]
pub struct Chain<'e>(pub &'e (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&chain(self.0))
    }
}

/// An error and its causes in one text, as [`Chain`] shows them.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let part = cause.to_string();
        // Some errors pass their cause through or quote it.
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Outer {
        #[error("node n1 does not start")]
        Start(#[source] PathError),
        #[error(transparent)]
        Through(PathError),
        #[error("twice: {0}")]
        Quoting(#[source] PathError),
    }

    fn inner() -> PathError {
        Err::<(), _>(rustix::io::Errno::NOENT).at("read", "/a").unwrap_err()
    }

    #[test]
    fn causes_follow_and_nothing_is_said_twice() {
        let why = "No such file or directory (os error 2)";
        assert_eq!(inner().kind(), io::ErrorKind::NotFound);
        assert_eq!(chain(&inner()), format!("cannot read /a: {why}"));
        assert_eq!(chain(&Outer::Start(inner())), format!("node n1 does not start: cannot read /a: {why}"));
        assert_eq!(chain(&Outer::Through(inner())), format!("cannot read /a: {why}"));
        assert_eq!(chain(&Outer::Quoting(inner())), format!("twice: cannot read /a: {why}"));
        assert_eq!(Chain(&inner()).to_string(), chain(&inner()));
    }
}
