//! Where each mount of a container comes from, and what becomes of it in the guest.
//!
//! | source on the node | in the guest |
//! |---|---|
//! | kernel file systems | the same, as they are |
//! | the sandbox's shared memory | bind of the sandbox's |
//! | hosts, resolv.conf, hostname, termination log | a copy |
//! | ConfigMap, Secret, projected, downward API, secrets of a CSI driver in memory | a copy that follows the node's |
//! | a sub path of one of these | a copy, made once, as in Kubernetes |
//! | emptyDir, and sub paths of it | a folder or tmpfs of the pod, shared by its containers |
//! | a `VOLUME` of the image | a folder of the container, filled from the image |
//! | other files and folders (hostPath), if the class allows | a read-only copy: what is written could never reach the node |
//!
//! The kubelet's folders are trusted for this pod's UID only: a hostPath into another pod's folder is a hostPath.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};
use peerpods_protos::{agent, oci};

use super::sources::{Kind, Source};
use super::volumes::{self, KubeletPath};
use super::{Copy, Facts, Refusal};

/// What all mounts of a container come to.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    pub(super) mounts: Vec<oci::Mount>,
    pub(super) storages: Vec<agent::Storage>,
    pub(super) copies: Vec<Copy>,
    pub(super) termination_log: Option<TerminationLog>,
}

/// One file under two names.
#[derive(Debug)]
pub(super) struct TerminationLog {
    pub(super) on_node: PathBuf,
    pub(super) in_container: PathBuf,
}

/// What a bind mount is made from in the guest.
#[derive(Debug)]
enum Origin {
    Shm,
    Copy {
        watch: bool,
        is_read_only: bool,
    },
    TerminationLog,
    EmptyDir {
        name: String,
        sub_path: PathBuf,
        source: Source,
    },
    ImageVolume,
    /// The guest's own file of that name.
    Guest,
}

const POD_UID: &str = "io.kubernetes.cri.sandbox-uid";
const KERNEL_FILESYSTEMS: [&str; 7] = ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2"];
const EMPTY_DIR: &str = "kubernetes.io~empty-dir";
const CSI: &str = "kubernetes.io~csi";
/// Plugins whose volumes are made of API objects: small, written by the kubelet, changed as a whole.
const API_PLUGINS: [&str; 4] = ["kubernetes.io~configmap", "kubernetes.io~secret", "kubernetes.io~projected", "kubernetes.io~downward-api"];
/// The sandbox's files as containerd keeps them, and where it mounts them.
const SANDBOX_FILES: [&str; 3] = ["hosts", "hostname", "resolv.conf"];

pub(super) fn plan(spec: &Spec, facts: &Facts) -> Result<Mounts, Refusal> {
    let pod_uid = spec.annotations().as_ref().and_then(|annotations| annotations.get(POD_UID)).map_or("", String::as_str);
    let mut planned = Mounts::default();
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        planned.add(index, mount, facts, pod_uid)?;
    }
    Ok(planned)
}

impl Mounts {
    fn add(&mut self, index: usize, mount: &Mount, facts: &Facts, pod_uid: &str) -> Result<(), Refusal> {
        let destination = mount.destination();
        let kind = mount.typ().as_deref().unwrap_or_default();
        let mut options = options(mount, facts)?;
        let is_bind = kind == "bind" || options.iter().any(|option| option == "bind" || option == "rbind");
        if !is_bind {
            if !KERNEL_FILESYSTEMS.contains(&kind) {
                return Err(Refusal::MountType { destination: destination.clone(), kind: kind.to_owned() });
            }
            let source = mount.source().as_deref().map(|source| source.display().to_string()).unwrap_or_default();
            self.mounts.push(in_guest(destination, source, kind, options));
            return Ok(());
        }
        let source = mount.source().as_deref().ok_or(Refusal::Incomplete { what: "source of a bind mount" })?;
        let mut kind = "bind";
        let guest_source = match origin(source, destination, facts, pod_uid)? {
            Origin::Shm => volumes::shm(),
            Origin::Guest => source.display().to_string(),
            Origin::Copy { watch, is_read_only } => {
                if is_read_only {
                    options.retain(|option| option != "rw" && option != "ro");
                    options.push("ro".to_owned());
                }
                self.copy(index, source, destination, facts, watch)
            }
            Origin::TerminationLog => {
                let log = TerminationLog { on_node: source.to_owned(), in_container: destination.clone() };
                self.termination_log.get_or_insert(log);
                self.copy(index, source, destination, facts, false)
            }
            Origin::EmptyDir { name, sub_path, source } => {
                let (path, is_disk) = self.empty_dir(&name, &sub_path, &source, destination, facts)?;
                if is_disk {
                    // Kata's name for a bind mount of such a volume.
                    kind = "local";
                }
                path
            }
            Origin::ImageVolume => {
                let target = volumes::own(&facts.container_id, index, destination);
                let mut storage = local(target.clone(), vec!["mode=0755".to_owned()]);
                storage.driver_options = vec![format!("peerpods.copy-up={}", destination.display())];
                self.storages.push(storage);
                target
            }
        };
        self.mounts.push(in_guest(destination, guest_source, kind, options));
        Ok(())
    }

    fn copy(&mut self, index: usize, source: &Path, destination: &Path, facts: &Facts, watch: bool) -> String {
        let target = volumes::own(&facts.container_id, index, destination);
        self.copies.push(Copy { source: source.to_owned(), target: target.clone(), watch });
        target
    }

    /// The path of the volume or its sub path in the guest, and whether it is on disk.
    fn empty_dir(
        &mut self,
        name: &str,
        sub_path: &Path,
        source: &Source,
        destination: &Path,
        facts: &Facts,
    ) -> Result<(String, bool), Refusal> {
        if source.filesystem == "hugetlbfs" {
            return Err(Refusal::HugePages { volume: name.to_owned(), destination: destination.to_owned() });
        }
        // The kubelet gives a volume of a pod with fsGroup to that group, with the set-gid bit.
        let group = (source.gid != 0 || source.mode & 0o2000 != 0).then(|| format!("fsgid={}", source.gid));
        let is_disk = !source.is_tmpfs();
        let mut path = if is_disk {
            let path = volumes::disk(&facts.sandbox_id, name);
            self.share(local(path.clone(), folder_options(group.as_ref())));
            path
        } else {
            let path = volumes::memory(name);
            self.share(agent::Storage {
                driver: "ephemeral".to_owned(),
                source: "tmpfs".to_owned(),
                fstype: "tmpfs".to_owned(),
                options: group.iter().cloned().chain(source.size_limit.map(|bytes| format!("size={bytes}"))).collect(),
                mount_point: path.clone(),
                ..Default::default()
            });
            path
        };
        // The kubelet made these folders in its own volume, not in the guest's.
        for part in sub_path {
            path = format!("{path}/{}", part.to_string_lossy());
            self.share(local(path.clone(), folder_options(group.as_ref())));
        }
        Ok((path, is_disk))
    }

    fn share(&mut self, storage: agent::Storage) {
        if self.storages.iter().all(|other| other.mount_point != storage.mount_point) {
            self.storages.push(storage);
        }
    }
}

fn folder_options(group: Option<&String>) -> Vec<String> {
    std::iter::once("mode=0777".to_owned()).chain(group.cloned()).collect()
}

fn local(mount_point: String, options: Vec<String>) -> agent::Storage {
    agent::Storage {
        driver: "local".to_owned(),
        source: "local".to_owned(),
        fstype: "local".to_owned(),
        options,
        mount_point,
        ..Default::default()
    }
}

fn in_guest(destination: &Path, source: String, kind: &str, options: Vec<String>) -> oci::Mount {
    oci::Mount { destination: destination.display().to_string(), source, type_: kind.to_owned(), options, ..Default::default() }
}

/// The mount's options without what only means something on the node.
fn options(mount: &Mount, facts: &Facts) -> Result<Vec<String>, Refusal> {
    let is_mapped = |mappings: &Option<Vec<_>>| mappings.as_ref().is_some_and(|mappings| !mappings.is_empty());
    if is_mapped(mount.uid_mappings()) || is_mapped(mount.gid_mappings()) {
        return Err(Refusal::UserNamespace);
    }
    let mut options: Vec<String> = Vec::new();
    for option in mount.options().iter().flatten() {
        let option = match option.as_str() {
            "shared" | "rshared" if !facts.host_access.privileged => {
                return Err(Refusal::Propagation { destination: mount.destination().clone() });
            }
            // There is nothing that could propagate from the node.
            "shared" | "rshared" | "slave" | "rslave" | "unbindable" | "runbindable" => "rprivate",
            // Nothing is mounted below a copy or a volume of the guest, so this is the same.
            "rro" => "ro",
            "idmap" | "ridmap" => return Err(Refusal::UserNamespace),
            other => other,
        };
        if !options.iter().any(|other| other == option) {
            options.push(option.to_owned());
        }
    }
    Ok(options)
}

fn origin(source: &Path, destination: &Path, facts: &Facts, pod_uid: &str) -> Result<Origin, Refusal> {
    let found = facts.sources.get(source);
    if is_sandbox_shm(source, destination, facts) {
        return Ok(Origin::Shm);
    }
    if is_sandbox_file(source, destination, facts) {
        return Ok(Origin::Copy { watch: false, is_read_only: false });
    }
    if has_tail(source, &["containers", &facts.container_id, "volumes"], 1) {
        return Ok(Origin::ImageVolume);
    }
    if has_tail(source, &["image-volumes", &facts.sandbox_id], 1) {
        return Err(Refusal::ImageVolume { destination: destination.to_owned() });
    }
    let kubelet_dir = &facts.sources.kubelet_dir;
    match volumes::parse(kubelet_dir, pod_uid, source) {
        Some(KubeletPath::Hosts) => Ok(Origin::Copy { watch: false, is_read_only: false }),
        Some(KubeletPath::TerminationLog) if found.kind == Kind::File => Ok(Origin::TerminationLog),
        Some(KubeletPath::Volume { plugin, name, rest }) => volume(plugin, name, rest, found, source, destination),
        Some(KubeletPath::SubPath) => {
            let unknown = || Refusal::SubPath { source_path: source.to_owned(), destination: destination.to_owned() };
            let from = found.origin.clone().ok_or_else(unknown)?;
            match volumes::parse(kubelet_dir, pod_uid, &from) {
                Some(KubeletPath::Volume { plugin, name, rest }) => {
                    match volume(plugin, name, rest, found, source, destination)? {
                        // As in Kubernetes: a sub path does not follow its volume.
                        Origin::Copy { .. } => Ok(Origin::Copy { watch: false, is_read_only: false }),
                        other => Ok(other),
                    }
                }
                _ => Err(unknown()),
            }
        }
        Some(KubeletPath::TerminationLog | KubeletPath::Other) | None => host_path(source, destination, &found, facts),
    }
}

fn volume(plugin: &str, name: &str, rest: PathBuf, found: Source, source: &Path, destination: &Path) -> Result<Origin, Refusal> {
    let is_copied = API_PLUGINS.contains(&plugin) || (plugin == CSI && found.is_tmpfs());
    if plugin == EMPTY_DIR {
        return Ok(Origin::EmptyDir { name: name.to_owned(), sub_path: rest, source: found });
    }
    if !is_copied {
        let plugin = plugin.replace('~', "/");
        return Err(Refusal::Volume { volume: name.to_owned(), plugin, destination: destination.to_owned() });
    }
    match uncopyable(found.kind) {
        Some(kind) => Err(Refusal::Uncopyable { source_path: source.to_owned(), destination: destination.to_owned(), kind }),
        None => Ok(Origin::Copy { watch: found.kind == Kind::Folder, is_read_only: false }),
    }
}

fn host_path(source: &Path, destination: &Path, found: &Source, facts: &Facts) -> Result<Origin, Refusal> {
    let source_path = source.to_owned();
    let destination = destination.to_owned();
    let is_below = |root: &str| source.starts_with(root);
    if is_below("/proc") {
        return Err(Refusal::Uncopyable { source_path, destination, kind: "part of the node's /proc" });
    }
    if (is_below("/dev") || is_below("/sys")) && found.kind != Kind::BlockDevice {
        // The guest has these too, and only root of the guest may do something with them.
        return if facts.host_access.privileged { Ok(Origin::Guest) } else { Err(Refusal::KernelPath { source_path, destination }) };
    }
    if let Some(kind) = uncopyable(found.kind) {
        return Err(Refusal::Uncopyable { source_path, destination, kind });
    }
    if !facts.host_access.host_path {
        return Err(Refusal::HostPath { source_path, destination });
    }
    Ok(Origin::Copy { watch: false, is_read_only: true })
}

fn uncopyable(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Folder | Kind::File => None,
        Kind::Socket => Some("a socket"),
        Kind::Pipe => Some("a named pipe"),
        Kind::CharDevice => Some("a device"),
        Kind::BlockDevice => Some("a block device"),
        Kind::Missing => Some("not there"),
    }
}

/// containerd's `…/sandboxes/<id>/shm`; an emptyDir at `/dev/shm` is the kubelet's.
fn is_sandbox_shm(source: &Path, destination: &Path, facts: &Facts) -> bool {
    destination == Path::new("/dev/shm") && has_tail(source, &["sandboxes", &facts.sandbox_id, "shm"], 0)
}

fn is_sandbox_file(source: &Path, destination: &Path, facts: &Facts) -> bool {
    SANDBOX_FILES
        .iter()
        .any(|name| destination == Path::new("/etc").join(name) && has_tail(source, &["sandboxes", &facts.sandbox_id, name], 0))
}

/// Whether a path ends in these names, followed by so many others.
fn has_tail(path: &Path, names: &[&str], others: usize) -> bool {
    path.ancestors().nth(others).is_some_and(|path| path.ends_with(names.iter().collect::<PathBuf>()))
}
