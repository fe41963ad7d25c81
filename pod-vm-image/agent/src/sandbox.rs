//! The sandbox: what the containers of the pod share beside their network.
//!
//! The IPC and UTS namespaces live as long as their open files; containers reach them as `/proc/<agent>/fd/<n>`, so nothing is
//! mounted for them and nothing of them outlives the agent.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, unshare};

/// One pod's shared things.
#[derive(Debug)]
pub(crate) struct Sandbox {
    id: String,
    ipc: File,
    uts: File,
    /// Made from the request's DNS lines; containers without a file of their own get it.
    resolv_conf: Option<PathBuf>,
}

/// The kernel's limit.
const MAX_HOSTNAME_BYTES: usize = 64;

impl Sandbox {
    /// Makes the namespaces and writes the DNS configuration into `folder`.
    pub(crate) fn create(id: &str, hostname: &str, dns: &[String], folder: &Path) -> io::Result<Self> {
        let hostname = truncated(hostname).to_owned();
        // Namespaces belong to threads: a thread of its own makes them and hands out files that keep them alive.
        let (ipc, uts) = std::thread::Builder::new()
            .name("namespaces".to_owned())
            .spawn(move || -> io::Result<(File, File)> {
                unshare(CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS)?;
                if !hostname.is_empty() {
                    nix::unistd::sethostname(hostname)?;
                }
                Ok((File::open("/proc/thread-self/ns/ipc")?, File::open("/proc/thread-self/ns/uts")?))
            })?
            .join()
            .map_err(|_| io::Error::other("the thread making namespaces panicked"))??;
        let resolv_conf = write_resolv_conf(dns, folder)?;
        Ok(Self { id: id.to_owned(), ipc, uts, resolv_conf })
    }

    /// The shim's id of it, which is also its pause container's.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Path of the IPC namespace.
    pub(crate) fn ipc(&self) -> PathBuf {
        of_this_process(&self.ipc)
    }

    /// Path of the UTS namespace.
    pub(crate) fn uts(&self) -> PathBuf {
        of_this_process(&self.uts)
    }

    /// The file with the pod's DNS configuration.
    pub(crate) fn resolv_conf(&self) -> Option<&Path> {
        self.resolv_conf.as_deref()
    }
}

fn of_this_process(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()))
}

fn truncated(hostname: &str) -> &str {
    let mut end = hostname.len().min(MAX_HOSTNAME_BYTES);
    while !hostname.is_char_boundary(end) {
        end -= 1;
    }
    hostname.get(..end).unwrap_or_default()
}

fn write_resolv_conf(dns: &[String], folder: &Path) -> io::Result<Option<PathBuf>> {
    let lines: Vec<&str> = dns.iter().map(|line| line.trim()).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() {
        return Ok(None);
    }
    let file = folder.join("resolv.conf");
    fs::write(&file, lines.join("\n") + "\n")?;
    Ok(Some(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_lines_become_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let dns = ["search a.b".to_owned(), "nameserver 10.96.0.10".to_owned(), String::new()];
        let file = write_resolv_conf(&dns, folder.path()).unwrap().unwrap();
        assert_eq!(fs::read_to_string(file).unwrap(), "search a.b\nnameserver 10.96.0.10\n");
        assert!(write_resolv_conf(&[String::new()], folder.path()).unwrap().is_none());
    }

    #[test]
    fn hostnames_are_cut_at_a_character() {
        assert_eq!(truncated("web-0"), "web-0");
        assert_eq!(truncated(&"é".repeat(40)).len(), 64);
        assert_eq!(truncated(&format!("a{}", "é".repeat(40))).len(), 63);
    }
}
