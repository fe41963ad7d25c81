//! From the agent protocol's OCI messages to the OCI runtime specification.
//!
//! Only the form changes here; what the guest insists on is added by `confine`. In protobuf an absent number is 0 and an absent
//! text is empty, so those become absent members. SELinux, AppArmor and hooks are not carried over: the guest has neither of the
//! first two, and hooks would be programs of the node.

use oci_spec::runtime::{Process, Spec};
use peerpods_protos::oci;
use serde_json::{Map, Value, json};

/// A message that cannot become a specification.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TranslateError {
    /// A required part is missing.
    #[error("the OCI specification has no {0}")]
    Missing(&'static str),
    /// A mount says that it is one thing and would be another.
    #[error("the mount at {destination} is of type {kind:?} with the option {option:?}: a bind mount must have the type bind")]
    MountType {
        /// Where.
        destination: String,
        /// The type that a policy sees.
        kind: String,
        /// What would make it another.
        option: String,
    },
    /// The guest does not support that.
    #[error("the OCI specification asks for {0}, which this agent does not support")]
    Unsupported(&'static str),
    /// A value is out of its range.
    #[error("the OCI specification is not valid")]
    Invalid(#[from] serde_json::Error),
}

/// Version written into every specification.
const VERSION: &str = "1.2.1";
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Translates a container's specification. Namespaces are left out: `confine` decides them.
pub(crate) fn spec(from: &oci::Spec) -> Result<Spec, TranslateError> {
    let process = from.Process.as_ref().ok_or(TranslateError::Missing("process"))?;
    let root = from.Root.as_ref().ok_or(TranslateError::Missing("root"))?;
    let linux = from.Linux.as_ref().ok_or(TranslateError::Missing("linux section"))?;
    if !linux.UIDMappings.is_empty() || linux.Namespaces.iter().any(|namespace| namespace.Type == "user") {
        return Err(TranslateError::Unsupported("a user namespace"));
    }
    let value = json!({
        "ociVersion": VERSION,
        "process": process_value(process)?,
        "root": { "path": root.Path, "readonly": root.Readonly },
        "mounts": from.Mounts.iter().map(mount_value).collect::<Result<Vec<_>, _>>()?,
        "annotations": from.Annotations,
        "linux": linux_value(linux),
    });
    Ok(serde_json::from_value(value)?)
}

/// Translates a process for an exec.
pub(crate) fn process(from: &oci::Process) -> Result<Process, TranslateError> {
    Ok(serde_json::from_value(process_value(from)?)?)
}

/// Translates limits, for a running container.
pub(crate) fn resources(from: &oci::LinuxResources) -> Result<oci_spec::runtime::LinuxResources, TranslateError> {
    Ok(serde_json::from_value(resources_value(from))?)
}

/// An object from those members that are present.
fn object<const N: usize>(members: [(&str, Option<Value>); N]) -> Value {
    Value::Object(members.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect::<Map<_, _>>())
}

fn text(value: &str) -> Option<Value> {
    (!value.is_empty()).then(|| Value::from(value))
}

fn number<T: Default + PartialEq + Into<Value>>(value: T) -> Option<Value> {
    (value != T::default()).then(|| value.into())
}

fn list<T>(values: &[T], translate: impl Fn(&T) -> Value) -> Option<Value> {
    (!values.is_empty()).then(|| Value::Array(values.iter().map(translate).collect()))
}

fn process_value(from: &oci::Process) -> Result<Value, TranslateError> {
    if from.Args.is_empty() {
        return Err(TranslateError::Missing("process arguments"));
    }
    let user = from.User.as_ref();
    let mut env = from.Env.clone();
    if !env.iter().any(|pair| pair.starts_with("PATH=")) {
        env.push(DEFAULT_PATH.to_owned());
    }
    Ok(object([
        ("terminal", Some(from.Terminal.into())),
        ("consoleSize", from.ConsoleSize.as_ref().map(|size| json!({ "height": size.Height, "width": size.Width }))),
        (
            "user",
            Some(object([
                ("uid", Some(user.map_or(0, |user| user.UID).into())),
                ("gid", Some(user.map_or(0, |user| user.GID).into())),
                ("additionalGids", user.and_then(|user| list(&user.AdditionalGids, |gid| (*gid).into()))),
            ])),
        ),
        ("args", Some(from.Args.clone().into())),
        ("env", Some(env.into())),
        ("cwd", Some(if from.Cwd.is_empty() { "/".into() } else { from.Cwd.clone().into() })),
        ("capabilities", from.Capabilities.as_ref().map(capabilities_value)),
        ("rlimits", list(&from.Rlimits, |limit| json!({ "type": limit.Type, "hard": limit.Hard, "soft": limit.Soft }))),
        ("noNewPrivileges", Some(from.NoNewPrivileges.into())),
        ("oomScoreAdj", Some(from.OOMScoreAdj.into())),
    ]))
}

/// Names come with or without `CAP_`.
fn capabilities_value(from: &oci::LinuxCapabilities) -> Value {
    let names = |names: &[String]| -> Value {
        names
            .iter()
            .map(|name| if name.starts_with("CAP_") { name.clone() } else { format!("CAP_{}", name.to_uppercase()) })
            .collect::<Vec<_>>()
            .into()
    };
    json!({
        "bounding": names(&from.Bounding),
        "effective": names(&from.Effective),
        "inheritable": names(&from.Inheritable),
        "permitted": names(&from.Permitted),
        "ambient": names(&from.Ambient),
    })
}

/// Types that may come with the option of a bind mount: its own, none, and Kata's names for mounts of its own volumes.
const BIND_TYPES: [&str; 5] = ["bind", "", "none", "local", "ephemeral"];

/// A bind mount is one by its type, which policies compare, never by an option alone: the kernel would go by the option.
fn mount_value(from: &oci::Mount) -> Result<Value, TranslateError> {
    let option = from.options.iter().find(|option| matches!(option.as_str(), "bind" | "rbind"));
    if let Some(option) = option.filter(|_| !BIND_TYPES.contains(&from.type_.as_str())) {
        let (destination, kind) = (from.destination.clone(), from.type_.clone());
        return Err(TranslateError::MountType { destination, kind, option: option.clone() });
    }
    let is_bind = option.is_some() || from.type_ == "local" || from.type_ == "ephemeral";
    Ok(object([
        ("destination", Some(from.destination.clone().into())),
        ("source", text(&from.source)),
        ("type", if is_bind { Some("bind".into()) } else { text(&from.type_) }),
        ("options", list(&from.options, |option| option.clone().into())),
    ]))
}

fn linux_value(from: &oci::Linux) -> Value {
    object([
        ("sysctl", (!from.Sysctl.is_empty()).then(|| json!(from.Sysctl))),
        ("resources", from.Resources.as_ref().map(resources_value)),
        ("devices", list(&from.Devices, device_value)),
        ("rootfsPropagation", text(&from.RootfsPropagation)),
        ("maskedPaths", list(&from.MaskedPaths, |path| path.clone().into())),
        ("readonlyPaths", list(&from.ReadonlyPaths, |path| path.clone().into())),
        ("seccomp", from.Seccomp.as_ref().filter(|profile| !profile.DefaultAction.is_empty()).map(seccomp_value)),
    ])
}

fn seccomp_value(from: &oci::LinuxSeccomp) -> Value {
    let argument = |argument: &oci::LinuxSeccompArg| json!({ "index": argument.Index, "value": argument.Value, "valueTwo": argument.ValueTwo, "op": argument.Op });
    let rule = |rule: &oci::LinuxSyscall| {
        let errno = rule.has_errnoret().then(|| rule.errnoret().into());
        object([
            ("names", Some(rule.Names.clone().into())),
            ("action", Some(rule.Action.clone().into())),
            ("errnoRet", errno),
            ("args", list(&rule.Args, argument)),
        ])
    };
    object([
        ("defaultAction", Some(from.DefaultAction.clone().into())),
        ("architectures", list(&from.Architectures, |name| name.clone().into())),
        ("flags", list(&from.Flags, |name| name.clone().into())),
        ("syscalls", list(&from.Syscalls, rule)),
    ])
}

fn device_value(from: &oci::LinuxDevice) -> Value {
    object([
        ("path", Some(from.Path.clone().into())),
        ("type", Some(from.Type.clone().into())),
        ("major", Some(from.Major.into())),
        ("minor", Some(from.Minor.into())),
        ("fileMode", number(from.FileMode & 0o7777)),
        ("uid", Some(from.UID.into())),
        ("gid", Some(from.GID.into())),
    ])
}

fn resources_value(from: &oci::LinuxResources) -> Value {
    object([
        ("memory", from.Memory.as_ref().map(memory_value)),
        ("cpu", from.CPU.as_ref().map(cpu_value)),
        ("pids", from.Pids.as_ref().and_then(|pids| number(pids.Limit)).map(|limit| json!({ "limit": limit }))),
        (
            "hugepageLimits",
            list(
                &from.HugepageLimits,
                |limit| json!({ "pageSize": limit.Pagesize, "limit": i64::try_from(limit.Limit).unwrap_or(i64::MAX) }),
            ),
        ),
    ])
}

fn memory_value(from: &oci::LinuxMemory) -> Value {
    object([("limit", number(from.Limit)), ("reservation", number(from.Reservation)), ("swap", number(from.Swap))])
}

fn cpu_value(from: &oci::LinuxCPU) -> Value {
    object([
        ("shares", number(from.Shares)),
        ("quota", number(from.Quota)),
        ("period", number(from.Period)),
        ("cpus", text(&from.Cpus)),
        ("mems", text(&from.Mems)),
    ])
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::Capability;

    use super::*;

    fn minimal() -> oci::Spec {
        let mut process = oci::Process::new();
        process.Args = vec!["/bin/true".to_owned()];
        let mut spec = oci::Spec::new();
        spec.Process = Some(process).into();
        spec.Root = Some(oci::Root::new()).into();
        spec.Linux = Some(oci::Linux::new()).into();
        spec
    }

    #[test]
    fn absent_numbers_stay_absent() {
        let mut from = minimal();
        let mut resources = oci::LinuxResources::new();
        resources.Memory = Some(oci::LinuxMemory::new()).into();
        let mut cpu = oci::LinuxCPU::new();
        cpu.Shares = 2;
        resources.CPU = Some(cpu).into();
        from.Linux.as_mut().unwrap().Resources = Some(resources).into();
        let spec = spec(&from).unwrap();
        let resources = spec.linux().as_ref().unwrap().resources().as_ref().unwrap();
        assert_eq!(resources.memory().as_ref().unwrap().limit(), None);
        assert_eq!(resources.cpu().as_ref().unwrap().shares(), Some(2));
        assert_eq!(resources.cpu().as_ref().unwrap().quota(), None);
        assert!(resources.devices().is_none());
        assert!(spec.linux().as_ref().unwrap().masked_paths().is_none(), "no defaults of the library");
        assert!(spec.process().as_ref().unwrap().capabilities().is_none());
        assert_eq!(spec.process().as_ref().unwrap().cwd(), std::path::Path::new("/"));
    }

    #[test]
    fn capabilities_come_with_and_without_prefix() {
        let mut from = minimal();
        let mut capabilities = oci::LinuxCapabilities::new();
        capabilities.Bounding = vec!["CHOWN".to_owned(), "CAP_NET_RAW".to_owned(), "kill".to_owned()];
        from.Process.as_mut().unwrap().Capabilities = Some(capabilities).into();
        let spec = spec(&from).unwrap();
        let bounding = spec.process().as_ref().unwrap().capabilities().as_ref().unwrap().bounding().clone().unwrap();
        assert_eq!(bounding, [Capability::Chown, Capability::NetRaw, Capability::Kill].into());
    }

    #[test]
    fn volumes_become_bind_mounts() {
        let mut mount = oci::Mount::new();
        mount.type_ = "local".to_owned();
        mount.destination = "/cache".to_owned();
        mount.source = "/run/kata-containers/shared/containers/x".to_owned();
        let mut from = minimal();
        from.Mounts = vec![mount];
        let spec = spec(&from).unwrap();
        assert_eq!(spec.mounts().as_ref().unwrap()[0].typ().as_deref(), Some("bind"));
    }

    #[test]
    fn bind_mount_of_another_type_is_refused() {
        let mount = |kind: &str, option: &str| {
            let mut mount = oci::Mount::new();
            (mount.type_, mount.destination, mount.source) = (kind.to_owned(), "/x".to_owned(), "/proc".to_owned());
            mount.options = vec!["ro".to_owned(), option.to_owned()];
            let mut from = minimal();
            from.Mounts = vec![mount];
            spec(&from).map(|spec| spec.mounts().as_ref().unwrap()[0].typ().clone().unwrap_or_default())
        };
        for kind in ["tmpfs", "proc", "sysfs", "cgroup", "overlay", "Bind"] {
            for option in ["bind", "rbind"] {
                let error = mount(kind, option).unwrap_err().to_string();
                assert_eq!(
                    error,
                    format!("the mount at /x is of type {kind:?} with the option {option:?}: a bind mount must have the type bind")
                );
            }
            assert_eq!(mount(kind, "nosuid").unwrap(), kind);
        }
        for kind in BIND_TYPES {
            assert_eq!(mount(kind, "rbind").unwrap(), "bind", "{kind}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(spec(&oci::Spec::new()).unwrap_err().to_string(), "the OCI specification has no process");
        let mut from = minimal();
        from.Process.as_mut().unwrap().Args.clear();
        assert_eq!(spec(&from).unwrap_err().to_string(), "the OCI specification has no process arguments");
    }

    #[test]
    fn user_namespaces_are_refused() {
        let mut from = minimal();
        let mut namespace = oci::LinuxNamespace::new();
        namespace.Type = "user".to_owned();
        from.Linux.as_mut().unwrap().Namespaces.push(namespace);
        assert!(matches!(spec(&from), Err(TranslateError::Unsupported(_))));
    }
}
