//! What people and programs get to see: streams, tables, JSON, sizes.

use crate::error::{Error, Result};
use serde::Serialize;
use std::{
    fmt::{Display, Write as _},
    io::{self, Write},
    sync::{Arc, Mutex, PoisonError},
};

/// Standard output and standard error of a command. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Output {
    out: Stream,
    err: Stream,
}

/// One of them.
#[derive(Clone)]
pub struct Stream(Arc<Mutex<dyn Write + Send>>);

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Stream").finish_non_exhaustive()
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).flush()
    }
}

impl Stream {
    fn to(writer: impl Write + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(writer)))
    }
}

/// What a command printed.
#[derive(Debug, Clone, Default)]
pub struct Captured {
    out: Buffer,
    err: Buffer,
}

#[derive(Debug, Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Buffer {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

impl Captured {
    /// What it printed on standard output so far.
    pub fn stdout(&self) -> String {
        self.out.text()
    }
    /// What it printed on standard error so far.
    pub fn stderr(&self) -> String {
        self.err.text()
    }
}

impl Output {
    /// Those of this process.
    pub fn of_this_process() -> Self {
        Self { out: Stream::to(io::stdout()), err: Stream::to(io::stderr()) }
    }

    /// Memory, for tests.
    pub fn captured() -> (Self, Captured) {
        let captured = Captured::default();
        (Self { out: Stream::to(captured.out.clone()), err: Stream::to(captured.err.clone()) }, captured)
    }

    /// Standard output.
    pub(crate) fn out(&self) -> Stream {
        self.out.clone()
    }

    /// Standard error.
    pub(crate) fn err(&self) -> Stream {
        self.err.clone()
    }

    /// Prints on standard output.
    ///
    /// # Errors
    /// [`Error::ReaderGone`] when nobody reads it any more.
    pub(crate) fn print(&self, text: impl AsRef<[u8]>) -> Result<()> {
        let mut out = self.out();
        match out.write_all(text.as_ref()).and_then(|()| out.flush()) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Err(Error::ReaderGone),
            other => Ok(other?),
        }
    }

    /// Prints a value as indented JSON.
    pub(crate) fn json<T: Serialize>(&self, value: &T) -> Result<()> {
        self.print(serde_json::to_string_pretty(value)? + "\n")
    }

    /// Prints on standard error without ending the line.
    pub(crate) fn prompt(&self, text: &str) {
        let mut err = self.err();
        let _ = err.write_all(text.as_bytes()).and_then(|()| err.flush());
    }

    /// Prints a line on standard error, if anybody reads it.
    pub(crate) fn note(&self, text: impl Display) {
        let mut err = self.err();
        let _ = err.write_all(format!("{text}\n").as_bytes()).and_then(|()| err.flush());
    }
}

/// A table with aligned columns, as text.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (w, cell) in widths.iter_mut().zip(row) {
            *w = (*w).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for (cell, width) in cells.zip(&widths) {
            let _ = write!(text, "{cell:<width$}  ");
        }
        out.push_str(text.trim_end());
        out.push('\n');
    };
    line(&mut header.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
    out
}

/// Bytes for people: `107 MiB`.
pub fn size(bytes: u64) -> String {
    match bytes {
        b if b >= 10 << 30 => format!("{} GiB", b >> 30),
        b if b >= 10 << 20 => format!("{} MiB", b >> 20),
        b if b >= 10 << 10 => format!("{} KiB", b >> 10),
        b => format!("{b} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align() {
        let rows = vec![vec!["node1".into(), "running".into()], vec!["n".into(), String::new()]];
        assert_eq!(table(&["NAME", "PHASE"], &rows), "NAME   PHASE\nnode1  running\nn\n");
    }

    #[test]
    fn a_reader_that_has_gone_ends_the_verb_without_an_error() {
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (captured, read) = Output::captured();
        let output = Output { out: Stream::to(Gone), ..captured };
        let error = output.print("text").unwrap_err();
        assert_eq!(crate::error::report(&error, &output, false), 0);
        assert_eq!(read.stderr(), "");
    }
}
