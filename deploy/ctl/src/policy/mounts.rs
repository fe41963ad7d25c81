//! What is mounted into a container, where in the guest it may come from, and what must be made for it there.
//!
//! | in the manifest | in the guest |
//! |---|---|
//! | emptyDir | a folder (`local`) or tmpfs (`ephemeral`) of the pod, by the volume's name |
//! | ConfigMap, Secret, projected, downward API, CSI, hostPath | the container's own copy, by the last part of the mount's path |
//! | `VOLUME` of the image | a folder of the container, filled from the image |
//!
//! What is in a copy the node decides; what is in an emptyDir, the pod's containers alone. So neither may take the other's place. Sources are
//! regular expressions in which `$(container)` and `$(sandbox)` stand for ids of the request.

use serde_json::{Value, json};

use super::environment::Environment;
use super::expand::{self, escaped};
use super::image::ImageConfig;
use super::manifest::{Container, EmptyDir, Volume, VolumeMount, Workload};

/// A mount whose place nobody can pin.
#[derive(Debug)]
pub(super) struct Unclear {
    pub(super) problem: String,
    pub(super) next: &'static str,
}

/// Of one container.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    /// What may be mounted, and what must.
    pub(super) mounts: Vec<Value>,
    /// What may be made for it.
    pub(super) storages: Vec<Value>,
    /// Regular expressions for names of copied files, and of what is a file or a tree.
    pub(super) files: Vec<String>,
    pub(super) trees: Vec<String>,
}

/// Where the service account's token is mounted, if nothing else is.
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const TERMINATION_LOG: &str = "/dev/termination-log";
const SHM: &str = "/dev/shm";
/// The kubelet's and containerd's own files in every container.
const FILES: [&str; 3] = ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"];
const SHARE: &str = "/run/kata-containers/shared/containers";
/// Volumes whose content the kubelet writes, so that it can be copied.
const COPIED: [&str; 6] = ["configMap", "secret", "projected", "downwardAPI", "csi", "hostPath"];

/// Of the pause container: nobody's volumes.
pub(super) fn of_sandbox() -> Mounts {
    let mut all = Mounts::default();
    all.common();
    all
}

/// Of a container of the pod.
pub(super) fn of(
    workload: &Workload,
    container: &Container,
    config: Option<&ImageConfig>,
    environment: &Environment,
) -> Result<Mounts, Unclear> {
    let mut all = Mounts::default();
    for mount in &container.volume_mounts {
        let volume = workload.spec.volumes.iter().find(|volume| volume.name == mount.name);
        let volume = volume.ok_or_else(|| Unclear {
            problem: format!("{} is to be mounted from volume {}, which the manifest does not have", mount.mount_path, mount.name),
            next: "add it to volumes; pod VMs have no volumes of claims",
        })?;
        all.volume(volume, mount, environment)?;
    }
    for path in config.and_then(|config| config.volumes.as_ref()).into_iter().flat_map(|volumes| volumes.keys()) {
        if !all.has(path) {
            all.image_volume(path);
        }
    }
    if workload.spec.automount_service_account_token != Some(false) && !all.has(TOKEN) {
        all.copy(TOKEN, false, false);
        all.trees.push(last(TOKEN));
    }
    let log = termination_log(container);
    all.copy(log, false, false);
    all.files.push(last(log));
    all.common();
    Ok(all)
}

/// Where the container leaves its last words.
pub(super) fn termination_log(container: &Container) -> &str {
    container.termination_message_path.as_deref().unwrap_or(TERMINATION_LOG)
}

impl Mounts {
    fn volume(&mut self, volume: &Volume, mount: &VolumeMount, environment: &Environment) -> Result<(), Unclear> {
        // One without a kind is an emptyDir, to the API server too.
        let disk = EmptyDir::default();
        let kind = volume.other.keys().next();
        if let Some(kind) = kind.filter(|_| volume.empty_dir.is_none()) {
            if !COPIED.contains(&kind.as_str()) {
                return Err(Unclear {
                    problem: format!("volume {} is of kind {kind}, which pod VMs do not have", volume.name),
                    next: "use an emptyDir, a configMap, a secret or a projected volume, or storage that is reached over the network",
                });
            }
            self.copy(&mount.mount_path, mount.read_only, true);
            self.trees.push(last(&mount.mount_path));
            return Ok(());
        }
        let empty_dir = volume.empty_dir.as_ref().unwrap_or(&disk);
        let (driver, kind, base) = match empty_dir.medium.as_str() {
            "" => ("local", "local", format!("{SHARE}/(passthrough/)?$(sandbox)/rootfs/local/{}", escaped(&volume.name))),
            "Memory" => ("ephemeral", "bind", format!("/run/kata-containers/sandbox/ephemeral/{}", escaped(&volume.name))),
            medium => {
                let problem = format!("volume {} is an emptyDir of medium {medium}, which pod VMs do not have", volume.name);
                return Err(Unclear { problem, next: "use medium Memory" });
            }
        };
        let mut path = base;
        self.store(driver, &path, None);
        let sub_path = match &mount.sub_path_expr {
            Some(expression) => expand::pattern(&expand::expand(expression, |name| environment.value(name))),
            None => escaped(&mount.sub_path),
        };
        for part in sub_path.split('/').filter(|part| !matches!(*part, "" | r"\.")) {
            path = format!("{path}/{part}");
            self.store("local", &path, None);
        }
        self.put(&mount.mount_path, kind, &path, mount.read_only, true);
        Ok(())
    }

    fn image_volume(&mut self, path: &str) {
        let source = own(path);
        self.store("local", &source, Some(path));
        self.put(path, "bind", &source, false, false);
    }

    fn copy(&mut self, destination: &str, is_read_only: bool, is_required: bool) {
        self.put(destination, "bind", &own(destination), is_read_only, is_required);
    }

    /// What every container has, if the manifest has nothing else there.
    fn common(&mut self) {
        if !self.has(SHM) {
            self.put(SHM, "bind", "/run/kata-containers/sandbox/shm", false, false);
        }
        for path in FILES {
            self.files.push(last(path));
            if !self.has(path) {
                self.copy(path, false, false);
            }
        }
    }

    fn has(&self, destination: &str) -> bool {
        self.mounts.iter().any(|mount| mount["destination"] == plain(destination))
    }

    fn put(&mut self, destination: &str, kind: &str, source: &str, is_read_only: bool, is_required: bool) {
        self.mounts.push(json!({
            "destination": plain(destination), "type": kind, "source": format!("^{source}$"), "read_only": is_read_only, "required": is_required,
        }));
    }

    fn store(&mut self, driver: &str, mount_point: &str, copy_up: Option<&str>) {
        let options: Vec<String> = copy_up.into_iter().map(|path| format!("peerpods.copy-up={path}")).collect();
        let storage = json!({"driver": driver, "mount_point": format!("^{mount_point}$"), "driver_options": options});
        if !self.storages.contains(&storage) {
            self.storages.push(storage);
        }
    }
}

/// A copy or folder of this container: its id, a number that tells mounts apart, and the last part of the mount's path.
fn own(destination: &str) -> String {
    format!("{SHARE}/$(container)-[0-9a-f]{{16}}-{}", last(destination))
}

fn last(path: &str) -> String {
    plain(path).rsplit('/').next().map(escaped).unwrap_or_default()
}

/// Requests are compared without trailing slashes.
fn plain(path: &str) -> &str {
    path.trim_end_matches('/')
}
