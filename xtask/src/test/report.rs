//! Results of a run: a JUnit file, durations for the next run, and the tables at its end.

use super::{Durations, Ran, process::Outcome, rules::Tier};
use anyhow::{Context, Result};
use std::{
    collections::BTreeMap,
    fmt::Write,
    fs, io,
    path::{Path, PathBuf},
};

/// How many of the slowest tests are shown.
const SLOWEST: usize = 20;
/// How many lines of the end of a failed test's output are shown.
const SHOWN_LINES: usize = 200;
/// Tests that took longer than this, in seconds, get a line while others run.
const WORTH_TELLING_S: f64 = 1.0;
/// The least duration kept with the sources, in seconds: shorter tests need not start early.
const WORTH_KEEPING_S: f64 = 2.0;

/// The file with the durations, beside the results of a run, for the next one.
fn durations_file(out: &Path) -> PathBuf {
    out.with_file_name("durations.json")
}

/// The expected duration of each test: from the last run here, otherwise from the durations kept with the sources.
///
/// # Errors
/// An existing file cannot be read.
pub fn expected(out: &Path) -> Result<Durations> {
    let mut durations = Durations::new();
    for file in [Path::new("tools/durations.json"), &durations_file(out)] {
        match fs::read(file) {
            Ok(text) => {
                let read: Durations = serde_json::from_slice(&text)
                    .with_context(|| format!("cannot read {}", file.display()))?;
                durations.extend(read);
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", file.display())),
        }
    }
    Ok(durations)
}

/// Prints a line for a test that is slow or does not pass, and at round numbers.
pub fn progress(ran: Option<&Ran>, done: usize, total: usize) {
    let Some(ran) = ran else { return };
    let name = ran.plan.test.full_name();
    let text = text(&ran.output);
    let lines: Vec<&str> = text.lines().collect();
    let show = |lines: &[&str]| {
        println!("{}\n---", lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n"));
    };
    for part in &ran.parts {
        match &part.outcome {
            Outcome::Failed(why) => {
                println!("FAIL {:>6.1} s  {name}/{}: {why}", part.seconds, part.name);
                show(&lines[part.lines.clone()]);
            }
            Outcome::Skipped(why) => println!("SKIP {:>6.1} s  {name}/{}: {why}", part.seconds, part.name),
            Outcome::Passed => {}
        }
    }
    match &ran.outcome {
        Outcome::Failed(why) => {
            println!("FAIL {:>6.1} s  {name}: {why}", ran.seconds);
            show(&lines);
        }
        Outcome::Skipped(why) => println!("SKIP {:>6.1} s  {name}: {why}", ran.seconds),
        Outcome::Passed if ran.seconds >= WORTH_TELLING_S => println!("ok   {:>6.1} s  {name}", ran.seconds),
        Outcome::Passed if done.is_multiple_of(100) || done == total => println!("     {done} of {total}"),
        Outcome::Passed => {}
    }
}

/// What a test has printed.
pub fn text(output: &Path) -> String {
    String::from_utf8_lossy(&fs::read(output).unwrap_or_default()).into_owned()
}

/// A test or a part of one, as it is counted.
struct Counted<'r> {
    name: String,
    seconds: f64,
    outcome: &'r Outcome,
    ran: &'r Ran,
}

/// Everything that counts: the parts of a test, then the test itself, for what it does beside them.
fn counted(ran: &[Ran]) -> impl Iterator<Item = Counted<'_>> {
    ran.iter().flat_map(|ran| {
        let name = &ran.plan.test.name;
        let in_parts: f64 = ran.parts.iter().map(|p| p.seconds).sum();
        let whole = Counted {
            name: name.clone(),
            seconds: (ran.seconds - in_parts).max(0.0),
            outcome: &ran.outcome,
            ran,
        };
        let parts = ran.parts.iter().map(move |p| Counted {
            name: format!("{name}/{}", p.name),
            seconds: p.seconds,
            outcome: &p.outcome,
            ran,
        });
        parts.chain([whole])
    })
}

/// Writes `junit.xml`, the durations, and the counts with a line for each test that did not pass (`counts`).
///
/// # Errors
/// A file cannot be written.
pub fn write(out: &Path, ran: &[Ran]) -> Result<()> {
    let mut durations = expected(out)?;
    durations.extend(ran.iter().map(|r| (r.plan.test.full_name(), (r.seconds * 1000.0).round() / 1000.0)));
    let kept: Durations = durations
        .iter()
        .filter(|(_, s)| **s >= WORTH_KEEPING_S)
        .map(|(n, s)| (n.clone(), s.round()))
        .collect();
    for (file, text) in [
        (out.join("junit.xml"), junit(ran)),
        (out.join("counts"), counts(ran)),
        (durations_file(out), serde_json::to_string_pretty(&durations)? + "\n"),
        (out.join("durations-to-keep.json"), serde_json::to_string_pretty(&kept)? + "\n"),
    ] {
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// Passed, failed, skipped.
fn tally(ran: &[Ran]) -> [usize; 3] {
    let mut tally = [0; 3];
    for r in counted(ran) {
        tally[match r.outcome {
            Outcome::Passed => 0,
            Outcome::Failed(_) => 1,
            Outcome::Skipped(_) => 2,
        }] += 1;
    }
    tally
}

/// First line "passed failed skipped", then a line for each failure and each skip.
fn counts(ran: &[Ran]) -> String {
    let [passed, failed, skipped] = tally(ran);
    let mut out = format!("{passed} {failed} {skipped}\n");
    for r in counted(ran) {
        let name = format!("{}{}", r.ran.plan.test.prefix(), r.name);
        let _ = match r.outcome {
            Outcome::Passed => Ok(()),
            Outcome::Failed(why) => writeln!(out, "FAIL {name}: {why}"),
            Outcome::Skipped(why) => writeln!(out, "SKIP {name}: {why}"),
        };
    }
    out
}

/// The slowest tests, the time by tier, and the counts in the last line.
pub fn summary(ran: &[Ran], wall_s: f64) -> String {
    let mut out = String::from("\nslowest tests\n");
    let mut slowest: Vec<&Ran> = ran.iter().collect();
    slowest.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    for r in slowest.iter().take(SLOWEST) {
        let _ = writeln!(
            out,
            "{:>8.1} s  {:<8}  {}",
            r.seconds,
            r.plan.rule.tier.name(),
            r.plan.test.full_name()
        );
    }
    let _ = writeln!(out, "\n{:<8}  {:>5}  {:>9}", "tier", "tests", "seconds");
    for tier in Tier::ALL {
        let of: Vec<&Ran> = ran.iter().filter(|r| r.plan.rule.tier == tier).collect();
        let seconds = of.iter().fold(0.0, |sum, r| sum + r.seconds);
        let number: usize = of.iter().map(|r| r.parts.len() + 1).sum();
        let _ = writeln!(out, "{:<8}  {number:>5}  {seconds:>9.1}", tier.name());
    }
    let all: f64 = ran.iter().map(|r| r.seconds).sum();
    let _ = writeln!(out, "{:<8}  {:>5}  {all:>9.1}  in {wall_s:.0} s", "all", counted(ran).count());
    for line in counts(ran).lines().skip(1) {
        let _ = writeln!(out, "{line}");
    }
    let [passed, failed, skipped] = tally(ran);
    let _ = writeln!(out, "\n{passed} passed, {failed} failed, {skipped} skipped");
    out
}

fn junit(ran: &[Ran]) -> String {
    let mut suites: BTreeMap<String, Vec<Counted<'_>>> = BTreeMap::new();
    for r in counted(ran) {
        let b = &r.ran.plan.test.binary;
        let suite = match &b.integration {
            Some(name) => format!("{}::{name}", b.package),
            None => b.package.clone(),
        };
        suites.entry(suite).or_default().push(r);
    }
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n");
    for (suite, ran) in suites {
        let number = |which: fn(&Outcome) -> bool| ran.iter().filter(|r| which(r.outcome)).count();
        let _ = writeln!(
            out,
            "  <testsuite name=\"{}\" tests=\"{}\" failures=\"{}\" skipped=\"{}\" time=\"{:.3}\">",
            escaped(&suite),
            ran.len(),
            number(|o| matches!(o, Outcome::Failed(_))),
            number(|o| matches!(o, Outcome::Skipped(_))),
            ran.iter().map(|r| r.seconds).sum::<f64>(),
        );
        for r in ran {
            let _ = write!(
                out,
                "    <testcase classname=\"{}\" name=\"{}\" time=\"{:.3}\"",
                escaped(&suite),
                escaped(&r.name),
                r.seconds
            );
            let _ = match r.outcome {
                Outcome::Passed => writeln!(out, "/>"),
                Outcome::Skipped(why) => writeln!(out, "><skipped message=\"{}\"/></testcase>", escaped(why)),
                Outcome::Failed(why) => {
                    let text = escaped(&text(&r.ran.output));
                    writeln!(out, "><failure message=\"{}\">{text}</failure></testcase>", escaped(why))
                }
            };
        }
        out.push_str("  </testsuite>\n");
    }
    out.push_str("</testsuites>\n");
    out
}

/// Escapes text for XML; characters that XML does not allow are left out.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\t' | '\r' => out.push(c),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test::{
        Planned,
        binaries::{Binary, Test},
        process::Part,
        rules,
    };
    use std::sync::Arc;

    fn ran(name: &str, seconds: f64, outcome: Outcome) -> Ran {
        let binary = Binary {
            package: "p".into(),
            folder: "/".into(),
            workspace: "/".into(),
            file: "/b".into(),
            integration: Some("it".into()),
        };
        let test = Test { binary: Arc::new(binary), name: name.into() };
        let rule = rules::of(&test.full_name());
        let plan = Arc::new(Planned { test, rule });
        Ran { plan, seconds, outcome, output: "/nowhere".into(), parts: Vec::new() }
    }

    #[test]
    fn parts_count_as_tests() {
        let part = |name: &str, seconds, outcome| Part { name: name.into(), seconds, outcome, lines: 0..0 };
        let mut whole = ran("m::t", 10.0, Outcome::Failed("exit status: 101".into()));
        whole.parts = vec![
            part("one", 4.0, Outcome::Passed),
            part("two", 3.0, Outcome::Failed("no".into())),
            part("three", 0.0, Outcome::Skipped("not here".into())),
        ];
        let ran = [whole, ran("a", 0.5, Outcome::Passed)];
        assert_eq!(
            counts(&ran),
            "2 2 1\nFAIL p::it::m::t/two: no\nSKIP p::it::m::t/three: not here\nFAIL p::it::m::t: exit status: 101\n"
        );
        let xml = junit(&ran);
        assert!(xml.contains(r#"tests="5" failures="2" skipped="1" time="10.500">"#), "{xml}");
        assert!(xml.contains(r#"name="m::t/one" time="4.000"/>"#), "{xml}");
        assert!(xml.contains(r#"name="m::t" time="3.000"><failure"#), "{xml}");
        let text = summary(&ran, 11.0);
        assert!(text.contains("all           5       10.5  in 11 s\n"), "{text}");
        assert!(text.contains("10.0 s  files     p::it::m::t\n"), "{text}");
    }

    #[test]
    fn a_run_is_reported_in_tables_and_files() {
        let ran = [
            ran("a", 0.5, Outcome::Passed),
            ran("b", 2.0, Outcome::Failed("exit status: 101".into())),
            ran("c", 0.1, Outcome::Skipped("needs <root>".into())),
        ];
        let text = summary(&ran, 2.2);
        let slowest = text.lines().nth(2).unwrap();
        assert!(slowest.ends_with("p::it::b") && slowest.contains("2.0 s  files"), "{text}");
        assert!(text.ends_with("SKIP p::it::c: needs <root>\n\n1 passed, 1 failed, 1 skipped\n"), "{text}");
        assert!(text.contains("all           3        2.6  in 2 s\n"), "{text}");
        assert!(counts(&ran).starts_with("1 1 1\nFAIL p::it::b: exit status: 101\n"));
        let xml = junit(&ran);
        assert!(
            xml.contains(r#"<testsuite name="p::it" tests="3" failures="1" skipped="1" time="2.600">"#),
            "{xml}"
        );
        assert!(xml.contains(r#"<skipped message="needs &lt;root&gt;"/></testcase>"#), "{xml}");
        assert!(xml.contains(r#"<testcase classname="p::it" name="a" time="0.500"/>"#), "{xml}");
    }

    #[test]
    fn xml_has_no_forbidden_characters() {
        assert_eq!(escaped("a\u{1b}[1m<b>\0 & \"c\"\n"), "a[1m&lt;b&gt; &amp; &quot;c&quot;\n");
    }
}
