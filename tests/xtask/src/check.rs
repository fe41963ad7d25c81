//! `cargo xtask check`: what a machine can hold in place of a reviewer.

mod dependencies;
mod tree;

use crate::binaries::cargo;
use crate::packages;
use crate::stage::{Stages, run as run_command};

const HELP: &str = "\
Formatting, lints, licences, dependency rules, file budgets, README freshness.

Usage: cargo xtask check [--write]

  --write   bring the generated parts of the README up to date instead of complaining
";

/// `cargo xtask check`.
pub(crate) fn run(args: &[String]) -> Result<(), String> {
    let Some(options) = crate::parse(args, HELP, &["--write"], &[])? else { return Ok(()) };
    if options.has("--write") {
        return tree::write_code_map();
    }
    let mut stages = Stages::new();
    // Lints compile everything.
    stages.run("packages", || packages::ensure(&[packages::BUILD, packages::CONTAINERD]))?;
    let result = all(&mut stages);
    stages.print_table();
    result
}

/// Every check as a stage of its own.
pub(crate) fn all(stages: &mut Stages) -> Result<(), String> {
    stages.run("check formatting", || run_command(cargo().args(["fmt", "--all", "--check"])))?;
    stages.run("check dependency rules and licences", dependencies::check)?;
    stages.run("check files and README", tree::check)?;
    stages.run("check lints", || {
        run_command(cargo().args(["clippy", "--locked", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]))
    })
}
