//! From the OCI runtime specification to the agent protocol's OCI messages: the inverse of what the agent does with them.
//!
//! Absent numbers become 0 and absent texts empty, which the agent takes as absent. Kept: process, user, capabilities, limits,
//! no_new_privileges, OOM score, sysctls, seccomp, masked and read-only paths, CPU shares and quota, memory, pids, huge pages.
//! Left out, with the reason: hooks (programs of the node), AppArmor and SELinux (the guest has neither), paths of namespaces and the
//! time namespace (they are the node's), CPU and memory node pinning, block I/O, RDMA and network classes (numbers of the node's
//! hardware), the `unified` map (no field of the protocol).

use oci_spec::runtime::{Capabilities, Linux, LinuxCapabilities, LinuxNamespaceType, LinuxResources, LinuxSeccomp, Process, Spec};
use peerpods_protos::oci;
use protobuf::MessageField;
use serde::Serialize;

use super::{Facts, Refusal, Role};

/// Kata's names for what a container is in its pod.
const CONTAINER_TYPE: &str = "io.katacontainers.pkg.oci.container_type";
/// Large, and bound to the pod VM already; neither Kata's shims nor we send it on.
const INITDATA: &str = "io.katacontainers.config.hypervisor.cc_init_data";

/// Converts everything but the mounts.
pub(super) fn spec(from: &Spec, facts: &Facts, rootfs: &str) -> Result<oci::Spec, Refusal> {
    let missing = |what| Refusal::Incomplete { what };
    let root = from.root().as_ref().ok_or(missing("root"))?;
    let linux = from.linux().as_ref().ok_or(missing("linux section"))?;
    let mut annotations = from.annotations().clone().unwrap_or_default();
    annotations.remove(INITDATA);
    let kind = match facts.role {
        Role::Pause => "pod_sandbox",
        Role::Container => "pod_container",
    };
    annotations.insert(CONTAINER_TYPE.to_owned(), kind.to_owned());
    Ok(oci::Spec {
        Version: from.version().clone(),
        Process: Some(process(from.process().as_ref().ok_or(missing("process"))?)?).into(),
        Root: Some(oci::Root { Path: rootfs.to_owned(), Readonly: root.readonly().unwrap_or_default(), ..Default::default() }).into(),
        Hostname: from.hostname().clone().unwrap_or_default(),
        Annotations: annotations,
        Linux: Some(self::linux(linux, facts)?).into(),
        ..Default::default()
    })
}

/// Converts a process, of a container or of an exec. Ids are passed on as they are.
pub fn process(from: &Process) -> Result<oci::Process, Refusal> {
    if from.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(Refusal::Incomplete { what: "process arguments" });
    }
    let cells = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
    let user = from.user();
    Ok(oci::Process {
        Terminal: from.terminal().unwrap_or_default(),
        ConsoleSize: from
            .console_size()
            .map(|size| oci::Box { Height: cells(size.height()), Width: cells(size.width()), ..Default::default() })
            .into(),
        User: Some(oci::User {
            UID: user.uid(),
            GID: user.gid(),
            AdditionalGids: user.additional_gids().clone().unwrap_or_default(),
            Username: user.username().clone().unwrap_or_default(),
            ..Default::default()
        })
        .into(),
        Args: from.args().clone().unwrap_or_default(),
        Env: from.env().clone().unwrap_or_default(),
        Cwd: from.cwd().display().to_string(),
        Capabilities: from.capabilities().as_ref().map(capabilities).into(),
        Rlimits: from
            .rlimits()
            .iter()
            .flatten()
            .map(|limit| oci::POSIXRlimit { Type: name(&limit.typ()), Hard: limit.hard(), Soft: limit.soft(), ..Default::default() })
            .collect(),
        NoNewPrivileges: from.no_new_privileges().unwrap_or_default(),
        OOMScoreAdj: from.oom_score_adj().unwrap_or_default().into(),
        ..Default::default()
    })
}

/// Converts limits, of a container to be made or for an update.
pub fn resources(from: &LinuxResources) -> oci::LinuxResources {
    let memory = from.memory().map(|memory| oci::LinuxMemory {
        Limit: memory.limit().unwrap_or_default(),
        Reservation: memory.reservation().unwrap_or_default(),
        Swap: memory.swap().unwrap_or_default(),
        Swappiness: memory.swappiness().unwrap_or_default(),
        DisableOOMKiller: memory.disable_oom_killer().unwrap_or_default(),
        ..Default::default()
    });
    // Which CPUs and memory nodes: numbers of the node's, of which the pod VM has fewer.
    let cpu = from.cpu().as_ref().map(|cpu| oci::LinuxCPU {
        Shares: cpu.shares().unwrap_or_default(),
        Quota: cpu.quota().unwrap_or_default(),
        Period: cpu.period().unwrap_or_default(),
        RealtimeRuntime: cpu.realtime_runtime().unwrap_or_default(),
        RealtimePeriod: cpu.realtime_period().unwrap_or_default(),
        ..Default::default()
    });
    // The kubelet names every page size that the node has, with 0 for those the pod does not use; the guest may not have them.
    let huge_pages = from.hugepage_limits().iter().flatten().filter(|limit| limit.limit() > 0);
    oci::LinuxResources {
        Memory: memory.into(),
        CPU: cpu.into(),
        Pids: from.pids().map(|pids| oci::LinuxPids { Limit: pids.limit(), ..Default::default() }).into(),
        HugepageLimits: huge_pages
            .map(|limit| oci::LinuxHugepageLimit {
                Pagesize: limit.page_size().clone(),
                Limit: limit.limit().unsigned_abs(),
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    }
}

fn linux(from: &Linux, facts: &Facts) -> Result<oci::Linux, Refusal> {
    // The guest's agent adds the pid namespace and joins the pod's network; it has no use for a path on the node.
    let is_kept = |kind: LinuxNamespaceType| {
        !matches!(kind, LinuxNamespaceType::Pid | LinuxNamespaceType::Network | LinuxNamespaceType::Time | LinuxNamespaceType::Cgroup)
    };
    let namespaces = from.namespaces().iter().flatten().filter(|namespace| is_kept(namespace.typ()));
    let devices = from.devices().iter().flatten().map(|device| oci::LinuxDevice {
        Path: device.path().display().to_string(),
        Type: device.typ().as_str().to_owned(),
        Major: device.major(),
        Minor: device.minor(),
        FileMode: device.file_mode().unwrap_or_default(),
        UID: device.uid().unwrap_or_default(),
        GID: device.gid().unwrap_or_default(),
        ..Default::default()
    });
    Ok(oci::Linux {
        Sysctl: from.sysctl().clone().unwrap_or_default(),
        Resources: from.resources().as_ref().map(resources).into(),
        CgroupsPath: format!("/peerpods/{}", facts.container_id),
        Namespaces: namespaces.map(|namespace| oci::LinuxNamespace { Type: name(&namespace.typ()), ..Default::default() }).collect(),
        Devices: devices.collect(),
        Seccomp: from.seccomp().as_ref().map(seccomp).transpose()?.map_or_else(MessageField::none, MessageField::some),
        MaskedPaths: from.masked_paths().clone().unwrap_or_default(),
        ReadonlyPaths: from.readonly_paths().clone().unwrap_or_default(),
        ..Default::default()
    })
}

fn seccomp(from: &LinuxSeccomp) -> Result<oci::LinuxSeccomp, Refusal> {
    const NOTIFY: &str = "SCMP_ACT_NOTIFY";
    let syscalls = from.syscalls().as_deref().unwrap_or_default();
    if from.listener_path().is_some() || syscalls.iter().any(|rule| name(&rule.action()) == NOTIFY) {
        return Err(Refusal::SeccompNotify);
    }
    // 1 is EPERM, which the agent takes when nothing else is said.
    if let Some(errno) = from.default_errno_ret().filter(|errno| *errno != 1) {
        let next = "give the errno per rule (errnoRet) and leave defaultErrnoRet out";
        return Err(Refusal::Unsayable { what: "linux.seccomp.defaultErrnoRet", value: errno.to_string(), next });
    }
    let rules = syscalls.iter().map(|rule| oci::LinuxSyscall {
        Names: rule.names().clone(),
        Action: name(&rule.action()),
        ErrnoRet: rule.errno_ret().map(oci::linux_syscall::ErrnoRet::Errnoret),
        Args: rule
            .args()
            .iter()
            .flatten()
            .map(|arg| oci::LinuxSeccompArg {
                Index: arg.index() as u64,
                Value: arg.value(),
                ValueTwo: arg.value_two().unwrap_or_default(),
                Op: name(&arg.op()),
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    });
    Ok(oci::LinuxSeccomp {
        DefaultAction: name(&from.default_action()),
        Architectures: from.architectures().iter().flatten().map(name).collect(),
        Flags: from.flags().iter().flatten().map(name).collect(),
        Syscalls: rules.collect(),
        ..Default::default()
    })
}

/// Without `CAP_`, as Kata's shim says them; sorted, because the sets have no order.
fn capabilities(from: &LinuxCapabilities) -> oci::LinuxCapabilities {
    let names = |set: &Option<Capabilities>| {
        let mut names: Vec<String> =
            set.iter().flatten().map(|capability| name(capability).trim_start_matches("CAP_").to_owned()).collect();
        names.sort_unstable();
        names
    };
    oci::LinuxCapabilities {
        Bounding: names(from.bounding()),
        Effective: names(from.effective()),
        Inheritable: names(from.inheritable()),
        Permitted: names(from.permitted()),
        Ambient: names(from.ambient()),
        ..Default::default()
    }
}

/// The word of an enumeration as the specification's JSON has it.
fn name(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name,
        // Not reached: every enumeration of the specification is a word.
        _ => String::new(),
    }
}
