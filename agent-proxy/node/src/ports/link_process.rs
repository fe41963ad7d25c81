//! Links as processes of their own, found again by their folder.
//!
//! A link holds `link.lock` in its sandbox's folder from before it listens until it is dead. Taking that lock is therefore the proof that
//! no link runs, whatever the daemon knows of processes; and a second link that is started by mistake ends by itself.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use peerpods_link::folder::{self, LinkFile, LinkStatus, ProcessIdentity};
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use super::{LinkReport, LinkSpec, LinkTrouble, Links, chain};
use crate::id::SandboxId;

/// Starts `peerpods-link` for each sandbox.
#[derive(Debug)]
pub struct LinkProcesses {
    /// The program.
    program: PathBuf,
    pods_dir: PathBuf,
    node_key: PathBuf,
    port: u16,
}

/// From start to listening; it is milliseconds on an idle machine.
const START_LIMIT: Duration = Duration::from_secs(15);
/// How long a link may take to end after SIGTERM.
const TERM_LIMIT: Duration = Duration::from_secs(2);
/// And after SIGKILL.
const STOP_LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(3);
/// How much of a link's log goes into an error.
const LOG_TAIL: u64 = 600;

impl LinkProcesses {
    /// Links in folders under `pods_dir`, which use the key in `node_key`. Without `program`, the one beside the running program.
    pub fn new(program: Option<PathBuf>, pods_dir: PathBuf, node_key: PathBuf) -> Result<Self, LinkTrouble> {
        let program = match program {
            Some(program) => program,
            None => {
                let own = std::env::current_exe().map_err(|error| LinkTrouble(format!("cannot find the own program: {error}")))?;
                own.with_file_name("peerpods-link")
            }
        };
        if !program.is_file() {
            return Err(LinkTrouble(format!("there is no {}: set `link` to where peerpods-link is", program.display())));
        }
        Ok(Self { program, pods_dir, node_key, port: peerpods_tunnel::PORT })
    }

    fn dir(&self, id: &SandboxId) -> PathBuf {
        self.pods_dir.join(id.as_str())
    }

    fn spawn(&self, dir: &Path) -> Result<tokio::process::Child, LinkTrouble> {
        let failed = |what: &str, error: std::io::Error| LinkTrouble(format!("cannot {what}: {error}"));
        let log = OpenOptions::new().create(true).append(true).mode(0o600).open(dir.join(folder::LOG));
        let log = log.map_err(|error| failed("open the link's log", error))?;
        let errors = log.try_clone().map_err(|error| failed("open the link's log", error))?;
        // It leaves our session by itself. Its exit is collected by the runtime when the handle is dropped before.
        Command::new(&self.program)
            .args([OsString::from("--dir"), dir.as_os_str().to_owned()])
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .kill_on_drop(false)
            .spawn()
            .map_err(|error| failed(&format!("start {}", self.program.display()), error))
    }
}

#[async_trait]
impl Links for LinkProcesses {
    async fn ensure(&self, spec: &LinkSpec) -> Result<(), LinkTrouble> {
        let dir = self.dir(&spec.sandbox_id);
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        made.map_err(|error| LinkTrouble(format!("cannot make {}: {error}", dir.display())))?;
        match running(&dir)? {
            Some(status) if status.lost.is_none() => return Ok(()),
            _ => {}
        }
        let file = LinkFile {
            version: folder::VERSION,
            sandbox_id: spec.sandbox_id.to_string(),
            instance_id: spec.instance_id.clone(),
            address: SocketAddr::new(spec.address, self.port),
            pin: spec.pin,
            node_key: self.node_key.clone(),
            socket: self.socket(&spec.sandbox_id),
            netns: spec.netns.clone(),
        };
        file.write(&dir).map_err(|error| LinkTrouble(chain(&error)))?;
        let mut child = self.spawn(&dir)?;
        let limit = Instant::now() + START_LIMIT;
        loop {
            if running(&dir)?.is_some() {
                return Ok(());
            }
            let ended = child.try_wait().map_err(|error| LinkTrouble(format!("cannot wait for the link: {error}")))?;
            match ended {
                // Another one has the lock; it will tell when it listens.
                Some(status) if status.success() => {}
                Some(status) => return Err(LinkTrouble(format!("the link ended ({status}): {}", log_tail(&dir)))),
                None => {}
            }
            if Instant::now() > limit {
                return Err(LinkTrouble(format!("the link did not listen within {START_LIMIT:?}: {}", log_tail(&dir))));
            }
            sleep(POLL).await;
        }
    }

    async fn stop(&self, id: &SandboxId) -> Result<(), LinkTrouble> {
        let dir = self.dir(id);
        if !dir.is_dir() {
            return Ok(());
        }
        // A link that was started and has not read this yet finds nothing to do.
        LinkFile::remove(&dir).map_err(|error| LinkTrouble(chain(&error)))?;
        let began = Instant::now();
        let mut told: Option<(ProcessIdentity, Signal)> = None;
        loop {
            if folder::lock(&dir).map_err(|error| LinkTrouble(chain(&error)))?.is_some() {
                return Ok(());
            }
            let signal = if began.elapsed() < TERM_LIMIT { Signal::SIGTERM } else { Signal::SIGKILL };
            if let Some(status) = running(&dir)?
                && told != Some((status.process, signal))
            {
                send(status.process, signal)?;
                told = Some((status.process, signal));
            }
            if began.elapsed() > STOP_LIMIT {
                return Err(LinkTrouble(format!("a link for {} still runs", dir.display())));
            }
            sleep(POLL).await;
        }
    }

    async fn report(&self, id: &SandboxId) -> LinkReport {
        match LinkStatus::read(&self.dir(id)) {
            Ok(Some(LinkStatus { lost: Some(reason), .. })) => LinkReport::Lost(reason),
            Ok(Some(status)) if status.process.is_alive() => {
                LinkReport::Running { connections: status.connections, accepted: status.accepted }
            }
            Ok(_) => LinkReport::Absent,
            Err(error) => {
                tracing::warn!(error = chain(&error), "the link's status cannot be read");
                LinkReport::Absent
            }
        }
    }

    async fn remove_folder(&self, id: &SandboxId) -> Result<(), LinkTrouble> {
        let dir = self.dir(id);
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(LinkTrouble(format!("cannot remove {}: {error}", dir.display())))
            }
            _ => Ok(()),
        }
    }

    fn socket(&self, id: &SandboxId) -> PathBuf {
        self.dir(id).join(folder::SOCKET)
    }
}

/// The link of that folder, if it listens.
fn running(dir: &Path) -> Result<Option<LinkStatus>, LinkTrouble> {
    let status = LinkStatus::read(dir).map_err(|error| LinkTrouble(chain(&error)))?;
    Ok(status.filter(|status| status.process.is_alive()))
}

/// The number cannot have been given to another process: it was alive a moment ago, and numbers are not used again that soon.
fn send(process: ProcessIdentity, signal: Signal) -> Result<(), LinkTrouble> {
    let Ok(pid) = i32::try_from(process.pid) else { return Ok(()) };
    match kill(Pid::from_raw(pid), signal) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(error) => Err(LinkTrouble(format!("cannot send {signal} to the link: {error}"))),
    }
}

fn log_tail(dir: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = std::fs::File::open(dir.join(folder::LOG))?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    };
    read().unwrap_or_else(|error| format!("its log cannot be read: {error}"))
}
