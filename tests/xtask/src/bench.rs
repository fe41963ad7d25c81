//! `cargo xtask bench`: builds and runs the benchmarks of `tests/bench`.

use std::process::Command;

use crate::stage::Stages;
use crate::{binaries, containerd, packages, trixie};

const HELP: &str = "\
Measure the budgets of the design, each beside a baseline measured in the same run.

Usage: cargo xtask bench [NAME] [--json]

  NAME     only this benchmark: tunnel, start, memory, pull, cri, engine, burst, warm, keys, decrypt (default: all)
  --json   one object a line: name, value, unit, baseline, ratio, budget, pass
";

/// `cargo xtask bench`.
pub(crate) fn run(args: &[String]) -> Result<(), String> {
    if crate::parse(args, HELP, &["--json"], &[])?.is_none() {
        return Ok(());
    }
    let mut stages = Stages::new();
    stages.run("packages", || packages::ensure(&[packages::BUILD, packages::IMAGE, packages::RUN, packages::CONTAINERD]))?;
    let containerd = containerd::ensure(&mut stages)?;
    let trixie = trixie::ensure(&mut stages)?;
    let image = binaries::image_folder()?;
    binaries::image(&mut stages, &image)?;
    stages.run("build", || {
        let packages = [
            "peerpods-controller",
            "peerpods-node",
            "peerpods-link",
            "peerpods-shim",
            "peerpods-bench",
            "peerpods-e2e",
            "peerpods-relying-party",
            "peerpodctl",
        ];
        binaries::build_without_clouds("ship", &packages, &["peerpods-controller/local-sandbox"])
    })?;
    let mut bench = Command::new(binaries::binary("ship", "peerpods-bench")?);
    bench
        .env("PEERPODS_BINARIES", binaries::folder("ship")?)
        .env("PEERPODS_IMAGE", image)
        .envs([(containerd::VARIABLE, containerd), (trixie::VARIABLE, trixie)])
        .args(args);
    crate::stage::run(&mut bench)
}
