//! containerd's configuration as an operator has it, with our entries as `peerpods-node install` makes them; CNI's; the shim's.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::{Rig, Version};

/// What the node daemon is told about containerd. `{folder}` is replaced by the world.
pub(super) const NODE_EXTRA: &str = r#"containerd_socket = "{folder}/c.sock"

[snapshotter]
socket = "{folder}/snapshotter.sock"
state_dir = "{folder}/snapshots"
"#;

/// Writes all files that containerd reads at its start.
pub(super) fn write(rig: &Rig) -> Result<()> {
    let folder = rig.folder();
    let registry = rig.world.registry_host();
    let certs = folder.join("certs.d").join(&registry);
    let cni = folder.join("cni");
    for made in [&certs, &cni] {
        std::fs::create_dir_all(made)?;
    }
    // The node and the pod VMs use one name; where the node really asks is another matter.
    let asked = rig.gate.address();
    std::fs::write(certs.join("hosts.toml"), format!("[host.\"http://{asked}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"))?;
    std::fs::write(cni.join("10-pods.conflist"), cni_config(folder, rig.options.is_dual_stack))?;
    std::fs::write(
        folder.join("shim.toml"),
        format!("hypervisor_socket = \"{0}/hypervisor.sock\"\nkubelet_dir = \"{0}/kubelet\"\nlog_level = \"debug\"\n", folder.display()),
    )?;
    let text = match rig.options.version {
        Version::V1 => version_1(folder, &rig.image("pause")),
        Version::V2 => version_2(folder, &rig.image("pause")),
    };
    std::fs::write(folder.join("containerd.toml"), text)?;
    install(rig)
}

/// What an operator does.
fn install(rig: &Rig) -> Result<()> {
    let folder = rig.folder();
    let mut command = rig.world.netns().command(crate::binaries_folder()?.join("peerpods-node"));
    command.arg("install").arg("--config").arg(folder.join("node.toml")).arg("--shim-config").arg(folder.join("shim.toml"));
    command.arg("--containerd-config").arg(folder.join("containerd.toml")).arg("--state-dir").arg(folder.join("install"));
    command.arg("--containerd").arg(rig.options.version.programs()?.join("containerd"));
    let output = command.output().context("peerpods-node install")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "peerpods-node install: {said}{}", String::from_utf8_lossy(&output.stderr));
    ensure!(said.contains("containerd sees runtime peer-pods"), "{said}");
    Ok(())
}

fn head(version: u8, folder: &str) -> String {
    // The plugins left out use folders outside of ours.
    format!(
        r#"version = {version}
root = "{folder}/cr"
state = "{folder}/cs"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.erofs", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]

[debug]
level = "debug"

[grpc]
address = "{folder}/c.sock"
"#
    )
}

/// runc in both versions; `at` is the table that holds them.
fn runc(at: &str) -> String {
    format!(
        r#"
[{at}.runc]
runtime_type = "io.containerd.runc.v2"
[{at}.runc.options]
BinaryName = "/usr/sbin/runc"
SystemdCgroup = false
"#
    )
}

fn version_1(folder: &Path, pause: &str) -> String {
    let folder = folder.display().to_string();
    // Machines of continuous integration may lack CAP_SYS_RESOURCE and AppArmor.
    format!(
        r#"{head}
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
stream_server_address = "127.0.0.1"
stream_server_port = "0"
restrict_oom_score_adj = true
disable_apparmor = true
netns_mounts_under_state_dir = true
enable_unprivileged_ports = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{folder}/cni"
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "{folder}/certs.d"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"
{runc}"#,
        head = head(2, &folder),
        runc = runc("plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes"),
    )
}

fn version_2(folder: &Path, pause: &str) -> String {
    let folder = folder.display().to_string();
    format!(
        r#"{head}
[plugins."io.containerd.cri.v1.images"]
snapshotter = "overlayfs"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{pause}"
[plugins."io.containerd.cri.v1.images".registry]
config_path = "{folder}/certs.d"

[plugins."io.containerd.grpc.v1.cri"]
stream_server_address = "127.0.0.1"
stream_server_port = "0"

[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
disable_apparmor = true
netns_mounts_under_state_dir = true
enable_unprivileged_ports = true
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{folder}/cni"
[plugins."io.containerd.cri.v1.runtime".containerd]
default_runtime_name = "runc"
{runc}"#,
        head = head(3, &folder),
        runc = runc("plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes"),
    )
}

/// A bridge of its own beside the one that a world makes for Kata's shims.
fn cni_config(folder: &Path, is_dual_stack: bool) -> String {
    let mut ranges = vec![serde_json::json!([{ "subnet": "10.89.0.0/16" }])];
    let mut routes = vec![serde_json::json!({ "dst": "0.0.0.0/0" })];
    if is_dual_stack {
        ranges.push(serde_json::json!([{ "subnet": "fd00:89::/64" }]));
        routes.push(serde_json::json!({ "dst": "::/0" }));
    }
    serde_json::json!({
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni1",
                "isGateway": true,
                "hairpinMode": true,
                "ipam": { "type": "host-local", "ranges": ranges, "routes": routes, "dataDir": folder.join("cni-data") },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    })
    .to_string()
}
