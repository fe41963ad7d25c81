//! One container: its parts, its first process, its execs.
//!
//! [`Parts`] know how to be taken away again, however far the container got; the same code undoes a failed creation and removes
//! a container that has run.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;
use oci_spec::runtime::{LinuxCapabilities, Spec};
use peerpods_protos::oci;
use ttrpc::Code;

use crate::RootfsSource;
use crate::cgroup::Cgroup;
use crate::confine::{self, Grants};
use crate::control::{Command, Confinement};
use crate::failure::{Failure, chain};
use crate::oom::OomWatch;
use crate::process::{Phase, Process};
use crate::{storage, termination_log, translate, users};

/// A container that was created.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) parts: Parts,
    pub(crate) init: Arc<Process>,
    pub(crate) oom: Arc<OomWatch>,
    execs: Mutex<HashMap<String, Exec>>,
    exec_counter: AtomicU64,
    /// What an exec gets that brings none of its own.
    capabilities: Option<LinuxCapabilities>,
    has_no_new_privileges: bool,
    termination_log: Option<PathBuf>,
}

/// What exists for a container outside of its processes.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) id: String,
    pub(crate) cgroup: Cgroup,
    /// `<share>/<id>`, with the root filesystem in `rootfs`.
    pub(crate) folder: PathBuf,
    /// `<share>/shared/containers`, with files copied for it.
    pub(crate) copied: PathBuf,
    /// With `config.json`.
    pub(crate) bundle: PathBuf,
    /// libcontainer's state folder of all containers.
    pub(crate) state_root: PathBuf,
    /// Bind mounts made for it.
    pub(crate) mounts: Vec<PathBuf>,
    /// Whether the [`RootfsSource`] was asked for its root.
    pub(crate) is_pulled: bool,
    /// Whether a Kata shim asked for it: ours alone says which configuration its image must have.
    pub(crate) is_katas: bool,
    /// The user that the image's configuration names.
    pub(crate) image_user: String,
}

#[derive(Debug)]
enum Exec {
    Building,
    Built(Arc<Process>),
}

/// Removal waits that long for the first process to be reaped once all processes are gone.
const REAP_DEADLINE: Duration = Duration::from_secs(10);
/// Execs that ended but were not waited for.
const MAX_EXECS: usize = 1024;

impl Parts {
    /// The root filesystem.
    pub(crate) fn rootfs(&self) -> PathBuf {
        self.folder.join("rootfs")
    }

    /// Takes everything away. Goes on after an error and reports the first one.
    pub(crate) async fn take_away(&self, source: &dyn RootfsSource) -> Result<(), Failure> {
        let mut first: Option<Failure> = None;
        let mut note = |what: &str, result: io::Result<()>| {
            if let Err(error) = result
                && error.kind() != io::ErrorKind::NotFound
            {
                first.get_or_insert(Failure::because(what, &error));
            }
        };
        note("killing processes", self.cgroup.kill_all().await);
        note("removing the cgroup", self.cgroup.remove());
        self.mounts.iter().rev().for_each(|mount| storage::unmount(mount));
        if self.is_pulled {
            let removed = source.remove(&self.id, &self.rootfs()).await;
            note("removing the root filesystem", removed.map_err(|error| io::Error::other(chain(&error))));
        }
        note("removing the container's folder", fs::remove_dir_all(&self.folder));
        note("removing the bundle", fs::remove_dir_all(&self.bundle));
        note("removing the runtime's state", fs::remove_dir_all(self.state_root.join(&self.id)));
        note("removing copied files", remove_with_prefix(&self.copied, &format!("{}-", self.id)));
        first.map_or(Ok(()), Err)
    }

    /// The command that has a runner build the container.
    pub(crate) fn create_command(&self, terminal: bool, confinement: Confinement) -> Command {
        let (container_id, bundle, root) = (self.id.clone(), self.bundle.clone(), self.state_root.clone());
        Command::Create { container_id, bundle, root, terminal, confinement }
    }
}

impl Container {
    /// From what was built.
    pub(crate) fn new(parts: Parts, init: Arc<Process>, oom: Arc<OomWatch>, spec: &Spec) -> Self {
        let process = spec.process().as_ref();
        Self {
            parts,
            init,
            oom,
            execs: Mutex::default(),
            exec_counter: AtomicU64::new(0),
            capabilities: process.and_then(|process| process.capabilities().clone()),
            has_no_new_privileges: process.and_then(oci_spec::runtime::Process::no_new_privileges).unwrap_or(false),
            termination_log: termination_log::find(spec),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Exec>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_init(&self, exec_id: &str) -> bool {
        exec_id.is_empty() || exec_id == self.parts.id
    }

    /// A process by its exec id; the first one's is empty or the container's.
    pub(crate) fn process(&self, exec_id: &str) -> Option<Arc<Process>> {
        if self.is_init(exec_id) {
            return Some(self.init.clone());
        }
        match self.lock().get(exec_id) {
            Some(Exec::Built(process)) => Some(process.clone()),
            _ => None,
        }
    }

    /// Forgets an exec whose end and output are known to the client.
    pub(crate) async fn forget_finished(&self, exec_id: &str) {
        let Some(process) = self.process(exec_id) else { return };
        if !self.is_init(exec_id) && process.is_finished().await {
            self.lock().remove(exec_id);
        }
    }

    /// Takes an exec id for a process to come; it is free again if that does not come.
    pub(crate) fn reserve(self: Arc<Self>, exec_id: &str) -> Result<Reserved, Failure> {
        if self.is_init(exec_id) {
            return Err(Failure::invalid("an exec needs an id of its own"));
        }
        let mut execs = self.lock();
        if execs.contains_key(exec_id) {
            return Err(Failure::new(Code::ALREADY_EXISTS, "the exec exists already"));
        }
        if execs.len() >= MAX_EXECS {
            return Err(Failure::new(Code::RESOURCE_EXHAUSTED, "too many execs"));
        }
        execs.insert(exec_id.to_owned(), Exec::Building);
        drop(execs);
        Ok(Reserved { container: self, exec_id: exec_id.to_owned(), is_filled: false })
    }

    /// Signals a process, or with SIGKILL and no exec id every process of the container.
    pub(crate) async fn signal(&self, exec_id: &str, signal: i32) -> Result<(), Failure> {
        let process = self.process(exec_id).ok_or_else(Failure::nothing_to_signal)?;
        let is_kill = signal == Signal::SIGKILL as i32;
        if self.is_init(exec_id) && is_kill {
            return self.parts.cgroup.kill_all().await.map_err(|error| Failure::because("killing the container", &error));
        }
        // The kernel drops a signal to pid 1 that has no handler, and so does runc. kata-agent makes a kill of a TERM that would have no
        // effect, and Kata's shims count on it.
        let is_lost = self.parts.is_katas && self.is_init(exec_id) && signal == Signal::SIGTERM as i32 && !catches(process.pid(), signal);
        let signal = if is_lost { Signal::SIGKILL as i32 } else { signal };
        process.signal(signal).await.map_err(|_| Failure::nothing_to_signal())
    }

    /// The end of what the container has written for the kubelet; empty when it has no such file.
    pub(crate) fn termination_message(&self) -> io::Result<Vec<u8>> {
        self.termination_log.as_deref().map_or(Ok(Vec::new()), |path| termination_log::read(&self.parts.copied, &self.parts.id, path))
    }

    /// Kills and takes away everything.
    pub(crate) async fn remove(&self, source: &dyn RootfsSource) -> Result<(), Failure> {
        let removed = self.parts.take_away(source).await;
        if tokio::time::timeout(REAP_DEADLINE, self.init.wait()).await.is_err() {
            return Err(Failure::internal("the container's first process was not reaped"));
        }
        removed
    }
}

/// An exec id that is taken until its process is built, and free again if that fails.
#[derive(Debug)]
pub(crate) struct Reserved {
    container: Arc<Container>,
    exec_id: String,
    is_filled: bool,
}

impl Reserved {
    /// Runs another process.
    pub(crate) async fn exec(mut self, from: &oci::Process, grants: &Grants, runner: &[OsString]) -> Result<(), Failure> {
        let container = self.container.clone();
        if container.init.phase() != Phase::Running {
            return Err(Failure::new(Code::FAILED_PRECONDITION, "the container is not running"));
        }
        let mut process = translate::process(from)?;
        users::resolve(&container.parts.rootfs(), &container.parts.image_user, &mut process)?;
        if process.capabilities().is_none() {
            process.set_capabilities(container.capabilities.clone());
        }
        process.set_no_new_privileges(Some(process.no_new_privileges().unwrap_or(false) || container.has_no_new_privileges));
        grants.limit(&mut process);
        let confinement = confine::take_confinement(&mut process);
        let number = container.exec_counter.fetch_add(1, Ordering::Relaxed);
        let file = container.parts.bundle.join(format!("exec-{number}.json"));
        let text = serde_json::to_vec(&process).map_err(|error| Failure::because("writing the process", &error))?;
        fs::write(&file, text).map_err(|error| Failure::because("writing the process", &error))?;
        let command = Command::Exec {
            container_id: container.parts.id.clone(),
            bundle: container.parts.bundle.clone(),
            process: file.clone(),
            root: container.parts.state_root.clone(),
            terminal: from.Terminal,
            confinement,
        };
        let oom = container.oom.clone();
        let built = Process::build(runner, command, move || oom.check()).await;
        let _ = fs::remove_file(&file);
        let built = built.map_err(|reason| Failure::not_executed(&reason))?;
        set_size(&built, from);
        self.fill(built);
        Ok(())
    }

    fn fill(&mut self, process: Arc<Process>) {
        self.container.lock().insert(self.exec_id.clone(), Exec::Built(process));
        self.is_filled = true;
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if !self.is_filled {
            self.container.lock().remove(&self.exec_id);
        }
    }
}

/// Gives a new terminal the size that the request brings.
pub(crate) fn set_size(process: &Process, from: &oci::Process) {
    if let Some(size) = from.ConsoleSize.as_ref() {
        let short = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
        if let Err(error) = process.resize(short(size.Height), short(size.Width)) {
            tracing::warn!(%error, "setting the size of a terminal");
        }
    }
}

/// Whether a process has a handler for a signal. True when it cannot be found out.
fn catches(pid: i32, signal: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(u64::MAX);
    u32::try_from(signal - 1).ok().and_then(|bit| caught.checked_shr(bit)).is_none_or(|bits| bits & 1 == 1)
}

fn remove_with_prefix(folder: &Path, prefix: &str) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            if entry.file_type()?.is_dir() { fs::remove_dir_all(entry.path())? } else { fs::remove_file(entry.path())? }
        }
    }
    Ok(())
}
