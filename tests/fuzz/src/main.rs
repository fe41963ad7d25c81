//! `peerpods-fuzz [--seconds N] [--seed N]`: every target in turn, for long runs.

use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (mut seconds, mut seed) = (600, fastrand::u64(..));
    for pair in args.chunks(2) {
        match (pair[0].as_str(), pair.get(1).and_then(|value| value.parse().ok())) {
            ("--seconds", Some(value)) => seconds = value,
            ("--seed", Some(value)) => seed = value,
            (other, _) => {
                eprintln!("peerpods-fuzz: {other}: usage: peerpods-fuzz [--seconds N] [--seed N]");
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
