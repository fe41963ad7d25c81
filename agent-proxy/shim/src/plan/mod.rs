//! From the OCI specification that containerd made to what the agent is asked.
//!
//! Pure: what must be known of the node's files comes as [`Facts`] (read by [`crate::files::look`]), and nothing here waits, reads or
//! writes. A container becomes a [`ContainerPlan`]: the specification as the agent takes it, the storages that must be in place, the
//! files that must be copied first. What a pod VM cannot have, or what the pod's class does not allow, is a [`Refusal`] whose text
//! names the thing, the cause and the next step; nothing is left out silently that a workload could notice, except:
//! AppArmor and SELinux (the guest has neither), hooks, block-I/O and RDMA limits and CPU pinning (they speak of the node's devices).

mod access;
mod convert;
mod mounts;
mod refusal;
mod sources;
mod volumes;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use peerpods_protos::{agent, oci};

pub use access::HostAccess;
pub use convert::{process, resources};
pub use refusal::Refusal;
pub use sources::{Kind, Source, Sources};

/// What a container is in its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The sandbox itself: the pause container, whose image is the guest's own.
    Pause,
    /// A container of the pod.
    Container,
}

/// The image that the guest is to pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedImage {
    /// `host/repository@sha256:<manifest>`.
    pub reference: String,
    /// `sha256:<hex>` of the configuration that containerd made the specification from.
    pub config_digest: String,
}

/// What the specification does not say.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Pause or container.
    pub role: Role,
    /// The CRI sandbox id.
    pub sandbox_id: String,
    /// The container's id; the sandbox's for the pause container.
    pub container_id: String,
    /// Needed for [`Role::Container`].
    pub image: Option<ResolvedImage>,
    /// What the pod's class lets it use of the node.
    pub host_access: HostAccess,
    /// The sources of the specification's bind mounts, as [`crate::files::look`] found them.
    pub sources: Sources,
    /// The pod's containers by the process ids that this shim has reported for them.
    pub pids: BTreeMap<u32, String>,
}

/// A file or folder of the node that the container sees a copy of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// On the node.
    pub source: PathBuf,
    /// In the guest, below `/run/kata-containers/shared/containers`.
    pub target: String,
    /// Whether changes on the node are to be seen in the pod.
    pub watch: bool,
}

/// What the agent is asked for one container.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerPlan {
    /// `CreateContainerRequest.OCI`.
    pub spec: oci::Spec,
    /// `CreateContainerRequest.storages`, in order.
    pub storages: Vec<agent::Storage>,
    /// To be copied before the container is created.
    pub copies: Vec<Copy>,
    /// Where the kubelet expects the termination message, on the node.
    pub termination_log: Option<PathBuf>,
    /// `CreateContainerRequest.sandbox_pidns`.
    pub shares_pid_namespace: bool,
}

/// What the agent is asked for the sandbox.
#[derive(Debug, Clone, PartialEq)]
pub struct SandboxPlan {
    /// `CreateSandboxRequest.hostname`.
    pub hostname: String,
    /// `CreateSandboxRequest.dns`.
    pub dns: Vec<String>,
    /// `CreateSandboxRequest.storages`: the shared memory of the pod.
    pub storages: Vec<agent::Storage>,
}

/// Kata's folder in the guest.
const SHARE: &str = "/run/kata-containers";
/// Linux takes no longer host name.
const MAX_HOSTNAME_BYTES: usize = 64;
/// containerd's size of a pod's shared memory.
const SHM_BYTES: u64 = 64 << 20;

/// Plans a container, or the pause container of a sandbox.
pub fn container(spec: &Spec, facts: &Facts) -> Result<ContainerPlan, Refusal> {
    access::check(spec, facts)?;
    let mounts = mounts::plan(spec, facts)?;
    let rootfs = format!("{SHARE}/{}/rootfs", facts.container_id);
    let joined = if facts.role == Role::Container { access::joined_pid_namespace(spec, facts)? } else { None };
    let mut converted = convert::spec(spec, facts, &rootfs)?;
    converted.Mounts = mounts.mounts;
    if let Some(log) = &mounts.termination_log {
        converted.Annotations.insert(TERMINATION_PATH.to_owned(), log.in_container.display().to_string());
    }
    let mut storages = vec![rootfs_storage(facts, rootfs, joined)?];
    storages.extend(mounts.storages);
    Ok(ContainerPlan {
        spec: converted,
        storages,
        copies: mounts.copies,
        termination_log: mounts.termination_log.map(|log| log.on_node),
        shares_pid_namespace: joined.is_some(),
    })
}

/// Plans a sandbox from the pause container's specification and the text of the pod's resolv.conf.
pub fn sandbox(spec: &Spec, resolv_conf: Option<&str>) -> Result<SandboxPlan, Refusal> {
    access::check_namespaces(spec)?;
    let mut hostname = spec.hostname().clone().unwrap_or_default();
    hostname.truncate(hostname.floor_char_boundary(MAX_HOSTNAME_BYTES));
    let dns = resolv_conf.unwrap_or_default().lines().map(str::trim_end).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    let shm = agent::Storage {
        driver: "ephemeral".to_owned(),
        source: "shm".to_owned(),
        fstype: "tmpfs".to_owned(),
        options: ["noexec", "nosuid", "nodev", "mode=1777"].map(str::to_owned).into_iter().chain([format!("size={SHM_BYTES}")]).collect(),
        mount_point: volumes::shm(),
        ..Default::default()
    };
    Ok(SandboxPlan { hostname, dns, storages: vec![shm] })
}

/// The pod's resolv.conf on the node, as the pause container's specification names it.
pub fn resolv_conf(spec: &Spec) -> Option<&Path> {
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    mounts.iter().find(|mount| mount.destination() == Path::new("/etc/resolv.conf")).and_then(|mount| mount.source().as_deref())
}

/// Tells the agent where the container writes its termination message; the kubelet's own name for it.
const TERMINATION_PATH: &str = "io.kubernetes.container.terminationMessagePath";

/// The root filesystem is brought by the guest itself; the node only says which image it means.
fn rootfs_storage(facts: &Facts, mount_point: String, joined: Option<&str>) -> Result<agent::Storage, Refusal> {
    let mut options = vec![r#"image_guest_pull={"metadata":{}}"#.to_owned()];
    let source = match (facts.role, &facts.image) {
        (Role::Pause, _) => "pause".to_owned(),
        (Role::Container, Some(image)) => {
            options.push(format!("peerpods.config={}", image.config_digest));
            options.extend(joined.filter(|id| *id != facts.sandbox_id).map(|id| format!("peerpods.pid-namespace-of={id}")));
            image.reference.clone()
        }
        (Role::Container, None) => return Err(Refusal::Incomplete { what: "resolved image" }),
    };
    Ok(agent::Storage {
        driver: "image_guest_pull".to_owned(),
        driver_options: options,
        source,
        fstype: "overlay".to_owned(),
        mount_point,
        ..Default::default()
    })
}
