//! containerd-shim-peerpods-v2: containerd's task API over the agent of one pod VM.

pub mod files;
pub mod plan;
