//! What jobs run: our binaries, in the profile that each job wants, and the pod VM image.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::packages;
use crate::stage::{Stages, output, run};

/// The one target: static x86-64 Linux, set in `.cargo/config.toml`.
const TARGET: &str = "x86_64-unknown-linux-gnu";

const IMAGE_HELP: &str = "\
Build the pod VM image: kernel, initrd, UKI, bootable disk, manifest.

Usage: cargo xtask image [--release] [--upstream FILE] [--out DIR]

  --release        refuse an image whose inputs are not the pinned ones
  --upstream FILE  pack the agent and guest components of upstream that this file names, in place of ours:
                   path and SHA-256 of each, see Upstream profile in pod-vm-image/README.md
  --out DIR        where it goes (default: podvm-image in the target folder)

The image's inputs are pinned by digest in pod-vm-image/recipe/pins.toml.
";

/// `cargo xtask image`.
pub(crate) fn image_command(args: &[String]) -> Result<(), String> {
    let Some(options) = crate::parse(args, IMAGE_HELP, &["--release"], &["--upstream", "--out"])? else { return Ok(()) };
    let mut stages = Stages::new();
    stages.run("packages", || packages::ensure(&[packages::BUILD, packages::IMAGE]))?;
    let out = options.value("--out").map_or_else(image_folder, |out| Ok(PathBuf::from(out)))?;
    let more: Vec<&str> = options.has("--release").then_some("--release").into_iter().collect();
    let upstream = options.value("--upstream").map(|file| ["--upstream", file]);
    image_with(&mut stages, &out, &[&more[..], upstream.as_ref().map_or(&[], |words| words)].concat())
}

/// Builds the guest and packs the image into `out`.
pub(crate) fn image(stages: &mut Stages, out: &Path) -> Result<(), String> {
    image_with(stages, out, &[])
}

fn image_with(stages: &mut Stages, out: &Path, more: &[&str]) -> Result<(), String> {
    stages.run("build the guest and the recipe", || build("ship", &["peerpods-guest", "peerpods-recipe"], &[]))?;
    stages.run("build the pod VM image", || {
        let mut recipe = Command::new(binary("ship", "peerpods-recipe")?);
        recipe.arg("build").arg("--guest").arg(binary("ship", "peerpods-guest")?).arg("--out").arg(out).args(more);
        run(&mut recipe)
    })
}

/// Where the image goes unless somebody asks otherwise.
pub(crate) fn image_folder() -> Result<PathBuf, String> {
    Ok(target_folder()?.join("podvm-image"))
}

/// Where the versions of containerd are.
pub(crate) fn containerd_folder() -> Result<PathBuf, String> {
    Ok(target_folder()?.join("containerd"))
}

/// Where trixie's tools are.
pub(crate) fn trixie_folder() -> Result<PathBuf, String> {
    Ok(target_folder()?.join("trixie"))
}

/// Where moto is.
pub(crate) fn moto_folder() -> Result<PathBuf, String> {
    Ok(target_folder()?.join("moto"))
}

/// Builds packages (all binaries of each) in a profile.
pub(crate) fn build(profile: &str, packages: &[&str], features: &[&str]) -> Result<(), String> {
    run(&mut cargo_build(profile, packages, features))
}

/// The same without the clouds' SDKs, which take minutes to compile.
pub(crate) fn build_without_clouds(profile: &str, packages: &[&str], features: &[&str]) -> Result<(), String> {
    run(cargo_build(profile, packages, features).arg("--no-default-features"))
}

fn cargo_build(profile: &str, packages: &[&str], features: &[&str]) -> Command {
    let mut cargo = cargo();
    cargo.args(["build", "--locked", "--profile", profile, "--bins"]);
    for package in packages {
        cargo.args(["--package", package]);
    }
    if !features.is_empty() {
        cargo.args(["--features", &features.join(",")]);
    }
    cargo
}

/// The path of one of our binaries.
pub(crate) fn binary(profile: &str, name: &str) -> Result<PathBuf, String> {
    let folder = if profile == "dev" { "debug" } else { profile };
    Ok(target_folder()?.join(TARGET).join(folder).join(name))
}

/// The folder of binaries of a profile.
pub(crate) fn folder(profile: &str) -> Result<PathBuf, String> {
    binary(profile, ".").map(|p| p.components().collect())
}

/// Cargo, as it was called itself.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    cargo
}

/// The workspace's folder, as `cargo run` tells it. Two checkouts with one target folder share this program, so the folder that it
/// was compiled in may be the other one's.
pub(crate) fn root() -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    here.ancestors().nth(2).unwrap_or(&here).to_path_buf()
}

fn target_folder() -> Result<PathBuf, String> {
    let metadata = output(cargo().args(["metadata", "--format-version=1", "--no-deps", "--locked"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata).map_err(|e| format!("cargo metadata: {e}"))?;
    let folder = metadata["target_directory"].as_str().ok_or("cargo metadata names no target_directory")?;
    Ok(PathBuf::from(folder))
}
