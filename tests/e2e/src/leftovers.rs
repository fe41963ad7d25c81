//! What the kernel still holds: processes, links, network namespaces, mounts, groups of processes.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context, Result};

/// A list of what there is, to be compared with a later one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftovers {
    processes: BTreeSet<String>,
    links: BTreeSet<String>,
    namespaces: BTreeSet<String>,
    mounts: BTreeSet<String>,
    cgroups: BTreeSet<String>,
}

/// Programs that belong to a world.
const PROGRAMS: &[&str] = &["peerpods-", "containerd", "runc", "qemu-system-", "docker-registry", "busybox"];

impl Leftovers {
    /// Asks `/proc`, netlink and `/run/netns`.
    pub fn now() -> Result<Self> {
        Ok(Self { processes: processes()?, links: links()?, namespaces: namespaces(), mounts: mounts()?, cgroups: cgroups() })
    }

    /// What is here and was not `before`.
    pub fn since(&self, before: &Self) -> Self {
        let difference = |now: &BTreeSet<String>, then: &BTreeSet<String>| now.difference(then).cloned().collect();
        Self {
            processes: difference(&self.processes, &before.processes),
            links: difference(&self.links, &before.links),
            namespaces: difference(&self.namespaces, &before.namespaces),
            mounts: difference(&self.mounts, &before.mounts),
            cgroups: difference(&self.cgroups, &before.cgroups),
        }
    }

    fn lists(&self) -> [&BTreeSet<String>; 5] {
        [&self.processes, &self.links, &self.namespaces, &self.mounts, &self.cgroups]
    }

    /// True when nothing is.
    pub fn is_empty(&self) -> bool {
        self.lists().iter().all(|list| list.is_empty())
    }
}

impl std::fmt::Display for Leftovers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [p, l, n, m, c] = self.lists().map(BTreeSet::len);
        write!(f, "{p} processes, {l} links, {n} netns, {m} mounts, {c} cgroups")?;
        for line in self.lists().into_iter().flatten() {
            write!(f, "\n  {line}")?;
        }
        Ok(())
    }
}

fn processes() -> Result<BTreeSet<String>> {
    let own = std::process::id();
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let Ok(exe) = std::fs::read_link(entry.path().join("exe")) else { continue };
        let name = exe.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if pid != own && PROGRAMS.iter().any(|p| name.starts_with(p)) {
            found.insert(format!("process {pid} {name}"));
        }
    }
    Ok(found)
}

fn links() -> Result<BTreeSet<String>> {
    let out = Command::new("ip").args(["-o", "link"]).output().context("starting ip")?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    Ok(text.lines().filter_map(|line| line.split(": ").nth(1)).map(|name| format!("link {name}")).collect())
}

fn namespaces() -> BTreeSet<String> {
    let entries = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    entries.map(|e| format!("netns {}", e.file_name().to_string_lossy())).collect()
}

/// Groups at the top of each hierarchy: whoever makes groups makes one there.
fn cgroups() -> BTreeSet<String> {
    let folders = |path: &std::path::Path| {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.is_dir() && !path.is_symlink()).collect::<Vec<_>>()
    };
    let tops = folders(std::path::Path::new("/sys/fs/cgroup"));
    tops.iter().flat_map(|top| folders(top)).chain(tops.clone()).map(|group| format!("cgroup {}", group.display())).collect()
}

fn mounts() -> Result<BTreeSet<String>> {
    let text = std::fs::read_to_string("/proc/self/mountinfo")?;
    Ok(text.lines().filter_map(|line| line.split(' ').nth(4)).map(|point| format!("mount {point}")).collect())
}
