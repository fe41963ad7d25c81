//! A machine that is only namespaces and cgroups of this kernel, with the guest binary as PID 1. For tests.
//!
//! It isolates nothing that matters: root in it is root of the host. It is here because it starts in milliseconds and runs the same
//! guest binary over the same boot files as a real machine. An instance type's limits are not enforced.

pub(crate) mod cgroups;
mod root;
mod veth;

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, unshare};
use serde::{Deserialize, Serialize};

use super::netlink::Netlink;

/// What the machine's process needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SandboxStart {
    /// The guest binary.
    pub(crate) guest: PathBuf,
    /// The link that becomes its `eth0`.
    pub(crate) link: String,
    /// Its host name and the name of its cgroups.
    pub(crate) name: String,
}

/// Puts the next child into a PID namespace of its own.
pub(crate) fn enter_pid_namespace() -> Result<(), String> {
    unshare(CloneFlags::CLONE_NEWPID).map_err(|error| format!("making a PID namespace: {error}"))
}

/// Turns the calling process, PID 1 of its namespace, into the machine: all but `exec` of `/init`.
pub(crate) fn become_machine(folder: &Path, start: &SandboxStart) -> Result<(), String> {
    // The cgroups first, so that they are the roots of the cgroup namespace; the socket too, as it stays in the host's network.
    let hierarchies = cgroups::join(&start.name).map_err(|error| format!("entering cgroups {}: {error}", start.name))?;
    let mut netlink = Netlink::open().map_err(|error| format!("opening netlink: {error}"))?;
    let namespaces = CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWCGROUP;
    unshare(namespaces).map_err(|error| format!("making namespaces: {error}"))?;
    take_link(&mut netlink, &start.link).map_err(|error| format!("taking link {}: {error}", start.link))?;
    nix::unistd::sethostname(&start.name).map_err(|error| format!("setting the host name: {error}"))?;
    root::enter(folder, &start.guest, &hierarchies)
}

fn take_link(netlink: &mut Netlink, name: &str) -> std::io::Result<()> {
    let own = File::open("/proc/self/ns/net")?;
    let link = netlink.find(name)?.ok_or(nix::errno::Errno::ENODEV)?;
    netlink.move_to(link.index, own.as_fd(), "eth0")
}
