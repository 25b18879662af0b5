//! What a script says: log lines and the failure on stderr, its answer on stdout, its exit code.
//!
//! Lines `INFO: <script>: …`, `ERROR: <script>: …` and `DEBUG: <script>: …` become lines of the VM's log. As the text of
//! a failure OpenNebula 6.2 and later take all of stderr, 5.8 to 6.0 what stands between the two marks; a failure is
//! written in both forms.

use std::{fmt::Display, io::Write};

/// Before a failure's text.
pub(crate) const FAILURE_BEGINS: &str = "ERROR MESSAGE --8<------";
/// After it.
pub(crate) const FAILURE_ENDS: &str = "ERROR MESSAGE ------>8--";
/// A line of the log is not longer than this.
const MAX_LINE_CHARS: usize = 4000;

/// How a script ends. There is no third way: 42 would tell OpenNebula that its scripts are missing here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Exit 0.
    Success,
    /// Exit 1.
    Failure,
}

impl Ending {
    /// The process' exit code.
    pub fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failure => 1,
        }
    }
}

/// Writes a script's log.
pub struct Log<'a> {
    script: &'static str,
    to: Box<dyn Write + 'a>,
}

impl std::fmt::Debug for Log<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").field("script", &self.script).finish_non_exhaustive()
    }
}

impl<'a> Log<'a> {
    /// Lines of `script` to `to`, which is stderr but in tests.
    pub fn new(script: &'static str, to: impl Write + 'a) -> Self {
        Self { script, to: Box::new(to) }
    }
    /// Something worth knowing.
    pub fn info(&mut self, text: impl Display) {
        self.line("INFO", &text.to_string());
    }
    /// Something that went wrong without ending the script.
    pub fn error(&mut self, text: impl Display) {
        self.line("ERROR", &text.to_string());
    }
    /// For whoever looks for a fault.
    pub fn debug(&mut self, text: impl Display) {
        self.line("DEBUG", &text.to_string());
    }
    /// The error that ended the script, with all its causes, in both forms.
    pub fn failure(&mut self, error: &(dyn std::error::Error + 'static)) {
        let text = stead_os::chain(error);
        self.line("ERROR", &text);
        let _ = writeln!(self.to, "{FAILURE_BEGINS}\n{}\n{FAILURE_ENDS}", one_line(&text));
        let _ = self.to.flush();
    }

    fn line(&mut self, level: &str, text: &str) {
        // Nobody can be told that the log cannot be written.
        let _ = writeln!(self.to, "{level}: {}: {}", self.script, one_line(text));
    }
}

/// Text in one line and without control characters: a document cannot forge lines of the log.
fn one_line(text: &str) -> String {
    let line = text.trim_end().chars().map(|c| if c.is_control() { ' ' } else { c });
    line.take(MAX_LINE_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot map disk 1")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn a_failure_is_said_in_both_forms() {
        let mut out = Vec::new();
        let mut log = Log::new("deploy", &mut out);
        log.info("begins");
        log.failure(&Outer(std::io::Error::other("no such\nfile")));
        drop(log);
        insta::assert_snapshot!(String::from_utf8(out).unwrap(), @r"
        INFO: deploy: begins
        ERROR: deploy: cannot map disk 1: no such file
        ERROR MESSAGE --8<------
        cannot map disk 1: no such file
        ERROR MESSAGE ------>8--
        ");
    }

    #[test]
    fn there_is_no_42() {
        assert_eq!([Ending::Success.code(), Ending::Failure.code()], [0, 1]);
    }
}
