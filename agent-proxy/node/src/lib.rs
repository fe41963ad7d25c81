//! The node daemon: hypervisor service for shims, claims from the controller, attest and Bind, pod network, links.
//!
//! ```text
//!   shim --CreateVM, StartVM, StopVM--> service -> registry -> one task a sandbox (driver) -> controller, pod VM, kernel, link
//!                                                                      |
//!                                                          <state_dir>/sandboxes/<id>.json
//! ```
//!
//! The daemon is in no data path: it may be killed at any moment, and a pod that is Ready does not notice; one that is on its way goes
//! on when the next daemon starts. Everything that must survive is in the sandbox files ([`record`], [`store`]); decisions are pure
//! ([`admission`], [`gc`], [`record::SandboxState::may_hand_over`]); what is done goes through [`ports`].

pub mod admission;
pub mod call;
pub mod config;
pub mod containerd;
pub mod daemon;
pub mod driver;
pub mod gc;
mod http;
pub mod id;
pub mod install;
pub mod ledger;
pub mod list;
pub mod metrics;
pub mod node_service;
pub mod ports;
pub mod record;
pub mod registry;
pub mod request;
pub mod service;
mod shim_request;
pub mod snapshotter;
mod stopped;
pub mod store;
