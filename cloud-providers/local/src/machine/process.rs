//! A process told apart from a later one with the same pid, and signals that cannot hit the wrong one.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitPidFlag, waitpid};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use super::facts;

/// A process for ever: a pid is used again, a pid with its start time and boot is not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessId {
    /// As the host counts.
    pub pid: i32,
    /// Clock ticks from boot to the process's start.
    pub start_ticks: u64,
    /// The boot that those are counted from.
    pub boot_id: String,
}

impl ProcessId {
    /// The process that has this pid now.
    pub fn of(pid: i32) -> io::Result<Self> {
        let stat = Stat::read(pid)?;
        Ok(Self { pid, start_ticks: stat.start_ticks, boot_id: facts::boot_id()? })
    }

    /// Whether it still runs. One that has ended and awaits its parent does not; if we are that parent, it is reaped.
    pub fn is_alive(&self) -> bool {
        let Ok(stat) = Stat::read(self.pid) else { return false };
        if stat.start_ticks != self.start_ticks || facts::boot_id().is_ok_and(|boot_id| boot_id != self.boot_id) {
            return false;
        }
        if stat.has_ended {
            // Only succeeds where this program is the container's init.
            let _ = waitpid(nix::unistd::Pid::from_raw(self.pid), Some(WaitPidFlag::WNOHANG));
        }
        !stat.has_ended
    }

    /// Kills it and waits for its end, at most so long. True when it has ended.
    pub(crate) fn kill(&self, limit: Duration) -> io::Result<bool> {
        let Some(pidfd) = self.open()? else { return Ok(true) };
        match pidfd_send_signal(&pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => wait(&pidfd, limit),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for its end, at most so long. True when it has ended.
    pub(crate) fn wait(&self, limit: Duration) -> io::Result<bool> {
        self.open()?.map_or(Ok(true), |pidfd| wait(&pidfd, limit))
    }

    /// A descriptor of exactly this process; `None` when it has ended.
    fn open(&self) -> io::Result<Option<OwnedFd>> {
        let pid = Pid::from_raw(self.pid).ok_or(io::ErrorKind::InvalidInput)?;
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Checked after opening: from here on the descriptor cannot come to mean another process.
        Ok(self.is_alive().then_some(pidfd))
    }
}

/// Waits for the end of a child, at most so long, and then kills it. `None` when it had to be killed.
pub(crate) fn end_within(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let open = || -> io::Result<OwnedFd> {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        // Nobody else reaps it, so that the pid is its own.
        Ok(pidfd_open(pid, PidfdFlags::empty())?)
    };
    let has_ended = open().and_then(|pidfd| wait(&pidfd, limit)).unwrap_or(false);
    if !has_ended {
        child.kill()?;
    }
    let status = child.wait()?;
    Ok(has_ended.then_some(status))
}

fn wait(pidfd: &OwnedFd, limit: Duration) -> io::Result<bool> {
    let begin = Instant::now();
    loop {
        let left = limit.saturating_sub(begin.elapsed());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// What we read of `/proc/<pid>/stat`.
struct Stat {
    has_ended: bool,
    start_ticks: u64,
}

impl Stat {
    fn read(pid: i32) -> io::Result<Self> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        Self::parse(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat: {text:?}")))
    }

    /// Fields are counted from the last parenthesis, as the name before it may hold anything.
    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
        let state = fields.next()?;
        let start_ticks = fields.nth(18)?.parse().ok()?;
        Some(Self { has_ended: matches!(state, "Z" | "X"), start_ticks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_past_a_name_with_parentheses() {
        let text = "7 (a) b) Z) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        let stat = Stat::parse(text).expect("stat");
        assert_eq!((stat.has_ended, stat.start_ticks), (false, 4711));
        assert!(Stat::parse("7 (a").is_none());
    }

    #[test]
    fn own_process_is_alive_and_one_with_another_start_is_not() {
        let own = ProcessId::of(std::process::id().try_into().expect("pid")).expect("self");
        assert!(own.is_alive());
        let other = ProcessId { start_ticks: own.start_ticks + 1, ..own.clone() };
        assert!(!other.is_alive());
        assert!(other.kill(Duration::ZERO).expect("not ours to kill"));
        assert!(!ProcessId { boot_id: "another".to_owned(), ..own }.is_alive());
    }

    #[test]
    #[expect(clippy::zombie_processes, reason = "that it is reaped all the same is the claim")]
    fn killed_child_has_ended_and_is_reaped() {
        let child = std::process::Command::new("sleep").arg("1000").spawn().expect("sleep");
        let id = ProcessId::of(child.id().try_into().expect("pid")).expect("child");
        assert!(!id.wait(Duration::ZERO).expect("wait"));
        assert!(id.kill(Duration::from_secs(10)).expect("kill"));
        assert!(!id.is_alive());
        assert!(Stat::read(id.pid).is_err(), "reaped");
    }

    #[test]
    fn child_ends_by_itself_or_at_the_limit() {
        let sh = |script: &str| std::process::Command::new("/bin/sh").args(["-c", script]).spawn().expect("sh");
        let mut child = sh("exit 7");
        // As one that has ended before anybody looks.
        let pid = Pid::from_raw(child.id().try_into().expect("pid")).expect("pid");
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).expect("a descriptor");
        assert!(wait(&pidfd, Duration::from_secs(10)).expect("its end"));
        assert_eq!(end_within(&mut child, Duration::from_secs(10)).expect("end").and_then(|status| status.code()), Some(7));
        let mut child = sh("sleep 1000");
        assert_eq!(end_within(&mut child, Duration::ZERO).expect("end"), None);
        assert!(child.try_wait().expect("reaped").is_some());
    }
}
