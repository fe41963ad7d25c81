//! `cargo xtask test`: installs what tests need, builds, runs every test, counts them.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::stage::Stages;
use crate::{binaries, check, containerd, moto, packages, trixie};

const HELP: &str = "\
Install what the tests need, build everything and run every test.

Usage: cargo xtask test [--quick] [FILTER]

  --quick   leave out formatting, lints and the other checks of `cargo xtask check`
  FILTER    run only tests whose name contains this

Needs root for network namespaces and containers. Tests bind port 0, use folders and namespaces of their own, clean up.
";

const TOOLS_HELP: &str = "\
Unpack the programs of others that tests are held against into the target folder, and print how tests find them.

Usage: cargo xtask tools

`cargo xtask test` does the same; this is for one test by hand: set what is printed, then `cargo test -p PACKAGE NAME`.
";

/// `cargo xtask tools`.
pub(crate) fn tools(args: &[String]) -> Result<(), String> {
    let Some(_) = crate::parse(args, TOOLS_HELP, &[], &[])? else { return Ok(()) };
    for (variable, path) in others(&mut Stages::new())? {
        println!("export {variable}={}", path.display());
    }
    Ok(())
}

/// Programs that nobody here wrote: the variables that tell tests where they are.
fn others(stages: &mut Stages) -> Result<[(&'static str, PathBuf); 3], String> {
    Ok([
        (containerd::VARIABLE, containerd::ensure(stages)?),
        (moto::VARIABLE, moto::ensure(stages)?),
        (trixie::VARIABLE, trixie::ensure(stages)?),
    ])
}

/// `cargo xtask test`.
pub(crate) fn run(args: &[String]) -> Result<(), String> {
    let Some(options) = crate::parse(args, HELP, &["--quick"], &[])? else { return Ok(()) };
    let mut stages = Stages::new();
    let mut count = Count::default();
    let result = all(&mut stages, options.has("--quick"), options.words.first().map(String::as_str), &mut count);
    stages.print_table();
    println!("\n{} passed, {} failed, {} skipped", count.passed, count.failed, count.skipped);
    result
}

fn all(stages: &mut Stages, is_quick: bool, filter: Option<&str>, count: &mut Count) -> Result<(), String> {
    stages
        .run("packages", || packages::ensure(&[packages::BUILD, packages::IMAGE, packages::RUN, packages::CONTAINERD, packages::TEST]))?;
    if !is_quick {
        check::all(stages)?;
    }
    let others = others(stages)?;
    let image = binaries::image_folder()?;
    binaries::image(stages, &image)?;
    // One selection of packages, features and targets for all of it: another one would compile most crates again, clouds' SDKs among them.
    let selection = ["--locked", "--workspace", "--exclude", "xtask", "--features", FEATURES];
    stages.run("build all programs and tests", || {
        crate::stage::run(binaries::cargo().arg("build").args(selection).args(["--bins", "--tests", "--quiet"]))
    })?;
    stages.run("all tests", || {
        let mut cargo = binaries::cargo();
        cargo.arg("test").args(selection).args(["--bins", "--tests", "--no-fail-fast"]);
        cargo.env("PEERPODS_IMAGE", &image).env("PEERPODS_BINARIES", binaries::folder("dev")?).envs(others.clone()).args(filter);
        counted(&mut cargo, count)
    })
}

/// Machines that are only namespaces, which no release has.
const FEATURES: &str = "peerpods-controller/local-sandbox,peerpods-mock-cloud/sandbox";

/// How many tests ran, summed over all test binaries.
#[derive(Default)]
struct Count {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Count {
    /// Reads libtest's closing line, `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
    fn add(&mut self, line: &str) {
        let Some(rest) = line.strip_prefix("test result:") else { return };
        let words: Vec<&str> = rest.split_whitespace().collect();
        for pair in words.windows(2) {
            let Ok(number) = pair[0].parse::<u64>() else { continue };
            match pair[1].trim_end_matches(';') {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.skipped += number,
                _ => {}
            }
        }
    }
}

fn counted(command: &mut Command, count: &mut Count) -> Result<(), String> {
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(|e| format!("cannot start cargo test: {e}"))?;
    let stdout = child.stdout.take().ok_or("cargo test has no output")?;
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.map_err(|e| format!("reading cargo test: {e}"))?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        count.add(&line);
    }
    let status = child.wait().map_err(|e| format!("waiting for cargo test: {e}"))?;
    if status.success() { Ok(()) } else { Err("some tests failed; their names stand above".to_owned()) }
}
