//! What shims ask and are told, in the daemon's own types.

use std::path::PathBuf;

use peerpods_controller_api::PodRef;
use peerpods_link::folder::ProcessIdentity;

use crate::id::SandboxId;
use crate::request::PodRequest;

/// What CreateVM says.
#[derive(Debug, Clone, PartialEq)]
pub struct NewSandbox {
    /// The shim's name for it.
    pub id: SandboxId,
    /// The pod.
    pub pod: PodRef,
    /// What it wants.
    pub request: PodRequest,
    /// Its network namespace; `None` for pods in the host's network.
    pub netns: Option<PathBuf>,
    /// The process of our own shim, if it is one.
    pub shim: Option<ProcessIdentity>,
}

/// Why a call was not served. The text is for the pod's events.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// No such sandbox.
    #[error("sandbox {0} is not known: call CreateVM first")]
    Unknown(SandboxId),
    /// The sandbox was stopped.
    #[error("sandbox {0} was stopped")]
    Stopped(SandboxId),
    /// The network namespace cannot be used.
    #[error("cannot use the pod's network namespace: {0}")]
    Netns(String),
    /// It is not on disk.
    #[error("cannot record the sandbox: {0}")]
    Record(String),
    /// Bring-up has failed.
    #[error("sandbox {id}: cannot {during}: {cause}; next: {advice}")]
    Failed {
        /// The sandbox.
        id: SandboxId,
        /// The step.
        during: String,
        /// The chain of causes.
        cause: String,
        /// What a person may do.
        advice: String,
    },
    /// Not ready in time.
    #[error(
        "sandbox {id}: not ready after {waited_secs} s: {waiting_for}{trouble}; next: look at the pod VM's console and the node daemon's log for this sandbox"
    )]
    Timeout {
        /// The sandbox.
        id: SandboxId,
        /// How long StartVM has waited.
        waited_secs: u64,
        /// What bring-up waits for.
        waiting_for: String,
        /// ", " and what is being tried again, or nothing.
        trouble: String,
    },
    /// The daemon stops.
    #[error("the node daemon is shutting down; try again")]
    ShuttingDown,
}
