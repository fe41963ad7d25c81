//! A machine's cgroups: `peerpods/<name>` in every hierarchy that is mounted, version 1, version 2 or both.
//!
//! They are made at the top of each mount rather than below our own group: on version 2 a group with processes cannot have
//! children with controllers, and only the top is exempt.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The group above all machines' groups.
const PARENT: &str = "peerpods";

/// How often the group above may vanish while a machine's group is made.
const MAKE_TRIES: u32 = 100;

/// How long a group may stay busy after the last of its processes has ended.
const BUSY_TRIES: u32 = 50;
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    pub(crate) mount: PathBuf,
    pub(crate) kind: Kind,
}

/// What a hierarchy has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Version 1 controllers as `mount` wants them: `cpu,cpuacct`.
    V1(String),
    /// Version 1 without controllers: `name=systemd`.
    Named,
    /// Version 2.
    V2,
}

/// Enters the machine's group in every hierarchy, making it where it is missing.
pub(crate) fn join(name: &str) -> io::Result<Vec<Hierarchy>> {
    let hierarchies = hierarchies()?;
    for hierarchy in &hierarchies {
        let mut tries = 1;
        let own = loop {
            match make(hierarchy, name) {
                // Whoever removed the last machine of another state folder has just taken the group above away.
                Err(error) if error.kind() == ErrorKind::NotFound && tries < MAKE_TRIES => tries += 1,
                made => break made?,
            }
        };
        fs::write(own.join("cgroup.procs"), "0")?;
    }
    Ok(hierarchies)
}

/// Makes the machine's group and the one above where they are missing.
fn make(hierarchy: &Hierarchy, name: &str) -> io::Result<PathBuf> {
    let parent = hierarchy.mount.join(PARENT);
    let own = parent.join(name);
    for (above, group) in [(hierarchy.mount.as_path(), parent.as_path()), (&parent, &own)] {
        if hierarchy.kind == Kind::V2 {
            delegate(above)?;
        }
        match fs::create_dir(group) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        if matches!(&hierarchy.kind, Kind::V1(controllers) if controllers.split(',').any(|c| c == "cpuset")) {
            inherit_cpuset(above, group)?;
        }
    }
    Ok(own)
}

/// Removes the machine's groups and, with the last machine, the group above. Its processes must have ended.
pub(crate) fn remove(name: &str) -> io::Result<()> {
    for hierarchy in hierarchies()? {
        let parent = hierarchy.mount.join(PARENT);
        remove_tree(&parent.join(name))?;
        match fs::remove_dir(&parent) {
            Ok(()) => {}
            // Other machines are there, or the group never was.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ResourceBusy | ErrorKind::DirectoryNotEmpty) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What is mounted in the calling process's mount namespace.
pub(crate) fn hierarchies() -> io::Result<Vec<Hierarchy>> {
    let (mounts, known) = (fs::read_to_string("/proc/self/mountinfo")?, fs::read_to_string("/proc/cgroups")?);
    let known: Vec<&str> = known.lines().skip(1).filter_map(|line| line.split_ascii_whitespace().next()).collect();
    let mut found: Vec<Hierarchy> = Vec::new();
    for hierarchy in mounts.lines().filter_map(|line| parse(line, &known)) {
        // One hierarchy may be mounted twice.
        if !found.iter().any(|other| other.kind == hierarchy.kind) {
            found.push(hierarchy);
        }
    }
    Ok(found)
}

fn parse(line: &str, known: &[&str]) -> Option<Hierarchy> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let mount = PathBuf::from(mount.split(' ').nth(4)?);
    let mut filesystem = filesystem.split(' ');
    let kind = match filesystem.next()? {
        "cgroup2" => Kind::V2,
        "cgroup" => {
            let options: Vec<&str> = filesystem.nth(1)?.split(',').filter(|option| known.contains(option)).collect();
            if options.is_empty() { Kind::Named } else { Kind::V1(options.join(",")) }
        }
        _ => return None,
    };
    Some(Hierarchy { mount, kind })
}

/// Lets children of a version 2 group have its controllers, as far as it may.
fn delegate(group: &Path) -> io::Result<()> {
    for controller in fs::read_to_string(group.join("cgroup.controllers"))?.split_ascii_whitespace() {
        // A group with processes of its own refuses; its children then do without.
        let _ = fs::write(group.join("cgroup.subtree_control"), format!("+{controller}"));
    }
    Ok(())
}

/// A version 1 cpuset takes no process until it has processors and memory nodes.
fn inherit_cpuset(above: &Path, group: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if fs::read_to_string(group.join(file))?.trim().is_empty() {
            fs::write(group.join(file), fs::read_to_string(above.join(file))?)?;
        }
    }
    Ok(())
}

fn remove_tree(group: &Path) -> io::Result<()> {
    let Some(entries) = super::super::files::none_if_missing(fs::read_dir(group))? else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    for _ in 0..BUSY_TRIES {
        match fs::remove_dir(group) {
            Err(error) if error.kind() == ErrorKind::ResourceBusy => std::thread::sleep(BUSY_PAUSE),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            done => return done,
        }
    }
    fs::remove_dir(group)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_told_apart() {
        let known = ["cpu", "cpuacct", "memory"];
        let kind = |line: &str| parse(line, &known).map(|hierarchy| hierarchy.kind);
        let line = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct";
        assert_eq!(kind(line), Some(Kind::V1("cpu,cpuacct".to_owned())));
        assert_eq!(kind("40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd"), Some(Kind::Named));
        assert_eq!(kind("41 31 0:38 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw"), Some(Kind::V2));
        assert_eq!(kind("23 27 0:22 / /sys rw,relatime - sysfs sysfs rw"), None);
        let mount = parse("41 31 0:38 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw", &known).map(|hierarchy| hierarchy.mount);
        assert_eq!(mount, Some(PathBuf::from("/sys/fs/cgroup")));
    }
}
