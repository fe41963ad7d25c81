//! What a container wants of the node beyond its mounts: namespaces, devices, privilege.

use std::path::Path;

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, LinuxNamespaceType, Spec};

use super::{Facts, Refusal};

/// What the pod's class lets it use of the node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HostAccess {
    /// Files and folders of the node may be copied into the pod VM.
    pub host_path: bool,
    /// Privileged containers and the guest's devices.
    pub privileged: bool,
}

/// Devices that every container has, so that naming them asks for nothing.
const DEFAULT_DEVICES: [(&str, i64, i64); 7] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
    ("/dev/console", 5, 1),
];
/// Character devices whose numbers mean the same in every Linux: memory, terminals, and miscellaneous ones up to the first number
/// that is given out at run time.
const FIXED_MAJORS: [i64; 3] = [1, 5, MISC_MAJOR];
const MISC_MAJOR: i64 = 10;
const FIRST_DYNAMIC_MINOR: i64 = 255;

impl HostAccess {
    /// Reads the node daemon's words; unknown ones are ignored.
    pub fn from_words<W: AsRef<str>>(words: impl IntoIterator<Item = W>) -> Self {
        words.into_iter().fold(Self::default(), |access, word| match word.as_ref() {
            "host-path" => Self { host_path: true, ..access },
            "privileged" => Self { privileged: true, ..access },
            _ => access,
        })
    }
}

/// Refuses what the class does not allow.
pub(super) fn check(spec: &Spec, facts: &Facts) -> Result<(), Refusal> {
    check_namespaces(spec)?;
    if !facts.host_access.privileged
        && let Some(sign) = privilege(spec)
    {
        return Err(Refusal::Privileged { sign });
    }
    let linux = spec.linux().as_ref();
    linux.and_then(|linux| linux.devices().as_ref()).into_iter().flatten().try_for_each(|device| check_device(device, facts.host_access))
}

/// Refuses namespaces of the node: containerd leaves those out that a container is not to have.
pub(super) fn check_namespaces(spec: &Spec) -> Result<(), Refusal> {
    let linux = spec.linux().as_ref().ok_or(Refusal::Incomplete { what: "linux section" })?;
    let has = |kind| linux.namespaces().iter().flatten().any(|namespace| namespace.typ() == kind);
    let mapped = linux.uid_mappings().as_ref().is_some_and(|mappings| !mappings.is_empty());
    if has(LinuxNamespaceType::User) || mapped {
        return Err(Refusal::UserNamespace);
    }
    // Network first: a pod of the node's network has no UTS namespace either.
    let host = [
        (LinuxNamespaceType::Network, "network", "hostNetwork"),
        (LinuxNamespaceType::Pid, "process", "hostPID"),
        (LinuxNamespaceType::Ipc, "IPC", "hostIPC"),
        (LinuxNamespaceType::Uts, "UTS", "hostNetwork"),
    ];
    match host.into_iter().find(|(kind, _, _)| !has(*kind)) {
        Some((_, namespace, field)) => Err(Refusal::HostNamespace { namespace, field }),
        None => Ok(()),
    }
}

/// The container whose pid namespace this one joins; `None` means one of its own.
///
/// containerd names `/proc/<pid>/ns/pid`: the sandbox's pid for a pod that shares its process namespace, the target's for an ephemeral
/// container with a target. Both are pids that this shim has reported.
pub(super) fn joined_pid_namespace<'a>(spec: &Spec, facts: &'a Facts) -> Result<Option<&'a str>, Refusal> {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    let pid = namespaces.into_iter().flatten().find(|namespace| namespace.typ() == LinuxNamespaceType::Pid);
    let path = pid.and_then(|pid| pid.path().as_deref()).filter(|path| !path.as_os_str().is_empty());
    let Some(path) = path else { return Ok(None) };
    let number = path.strip_prefix("/proc").ok().and_then(|rest| rest.iter().next()?.to_str()?.parse().ok());
    let id = number.and_then(|number: u32| facts.pids.get(&number));
    id.map(|id| Some(id.as_str())).ok_or_else(|| Refusal::PidNamespace { path: path.to_owned() })
}

/// What shows that a container is privileged. The specification has no field for it; containerd mounts /sys writable and allows all
/// devices for such containers only.
fn privilege(spec: &Spec) -> Option<&'static str> {
    let is_writable = |options: &Option<Vec<String>>| options.iter().flatten().all(|option| option != "ro" && option != "rro");
    let sysfs = spec.mounts().iter().flatten().find(|mount| mount.typ().as_deref() == Some("sysfs"));
    if sysfs.is_some_and(|mount| mount.destination() == Path::new("/sys") && is_writable(mount.options())) {
        return Some("it has a writable /sys");
    }
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let rules = resources.and_then(|resources| resources.devices().as_ref());
    rules.into_iter().flatten().any(allows_all).then_some("it may use all devices")
}

fn allows_all(rule: &LinuxDeviceCgroup) -> bool {
    let is_any = |number: Option<i64>| number.is_none_or(|number| number < 0);
    let is_open = rule.access().as_deref().is_some_and(|access| access.contains('r') || access.contains('w'));
    rule.allow() && is_any(rule.major()) && is_any(rule.minor()) && is_open
}

fn check_device(device: &LinuxDevice, access: HostAccess) -> Result<(), Refusal> {
    let path = device.path().clone();
    let number = (device.major(), device.minor());
    match device.typ() {
        LinuxDeviceType::B => return Err(Refusal::NodeDevice { path, kind: "block device" }),
        LinuxDeviceType::P => return Ok(()),
        _ => {}
    }
    if DEFAULT_DEVICES.iter().any(|(name, major, minor)| path == Path::new(name) && number == (*major, *minor)) {
        return Ok(());
    }
    let is_fixed = FIXED_MAJORS.contains(&number.0) && (number.0 != MISC_MAJOR || number.1 < FIRST_DYNAMIC_MINOR);
    match (is_fixed, access.privileged) {
        (true, true) => Ok(()),
        (true, false) => Err(Refusal::Device { path }),
        (false, _) => Err(Refusal::NodeDevice { path, kind: "device" }),
    }
}
