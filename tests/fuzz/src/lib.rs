//! A fuzz harness on stable Rust: parsers as plain functions, mutated seeds, a number that repeats a run.
//!
//! Tools that are led by coverage need a nightly compiler, which the project does not; seeds that parse, and mutations that know what
//! numbers and texts look like, take the place of coverage.

mod mutate;
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

pub use targets::targets;

/// Longest time for one input: limits of sizes and depths must keep every parser far below.
const SLOW: Duration = Duration::from_secs(5);

/// Parses, and checks whatever must hold of what is accepted. Fails by panicking.
pub type Parser = Box<dyn Fn(&[u8]) + Send>;

/// A parser, and inputs that it accepts.
pub struct Target {
    /// What it parses.
    pub name: &'static str,
    /// Where mutations begin.
    pub seeds: Vec<Vec<u8>>,
    /// The parser.
    pub run: Parser,
}

/// How a run went.
#[derive(Debug)]
pub struct Runs {
    /// How many inputs were tried.
    pub inputs: u64,
    /// The slowest.
    pub slowest: Duration,
}

impl Target {
    /// Tries mutations of the seeds until the time is over. The same seed gives the same inputs.
    ///
    /// # Errors
    /// The input that made the parser panic, or take too long, as hexadecimal digits, and its number.
    pub fn fuzz(&self, seed: u64, time: Duration) -> Result<Runs, String> {
        let mut random = fastrand::Rng::with_seed(seed);
        let begin = Instant::now();
        let mut runs = Runs { inputs: 0, slowest: Duration::ZERO };
        let mut input = Vec::new();
        while begin.elapsed() < time {
            mutate::mutate(&mut random, &self.seeds, &mut input);
            let at = Instant::now();
            let outcome = catch_unwind(AssertUnwindSafe(|| (self.run)(&input)));
            let took = at.elapsed();
            runs.slowest = runs.slowest.max(took);
            if outcome.is_err() || took > SLOW {
                let what = if outcome.is_err() { "panics" } else { "is slow" };
                let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
                return Err(format!("{} {what} at input {} of seed {seed} ({took:?}): {hex}", self.name, runs.inputs));
            }
            runs.inputs += 1;
        }
        Ok(runs)
    }
}
