//! The verbs: a file holds the arguments of one and what it does, from what was typed to the library and back to the
//! screen. They are listed in [`crate::cli`].

pub mod completions;
pub mod console;
pub mod cp;
pub mod doctor;
pub mod down;
pub mod env;
pub mod exec;
pub mod fleet;
pub mod image;
pub mod logs;
pub mod ls;
pub mod machine;
pub mod man;
pub mod network;
pub mod one;
pub mod reboot;
pub mod scale;
pub mod schema;
pub mod shell;
pub mod status;
pub mod up;

use crate::{
    cli::App,
    error::{Doing, Error, Result},
};
use serde::de::DeserializeOwned;
use std::{fs, io::Read, path::Path};

/// Reads a text file that the user named, or standard input for `-`; with the name that errors call it by.
fn read_text(app: &App, path: &Path) -> Result<(String, String)> {
    let name = path.display().to_string();
    let bytes = if name == "-" {
        let mut bytes = Vec::new();
        std::io::stdin().lock().read_to_end(&mut bytes).context("cannot read standard input")?;
        bytes
    } else {
        fs::read(app.context.absolute(path)).named_by_user(format!("cannot read {name}"))?
    };
    let text = String::from_utf8(bytes).map_err(|_| Error::bad_input(format!("{name} is not UTF-8 text")))?;
    Ok((name, text))
}

/// Reads a spec that another `stead` wrote.
fn read_spec<T: DeserializeOwned>(app: &App, path: &Path) -> Result<T> {
    let (name, text) = read_text(app, path)?;
    serde_json::from_str(&text).named_by_user(format!("cannot understand {name}"))
}

/// `KEY=VALUE`, for clap.
fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("not of the form KEY=VALUE".to_owned()),
    }
}
