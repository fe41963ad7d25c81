//! The shim's own place among cgroups: that of its pod, so that its memory counts as the pod's overhead.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const ROOT: &str = "/sys/fs/cgroup";

/// Moves the calling process into the cgroup, which is made where need be, in every hierarchy that takes it. Gives the errors of those
/// that do not; they are no reason to fail a pod.
pub fn join(path: &Path) -> Vec<io::Error> {
    let relative = relative(path);
    let enter = |hierarchy: PathBuf| -> io::Result<()> {
        let folder = hierarchy.join(&relative);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("cgroup.procs"), std::process::id().to_string())
    };
    hierarchies().into_iter().filter_map(|hierarchy| enter(hierarchy).err()).collect()
}

/// Moves the calling process back to the roots and removes the cgroup; what other processes still use stays.
pub fn leave(path: &Path) {
    for hierarchy in hierarchies() {
        let _ = fs::write(hierarchy.join("cgroup.procs"), std::process::id().to_string());
    }
    remove(path);
}

/// Removes the cgroup if it is empty.
pub fn remove(path: &Path) {
    for hierarchy in hierarchies() {
        let _ = fs::remove_dir(hierarchy.join(relative(path)));
    }
}

/// A path of the cgroupfs driver; systemd's `slice:prefix:name` is none.
pub fn usable(path: &Path) -> bool {
    let text = path.to_string_lossy();
    !text.is_empty() && !text.contains(':') && path.components().all(|part| !matches!(part, std::path::Component::ParentDir))
}

fn relative(path: &Path) -> PathBuf {
    path.components().filter(|part| matches!(part, std::path::Component::Normal(_))).collect()
}

/// One for cgroup v2, one a controller for v1; `cpuset` takes no process before it is given processors, so it is left out.
fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new(ROOT);
    if root.join("cgroup.controllers").exists() {
        return vec![root.to_owned()];
    }
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .filter(|path| path.join("cgroup.procs").exists() && !path.ends_with("cpuset"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemd_names_and_ways_up_are_not_used() {
        assert!(usable(Path::new("/kubepods/burstable/pod1/sandbox")));
        for path in ["", "system.slice:cri:x", "/a/../../b"] {
            assert!(!usable(Path::new(path)), "{path}");
        }
        assert_eq!(relative(Path::new("/a/b")), Path::new("a/b"));
    }
}
