//! The parent's side of [`super::helper`].

use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::helper::{MACHINE_HELPER, PATH};
use super::process::end_within;
use super::{MachineError, ProcessId};

/// How long the helper may take for either of its steps; it takes milliseconds on an idle host.
const LIMIT: Duration = Duration::from_secs(20);

/// More than the helper ever says.
const REPORT_BYTES: usize = 4096;

/// A machine's process that has done nothing yet. Dropping it makes the process exit.
pub(crate) struct Waiting {
    id: ProcessId,
    go: ChildStdin,
    report: ChildStdout,
}

impl Waiting {
    /// Makes the process for the machine in this folder, which has its `start.json`.
    pub(crate) fn spawn(folder: &Path) -> Result<Self, MachineError> {
        let log = folder.join("process.log");
        let errors = std::fs::OpenOptions::new().create(true).append(true).open(&log).map_err(MachineError::file("open", &log))?;
        let mut command = helper("start");
        let mut helper = command
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .map_err(MachineError::file("run", Path::new("/proc/self/exe")))?;
        let (Some(go), Some(mut report)) = (helper.stdin.take(), helper.stdout.take()) else {
            return Err(start_machine("the helper has no pipes"));
        };
        let said = read(&mut report, Until::Line);
        // One that has not said its line in time will not end by itself either.
        let left = if said.is_ok() { LIMIT } else { Duration::ZERO };
        let ended = end_within(&mut helper, left).map_err(MachineError::file("wait for", Path::new("/proc/self/exe")))?;
        let ended = ended.map_or_else(|| "does not end".to_owned(), |status| format!("ends with {status}"));
        let said = said.map_err(|error| start_machine(format!("the helper says nothing: {error}")))?;
        let Some(pid) = said.strip_prefix("pid ").and_then(|pid| pid.trim().parse().ok()) else {
            return Err(start_machine(format!("the helper says {said:?} and {ended}")));
        };
        let id = ProcessId::of(pid).map_err(|error| start_machine(format!("process {pid} is gone: {error}")))?;
        Ok(Self { id, go, report })
    }

    pub(crate) fn id(&self) -> &ProcessId {
        &self.id
    }

    /// Lets it go on and waits until it has become the machine or says why not.
    pub(crate) fn go(mut self, pass: &dyn Fn(&'static str)) -> Result<(), MachineError> {
        self.go.write_all(b"g").map_err(|error| start_machine(format!("the process has ended: {error}")))?;
        pass("process-told-to-go");
        let said = read(&mut self.report, Until::End).map_err(|error| start_machine(format!("the process says nothing: {error}")))?;
        match said.trim() {
            "" => Ok(()),
            said => Err(start_machine(said.strip_prefix("error ").unwrap_or(said))),
        }
    }
}

/// A fresh copy of the running program in the helper role, with nothing of our environment.
pub(crate) fn helper(role: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.args([MACHINE_HELPER, role]).env_clear().env("PATH", PATH).current_dir("/");
    command
}

/// The same in a role that does not outlive the calling process.
pub(crate) fn bound_helper(role: &str) -> Command {
    let mut command = helper(role);
    command.arg(std::process::id().to_string());
    command
}

fn start_machine(detail: impl Into<String>) -> MachineError {
    MachineError::StartMachine { detail: detail.into() }
}

#[derive(Clone, Copy, PartialEq)]
enum Until {
    Line,
    End,
}

fn read(pipe: &mut ChildStdout, until: Until) -> io::Result<String> {
    let begin = Instant::now();
    let mut said = Vec::new();
    // Byte by byte: what follows the line belongs to the next reader.
    let mut byte = [0];
    while said.len() < REPORT_BYTES && !(until == Until::Line && said.last() == Some(&b'\n')) {
        let left = LIMIT.saturating_sub(begin.elapsed());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        }
        match pipe.read(&mut byte) {
            Ok(0) => break,
            Ok(_) => said.extend(byte),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(String::from_utf8_lossy(&said).into_owned())
}
