//! Signals and the ends of processes, without handlers and without threads.

use std::os::fd::AsFd as _;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// It exited with this code.
    Exited(i32),
    /// A signal killed it.
    Killed(Signal),
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exited with code {code}"),
            Self::Killed(signal) => write!(f, "killed by {signal}"),
        }
    }
}

/// The signals that PID 1 waits for, blocked and read from a descriptor.
pub(super) struct Processes {
    signals: SignalFd,
}

impl Processes {
    /// Blocks the signals for this process and starts to queue them. Children inherit the mask: the agent clears it.
    pub(super) fn watch(signals: &SigSet) -> std::io::Result<Self> {
        signals.thread_block()?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Self { signals: SignalFd::with_flags(signals, flags)? })
    }

    /// The next signal; `None` when none came in time.
    pub(super) fn next_signal(&self, limit: Option<Duration>) -> std::io::Result<Option<Signal>> {
        let timeout = limit.map_or(PollTimeout::NONE, |l| PollTimeout::try_from(l).unwrap_or(PollTimeout::MAX));
        match poll(&mut [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        let info = self.signals.read_signal()?;
        Ok(info.and_then(|i| Signal::try_from(i32::try_from(i.ssi_signo).ok()?).ok()))
    }

    /// Reaps everything that has ended, and says how if the agent was among it.
    pub(super) fn reap(&self, agent: u32) -> std::io::Result<Option<Ended>> {
        let mut end_of_agent = None;
        loop {
            let (pid, ended) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, Ended::Exited(code)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, Ended::Killed(signal)),
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(end_of_agent),
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(e) => return Err(e.into()),
            };
            if u32::try_from(pid.as_raw()) == Ok(agent) {
                end_of_agent = Some(ended);
            }
        }
    }
}

/// Sends SIGTERM.
pub(super) fn terminate(process: u32) -> std::io::Result<()> {
    let pid = i32::try_from(process).map_err(std::io::Error::other)?;
    Ok(kill(Pid::from_raw(pid), Signal::SIGTERM)?)
}

/// A moment of the monotonic clock.
pub(super) struct Deadline(Duration);

impl Deadline {
    /// This long from now.
    pub(super) fn after(limit: Duration) -> Self {
        Self(now() + limit)
    }

    /// The time until then; `None` when it has passed.
    pub(super) fn left(&self) -> Option<Duration> {
        self.0.checked_sub(now()).filter(|left| !left.is_zero())
    }
}

fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}
