//! Downloads by curl: its invocation as a value; its output is bounded and hashed on the way to the disk.

use crate::{
    digest::HashWriter,
    error::{ImageError, IoContext, Result},
    tools::{CURL, Invocation, Stopper},
};
use std::{
    fs::File,
    io::{Read, Write},
    path::Path,
};
use stead_model::{Bytes, Digest};

/// The largest file that is downloaded. Releases of Kubernetes with all its programs have 0.5 GiB.
pub const MAX_BYTES: u64 = 4 << 30;
/// Release pages redirect once or twice.
const MAX_REDIRECTS: &str = "5";
/// A server that does not answer within this is down.
const CONNECT_TIMEOUT_S: &str = "30";
/// Gives up after a minute with less than a kilobyte a second.
const STALL: [&str; 4] = ["--speed-limit", "1024", "--speed-time", "60"];
/// Progress is reported after this many bytes.
const NOTE_EVERY_BYTES: u64 = 4 << 20;

/// curl writing what is at `url` to standard output.
pub fn invocation(url: &str) -> Invocation {
    let args = [
        // No configuration of the user's.
        "--disable",
        "--silent",
        "--show-error",
        "--fail",
        "--globoff",
        "--location",
        "--max-redirs",
        MAX_REDIRECTS,
        "--proto",
        "=https",
        "--proto-redir",
        "=https",
        "--connect-timeout",
        CONNECT_TIMEOUT_S,
    ];
    Invocation::new(CURL, args.into_iter().chain(STALL).chain(["--url", url]))
}

/// Writes the output of `run`, at most `limit` bytes, to `to` and compares its digest.
///
/// # Errors
/// [`ImageError::Download`]; [`ImageError::Input`] if the digest is another.
pub fn download(
    stopper: &Stopper,
    run: &Invocation,
    url: &str,
    sha256: &Digest,
    limit: u64,
    to: &Path,
    mut note: impl FnMut(&str),
) -> Result<()> {
    let mut file = HashWriter::new(File::create(to).at("make", to)?);
    let (mut len, mut noted) = (0u64, 0u64);
    let read = |mut stdout: std::process::ChildStdout| {
        let mut buf = vec![0; 256 << 10];
        loop {
            let n = stdout.read(&mut buf).at("read the output of", CURL.name)?;
            if n == 0 {
                return Ok(());
            }
            len += n as u64;
            if len > limit {
                return Ok(());
            }
            file.write_all(&buf[..n]).at("write", to)?;
            if len - noted >= NOTE_EVERY_BYTES {
                noted = len;
                note(&format!("{} of {url}", Bytes(len >> 20 << 20)));
            }
        }
    };
    let (status, said) = stopper.run(run, read, |_| ())?;
    if len > limit {
        return Err(ImageError::input(url, format!("has more than {} bytes", limit)));
    }
    if !status.success() {
        return Err(explain(url, status.code(), &String::from_utf8_lossy(&said)));
    }
    let (_, found, len) = file.finish();
    if found != *sha256 {
        let why = format!(
            "its {len} bytes have the SHA-256 {}, not {} as the recipe says",
            found.hex(),
            sha256.hex()
        );
        return Err(ImageError::input(url, why));
    }
    Ok(())
}

/// What a failure of curl means.
fn explain(url: &str, code: Option<i32>, said: &str) -> ImageError {
    const HTTP_ERROR: i32 = 22;
    const PROTOCOL: i32 = 1;
    let line = said.lines().find(|l| l.starts_with("curl: (")).unwrap_or_default();
    let detail = line.split_once(") ").map_or(line, |(_, words)| words).trim();
    let gone = ["404", "410"].iter().any(|status| detail.ends_with(status));
    let detail = match code {
        None => "curl was ended by a signal".to_owned(),
        Some(PROTOCOL) => format!("it leads to an address that is not https ({detail})"),
        Some(code) if detail.is_empty() => format!("curl failed with {code}"),
        Some(_) => detail.to_owned(),
    };
    ImageError::Download { url: url.to_owned(), missing: code == Some(HTTP_ERROR) && gone, detail }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stead_model::Failure;

    #[test]
    fn nothing_but_https_is_asked_for() {
        let words = "curl --disable --silent --show-error --fail --globoff --location --max-redirs 5 --proto =https \
            --proto-redir =https --connect-timeout 30 --speed-limit 1024 --speed-time 60 --url https://h/x";
        assert_eq!(invocation("https://h/x").argv().join(" "), words);
    }

    #[test]
    fn failures_are_explained() {
        let e = explain("https://h/x", Some(22), "curl: (22) The requested URL returned error: 404\n");
        assert_eq!(e.to_string(), "https://h/x cannot be downloaded: The requested URL returned error: 404");
        assert!(e.is_bad_input());
        let e = explain("https://h/x", Some(6), "curl: (6) Could not resolve host: h\n");
        assert!(!e.is_bad_input() && e.to_string().ends_with("Could not resolve host: h"), "{e}");
        assert!(!explain("u", Some(22), "curl: (22) The requested URL returned error: 503").is_bad_input());
    }
}
