# Counts tests in logs. Understands cargo's test harness (run with --show-output) and plain lines "PASS name",
# "FAIL name: why", "SKIP name: why". A test of cargo's that says SKIP has not passed, whatever the harness thinks.
# Prints "passed failed skipped" on the first line, then a line for each failure and each skip.

function end_section() { section = "" }
# A harness that began and never came to its result: a failure nobody counted.
function died() { failed++; notes[++n] = "FAIL a test binary ended before its result" }

/^---- .* stdout ----$/ { section = substr($0, 6, length($0) - 17); next }
/^(successes|failures):$/ { end_section(); next }
/^running [0-9]+ tests?$/ { end_section(); if (in_harness) died(); in_harness = 1; next }
/^test result: / {
  end_section(); in_harness = 0
  for (i = 1; i < NF; i++) {
    if ($(i + 1) ~ /^passed/) passed += $i
    if ($(i + 1) ~ /^failed/) failed += $i
    if ($(i + 1) ~ /^ignored/) skipped += $i
  }
  passed -= said_skip; skipped += said_skip; said_skip = 0
  delete skipping
  next
}
in_harness && /^test .* \.\.\. FAILED$/ { notes[++n] = "FAIL " $2; next }
in_harness && /^test .* \.\.\. ignored/ { notes[++n] = "SKIP " $2 ": ignored"; next }
section != "" {
  if ($1 == "SKIP" && !(section in skipping)) { skipping[section] = 1; said_skip++; notes[++n] = $0 }
  next
}
in_harness { next }
$1 == "PASS" { passed++ }
$1 == "FAIL" { failed++; notes[++n] = $0 }
$1 == "SKIP" { skipped++; notes[++n] = $0 }

END {
  if (in_harness) died()
  print passed + 0, failed + 0, skipped + 0
  for (i = 1; i <= n; i++) print notes[i]
}
