//! `cargo xtask demo`: build what the demo runs, then run it.

use std::process::Command;

use crate::stage::{self, Stages};
use crate::{binaries, containerd, packages};

const HELP: &str = "\
Run a peer pod end to end on this machine and show what happens.

Usage: cargo xtask demo [--cloud local|aws] [--keep]

  --cloud local   this machine makes the pod VM by itself (default)
  --cloud aws     the controller's AWS provider asks a mock cloud for it, which speaks EC2 and has QEMU behind; no account is needed
  --keep          leave everything running and print three commands to try; Ctrl-C or Enter cleans up

It builds a pod VM image, starts a registry, the controller, the node daemon and Debian's containerd 2.x, asks through the CRI
for a pod whose runtime handler is `peer-pods`, as a kubelet does, boots a real VM with QEMU, attests and binds it, pulls an OCI
image inside the VM, runs its containers, and removes everything. Everything happens in namespaces of its own; it needs root.
";

/// Runs the demo on what was built.
fn run_demo_binary(cloud: &str, keep: bool) -> Result<(), String> {
    let mut demo = Command::new(binaries::binary("ship", "peerpods-demo")?);
    demo.env("PEERPODS_BINARIES", binaries::folder("ship")?).env("PEERPODS_IMAGE", binaries::image_folder()?);
    demo.env(containerd::VARIABLE, binaries::containerd_folder()?);
    if cloud == "aws" {
        demo.arg("--aws");
    }
    if keep {
        demo.arg("--keep");
    }
    stage::run(&mut demo)
}

/// `cargo xtask demo`.
pub(crate) fn run(args: &[String]) -> Result<(), String> {
    let Some(options) = crate::parse(args, HELP, &["--keep"], &["--cloud"])? else { return Ok(()) };
    let cloud = options.value("--cloud").unwrap_or("local");
    if !["local", "aws"].contains(&cloud) {
        return Err(format!("--cloud {cloud}: local and aws are there"));
    }
    println!("Peerpods demo: a pod's containers in a pod VM of their own.");
    println!("The first run compiles everything and fetches a Debian kernel: some minutes. Later runs take seconds.");
    let mut stages = Stages::new();
    stages.run("packages", || packages::ensure(&[packages::BUILD, packages::IMAGE, packages::RUN, packages::CONTAINERD]))?;
    containerd::ensure(&mut stages)?;
    binaries::image(&mut stages, &binaries::image_folder()?, false)?;
    stages.run("build the controller, the node daemon and the demo", || {
        let packages = ["peerpods-controller", "peerpods-node", "peerpods-link", "peerpods-shim", "peerpods-e2e"];
        match cloud {
            "local" => binaries::build_without_clouds("ship", &packages, &[]),
            _ => binaries::build("ship", &[&packages[..], &["peerpods-mock-cloud"]].concat(), &[]),
        }
    })?;
    stages.run("demo", || run_demo_binary(cloud, options.has("--keep")))
}
