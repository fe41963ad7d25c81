//! `cargo xtask soak`: long runs that kill processes at random moments.

use std::process::Command;

use crate::stage::Stages;
use crate::{binaries, containerd, packages};

const HELP: &str = "\
Kill the node daemon, the controller or both at random moments of pods' lives.

Usage: cargo xtask soak [--seed N] [--kills N] [--pods N]

  --seed N    the same seed gives the same kills (default: printed at the start)
  --kills N   how many (default 100)
  --pods N    pods alive at once (default 10)

It fails when a machine is leaked, a Ready pod is lost, a container's output is incomplete, or a kill hit nothing.
Then the node daemon alone is killed twice as often under as many pods of containerd, which log and echo all the while: it fails when
a container ended, or a byte of a log or of an exec is lost or doubled.
";

/// `cargo xtask soak`.
pub(crate) fn run(args: &[String]) -> Result<(), String> {
    if crate::parse(args, HELP, &[], &["--seed", "--kills", "--pods"])?.is_none() {
        return Ok(());
    }
    let mut stages = Stages::new();
    stages.run("packages", || packages::ensure(&[packages::BUILD, packages::RUN, packages::CONTAINERD]))?;
    let containerd = containerd::ensure(&mut stages)?;
    stages.run("build", || {
        let packages = ["peerpods-controller", "peerpods-node", "peerpods-link", "peerpods-shim", "peerpods-guest", "peerpods-e2e"];
        binaries::build("dev", &packages, &["peerpods-controller/local-sandbox"])
    })?;
    let mut soak = Command::new(binaries::binary("dev", "peerpods-soak")?);
    crate::stage::run(soak.env("PEERPODS_BINARIES", binaries::folder("dev")?).env(containerd::VARIABLE, containerd).args(args))
}
