//! ttrpc definitions and generated code: hypervisor, agent, health, node; no logic.
//!
//! Owns the wire names and field numbers shared with Kata 4.1. Each module is generated from the file of the same name
//! in `proto/`; `*_ttrpc` modules hold the client and the async service trait. Maps decode into `HashMap`, so the order of map
//! entries is not kept when a message is encoded again; everything else is.

#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, clippy::unwrap_used, clippy::needless_pass_by_value)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/mod.rs"));
}

pub use generated::{agent, agent_ttrpc, csi, health, health_ttrpc, hypervisor, hypervisor_ttrpc, node, node_ttrpc, oci, types};

/// What users and groups mean between node and guest.
pub mod user {
    /// A uid or gid that says "look it up in the image": the node has no layers and so cannot read the image's `/etc/passwd` and
    /// `/etc/group`. Below 2^31, because containerd refuses larger ids.
    pub const FROM_IMAGE: u32 = 0x7fff_fff8;
}
