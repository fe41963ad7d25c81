//! What the guest insists on, whatever the specification says: namespaces, cgroup, capabilities and limits it can grant,
//! sources of bind mounts.
//!
//! Pure but for [`Grants::of_this_process`], which reads what the kernel lets this process hand on.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use libcontainer::capabilities::CapabilityExt as _;
use oci_spec::runtime::{
    Capabilities, Capability, Linux, LinuxCapabilities, LinuxDeviceCgroupBuilder, LinuxNamespace, LinuxNamespaceBuilder,
    LinuxNamespaceType, LinuxResources, Mount, MountBuilder, PosixRlimit, PosixRlimitBuilder, Process, Spec,
};

use crate::control::{CapabilityMasks, Confinement};

/// What this process may hand on to containers.
#[derive(Debug, Clone)]
pub(crate) struct Grants {
    /// Bits of the permitted and bounding sets.
    capabilities: u64,
    /// This process's own score; without `CAP_SYS_RESOURCE` none below it can be set.
    oom_score_adj: i32,
    /// Whether the kernel can account swap.
    has_swap: bool,
}

/// Which pid namespace a container gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PidNamespace {
    /// One of its own.
    New,
    /// That of another process.
    Of(PathBuf),
}

/// The namespaces and cgroup of a container.
#[derive(Debug, Clone)]
pub(crate) struct Placement {
    /// Shared IPC namespace.
    pub(crate) ipc: PathBuf,
    /// Shared UTS namespace.
    pub(crate) uts: PathBuf,
    /// The pod's network; `None` = the agent's own.
    pub(crate) network: Option<PathBuf>,
    /// The pid namespace.
    pub(crate) pid: PidNamespace,
    /// The container's cgroup, relative to the root of the hierarchy.
    pub(crate) cgroup: PathBuf,
    /// With cgroup v1: where the hierarchies show this cgroup, by name. Empty with v2.
    pub(crate) cgroup_v1_folders: Vec<(String, PathBuf)>,
    /// The root filesystem.
    pub(crate) rootfs: PathBuf,
}

const CAP_SYS_RESOURCE: u32 = 24;

impl Grants {
    /// Reads `/proc/self`.
    pub(crate) fn of_this_process() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let set = |name: &str| {
            status.lines().find_map(|line| line.strip_prefix(name)).and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
        };
        let score = fs::read_to_string("/proc/self/oom_score_adj").ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        Self { capabilities: set("CapPrm:") & set("CapBnd:"), oom_score_adj: score, has_swap: Path::new("/proc/swaps").exists() }
    }

    fn has(&self, number: u32) -> bool {
        self.capabilities.checked_shr(number).is_some_and(|bits| bits & 1 == 1)
    }

    /// Drops what cannot be granted, as the kernel would refuse to start the process with it. What is dropped is logged.
    pub(crate) fn limit(&self, process: &mut Process) {
        if let Some(capabilities) = process.capabilities().clone() {
            let keep = |set: &Option<Capabilities>| -> Capabilities {
                set.iter().flatten().filter(|capability| self.has(number(**capability))).copied().collect()
            };
            let dropped: HashSet<_> = capabilities
                .bounding()
                .iter()
                .flatten()
                .copied()
                .collect::<HashSet<_>>()
                .difference(&keep(capabilities.bounding()))
                .copied()
                .collect();
            if !dropped.is_empty() {
                tracing::info!(?dropped, "capabilities this guest does not have are left out");
            }
            let mut limited = capabilities.clone();
            limited
                .set_bounding(Some(keep(capabilities.bounding())))
                .set_effective(Some(keep(capabilities.effective())))
                .set_permitted(Some(keep(capabilities.permitted())))
                .set_inheritable(Some(keep(capabilities.inheritable())))
                .set_ambient(Some(keep(capabilities.ambient())));
            process.set_capabilities(Some(limited));
        }
        if self.has(CAP_SYS_RESOURCE) {
            return;
        }
        if process.oom_score_adj().is_some_and(|score| score < self.oom_score_adj) {
            tracing::info!(asked = process.oom_score_adj(), given = self.oom_score_adj, "the OOM score is raised");
            process.set_oom_score_adj(Some(self.oom_score_adj));
        }
        let limited = process.rlimits().as_ref().map(|limits| limits.iter().filter_map(within_own).collect());
        process.set_rlimits(limited);
    }

    /// Removes limits that this kernel cannot enforce.
    pub(crate) fn limit_resources(&self, resources: &mut LinuxResources) {
        if let (false, Some(mut memory)) = (self.has_swap, *resources.memory()) {
            memory.set_swap(None);
            resources.set_memory(Some(memory));
        }
    }
}

/// A limit no higher than this process's own; `None` for a kind it does not know.
fn within_own(limit: &PosixRlimit) -> Option<PosixRlimit> {
    let kind = nix_resource(&format!("{}", limit.typ()))?;
    let (_, own) = nix::sys::resource::getrlimit(kind).ok()?;
    if limit.hard() > own {
        tracing::info!(kind = ?limit.typ(), asked = limit.hard(), given = own, "the resource limit is lowered");
    }
    let hard = limit.hard().min(own);
    PosixRlimitBuilder::default().typ(limit.typ()).hard(hard).soft(limit.soft().min(hard)).build().ok()
}

fn nix_resource(name: &str) -> Option<nix::sys::resource::Resource> {
    use nix::sys::resource::Resource;
    Some(match name {
        "RLIMIT_CPU" => Resource::RLIMIT_CPU,
        "RLIMIT_FSIZE" => Resource::RLIMIT_FSIZE,
        "RLIMIT_DATA" => Resource::RLIMIT_DATA,
        "RLIMIT_STACK" => Resource::RLIMIT_STACK,
        "RLIMIT_CORE" => Resource::RLIMIT_CORE,
        "RLIMIT_RSS" => Resource::RLIMIT_RSS,
        "RLIMIT_NPROC" => Resource::RLIMIT_NPROC,
        "RLIMIT_NOFILE" => Resource::RLIMIT_NOFILE,
        "RLIMIT_MEMLOCK" => Resource::RLIMIT_MEMLOCK,
        "RLIMIT_AS" => Resource::RLIMIT_AS,
        "RLIMIT_LOCKS" => Resource::RLIMIT_LOCKS,
        "RLIMIT_SIGPENDING" => Resource::RLIMIT_SIGPENDING,
        "RLIMIT_MSGQUEUE" => Resource::RLIMIT_MSGQUEUE,
        "RLIMIT_NICE" => Resource::RLIMIT_NICE,
        "RLIMIT_RTPRIO" => Resource::RLIMIT_RTPRIO,
        "RLIMIT_RTTIME" => Resource::RLIMIT_RTTIME,
        _ => return None,
    })
}

/// The sets as bits; without any, the process may do nothing special.
pub(crate) fn masks(from: Option<&LinuxCapabilities>) -> CapabilityMasks {
    let mask = |set: &Option<Capabilities>| set.iter().flatten().fold(0, |mask, capability| mask | 1 << number(*capability));
    from.map_or_else(CapabilityMasks::default, |from| CapabilityMasks {
        bounding: mask(from.bounding()),
        effective: mask(from.effective()),
        permitted: mask(from.permitted()),
        inheritable: mask(from.inheritable()),
        ambient: mask(from.ambient()),
    })
}

/// Takes out of a process what the runner sees to itself.
pub(crate) fn take_confinement(process: &mut Process) -> Confinement {
    let confinement = Confinement { capabilities: masks(process.capabilities().as_ref()), working_directory: process.cwd().clone() };
    process.set_capabilities(None).set_cwd(PathBuf::from("/"));
    confinement
}

/// The kernel's number of a capability.
fn number(capability: Capability) -> u32 {
    capability.to_cap().index().into()
}

/// Places a container: namespaces, cgroup, root; and takes away what such a place cannot have.
pub(crate) fn place(spec: &mut Spec, placement: &Placement, grants: &Grants) -> Result<(), oci_spec::OciSpecError> {
    let mut linux = spec.linux().clone().unwrap_or_default();
    linux.set_namespaces(Some(namespaces(placement)?));
    linux.set_cgroups_path(Some(placement.cgroup.clone()));
    restrict_devices(&mut linux)?;
    if let Some(mut resources) = linux.resources().clone() {
        grants.limit_resources(&mut resources);
        linux.set_resources(Some(resources));
    }
    if placement.network.is_none()
        && let Some(mut sysctl) = linux.sysctl().clone()
    {
        // Without a network namespace of the pod these would change the VM's own.
        sysctl.retain(|name, _| !name.starts_with("net."));
        linux.set_sysctl(Some(sysctl));
    }
    spec.set_linux(Some(linux));
    let mut root = spec.root().clone().unwrap_or_default();
    root.set_path(placement.rootfs.clone());
    spec.set_root(Some(root));
    spec.set_hostname(None);
    if !placement.cgroup_v1_folders.is_empty() {
        let mounts = spec.mounts().clone().unwrap_or_default();
        spec.set_mounts(Some(show_cgroup_v1(mounts, &placement.cgroup_v1_folders)?));
    }
    if let Some(mut process) = spec.process().clone() {
        grants.limit(&mut process);
        spec.set_process(Some(process));
    }
    Ok(())
}

fn namespaces(placement: &Placement) -> Result<Vec<LinuxNamespace>, oci_spec::OciSpecError> {
    let new = |kind| LinuxNamespaceBuilder::default().typ(kind).build();
    let join = |kind, path: &Path| LinuxNamespaceBuilder::default().typ(kind).path(path).build();
    let mut all = vec![
        join(LinuxNamespaceType::Ipc, &placement.ipc)?,
        join(LinuxNamespaceType::Uts, &placement.uts)?,
        new(LinuxNamespaceType::Mount)?,
        match &placement.pid {
            PidNamespace::New => new(LinuxNamespaceType::Pid)?,
            PidNamespace::Of(path) => join(LinuxNamespaceType::Pid, path)?,
        },
    ];
    if let Some(network) = &placement.network {
        all.push(join(LinuxNamespaceType::Network, network)?);
    }
    if placement.cgroup_v1_folders.is_empty() {
        all.push(new(LinuxNamespaceType::Cgroup)?);
    }
    Ok(all)
}

/// No device but the usual ones and those named. libcontainer enforces this with cgroup v1 and adds the usual ones itself.
fn restrict_devices(linux: &mut Linux) -> Result<(), oci_spec::OciSpecError> {
    let mut rules = vec![LinuxDeviceCgroupBuilder::default().allow(false).access("rwm").build()?];
    for device in linux.devices().iter().flatten() {
        let rule = LinuxDeviceCgroupBuilder::default().allow(true).typ(device.typ()).major(device.major()).minor(device.minor());
        rules.push(rule.access("rwm").build()?);
    }
    let mut resources = linux.resources().clone().unwrap_or_default();
    resources.set_devices(Some(rules));
    linux.set_resources(Some(resources));
    Ok(())
}

/// Replaces the mount of all of cgroup v1 by read-only views of the container's own cgroup.
fn show_cgroup_v1(mounts: Vec<Mount>, folders: &[(String, PathBuf)]) -> Result<Vec<Mount>, oci_spec::OciSpecError> {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let mut shown = Vec::new();
    for mount in mounts {
        if mount.typ().as_deref() != Some("cgroup") {
            shown.push(mount);
            continue;
        }
        let base = mount.destination().clone();
        let cover = MountBuilder::default().destination(&base).source("tmpfs").typ("tmpfs");
        shown.push(cover.options(words(&["nosuid", "noexec", "nodev", "mode=755"])).build()?);
        for (name, folder) in folders {
            let view = MountBuilder::default().destination(base.join(name)).source(folder).typ("bind");
            shown.push(view.options(words(&["bind", "ro", "nosuid", "noexec", "nodev"])).build()?);
        }
    }
    Ok(shown)
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxCapabilitiesBuilder;

    use super::*;

    fn grants(without: &[u32]) -> Grants {
        let mut capabilities = u64::MAX;
        for number in without {
            capabilities &= !(1 << number);
        }
        Grants { capabilities, oom_score_adj: 0, has_swap: true }
    }

    fn process(capabilities: &[Capability]) -> Process {
        let set: Capabilities = capabilities.iter().copied().collect();
        let mut process = Process::default();
        process.set_capabilities(Some(LinuxCapabilitiesBuilder::default().bounding(set.clone()).permitted(set).build().unwrap()));
        process.set_oom_score_adj(Some(-500));
        process
    }

    #[test]
    fn every_capability_has_a_number() {
        assert_eq!(number(Capability::Chown), 0);
        assert_eq!(number(Capability::SysResource), CAP_SYS_RESOURCE);
        assert_eq!(number(Capability::CheckpointRestore), 40);
        assert_eq!(number(Capability::Syslog), 34);
    }

    #[test]
    fn capabilities_the_guest_lacks_are_left_out() {
        let mut process = process(&[Capability::Chown, Capability::SysResource]);
        grants(&[CAP_SYS_RESOURCE]).limit(&mut process);
        let capabilities = process.capabilities().as_ref().unwrap();
        assert_eq!(capabilities.bounding().clone().unwrap(), [Capability::Chown].into());
        assert_eq!(capabilities.permitted().clone().unwrap(), [Capability::Chown].into());
        assert_eq!(process.oom_score_adj(), Some(0), "raised to the agent's own");
    }

    #[test]
    fn all_is_granted_with_all_capabilities() {
        let mut process = process(&[Capability::SysResource]);
        grants(&[]).limit(&mut process);
        assert_eq!(process.capabilities().as_ref().unwrap().bounding().clone().unwrap(), [Capability::SysResource].into());
        assert_eq!(process.oom_score_adj(), Some(-500));
    }

    #[test]
    fn cgroup_v1_is_shown_read_only() {
        let mount = MountBuilder::default().destination("/sys/fs/cgroup").source("cgroup").typ("cgroup").build().unwrap();
        let shown = show_cgroup_v1(vec![mount], &[("memory".to_owned(), "/sys/fs/cgroup/memory/p/c".into())]).unwrap();
        assert_eq!(shown.len(), 2);
        assert_eq!(shown[1].destination(), Path::new("/sys/fs/cgroup/memory"));
        assert!(shown[1].options().as_ref().unwrap().contains(&"ro".to_owned()));
    }
}
