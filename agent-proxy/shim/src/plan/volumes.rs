//! The kubelet's folders, and where a volume lives in the guest.

use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

use super::SHARE;

/// Something below `<kubelet>/pods/<uid>`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum KubeletPath<'a> {
    /// `etc-hosts`.
    Hosts,
    /// `containers/<name>/<hex>`: where the kubelet reads the termination message.
    TerminationLog,
    /// `volumes/<plugin>/<name>[/<rest>]`.
    Volume {
        /// Such as `kubernetes.io~configmap`.
        plugin: &'a str,
        /// The volume's name.
        name: &'a str,
        /// Below the volume; empty for the whole of it.
        rest: PathBuf,
    },
    /// `volume-subpaths/<volume>/<container>/<n>`: a bind mount of part of a volume.
    SubPath,
    /// Anything else there.
    Other,
}

/// What the kubelet means by a path; `None` when it is not below this pod's folder.
pub(super) fn parse<'a>(kubelet_dir: &Path, pod_uid: &str, path: &'a Path) -> Option<KubeletPath<'a>> {
    if kubelet_dir.as_os_str().is_empty()
        || pod_uid.is_empty()
        || !path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
    {
        return None;
    }
    let below: Vec<&str> =
        path.strip_prefix(kubelet_dir.join("pods").join(pod_uid)).ok()?.iter().map(OsStr::to_str).collect::<Option<_>>()?;
    Some(match below[..] {
        ["etc-hosts"] => KubeletPath::Hosts,
        ["containers", _container, _file] => KubeletPath::TerminationLog,
        ["volumes", plugin, name, ref rest @ ..] => KubeletPath::Volume { plugin, name, rest: rest.iter().collect() },
        ["volume-subpaths", _volume, _container, _number] => KubeletPath::SubPath,
        _ => KubeletPath::Other,
    })
}

/// The pod's shared memory.
pub(super) fn shm() -> String {
    format!("{SHARE}/sandbox/shm")
}

/// An emptyDir on disk, shared by the pod's containers.
pub(super) fn disk(sandbox_id: &str, name: &str) -> String {
    format!("{SHARE}/shared/containers/passthrough/{sandbox_id}/rootfs/local/{name}")
}

/// An emptyDir in memory, shared by the pod's containers.
pub(super) fn memory(name: &str) -> String {
    format!("{SHARE}/sandbox/ephemeral/{name}")
}

/// A copy that belongs to one container and goes with it. The number keeps mounts of one base name apart and is the same when a
/// creation is tried again.
pub(super) fn own(container_id: &str, mount: usize, destination: &Path) -> String {
    let name: String = destination.file_name().map_or("root".into(), |name| name.to_string_lossy()).into_owned();
    format!("{SHARE}/shared/containers/{container_id}-{mount:016x}-{name}")
}
