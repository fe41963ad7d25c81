//! Starts runner processes and talks to them.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::process::Stdio;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::control::{self, Command, Report};

/// A running runner process.
#[derive(Debug)]
pub(crate) struct Runner {
    control: AsyncFd<OwnedFd>,
    child: tokio::process::Child,
}

impl Runner {
    /// Starts the runner command.
    pub(crate) fn spawn(command: &[OsString]) -> io::Result<Self> {
        let (program, args) = command.split_first().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let child = tokio::process::Command::new(program)
            .args(args)
            .arg("container")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .env_clear()
            .current_dir("/")
            .process_group(0)
            .spawn()?;
        Ok(Self { control: watched(ours)?, child })
    }

    /// Sends a command.
    pub(crate) async fn send(&self, command: &Command, descriptors: &[OwnedFd]) -> io::Result<()> {
        let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(|descriptor| descriptor.as_fd()).collect();
        self.control.async_io(Interest::WRITABLE, |socket| control::send(socket.as_fd(), command, &descriptors)).await
    }

    /// The next report; `None` when the runner is gone.
    pub(crate) async fn receive(&self) -> io::Result<Option<(Report, Vec<OwnedFd>)>> {
        self.control.async_io(Interest::READABLE, |socket| control::receive(socket.as_fd())).await
    }

    /// Waits for the runner's own end.
    pub(crate) async fn wait(mut self) {
        drop(self.control);
        if let Err(error) = self.child.wait().await {
            tracing::warn!(%error, "waiting for a runner");
        }
    }
}

/// Registers a descriptor with the runtime, without blocking from now on.
#[expect(deprecated, reason = "the other constructor is unsafe for types whose descriptor may change; an OwnedFd keeps its own")]
pub(crate) fn watched(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    rustix::io::ioctl_fionbio(&descriptor, true)?;
    AsyncFd::new(descriptor)
}
