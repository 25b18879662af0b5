//! Kills at random moments.

use super::World;
use std::{
    process::Stdio,
    time::{Duration, Instant, SystemTime},
};

/// A small generator (xorshift64*), so that a failure can be reproduced by its seed.
pub struct Random(u64);

impl Random {
    pub fn new() -> Self {
        let seed = std::env::var("STEAD_TEST_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| {
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(1, |d| d.as_nanos() as u64 | 1)
        });
        println!("seed: STEAD_TEST_SEED={seed}");
        Self(seed)
    }
    /// Below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % n
    }
}

/// Starts the command and kills it after this time, unless it has ended.
pub fn killed(w: &World, args: &[&str], after: Duration) -> bool {
    let mut child = w.command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + after;
    while Instant::now() < deadline {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    true
}

/// Number of repetitions: `few` in CI, `many` on request (`make faults`).
pub fn often(few: u32, many: u32) -> u32 {
    if std::env::var_os("STEAD_TEST_FAULTS").is_some() { many } else { few }
}
