//! Why a container cannot run in a pod VM.

use std::path::PathBuf;

/// What was asked, why it cannot be, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A mount of the node's files that the class does not allow.
    #[error(
        "{source_path} of the node is to be mounted at {destination}, but a pod VM does not see the node's files: use a volume of another \
         kind, or have the pod's class allow read-only copies with host_access = [\"host-path\"]"
    )]
    HostPath {
        /// On the node.
        source_path: PathBuf,
        /// In the container.
        destination: PathBuf,
    },
    /// A mount of the node that no class can allow.
    #[error(
        "{source_path} of the node is to be mounted at {destination}, but it is {kind}, which cannot be copied into a pod VM: leave the mount out"
    )]
    Uncopyable {
        /// On the node.
        source_path: PathBuf,
        /// In the container.
        destination: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// The node's devices or kernel settings.
    #[error(
        "{source_path} of the node is to be mounted at {destination}, but a pod VM does not see the node's devices and kernel: leave the \
         mount out, or have the pod's class give the guest's own with host_access = [\"privileged\"]"
    )]
    KernelPath {
        /// On the node.
        source_path: PathBuf,
        /// In the container.
        destination: PathBuf,
    },
    /// A volume whose driver attaches something to the node.
    #[error(
        "volume {volume} at {destination} comes from {plugin}, which attaches storage to the node, and a pod VM does not see the node's \
         storage: use an emptyDir, a configMap, a secret or a projected volume, or storage that the workload reaches over the network"
    )]
    Volume {
        /// Its name.
        volume: String,
        /// The volume plugin, as the kubelet's folders name it.
        plugin: String,
        /// In the container.
        destination: PathBuf,
    },
    /// A sub path that leads to no volume.
    #[error(
        "the sub path at {destination} ({source_path}) belongs to no volume of this pod that the node's mount table shows: mount the whole \
         volume instead, and check that the shim's kubelet_dir is the kubelet's --root-dir"
    )]
    SubPath {
        /// On the node.
        source_path: PathBuf,
        /// In the container.
        destination: PathBuf,
    },
    /// An image as a volume.
    #[error(
        "the image mounted at {destination} is unpacked on the node, which a pod VM does not see: copy its files in an init container that runs that image"
    )]
    ImageVolume {
        /// In the container.
        destination: PathBuf,
    },
    /// An emptyDir of huge pages.
    #[error("volume {volume} at {destination} is an emptyDir of huge pages, which pod VMs do not reserve: use medium Memory")]
    HugePages {
        /// Its name.
        volume: String,
        /// In the container.
        destination: PathBuf,
    },
    /// Mounts made in the container would have to appear on the node.
    #[error(
        "the mount at {destination} propagates to the node (mountPropagation: Bidirectional), and a pod VM shares no mounts with it: use \
         None or HostToContainer, or have the pod's class allow it, without effect on the node, with host_access = [\"privileged\"]"
    )]
    Propagation {
        /// In the container.
        destination: PathBuf,
    },
    /// A file system of a kind that nobody makes in the guest.
    #[error("the mount at {destination} is of type {kind:?}, which a pod VM does not offer: leave it out")]
    MountType {
        /// In the container.
        destination: PathBuf,
        /// Its type.
        kind: String,
    },
    /// A namespace of the node.
    #[error("the pod asks for the node's {namespace} namespace ({field}), and a pod VM shares none with the node: set {field} to false")]
    HostNamespace {
        /// Which.
        namespace: &'static str,
        /// The pod's field that asks for it.
        field: &'static str,
    },
    /// The process namespace of somebody else.
    #[error(
        "the container is to join the process namespace {path}, which is that of no container of this pod: look whether its target \
         still runs"
    )]
    PidNamespace {
        /// As containerd names it.
        path: PathBuf,
    },
    /// Ids mapped on the node.
    #[error("the pod asks for a user namespace (hostUsers: false), which pod VMs do not have and do not need: leave hostUsers out")]
    UserNamespace,
    /// A device of the node.
    #[error(
        "the container asks for device {path}, and a pod VM does not have the node's devices: leave it out, or have the pod's class allow \
         the guest's own device of that number with host_access = [\"privileged\"]"
    )]
    Device {
        /// In the container.
        path: PathBuf,
    },
    /// A device that no guest can have.
    #[error("the container asks for {kind} {path}, and the node's devices cannot be attached to a pod VM: leave it out")]
    NodeDevice {
        /// In the container.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// Root of the guest.
    #[error(
        "the container is privileged ({sign}): in a pod VM that is root of the guest, which the pod's class does not allow: drop \
         securityContext.privileged, or have the class allow it with host_access = [\"privileged\"]"
    )]
    Privileged {
        /// What gives it away.
        sign: &'static str,
    },
    /// A supervisor on the node would have to answer.
    #[error(
        "the seccomp profile notifies a listener on the node (SCMP_ACT_NOTIFY), which cannot see a pod VM's processes: use a profile without it"
    )]
    SeccompNotify,
    /// Something is missing that containerd always gives.
    #[error("the container's specification has no {what}: it was not made by containerd's CRI plugin")]
    Incomplete {
        /// What.
        what: &'static str,
    },
    /// Something that cannot be said to the agent.
    #[error("{what} of the container's specification is {value:?}, which the agent protocol cannot say: {next}")]
    Unsayable {
        /// Which field.
        what: &'static str,
        /// Its value.
        value: String,
        /// What to do.
        next: &'static str,
    },
}
