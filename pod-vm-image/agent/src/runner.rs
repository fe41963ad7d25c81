//! The runner role: a single-threaded process that builds one container or exec with libcontainer and stays its parent.
//!
//! It is a process of its own because libcontainer forks and then goes on in the child, which only a single-threaded program may
//! do. Standard input is the control socket to the agent (see `control`). When that socket closes, the agent is gone: the
//! runner kills its process and exits. The role must install no log subscriber: what libcontainer logs after it has set up the
//! container's standard streams would appear in the container's output. All that matters is in the reports.

mod executor;
mod pause;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::ExitCode;

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, wait, waitpid};

use crate::control::{self, Command, Report};
use executor::FileExecutor;

/// Argument of the runner role that turns it into the pod's pause process.
pub(crate) const PAUSE: &str = "pause";

/// Runs the runner role; `args` are the arguments after the role's name.
///
/// Must be called from `main` before any thread is started and, as the pause process is pid 1 of its pid namespace, before
/// anything is decided by the process's pid.
pub fn main(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    if args.next().is_some_and(|argument| argument == PAUSE) {
        return pause::main();
    }
    match run() {
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

fn run() -> io::Result<()> {
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    // The process must not find the control socket as its standard input.
    let null = fs::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    drop(null);

    let Some((command, descriptors)) = control::receive::<Command>(socket.as_fd())? else { return Ok(()) };
    let score = fs::read_to_string("/proc/self/oom_score_adj").ok();
    let built = build(&command, descriptors);
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

/// Builds what was asked for; with a terminal its controlling side comes along.
fn build(command: &Command, descriptors: Vec<OwnedFd>) -> Result<(Child, Option<OwnedFd>), String> {
    let (container_id, root, terminal) = match command {
        Command::Create { container_id, root, terminal, .. } | Command::Exec { container_id, root, terminal, .. } => {
            (container_id, root, *terminal)
        }
        other => return Err(format!("the first command must build something, not {other:?}")),
    };
    let mut builder = ContainerBuilder::new(container_id.clone(), SyscallType::default())
        .with_root_path(root)
        .map_err(|error| describe(&error))?
        .with_executor(FileExecutor);
    let console = if terminal { Some(Console::listen(root)?) } else { None };
    if let Some(console) = &console {
        builder = builder.with_console_socket(Some(&console.path));
    } else {
        let [stdin, stdout, stderr] =
            <[OwnedFd; 3]>::try_from(descriptors).map_err(|got| format!("{} descriptors instead of 3", got.len()))?;
        builder = builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr);
    }
    let (raw, container) = match command {
        Command::Exec { process, .. } => {
            let pid = builder.as_tenant().with_detach(true).with_process(Some(process)).build().map_err(|error| describe(&error))?;
            (pid.as_raw(), None)
        }
        Command::Create { bundle, .. } => {
            let container = builder.as_init(bundle).with_systemd(false).with_detach(true).build().map_err(|error| describe(&error))?;
            (container.pid().map_or(0, libcontainer_pid), Some(container))
        }
        _ => return Err("nothing to build".to_owned()),
    };
    let pid = Pid::from_raw(raw).ok_or("libcontainer gave no pid")?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|error| format!("pidfd_open: {error}"))?;
    let terminal = console.map(Console::accept).transpose()?;
    Ok((Child { pid, pidfd, container }, terminal))
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
                let report = match child.container.as_mut().map(Container::start) {
                    Some(Ok(())) => Report::Started,
                    Some(Err(error)) => Report::Failed { message: describe(&error) },
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

/// Where libcontainer sends the controlling side of the terminal it makes.
struct Console {
    listener: UnixListener,
    path: std::path::PathBuf,
}

impl Console {
    fn listen(root: &Path) -> Result<Self, String> {
        // Relative names of sockets are limited to 108 bytes; this one is `<root>/console-<pid>`.
        let path = root.join(format!("console-{}", std::process::id()));
        let listener = UnixListener::bind(&path).map_err(|error| format!("console socket: {error}"))?;
        Ok(Self { listener, path })
    }

    fn accept(self) -> Result<OwnedFd, String> {
        let failed = |error: io::Error| format!("console socket: {error}");
        let (connection, _) = self.listener.accept().map_err(failed)?;
        receive_terminal(&connection.into()).map_err(failed)?.ok_or_else(|| "no terminal came".to_owned())
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// The packet around the descriptor is the terminal's name, of no interest.
fn receive_terminal(socket: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let mut name = [0; 256];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    recvmsg(socket, &mut [io::IoSliceMut::new(&mut name)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut received) = message {
            return Ok(received.next());
        }
    }
    Ok(None)
}

/// The whole chain of an error, short enough for a control message.
fn describe(error: &LibcontainerError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text.chars().take(4000).collect()
}

#[allow(clippy::needless_pass_by_value)]
fn libcontainer_pid(pid: impl ToString) -> i32 {
    pid.to_string().parse().unwrap_or(0)
}
