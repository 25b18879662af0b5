//! Running and timing programs.

use anyhow::{Context, Result, bail};
use std::{
    process::{Command, Stdio},
    time::Instant,
};

/// Runs a program to its end and returns its output; if it fails, the error has its output.
///
/// # Errors
/// It cannot be started, or exits with anything but 0.
pub fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let args: Vec<_> = command.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
    let done = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {program}"))?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        let tail: Vec<&str> = said.lines().rev().take(15).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        bail!("{program} {} ({}): {}", args.join(" "), done.status, tail.join("\n"));
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// Duration of `f` in seconds.
///
/// # Errors
/// Those of `f`.
pub fn seconds<T>(f: impl FnOnce() -> Result<T>) -> Result<f64> {
    let began = Instant::now();
    f()?;
    Ok(began.elapsed().as_secs_f64())
}

/// Medians of two measurements, (first, second), taken in turns so that other load on the machine affects both.
///
/// # Errors
/// Those of the two.
pub fn in_turns(
    runs: usize,
    mut first: impl FnMut() -> Result<f64>,
    mut second: impl FnMut() -> Result<f64>,
) -> Result<(f64, f64)> {
    let (mut a, mut b) = (Vec::with_capacity(runs), Vec::with_capacity(runs));
    for run in 0..runs {
        // The order alternates, because the second one finds warm caches.
        if run % 2 == 0 {
            a.push(first()?);
            b.push(second()?);
        } else {
            b.push(second()?);
            a.push(first()?);
        }
        eprintln!("bench:   run {} of {runs}: {:.2}, floor {:.2}", run + 1, a[run], b[run]);
    }
    Ok((median(a), median(b)))
}

/// Median of repeated measurements.
///
/// # Errors
/// Those of `f`.
pub fn repeated(runs: usize, mut f: impl FnMut() -> Result<f64>) -> Result<f64> {
    Ok(median((0..runs).map(|_| f()).collect::<Result<_>>()?))
}

/// The middle value, or the mean of the two middle ones; NaN for no values.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    match n {
        0 => f64::NAN,
        _ if n % 2 == 1 => values[n / 2],
        _ => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0]), 2.5);
        assert!(median(vec![]).is_nan());
    }

    #[test]
    fn a_failure_shows_the_programs_output() {
        let error =
            output(Command::new("sh").args(["-c", "echo no room >&2; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("no room"), "{error}");
    }
}
