//! Why an operation on the pod network failed.

use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use crate::pod::InvalidPodNetwork;

/// An operation that failed, with its subject. Everything may be tried again; only [`NetworkError::NetnsMissing`] says
/// that trying again is of no use, since the kernel does not bring a network namespace back.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// There is nothing at the path, or no longer a network namespace: the pod is gone.
    #[error("there is no network namespace at {}", path.display())]
    NetnsMissing {
        /// As given by the caller.
        path: PathBuf,
    },
    /// The namespace is there but cannot be opened or entered.
    #[error("enter network namespace {}", path.display())]
    EnterNetns {
        /// As given by the caller.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A new namespace could not be made or pinned to its path.
    #[error("create network namespace {}", path.display())]
    CreateNetns {
        /// Where it should have been.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel refused a request, or did not understand it.
    #[error("{operation} {subject}")]
    Request {
        /// Such as "add route".
        operation: &'static str,
        /// Such as "10.88.0.0/16 dev eth0".
        subject: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// The netns has neither a default route nor exactly one Ethernet interface.
    #[error("find the pod's interface in {}: candidates are {candidates:?}", path.display())]
    FindInterface {
        /// The pod's netns.
        path: PathBuf,
        /// The interfaces that could have been meant.
        candidates: Vec<String>,
    },
    /// The pod's interface is not what a VM can stand in for.
    #[error("read interface {interface}: {problem}")]
    ReadInterface {
        /// Its name.
        interface: String,
        /// What is missing or unexpected.
        problem: &'static str,
    },
    /// No interface of that name within the time given.
    #[error("wait for interface {name}: not there after {} ms", waited.as_millis())]
    InterfaceMissing {
        /// Its name.
        name: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// Another pod's VXLAN device has this VNI on the same underlay.
    #[error("create VXLAN device: VNI {vni} is in use elsewhere on this underlay")]
    VniInUse {
        /// The VNI.
        vni: u32,
    },
    /// The routing table has no way there.
    #[error("find the route to {to}: no source address or interface")]
    NoRoute {
        /// The destination.
        to: Ipv4Addr,
    },
    /// What the node sent does not describe a network.
    #[error("read the pod network")]
    Invalid(#[from] InvalidPodNetwork),
    /// The kernel did not finish in time; it is unknown how much was done.
    #[error("{operation}: not finished within {} s", limit.as_secs())]
    Deadline {
        /// The public operation.
        operation: &'static str,
        /// The limit.
        limit: Duration,
    },
}
