//! containerd-shim-peerpods-v2: containerd's task API over the agent of one pod VM.
//!
//! ```text
//!   containerd --task API--> task --create, start, exec ...--> agent of the pod VM (peerpods-tunnel)
//!        ^                     |  \--a pod VM, please; what image?--> node daemon (peerpods.node.v1)
//!        +------ events -------+
//! ```
//!
//! One process serves one pod: it is the pod's link, and dials the pod VM itself. It keeps nothing that a second one could go on with:
//! when it dies, containerd runs it once more with `delete`, and the node daemon notices as well; the pod VM is deleted either way.
//! The node daemon may be restarted at any time; so may containerd, whose streams and events wait here.

pub mod bundle;
pub mod cgroup;
mod clock;
pub mod config;
pub mod container;
pub mod create;
pub mod daemon;
pub mod events;
pub mod failure;
pub mod files;
pub mod plan;
pub mod pod;
pub mod process;
pub mod stand_in;
pub mod start;
pub mod stats;
pub mod stdio;
pub mod task;
