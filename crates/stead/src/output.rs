//! What people and machines get to see: tables, JSON, errors.

use anyhow::Result;
use serde::Serialize;
use std::{
    fmt::Write as _,
    io::{self, Write},
    process::ExitCode,
};

/// A mistake in what was asked, not in the doing: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadInput(pub String);

/// Prints an error with its causes and the mend, and gives the exit code.
pub fn report(error: &anyhow::Error) -> ExitCode {
    let mut text = String::new();
    for cause in error.chain() {
        let part = cause.to_string();
        if text.contains(&part) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&part);
    }
    eprintln!("error: {}", text.trim_end());
    if let Some(hint) = error.chain().find_map(|e| e.downcast_ref::<stead_cluster::ClusterError>()?.hint()) {
        eprintln!("hint: {hint}");
    }
    let bad_input = error.chain().any(|e| {
        e.is::<BadInput>()
            || e.is::<stead_model::SpecError>()
            || e.downcast_ref::<stead_cluster::ClusterError>()
                .is_some_and(stead_cluster::ClusterError::is_bad_input)
            || e.downcast_ref::<stead_image::ImageError>().is_some_and(stead_image::ImageError::is_bad_input)
            || e.downcast_ref::<stead_fleet::remote::RemoteError>()
                .is_some_and(stead_fleet::remote::RemoteError::is_bad_input)
    });
    ExitCode::from(if bad_input { 2 } else { 1 })
}

/// Prints text on stdout; a reader that is gone ends the program quietly.
pub fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => Ok(other?),
    }
}

/// Prints a value as indented JSON.
pub fn json<T: Serialize>(value: &T) -> Result<()> {
    print(&(serde_json::to_string_pretty(value)? + "\n"))
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
    #[test]
    fn tables_align() {
        let rows = vec![vec!["node1".into(), "running".into()], vec!["n".into(), String::new()]];
        assert_eq!(super::table(&["NAME", "PHASE"], &rows), "NAME   PHASE\nnode1  running\nn\n");
    }
}
