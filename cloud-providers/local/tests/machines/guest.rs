//! The stand-in guest: PID 1 of a sandbox machine. Writes what it sees to its scratch folder, then does what the user data says.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};

use serde::{Deserialize, Serialize};

/// What the guest sees.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) pid: u32,
    pub(crate) host_name: String,
    pub(crate) environment: BTreeMap<String, String>,
    /// Contents of `/run/peerpods/boot`, by name.
    pub(crate) boot: BTreeMap<String, String>,
    /// Names of links.
    pub(crate) links: Vec<String>,
    pub(crate) mac: String,
    /// Names in the root folder.
    pub(crate) root: Vec<String>,
    pub(crate) devices: Vec<String>,
    /// `/proc/self/cgroup`.
    pub(crate) cgroups: String,
    /// Namespaces by kind.
    pub(crate) namespaces: BTreeMap<String, String>,
    /// Open files but the three standard ones and the listing itself.
    pub(crate) open_files: Vec<String>,
    /// What is mounted where.
    pub(crate) mounts: String,
    pub(crate) sys_is_writable: bool,
    pub(crate) cgroup_is_writable: bool,
}

/// The first argument of the guest's own child.
pub(crate) const CHILD: &str = "peerpods-waiting-child";

/// Namespaces that a machine has of its own.
pub(crate) const NAMESPACES: [&str; 6] = ["cgroup", "ipc", "mnt", "net", "pid", "uts"];

pub(crate) fn main() -> ExitCode {
    let report = look_around();
    println!("guest: up as {}", report.host_name);
    let scratch = Path::new("/run/peerpods/scratch");
    let text = serde_json::to_vec(&report).expect("JSON");
    std::fs::write(scratch.join("report.tmp"), text).expect("scratch is writable");
    std::fs::rename(scratch.join("report.tmp"), scratch.join("report.json")).expect("scratch is writable");
    if report.boot.get("user-data").is_some_and(|text| text == "end") {
        println!("guest: out of ideas");
        return ExitCode::FAILURE;
    }
    // A second process, in a group of its own, which must go with the machine.
    let group = first_hierarchy().join("inner");
    std::fs::create_dir(&group).expect("own cgroup");
    let mut child = Command::new("/init").arg0(CHILD).spawn().expect("a child");
    std::fs::write(group.join("cgroup.procs"), child.id().to_string()).expect("moving the child");
    println!("guest: child {}", child.id());
    let _ = child.wait();
    ExitCode::FAILURE
}

/// What the guest's own child does.
pub(crate) fn wait_for_ever() -> ExitCode {
    loop {
        std::thread::park();
    }
}

fn look_around() -> Report {
    let names = |folder: &str| -> Vec<String> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    };
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let link = |path: String| std::fs::read_link(path).map(|to| to.display().to_string()).unwrap_or_default();
    let boot = names("/run/peerpods/boot");
    let inner = first_hierarchy().join("probe");
    Report {
        pid: std::process::id(),
        host_name: text("/proc/sys/kernel/hostname"),
        environment: std::env::vars().collect(),
        boot: boot.into_iter().map(|name| (name.clone(), text(&format!("/run/peerpods/boot/{name}")))).collect(),
        links: names("/sys/class/net"),
        mac: text("/sys/class/net/eth0/address"),
        root: names("/"),
        devices: names("/dev"),
        cgroups: text("/proc/self/cgroup"),
        namespaces: NAMESPACES.map(|kind| (kind.to_owned(), link(format!("/proc/self/ns/{kind}")))).into(),
        open_files: names("/proc/self/fd").into_iter().filter(|fd| fd.parse::<u32>().is_ok_and(|fd| fd > 3)).collect(),
        mounts: text("/proc/self/mountinfo"),
        sys_is_writable: std::fs::File::options().write(true).open("/sys/kernel/profiling").is_ok(),
        cgroup_is_writable: std::fs::create_dir(&inner).and_then(|()| std::fs::remove_dir(&inner)).is_ok(),
    }
}

/// The memory controller's folder, or the only one of version 2.
fn first_hierarchy() -> &'static Path {
    let memory = Path::new("/sys/fs/cgroup/memory");
    if memory.is_dir() { memory } else { Path::new("/sys/fs/cgroup") }
}
