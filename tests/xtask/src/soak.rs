//! `cargo xtask soak`: long runs that fuzz parsers, and kill the engine, and processes, at random moments.

use std::process::Command;

use crate::stage::Stages;
use crate::{binaries, containerd, packages};

const HELP: &str = "\
Fuzz every parser, run the engine through random schedules, then kill the node daemon, the controller or both at random moments of pods' lives.

Usage: cargo xtask soak [--seed N] [--seconds N] [--schedules N] [--kills N] [--pods N]

  --seed N       the same seed gives the same inputs, schedules and kills (default: printed at the start)
  --seconds N    how long each parser of what strangers send is fuzzed (default 600)
  --schedules N  how many schedules of the simulator (default 100000)
  --kills N      how many kills of processes, on this host's provider and again on the mock cloud (default 100)
  --pods N       pods alive at once (default 10)

A schedule runs the engine against a modelled cloud in virtual time, with faults and kills; it fails when an instance is leaked, doubled,
taken from a claim, or was not ours.
The kills fail when a machine is leaked, a Ready pod is lost, a container's output is incomplete, or a kill hit nothing; on the mock cloud,
whose calls fail by chance and whose controller is also killed between a call's effect and its answer, also when a pod has two instances
or somebody else's instance is deleted.
Then the node daemon alone is killed twice as often under as many pods of containerd, which log and echo all the while: it fails when
a container ended, or a byte of a log or of an exec is lost or doubled.
";

/// `cargo xtask soak`.
pub(crate) fn run(args: &[String]) -> Result<(), String> {
    let Some(options) = crate::parse(args, HELP, &[], &["--seed", "--seconds", "--schedules", "--kills", "--pods"])? else { return Ok(()) };
    let mut stages = Stages::new();
    stages.run("packages", || packages::ensure(&[packages::BUILD, packages::RUN, packages::CONTAINERD]))?;
    let containerd = containerd::ensure(&mut stages)?;
    stages.run("build", || {
        let node = ["peerpods-node", "peerpods-link", "peerpods-shim", "peerpods-guest", "peerpods-e2e"];
        let packages = [&node[..], &["peerpods-controller", "peerpods-mock-cloud"]].concat();
        binaries::build("dev", &packages, &["peerpods-controller/local-sandbox", "peerpods-mock-cloud/sandbox"])?;
        binaries::build("ship", &["peerpods-simulator", "peerpods-fuzz"], &[])
    })?;
    let given = |names: &[&'static str]| -> Vec<String> {
        let values = names.iter().filter_map(|name| Some([(*name).to_owned(), options.value(name)?.to_owned()]));
        values.flatten().collect()
    };
    crate::stage::run(Command::new(binaries::binary("ship", "peerpods-fuzz")?).args(given(&["--seed", "--seconds"])))?;
    crate::stage::run(Command::new(binaries::binary("ship", "peerpods-simulator")?).args(given(&["--seed", "--schedules"])))?;
    let mut soak = Command::new(binaries::binary("dev", "peerpods-soak")?);
    soak.env("PEERPODS_BINARIES", binaries::folder("dev")?).env(containerd::VARIABLE, containerd);
    crate::stage::run(soak.args(given(&["--seed", "--kills", "--pods"])))
}
