//! The guest channel: an attested, resumable TLS stream between a node and one pod VM, both ends.
//!
//! A pod VM boots anonymous. [`node::bind`] connects, checks the evidence through the caller's closure and gives the VM its
//! pod; from then on [`node::AgentDialer`] opens [`AgentStream`]s to the VM's pinned key, and [`guest::GuestEndpoint`] serves both.
//! A stream is for the agent, or, by [`forward`], for one TCP port of the pod.
//! An [`AgentStream`] survives cut connections: bytes are replayed over a new one, and neither lost nor doubled.
//! If a process at either end died it fails with a typed [`SessionLost`], and never restarts silently.
//!
//! This crate knows no evidence format, no pod network and no agent protocol; they pass through as opaque data.

mod bind;
pub mod credential;
pub mod forward;
pub mod guest;
pub mod node;
mod resume;
mod tls;
pub mod user_data;

pub use bind::{BIND_VERSION, BindRequest, Pod, Refusal, RefusalCode};
pub use resume::{AgentStream, ResumeOptions, SessionLost, StreamState};

/// The TCP port of the guest channel.
pub const PORT: u16 = 15150;
