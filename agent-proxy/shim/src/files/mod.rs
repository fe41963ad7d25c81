//! The files of a container that live on the node: copied into the pod VM, and copied again when they change.
//!
//! [`look`] reads what [`crate::plan`] must know of the node's files. [`copy`] sends files, folders and links with the agent's
//! `CopyFile`; [`Watcher`] keeps those of a container that may change (ConfigMaps, Secrets, projected volumes with their tokens) up to
//! date and sends what differs from what the guest has.
//!
//! Order is what makes an update atomic for the container: the kubelet writes a new folder and then switches the link `..data` to it,
//! and so do we: all folders and files first, `..data` next, other links last, then what is gone is taken away. The protocol has no call
//! for that; our agent takes a whiteout, one that does not is asked once and no more.
//!
//! [`Limits`] keep a folder of the node from filling the guest's memory. A failed copy fails the container's creation; a failed update
//! is logged and tried again. Nothing is kept on disk: a new shim process has no containers to update.

mod copy;
mod look;
#[cfg(test)]
mod tests;
mod tree;
mod watch;

pub use copy::{AgentFiles, Copied, CopyError, copy};
pub use look::{LookError, look};
pub use tree::{Limits, TreeError};
pub use watch::Watcher;
