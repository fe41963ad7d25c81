//! The life of a pod VM as the controller sees it.

use serde::{Deserialize, Serialize};

/// `Intended -> Launching -> Running -> Claimed -> Deleting -> Gone`, or `Failed` from any of them.
///
/// `Intended` is a launch record without a pod VM; `Gone` is a record that was removed. Both appear only in what is published.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PodVmState {
    /// The launch is recorded; the cloud may or may not have heard of it.
    Intended,
    /// The cloud has accepted the launch and given an instance id.
    Launching,
    /// The instance runs and has an address; nobody uses it yet.
    Running,
    /// The instance serves the claim named in the record.
    Claimed,
    /// Deletion is decided and is repeated until the cloud says that the instance is not found.
    Deleting,
    /// The cloud has said that the instance is not found.
    Gone,
    /// The instance failed; deletion follows.
    Failed {
        /// What it was doing.
        during: String,
        /// Why it failed, in words for the pod's owner.
        cause: String,
    },
}

impl PodVmState {
    /// The name used in logs, metrics and phases of a claim.
    pub fn as_str(&self) -> &'static str {
        match self {
            PodVmState::Intended => "intended",
            PodVmState::Launching => "launching",
            PodVmState::Running => "running",
            PodVmState::Claimed => "claimed",
            PodVmState::Deleting => "deleting",
            PodVmState::Gone => "gone",
            PodVmState::Failed { .. } => "failed",
        }
    }
}
