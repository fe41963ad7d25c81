//! Has libcontainer build a container or a process in one.

use std::cell::OnceCell;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::syscall::syscall::SyscallType;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::executor::{self, FileExecutor};
use super::seccomp::{self, Filter};
use super::{Child, LoadFilter};
use crate::control::Command;

/// Builds what was asked for; with a terminal its controlling side comes along.
pub(super) fn build(command: &Command, descriptors: Vec<OwnedFd>, load: LoadFilter) -> Result<(Child, Option<OwnedFd>), String> {
    let (Command::Create { container_id, root, bundle, terminal, confinement }
    | Command::Exec { container_id, root, bundle, terminal, confinement, .. }) = command
    else {
        return Err(format!("the first command must build something, not {command:?}"));
    };
    let executor = FileExecutor {
        is_init: matches!(command, Command::Create { .. }),
        confinement: confinement.clone(),
        filter: filter(bundle)?.map(Arc::new),
        load,
        prepared: OnceCell::new(),
    };
    let mut builder = ContainerBuilder::new(container_id.clone(), SyscallType::default())
        .with_root_path(root)
        .map_err(|error| describe(&error))?
        .with_executor(executor);
    let console = if *terminal { Some(Console::listen(root)?) } else { None };
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
        _ => {
            let container = builder.as_init(bundle).with_systemd(false).with_detach(true).build().map_err(|error| describe(&error))?;
            (container.pid().map_or(0, libcontainer_pid), Some(container))
        }
    };
    let pid = Pid::from_raw(raw).ok_or("libcontainer gave no pid")?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|error| format!("pidfd_open: {error}"))?;
    let terminal = console.map(Console::accept).transpose()?;
    Ok((Child { pid, pidfd, container }, terminal))
}

/// Starts a built container.
pub(super) fn start(container: &mut Container) -> Result<(), String> {
    container.start().map_err(|error| describe(&error))
}

/// The filter that the container's specification asks for.
fn filter(bundle: &Path) -> Result<Option<Filter>, String> {
    let spec = Spec::load(bundle.join("config.json")).map_err(|error| format!("the bundle: {error}"))?;
    let profile = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    profile.map(seccomp::compile).transpose().map_err(|error| error.to_string())
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

/// What the executor says, or else the whole chain of libcontainer's error; short enough for a control message.
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
    let text = executor::marked(&text).map_or_else(|| format!("error during container init: {text}"), str::to_owned);
    text.chars().take(4000).collect()
}

#[allow(clippy::needless_pass_by_value)]
fn libcontainer_pid(pid: impl ToString) -> i32 {
    pid.to_string().parse().unwrap_or(0)
}
