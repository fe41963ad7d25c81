//! What a container may do: its user, capabilities, kernel settings and signals, as the manifest asks for them and no more.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::image::ImageConfig;
use super::manifest::{Container, Workload};

/// containerd's, which every container gets that asks for nothing else.
pub(super) const DEFAULT_CAPABILITIES: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
/// What containerd sets in every sandbox, so that servers need no rights for low ports and ping.
const COMMON_SYSCTLS: [(&str, &str); 2] = [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")];
/// Linux numbers them so on every architecture that pod VMs have.
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM", "STKFLT", "CHLD",
    "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
/// The first and the last of the C library's, which keeps two for itself.
const REALTIME: std::ops::RangeInclusive<u32> = 34..=64;

/// Members of `User` that are known.
pub(super) fn user(workload: &Workload, container: &Container, config: Option<&ImageConfig>, warnings: &mut Vec<String>) -> Value {
    let (own, pod) = (&container.security_context, &workload.spec.security_context);
    let image = config.map(|config| config.user.as_str());
    let (image_user, image_group) = match image.map(|user| user.split_once(':').unwrap_or((user, ""))) {
        Some(("", _)) => (Some(0), Some(0)),
        Some((user, group)) => (user.parse::<u32>().ok(), group.parse::<u32>().ok()),
        None => (None, None),
    };
    let uid = own.run_as_user.or(pod.run_as_user).or(image_user);
    let gid = own.run_as_group.or(pod.run_as_group).or(image_group.filter(|_| own.run_as_user.or(pod.run_as_user).is_none()));
    if uid.is_none() {
        let name = &container.name;
        warnings.push(format!("container {name}: the node decides as which user it runs; securityContext.runAsUser states it"));
    }
    let members = [("UID", uid), ("GID", gid)];
    Value::Object(members.into_iter().filter_map(|(name, id)| Some((name.to_owned(), json!(id?)))).collect())
}

/// Null is all of them.
pub(super) fn capabilities(container: &Container) -> Value {
    let context = &container.security_context;
    let plain = |names: &[String]| names.iter().map(|name| name.trim_start_matches("CAP_").to_owned()).collect::<BTreeSet<_>>();
    let (add, drop) = (plain(&context.capabilities.add), plain(&context.capabilities.drop));
    if context.privileged || add.contains("ALL") {
        return Value::Null;
    }
    let kept = DEFAULT_CAPABILITIES.iter().filter(|name| !drop.contains("ALL") && !drop.contains(**name));
    let all: BTreeSet<String> = kept.map(|name| (*name).to_owned()).chain(add).collect();
    json!(all)
}

/// Kernel settings by name. containerd's own are for the sandbox; the manifest's go over them.
pub(super) fn sysctls(workload: &Workload, is_sandbox: bool) -> BTreeMap<&str, &str> {
    let common = COMMON_SYSCTLS.into_iter().filter(|_| is_sandbox);
    let own = workload.spec.security_context.sysctls.iter().map(|sysctl| (sysctl.name.as_str(), sysctl.value.as_str()));
    common.chain(own).collect()
}

/// Whether a profile of the node's may filter system calls: not if the manifest says Unconfined. Kata's shims leave it out as they are set
/// up by default, and it only ever takes from the container.
pub(super) fn has_seccomp(workload: &Workload, container: &Container) -> bool {
    let own = container.security_context.seccomp_profile.as_ref();
    let profile = own.or(workload.spec.security_context.seccomp_profile.as_ref());
    !container.security_context.privileged && profile.is_none_or(|profile| profile.kind != "Unconfined")
}

/// Whether /proc may be seen as it is.
pub(super) fn is_unmasked(container: &Container) -> bool {
    container.security_context.privileged || container.security_context.proc_mount.as_deref() == Some("Unmasked")
}

/// The number of the signal that stops it, if it is not TERM; an error is a name that no signal has.
pub(super) fn stop_signal(container: &Container, config: Option<&ImageConfig>) -> Result<Option<u32>, String> {
    let own = container.lifecycle.stop_signal.as_deref().or(config.map(|config| config.stop_signal.as_str()));
    let Some(name) = own.filter(|name| !name.is_empty()) else { return Ok(None) };
    signal(name).map(Some).ok_or_else(|| name.to_owned())
}

fn signal(name: &str) -> Option<u32> {
    if let Ok(number) = name.parse::<u32>() {
        return (1..=*REALTIME.end()).contains(&number).then_some(number);
    }
    let name = name.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let offset = |rest: &str, sign: char| if rest.is_empty() { Some(0) } else { rest.strip_prefix(sign)?.parse::<u32>().ok() };
    let number = if let Some(rest) = name.strip_prefix("RTMIN") {
        REALTIME.start().checked_add(offset(rest, '+')?)?
    } else if let Some(rest) = name.strip_prefix("RTMAX") {
        REALTIME.end().checked_sub(offset(rest, '-')?)?
    } else {
        return SIGNALS.iter().position(|known| *known == name).and_then(|index| u32::try_from(index + 1).ok());
    };
    REALTIME.contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_their_numbers() {
        for (name, number) in
            [("SIGTERM", 15), ("quit", 3), ("SIGKILL", 9), ("SIGSYS", 31), ("37", 37), ("SIGRTMIN+3", 37), ("RTMAX-1", 63), ("RTMIN", 34)]
        {
            assert_eq!(signal(name), Some(number), "{name}");
        }
        for odd in ["", "0", "65", "SIGFOO", "RTMIN+31", "RTMAX-31", "RTMIN-1", "-9"] {
            assert_eq!(signal(odd), None, "{odd}");
        }
    }
}
