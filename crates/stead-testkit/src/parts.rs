//! Parts of a test that share something costly to start, such as a cluster with an engine. Each part is reported, and the
//! parts after a failed one still run.
//!
//! The test runner (`cargo xtask test`) reads the lines printed here and counts each part as a test.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Instant,
};

/// How a line about a part begins: `PART name: ok|FAIL|SKIP SECONDS: reason`.
pub const MARK: &str = "PART ";

/// The parts of one test.
#[derive(Debug)]
pub struct Parts {
    failed: Vec<String>,
    report: fn(String),
}

impl Default for Parts {
    fn default() -> Self {
        Self { failed: Vec::new(), report: |line| println!("{line}") }
    }
}

impl Parts {
    /// No parts yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs a part and reports it. Returns its result, or `None` if it panicked; the next parts find shared state as the panic
    /// left it.
    pub fn run<T>(&mut self, name: &str, part: impl FnOnce() -> T) -> Option<T> {
        let began = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(part));
        let seconds = began.elapsed().as_secs_f64();
        match outcome {
            Ok(result) => {
                (self.report)(format!("{MARK}{name}: ok {seconds:.3}"));
                Some(result)
            }
            Err(panic) => {
                (self.report)(format!("{MARK}{name}: FAIL {seconds:.3}: {}", reason(&*panic)));
                self.failed.push(name.to_owned());
                None
            }
        }
    }

    /// Reports a part that cannot run here, and why.
    pub fn skip(&mut self, name: &str, why: &str) {
        (self.report)(format!("{MARK}{name}: SKIP 0: {why}"));
    }

    /// Whether a part has failed.
    pub fn any_failed(&self) -> bool {
        !self.failed.is_empty()
    }

    /// After the last part.
    ///
    /// # Panics
    /// A part failed.
    #[track_caller]
    pub fn end(self) {
        assert!(self.failed.is_empty(), "failed: {}", self.failed.join(", "));
    }
}

/// The message of a panic, in one line.
fn reason(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("panicked");
    text.lines().map(str::trim).collect::<Vec<_>>().join(" / ").chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn the_parts_after_a_failed_one_run() {
        // Not on standard output: the runner would read it.
        static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());
        let mut parts = Parts { report: |line| LINES.lock().unwrap().push(line), ..Parts::new() };
        assert_eq!(parts.run("one", || 1), Some(1));
        assert_eq!(parts.run("two", || -> i32 { panic!("broken") }), None);
        assert!(parts.any_failed());
        assert_eq!(parts.run("three", || 3), Some(3));
        parts.skip("four", "no four here");
        let end = catch_unwind(|| parts.end()).unwrap_err();
        assert_eq!(reason(&*end), "failed: two");
        let lines = LINES
            .lock()
            .unwrap()
            .iter()
            .map(|l| l.replace(|c: char| c.is_ascii_digit(), "0"))
            .collect::<Vec<_>>();
        assert_eq!(
            lines,
            [
                "PART one: ok 0.000",
                "PART two: FAIL 0.000: broken",
                "PART three: ok 0.000",
                "PART four: SKIP 0: no four here"
            ]
        );
        Parts::new().end();
    }

    #[test]
    fn reasons_are_one_line() {
        let of = |f: fn()| reason(&*catch_unwind(f).unwrap_err());
        assert_eq!(of(|| panic!("{}\n  {}", 1, 2)), "1 / 2");
        assert_eq!(of(|| std::panic::panic_any(7)), "panicked");
        assert_eq!(of(|| panic!("{}", "ü".repeat(400))).chars().count(), 300);
    }
}
