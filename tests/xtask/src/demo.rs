//! `cargo xtask demo`: build what the demo runs, then run it.

use std::path::PathBuf;
use std::process::Command;

use crate::stage::{self, Stages};
use crate::{binaries, containerd, packages, trixie};

const HELP: &str = "\
Run a confidential peer pod end to end on this machine and show what happens.

Usage: cargo xtask demo [--plain] [--cloud local|aws] [--keep]

  --plain         a pod with nothing to hide: no firmware, no TPM, no keys; quicker
  --cloud local   this machine makes the pod VM by itself (default)
  --cloud aws     the controller's AWS provider asks a mock cloud for it, which speaks EC2 and has QEMU behind; no account is needed;
                  the pod is a plain one
  --keep          leave a plain pod running and print three commands to try; Ctrl-C or Enter cleans up

It builds a pod VM image, starts a registry, the controller, the node daemon and Debian's containerd 2.x, asks through the CRI
for a pod whose runtime handler is `peer-pods`, as a kubelet does, boots a real VM with QEMU, UEFI and a TPM, attests and binds it.
A relying party releases keys to that image with its owner's initdata alone; the VM pulls images that Debian's tools signed and
encrypted, decrypts and runs them; then the node and the registry attack. At the end everything is removed.
Everything happens in namespaces of its own; it needs root. The TPM is a program here: the protocol is real, the protection is not.
";

/// Runs the demo on what was built.
fn run_demo_binary(arguments: &[&str], trixie: Option<PathBuf>) -> Result<(), String> {
    let mut demo = Command::new(binaries::binary("ship", "peerpods-demo")?);
    demo.env("PEERPODS_BINARIES", binaries::folder("ship")?).env("PEERPODS_IMAGE", binaries::image_folder()?);
    demo.env(containerd::VARIABLE, binaries::containerd_folder()?);
    demo.envs(trixie.map(|folder| (trixie::VARIABLE, folder)));
    stage::run(demo.args(arguments))
}

/// `cargo xtask demo`.
pub(crate) fn run(args: &[String]) -> Result<(), String> {
    let Some(options) = crate::parse(args, HELP, &["--keep", "--plain"], &["--cloud"])? else { return Ok(()) };
    let cloud = options.value("--cloud").unwrap_or("local");
    if !["local", "aws"].contains(&cloud) {
        return Err(format!("--cloud {cloud}: local and aws are there"));
    }
    let is_aws = cloud == "aws";
    let is_plain = options.has("--plain") || is_aws;
    if options.has("--keep") && !is_plain {
        return Err("--keep leaves a plain pod: add --plain".to_owned());
    }
    let what = if is_plain { "a pod's containers in a pod VM of their own" } else { "keys for one pod VM image and its owner's pod alone" };
    println!("Peerpods demo: {what}.");
    println!("The first run compiles everything and fetches a Debian kernel: some minutes. Later runs take seconds.");
    let mut stages = Stages::new();
    stages.run("packages", || packages::ensure(&[packages::BUILD, packages::IMAGE, packages::RUN, packages::CONTAINERD]))?;
    containerd::ensure(&mut stages)?;
    let trixie = if is_plain { None } else { Some(trixie::ensure(&mut stages)?) };
    binaries::image(&mut stages, &binaries::image_folder()?)?;
    stages.run("build the controller, the node daemon and the demo", || {
        let packages = ["peerpods-controller", "peerpods-node", "peerpods-link", "peerpods-shim", "peerpods-e2e"];
        if is_aws {
            binaries::build("ship", &[&packages[..], &["peerpods-mock-cloud"]].concat(), &[])
        } else {
            binaries::build_without_clouds("ship", &[&packages[..], &["peerpods-relying-party", "peerpodctl"]].concat(), &[])
        }
    })?;
    let arguments: Vec<&str> = [("--aws", is_aws), ("--plain", is_plain), ("--keep", options.has("--keep"))]
        .into_iter()
        .filter(|(_, is)| *is)
        .map(|(name, _)| name)
        .collect();
    stages.run("demo", || run_demo_binary(&arguments, trixie))
}
