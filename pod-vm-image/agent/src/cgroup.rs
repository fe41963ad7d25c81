//! The cgroup of one container, with cgroup v2 or with the hierarchies of v1.
//!
//! libcontainer makes the cgroup and puts processes in; here it is read, limited anew, frozen, emptied and removed. A file the
//! kernel does not offer reads as nothing, since which ones exist depends on how the kernel was built.

mod limits;
mod stats;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where cgroups are mounted.
#[derive(Debug, Clone)]
pub(crate) enum Hierarchies {
    /// One tree at this folder.
    V2(PathBuf),
    /// A tree per controller: name of the mount folder, and the folder.
    V1(Vec<(String, PathBuf)>),
}

/// One container's cgroup.
#[derive(Debug, Clone)]
pub(crate) struct Cgroup {
    hierarchies: Hierarchies,
    path: PathBuf,
}

const UNIFIED: &str = "/sys/fs/cgroup";
/// Those in which libcontainer makes groups.
const V1_CONTROLLERS: &[&str] =
    &["blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "hugetlb", "memory", "net_cls", "net_prio", "perf_event", "pids"];
/// How long the processes of a killed cgroup may take to go.
const KILL_DEADLINE: Duration = Duration::from_secs(10);
const KILL_POLL: Duration = Duration::from_millis(5);

impl Hierarchies {
    /// Finds them in `/proc/self/mountinfo`, by the same rule as libcontainer.
    pub(crate) fn find() -> io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string("/proc/self/mountinfo")?))
    }

    fn parse(mountinfo: &str) -> Self {
        let mut v1: Vec<(String, PathBuf)> = Vec::new();
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let Some(folder) = left.split(' ').nth(4).map(PathBuf::from) else { continue };
            match right.split(' ').next() {
                Some("cgroup2") if folder == Path::new(UNIFIED) => return Self::V2(folder),
                Some("cgroup") if folder.parent() == Some(Path::new(UNIFIED)) => {
                    let name = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                    v1.push((name, folder));
                }
                _ => {}
            }
        }
        Self::V1(v1)
    }

    /// A cgroup below them; `path` is relative to their roots.
    pub(crate) fn cgroup(&self, path: &Path) -> Cgroup {
        Cgroup { hierarchies: self.clone(), path: path.strip_prefix("/").unwrap_or(path).to_owned() }
    }
}

impl Cgroup {
    /// Relative to the root, with a leading slash, as specifications have it.
    pub(crate) fn path(&self) -> PathBuf {
        Path::new("/").join(&self.path)
    }

    /// With v1: name and folder of each hierarchy that containers may see.
    pub(crate) fn v1_folders(&self) -> Vec<(String, PathBuf)> {
        match &self.hierarchies {
            Hierarchies::V2(_) => Vec::new(),
            Hierarchies::V1(all) => {
                let is_used = |name: &str| name.split(',').any(|part| V1_CONTROLLERS.contains(&part));
                all.iter().filter(|(name, _)| is_used(name)).map(|(name, folder)| (name.clone(), folder.join(&self.path))).collect()
            }
        }
    }

    fn is_v2(&self) -> bool {
        matches!(self.hierarchies, Hierarchies::V2(_))
    }

    /// This cgroup's folder in the hierarchy of a controller.
    fn folder(&self, controller: &str) -> Option<PathBuf> {
        match &self.hierarchies {
            Hierarchies::V2(root) => Some(root.join(&self.path)),
            Hierarchies::V1(all) => {
                all.iter().find(|(name, _)| name.split(',').any(|part| part == controller)).map(|(_, folder)| folder.join(&self.path))
            }
        }
    }

    fn folders(&self) -> Vec<PathBuf> {
        match &self.hierarchies {
            Hierarchies::V2(root) => vec![root.join(&self.path)],
            Hierarchies::V1(all) => all.iter().map(|(_, folder)| folder.join(&self.path)).collect(),
        }
    }

    fn read(&self, controller: &str, file: &str) -> Option<String> {
        fs::read_to_string(self.folder(controller)?.join(file)).ok()
    }

    fn write(&self, controller: &str, file: &str, value: &str) -> io::Result<()> {
        let folder =
            self.folder(controller).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no controller {controller}")))?;
        let file = folder.join(file);
        fs::write(&file, value).map_err(|error| io::Error::new(error.kind(), format!("writing {value} to {}: {error}", file.display())))
    }

    /// Processes in it and below it.
    fn pids(&self) -> Vec<i32> {
        let mut pids: Vec<i32> = self.folders().iter().flat_map(|folder| pids_below(folder)).collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// How many processes the kernel has killed for want of memory.
    pub(crate) fn oom_kills(&self) -> u64 {
        let file = if self.is_v2() { "memory.events" } else { "memory.oom_control" };
        keyed(&self.read("memory", file).unwrap_or_default(), "oom_kill")
    }

    /// Stops or lets go all processes.
    pub(crate) fn set_frozen(&self, frozen: bool) -> io::Result<()> {
        if self.is_v2() {
            return self.write("freezer", "cgroup.freeze", if frozen { "1" } else { "0" });
        }
        self.write("freezer", "freezer.state", if frozen { "FROZEN" } else { "THAWED" })
    }

    /// Kills every process and waits until none is left.
    pub(crate) async fn kill_all(&self) -> io::Result<()> {
        let ended = tokio::time::timeout(KILL_DEADLINE, async {
            // A frozen process of v1 does not die.
            if !self.is_v2() {
                let _ = self.set_frozen(false);
            }
            loop {
                if self.is_v2() {
                    let _ = self.write("", "cgroup.kill", "1");
                }
                let pids = self.pids();
                if pids.is_empty() {
                    return;
                }
                for pid in pids {
                    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
                }
                tokio::time::sleep(KILL_POLL).await;
            }
        });
        ended.await.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("processes of {} do not die", self.path.display())))
    }

    /// Removes it, with the groups its processes made below. Idempotent.
    pub(crate) fn remove(&self) -> io::Result<()> {
        self.folders().iter().try_for_each(|folder| remove_tree(folder))
    }
}

fn pids_below(folder: &Path) -> Vec<i32> {
    let own = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    // 0 stands for a process of another pid namespace.
    let mut pids: Vec<i32> = own.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            pids.extend(pids_below(&entry.path()));
        }
    }
    pids
}

fn remove_tree(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(|error| io::Error::new(error.kind(), format!("removing {}: {error}", folder.display()))),
    }
}

/// The value of `key` in lines of `key value`; 0 when absent.
fn keyed(text: &str, key: &str) -> u64 {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')).and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
        32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn hybrid_is_v1_and_comounted_controllers_are_found() {
        let hierarchies = Hierarchies::parse(HYBRID);
        let cgroup = hierarchies.cgroup(Path::new("/parent/c1"));
        assert!(!cgroup.is_v2());
        assert_eq!(cgroup.folder("cpuacct").unwrap(), Path::new("/sys/fs/cgroup/cpu,cpuacct/parent/c1"));
        assert_eq!(cgroup.folder("memory"), None);
        assert_eq!(cgroup.path(), Path::new("/parent/c1"));
    }

    #[test]
    fn unified_is_v2() {
        let hierarchies = Hierarchies::parse("30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n");
        assert!(hierarchies.cgroup(Path::new("c")).is_v2());
        assert!(hierarchies.cgroup(Path::new("c")).v1_folders().is_empty());
    }

    #[test]
    fn keys_are_matched_whole() {
        let events = "low 0\noom 3\noom_kill 2\noom_group_kill 1\n";
        assert_eq!(keyed(events, "oom_kill"), 2);
        assert_eq!(keyed(events, "absent"), 0);
    }
}
