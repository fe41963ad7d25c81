//! The daemons' configuration files.

use std::path::{Path, PathBuf};

use anyhow::Result;
use peerpods_mock_cloud::catalog;

use crate::MockCloud;
use crate::mock_cloud::{KEY_ID, SECRET};

use super::{Level, VM_GATEWAY, WorldOptions};
use crate::{binaries_folder, image_folder};

/// `controller.toml`.
pub(super) fn controller_config(folder: &Path, options: &WorldOptions, mock: Option<&MockCloud>) -> Result<String> {
    let provider = match mock {
        Some(mock) => aws(mock, options),
        None => local(folder, options)?,
    };
    Ok(format!(
        r#"state_dir = "{folder}/controller"
claims_socket = "{folder}/claims.sock"
metrics = "127.0.0.1:0"
{extra}

{provider}

[class.default]
tee = "{tee}"
root_of_trust = "insecure"
{class_extra}

[class.open]
tee = "sample"
root_of_trust = "insecure"
host_access = ["host-path", "privileged"]
"#,
        folder = folder.display(),
        extra = options.controller_extra,
        tee = options.class.0,
        class_extra = options.class.1,
    ))
}

/// What pod VMs boot: the image's folder, or the guest binary.
pub(super) fn machine_image(options: &WorldOptions) -> Result<PathBuf> {
    match (options.level, &options.guest) {
        (Level::Qemu, _) => image_folder(),
        (Level::Sandbox, Some(guest)) => Ok(guest.clone()),
        (Level::Sandbox, None) => Ok(binaries_folder()?.join("peerpods-guest")),
    }
}

fn aws(mock: &MockCloud, options: &WorldOptions) -> String {
    let subnets: Vec<&str> = catalog::SUBNETS.iter().map(|subnet| subnet.id).collect();
    format!(
        "[provider]\nkind = \"aws\"\n\n[provider.aws]\nendpoint = {:?}\nregion = {:?}\naccess_key_id = {KEY_ID:?}\nsecret_access_key = {SECRET:?}\n\
         image = {:?}\nsubnets = {subnets:?}\nsecurity_groups = [{:?}]\n{}",
        mock.ec2(),
        catalog::REGION,
        catalog::IMAGE,
        catalog::GROUP,
        options.provider_extra,
    )
}

fn local(folder: &Path, options: &WorldOptions) -> Result<String> {
    let image = machine_image(options)?;
    let (level, insecure) = match options.level {
        Level::Qemu => ("qemu", false),
        Level::Sandbox => ("sandbox", true),
    };
    Ok(format!(
        r#"[provider]
kind = "local"

[provider.local]
level = "{level}"
insecure_sandbox = {insecure}
image = "{image}"
state_dir = "{folder}/machines"
gateway = "{VM_GATEWAY}"
{provider_extra}"#,
        folder = folder.display(),
        image = image.display(),
        provider_extra = options.provider_extra,
    ))
}

/// `node.toml`.
pub(super) fn node_config(folder: &Path, options: &WorldOptions) -> String {
    format!(
        r#"node = "node-1"
state_dir = "{folder}/node"
pods_dir = "{folder}/pods"
hypervisor_socket = "{folder}/hypervisor.sock"
claims_socket = "{folder}/claims.sock"
metrics = "127.0.0.1:0"
{extra}
"#,
        folder = folder.display(),
        extra = options.node_extra.replace("{folder}", &folder.display().to_string()),
    )
}
