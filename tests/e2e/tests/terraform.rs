//! The Terraform modules: their form, and the life of the one that needs no plugin.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;

use peerpods_e2e::image_folder;

fn modules() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/terraform").canonicalize().unwrap()
}

/// Runs Terraform in a module with its own files elsewhere; gives what it prints.
fn terraform(module: &str, work: &Path, args: &[&str]) -> String {
    let mut command = Command::new("terraform");
    command.arg(format!("-chdir={}", modules().join(module).display())).args(args);
    command
        .env("TF_DATA_DIR", work.join("data"))
        .env("TF_IN_AUTOMATION", "1")
        .env("CHECKPOINT_DISABLE", "1")
        .env_remove("TF_CLI_CONFIG_FILE");
    let out = command.output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "terraform {args:?}: {said}");
    said
}

#[test]
fn modules_are_formatted_and_the_local_one_is_applied_and_destroyed() {
    if Command::new("terraform").arg("version").output().is_err() {
        println!("nothing was tested: terraform is not in PATH, and Debian has no package of it");
        return;
    }
    let work = tempfile::tempdir().unwrap();
    for module in ["aws", "local"] {
        terraform(module, work.path(), &["fmt", "-check", "-diff", "-recursive"]);
    }
    println!("deploy/terraform/aws is not validated: that needs the AWS provider's plugin from a registry that tests do not reach");
    terraform("local", work.path(), &["init", "-input=false", "-no-color"]);
    terraform("local", work.path(), &["validate", "-no-color"]);
    let folder = work.path().join("image");
    let tested =
        terraform("local", work.path(), &["test", "-no-color", &format!("-var=image_folder={}", work.path().join("test").display())]);
    assert!(tested.contains("1 passed, 0 failed"), "{tested}");

    let state = format!("-state={}", work.path().join("terraform.tfstate").display());
    let build = format!("-var=build=cp -r {}/.", image_folder().unwrap().display());
    let image = format!("-var=image_folder={}", folder.display());
    let apply = ["apply", "-auto-approve", "-input=false", "-no-color", &state, &image, &build];
    terraform("local", work.path(), &apply);
    assert!(folder.join("disk.raw").is_file() && folder.join("manifest.json").is_file());
    let again = terraform("local", work.path(), &apply);
    assert!(again.contains("0 added, 0 changed, 0 destroyed"), "{again}");
    let settings = terraform("local", work.path(), &["output", "-raw", "-no-color", &state, "settings"]);
    assert!(settings.contains(&format!("image = \"{}\"", folder.display())), "{settings}");
    terraform("local", work.path(), &["destroy", "-auto-approve", "-input=false", "-no-color", &state, &image, &build]);
    assert!(!folder.exists(), "the image is gone with its folder");
}
