//! What the agent and a runner say to each other, over one `SOCK_SEQPACKET` socket that is the runner's standard input.
//!
//! A message is one packet of JSON, with descriptors attached where said. The runner gets exactly one [`Command::Create`] or
//! [`Command::Exec`] first. Its last message is [`Report::Exited`] or [`Report::Failed`]; a closed socket tells either side that
//! the other one died.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// What the agent asks of a runner.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Command {
    /// Build a container up to the point where its first process waits for [`Command::Start`].
    /// Attached: standard input, output and error, unless `terminal`.
    Create {
        /// The container.
        container_id: String,
        /// Folder with `config.json`.
        bundle: PathBuf,
        /// libcontainer's state folder.
        root: PathBuf,
        /// Give the process a terminal of its own.
        terminal: bool,
        /// What libcontainer is not told.
        confinement: Confinement,
    },
    /// Run another process in a started container. Attached as for [`Command::Create`].
    Exec {
        /// The container.
        container_id: String,
        /// Folder with the container's `config.json`.
        bundle: PathBuf,
        /// File with the OCI process.
        process: PathBuf,
        /// libcontainer's state folder.
        root: PathBuf,
        /// Give the process a terminal of its own.
        terminal: bool,
        /// What libcontainer is not told.
        confinement: Confinement,
    },
    /// Let the created process go.
    Start,
    /// Signal the process.
    Signal {
        /// Number of the signal.
        signal: i32,
    },
}

/// What the runner does itself, as libcontainer does it otherwise than runc.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Confinement {
    /// What the process may do.
    pub(crate) capabilities: CapabilityMasks,
    /// Where it begins; made for the first process of a container.
    pub(crate) working_directory: PathBuf,
}

/// Sets of capabilities, a bit for each number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CapabilityMasks {
    /// The most that any program executed later can have.
    pub(crate) bounding: u64,
    /// What the process can do now.
    pub(crate) effective: u64,
    /// What it may make effective.
    pub(crate) permitted: u64,
    /// What programs with such a mark keep.
    pub(crate) inheritable: u64,
    /// What programs executed without being root keep.
    pub(crate) ambient: u64,
}

/// What a runner tells the agent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Report {
    /// The process exists; after [`Command::Exec`] it runs already. Attached with `terminal`: the terminal's controlling side.
    Created {
        /// In the agent's pid namespace.
        pid: i32,
    },
    /// [`Command::Start`] is done.
    Started,
    /// It did not work; nothing is left.
    Failed {
        /// For the pod's events.
        message: String,
    },
    /// The process has ended and is reaped.
    Exited {
        /// Exit code, or 128 + signal.
        status: i32,
    },
}

/// The largest packet; paths and one error text fit in.
const MAX_PACKET_BYTES: usize = 16 * 1024;
const MAX_DESCRIPTORS: usize = 3;

/// Sends one packet.
pub(crate) fn send<T: Serialize>(socket: BorrowedFd<'_>, message: &T, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let packet = serde_json::to_vec(message)?;
    if packet.len() > MAX_PACKET_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "control message too long"));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors"));
    }
    sendmsg(socket, &[IoSlice::new(&packet)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one packet; `None` when the other side is gone.
pub(crate) fn receive<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut packet = vec![0; MAX_PACKET_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let length = loop {
        match recvmsg(socket, &mut [IoSliceMut::new(&mut packet)], &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => break received.bytes,
            // The other side went without reading all of ours. The kernel tells that once, before the last packets it sent.
            Err(rustix::io::Errno::CONNRESET | rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    };
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    if length == 0 {
        return Ok(None);
    }
    let message = serde_json::from_slice(packet.get(..length).unwrap_or_default())?;
    Ok(Some((message, descriptors)))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
    }

    #[test]
    fn descriptors_come_with_their_message() {
        let (ours, theirs) = pair();
        let null = std::fs::File::open("/dev/null").unwrap();
        send(ours.as_fd(), &Report::Created { pid: 7 }, &[null.as_fd(), null.as_fd()]).unwrap();
        let (report, descriptors) = receive::<Report>(theirs.as_fd()).unwrap().unwrap();
        assert!(matches!(report, Report::Created { pid: 7 }));
        assert_eq!(descriptors.len(), 2);
    }

    #[test]
    fn last_report_arrives_though_a_command_was_not_read() {
        let (ours, theirs) = pair();
        send(theirs.as_fd(), &Report::Exited { status: 137 }, &[]).unwrap();
        send(ours.as_fd(), &Command::Signal { signal: 9 }, &[]).unwrap();
        drop(theirs);
        assert!(matches!(receive::<Report>(ours.as_fd()).unwrap(), Some((Report::Exited { status: 137 }, _))));
        assert!(receive::<Report>(ours.as_fd()).unwrap().is_none());
    }
}
