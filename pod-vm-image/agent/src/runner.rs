//! The runner role: a single-threaded process that builds one container or exec with libcontainer and stays its parent.
//!
//! It is a process of its own because libcontainer forks and then goes on in the child, which only a single-threaded program may
//! do. Standard input is the control socket to the agent (see `control`). When that socket closes, the agent is gone: the
//! runner kills its process and exits. The role must install no log subscriber: what libcontainer logs after it has set up the
//! container's standard streams would appear in the container's output. All that matters is in the reports.

mod build;
mod credentials;
mod environment;
mod executor;
mod pause;
mod program;
mod seccomp;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::ExitCode;

use libcontainer::container::Container;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitOptions, pidfd_send_signal, wait, waitpid};

use crate::control::{self, Command, Report};
pub use seccomp::Instruction;

/// Loads a filter of system calls for this thread, with flags of `SECCOMP_SET_MODE_FILTER`. It has no safe interface, so the program
/// that has this role brings it.
pub type LoadFilter = fn(&[Instruction], u32) -> io::Result<()>;

/// Argument of the runner role that turns it into the pod's pause process.
pub(crate) const PAUSE: &str = "pause";

/// Runs the runner role; `args` are the arguments after the role's name.
///
/// Must be called from `main` before any thread is started and, as the pause process is pid 1 of its pid namespace, before
/// anything is decided by the process's pid.
pub fn main(mut args: impl Iterator<Item = OsString>, load: LoadFilter) -> ExitCode {
    if args.next().is_some_and(|argument| argument == PAUSE) {
        return pause::main();
    }
    match run(load) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("runner: {error}");
            ExitCode::FAILURE
        }
    }
}

const REAP_TRIES: usize = 400;
const REAP_PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };

/// The process of the container or exec, before and while it runs.
struct Child {
    pid: Pid,
    pidfd: OwnedFd,
    /// Of an init process: what starts it.
    container: Option<Container>,
}

fn run(load: LoadFilter) -> io::Result<()> {
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    // The process must not find the control socket as its standard input.
    let null = fs::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    drop(null);

    let Some((command, descriptors)) = control::receive::<Command>(socket.as_fd())? else { return Ok(()) };
    let score = fs::read_to_string("/proc/self/oom_score_adj").ok();
    let built = build::build(&command, descriptors, load);
    // libcontainer gives its own process the container's score; the runner is no part of the container.
    if let Some(score) = score {
        let _ = fs::write("/proc/self/oom_score_adj", score.trim());
    }
    match built {
        Ok((child, terminal)) => {
            let attached: Vec<_> = terminal.iter().map(|t| t.as_fd()).collect();
            let report = Report::Created { pid: child.pid.as_raw_nonzero().get() };
            if let Err(error) = control::send(socket.as_fd(), &report, &attached) {
                // Nobody waits for the process any more.
                let _ = pidfd_send_signal(&child.pidfd, Signal::KILL);
                reap(child.pid)?;
                return Err(error);
            }
            drop(terminal);
            watch(&socket, child)
        }
        Err(message) => {
            reap_failed();
            control::send(socket.as_fd(), &Report::Failed { message }, &[])
        }
    }
}

/// Reaps what libcontainer leaves after a failure. A zombie in the container's pid namespace would hold up the container's end
/// until the machine's init gets round to it.
fn reap_failed() {
    for _ in 0..REAP_TRIES {
        match wait(WaitOptions::NOHANG) {
            Ok(Some(_)) => {}
            Ok(None) => {
                let _ = poll(&mut [], Some(&REAP_PAUSE));
            }
            Err(_) => return,
        }
    }
}

/// Serves commands until the process has ended.
fn watch(socket: &OwnedFd, mut child: Child) -> io::Result<()> {
    let mut listening = true;
    loop {
        let mut waits = vec![PollFd::new(&child.pidfd, PollFlags::IN)];
        if listening {
            waits.push(PollFd::new(socket, PollFlags::IN));
        }
        match poll(&mut waits, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ended = waits.first().is_some_and(|wait| !wait.revents().is_empty());
        let spoken = waits.get(1).is_some_and(|wait| !wait.revents().is_empty());
        drop(waits);
        if ended {
            let status = reap(child.pid)?;
            let told = control::send(socket.as_fd(), &Report::Exited { status }, &[]);
            return if listening { told } else { Ok(()) };
        }
        if !spoken {
            continue;
        }
        match control::receive::<Command>(socket.as_fd())? {
            Some((Command::Start, _)) => {
                let report = match child.container.as_mut().map(build::start) {
                    Some(Ok(())) => Report::Started,
                    Some(Err(message)) => Report::Failed { message },
                    None => Report::Failed { message: "an exec needs no start".to_owned() },
                };
                control::send(socket.as_fd(), &report, &[])?;
            }
            Some((Command::Signal { signal }, _)) => {
                if let Some(signal) = Signal::from_named_raw(signal) {
                    let _ = pidfd_send_signal(&child.pidfd, signal);
                }
            }
            Some((other, _)) => eprintln!("runner: out of order: {other:?}"),
            None => {
                listening = false;
                let _ = pidfd_send_signal(&child.pidfd, Signal::KILL);
            }
        }
    }
}

fn reap(pid: Pid) -> io::Result<i32> {
    loop {
        match waitpid(Some(pid), WaitOptions::empty()) {
            Ok(Some((_, status))) => {
                if let Some(code) = status.exit_status() {
                    return Ok(code);
                }
                if let Some(signal) = status.terminating_signal() {
                    return Ok(128 + signal);
                }
            }
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
