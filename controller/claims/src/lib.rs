//! `peerpods.claims.v1`, the service that nodes call: claim a pod VM, watch the claim, release it.
//!
//! Both ends are here, with the conversions between wire and types: [`Client`] for nodes, [`Claims`] and [`serve`] for the
//! controller. Nothing here decides anything. Messages are limited in size before they are decoded; every call of the client has a
//! deadline; a lost connection is dialled again by the next call.

mod client;
#[cfg(test)]
mod compat_tests;
mod convert;
mod service;
mod types;

/// Generated messages and stubs.
mod proto {
    #![allow(missing_docs, unreachable_pub, clippy::pedantic, clippy::needless_pass_by_value)]
    tonic::include_proto!("peerpods.claims.v1");
}

pub use client::{ClaimStream, Client};
pub use peerpods_controller_api::{Mib, PodRef};
pub use service::{Claims, StateStream, bind_socket, serve};
pub use types::{Assignment, Claim, ClaimError, ClaimRequest, ClaimState};

/// The largest message either end accepts.
const MAX_MESSAGE_BYTES: usize = 64 << 10;
