//! Runs many schedules: `peerpods-simulator [--seed N] [--schedules N]`.

use anyhow::{Context as _, Result, bail};
use peerpods_simulator::{Report, run};

/// A line is printed after so many schedules.
const PROGRESS: u64 = 10_000;

fn main() -> Result<()> {
    let (mut seed, mut schedules) = (fastrand::u64(..1 << 48), 100_000);
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let value: u64 = args.next().and_then(|value| value.parse().ok()).with_context(|| format!("{name} needs a number"))?;
        match name.as_str() {
            "--seed" => seed = value,
            "--schedules" => schedules = value,
            _ => bail!("unknown option {name}"),
        }
    }
    println!("simulator: seeds {seed} to {}", seed + schedules - 1);
    let mut all = Report::default();
    for number in 0..schedules {
        all.add(&run(seed + number)?);
        if (number + 1) % PROGRESS == 0 {
            println!("simulator: {} schedules", number + 1);
        }
    }
    println!("{all}");
    Ok(())
}
