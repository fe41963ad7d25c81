//! `cargo xtask`: every job of this repository behind one command.
//!
//! It installs what a job needs, builds what the job runs, runs it, and prints how long each stage took.
//! It depends on nothing of ours, so that it compiles in seconds and works when the tree does not build.
//! Arguments are parsed by hand for the same reason: a few commands with a flag or two.

mod bench;
mod binaries;
mod check;
mod containerd;
mod debian;
mod demo;
mod moto;
mod packages;
mod soak;
mod stage;
mod test;
mod trixie;

use std::process::ExitCode;

const HELP: &str = "\
cargo xtask: every job of this repository

Usage: cargo xtask <COMMAND> [OPTIONS]

Commands:
  demo     Run a peer pod end to end in a QEMU pod VM, show each phase, leave nothing behind
  test     Install what the tests need, build everything, run every test
  image    Build the pod VM image (kernel, initrd, UKI, manifest)
  bench    Measure the budgets of the design, each beside its baseline
  soak     Kill daemon and controller at random moments of pods' lives, for long
  tools    Unpack the programs that tests are held against; print the variables that one test alone needs
  check    Formatting, lints, licences, dependency rules, file budgets, README freshness

`cargo xtask <COMMAND> --help` says more.
";

fn main() -> ExitCode {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let command = if args.is_empty() { "--help".to_owned() } else { args.remove(0) };
    let result = match command.as_str() {
        "demo" => demo::run(&args),
        "test" => test::run(&args),
        "image" => binaries::image_command(&args),
        "bench" => bench::run(&args),
        "soak" => soak::run(&args),
        "tools" => test::tools(&args),
        "check" => check::run(&args),
        "--help" | "-h" | "help" => {
            print!("{HELP}");
            Ok(())
        }
        other => Err(format!("unknown command {other:?}; commands are demo, test, image, bench, soak, tools, check")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}

/// The flags a command accepts, parsed; `None` when help was asked for and printed.
fn parse(args: &[String], help: &str, flags: &[&str], values: &[&str]) -> Result<Option<Options>, String> {
    let mut options = Options::default();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        if arg == "--help" || arg == "-h" {
            print!("{help}");
            return Ok(None);
        }
        let (name, inline) = match arg.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (arg.as_str(), None),
        };
        if flags.contains(&name) && inline.is_none() {
            options.flags.push(name.to_owned());
        } else if values.contains(&name) {
            let value = inline.or_else(|| rest.next().cloned()).ok_or_else(|| format!("{name} needs a value"))?;
            options.values.push((name.to_owned(), value));
        } else if name.starts_with('-') {
            let known: Vec<&str> = flags.iter().chain(values).copied().collect();
            return Err(format!("unknown option {name}; options are {}", known.join(", ")));
        } else {
            options.words.push(arg.clone());
        }
    }
    Ok(Some(options))
}

/// What was given on a command line.
#[derive(Default)]
struct Options {
    flags: Vec<String>,
    values: Vec<(String, String)>,
    words: Vec<String>,
}

impl Options {
    fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|f| f == flag)
    }

    fn value(&self, name: &str) -> Option<&str> {
        self.values.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}
