//! `peerpods-fuzz [--seconds N] [--seed N]`: every target in turn, for long runs.

use std::process::ExitCode;
use std::time::Duration;

const HELP: &str = "\
Give every parser of what strangers send mutated and random input, one target after the other.

Usage: peerpods-fuzz [--seconds N] [--seed N]

  --seconds N   for each target (default 600)
  --seed N      where the random numbers begin (default: any); it is printed, so that a run can be had again

A target that fails prints its input. Targets:
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|argument| argument == "--help" || argument == "-h") {
        print!("{HELP}");
        for target in peerpods_fuzz::targets() {
            println!("  {}", target.name);
        }
        return ExitCode::SUCCESS;
    }
    let (mut seconds, mut seed) = (600, fastrand::u64(..));
    for pair in args.chunks(2) {
        match (pair[0].as_str(), pair.get(1).and_then(|value| value.parse().ok())) {
            ("--seconds", Some(value)) => seconds = value,
            ("--seed", Some(value)) => seed = value,
            (other, _) => {
                eprintln!("peerpods-fuzz: {other}: not an option with a number; see peerpods-fuzz --help");
                return ExitCode::FAILURE;
            }
        }
    }
    println!("seed {seed}, {seconds} s for each target");
    let mut is_good = true;
    for target in peerpods_fuzz::targets() {
        match target.fuzz(seed, Duration::from_secs(seconds)) {
            Ok(runs) => println!("{}: {} inputs, slowest {:?}", target.name, runs.inputs, runs.slowest),
            Err(text) => {
                println!("{text}");
                is_good = false;
            }
        }
    }
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
