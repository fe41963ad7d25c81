//! The daemons' configuration files.

use std::path::Path;

use anyhow::Result;

use super::{Level, VM_GATEWAY, WorldOptions, binaries_folder, image_folder};

/// `controller.toml`.
pub(super) fn controller_config(folder: &Path, options: &WorldOptions) -> Result<String> {
    let image = match (options.level, &options.guest) {
        (Level::Qemu, _) => image_folder()?,
        (Level::Sandbox, Some(guest)) => guest.clone(),
        (Level::Sandbox, None) => binaries_folder()?.join("peerpods-guest"),
    };
    let (level, insecure) = match options.level {
        Level::Qemu => ("qemu", false),
        Level::Sandbox => ("sandbox", true),
    };
    Ok(format!(
        r#"state_dir = "{folder}/controller"
claims_socket = "{folder}/claims.sock"
metrics = "127.0.0.1:0"
{extra}

[provider]
kind = "local"

[provider.local]
level = "{level}"
insecure_sandbox = {insecure}
image = "{image}"
state_dir = "{folder}/machines"
gateway = "{VM_GATEWAY}"
{provider_extra}

[class.default]
tee = "sample"
root_of_trust = "insecure"

[class.open]
tee = "sample"
root_of_trust = "insecure"
host_access = ["host-path", "privileged"]
"#,
        folder = folder.display(),
        image = image.display(),
        extra = options.controller_extra,
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
