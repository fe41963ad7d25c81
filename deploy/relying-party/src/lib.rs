//! A small key broker with its verifier, for trials: KBS protocol 0.4.0 as Trustee speaks it, in one process with one folder.
//!
//! * [`Broker`] decides: challenges, attestations, tokens, resources, administration. It is synchronous and owns its [`Store`].
//! * [`Verifier`] is the port to evidence formats. [`EvidenceVerifier`] knows `sample`, which protects nothing.
//! * [`policy`] evaluates Rego by Trustee's names, so that policies can be carried over. Without a policy nothing is released.
//! * [`serve`] puts it behind HTTP with limits and deadlines.
//!
//! Sessions are in memory: after a restart clients attest again, which they do by themselves. Everything else is on disk, each file
//! replaced atomically. What it deliberately lacks: devices' evidence, several plugins, collateral from the network, replication.
//! Production uses Trustee.

mod admin;
mod appraisal;
mod broker;
pub mod client;
mod error;
mod initdata;
mod jose;
pub mod policy;
mod reference;
mod serve;
mod sessions;
pub mod state;
mod store;
mod token;
mod verifier;

pub use admin::issue_admin_token;
pub use broker::{Answer, Broker, Call, Clock};
pub use error::{ApiError, StartError};
pub use serve::{Listening, MAX_BODY_BYTES, Tls, serve};
pub use store::{Folder, Store, StoreError};
pub use verifier::{EvidenceVerifier, Verifier};
