//! The pod network: a pod's address, kept by the node, answered in the pod VM.
//!
//! ```text
//!   node: pod netns                                   pod VM: root netns          pod VM: pod netns
//!   eth0 (CNI's) <-redirect-> ppvx<VNI> == VXLAN == ppvx<VNI> <-redirect-> ppveth --- eth0 (same MAC, same address)
//! ```
//!
//! CNI plugins know nothing of this: they give the pod an interface on the node, and every frame that reaches it is
//! carried to the VM as it is, ARP included. [`node`] reads the pod's interface and wires the node's end; [`guest`]
//! wires the VM's end from the [`PodNetwork`] that the node sends with Bind. All of it is rtnetlink, without processes.
//! [`forward`] is for what CNI does not carry: connections that somebody on the node makes to the pod's loopback.
//!
//! Everything is kernel state and can be read back, so this crate keeps no state: `ensure` makes what is missing or
//! wrong, `remove` deletes what is there, and both may be repeated after a failure, a cancellation or a restart at any
//! point. IPv4 is carried out of the VM, and IPv6 if the pod has such an address; the VM's own network is IPv4. Nothing
//! here is confidential: the node and the cloud see the frames.

#[cfg(not(target_os = "linux"))]
compile_error!("network namespaces are Linux's");

mod address;
mod bpf;
mod error;
pub mod forward;
pub mod guest;
mod link;
mod netlink;
mod netns;
pub mod node;
mod pod;
mod route;
mod steer;
mod traffic;

pub use address::{InvalidAddress, MacAddress};
pub use error::NetworkError;
pub use guest::POD_NETNS;
pub use ipnet::{IpNet, Ipv4Net};
pub use pod::{InvalidPodNetwork, Neighbour, PodNetwork, Route, RouteScope, VERSION};

/// The UDP port of VXLAN, IANA's.
pub const VXLAN_PORT: u16 = 4789;

/// What VXLAN adds to a frame over IPv4: outer IP 20, UDP 8, VXLAN 8, inner Ethernet 14 bytes.
pub const VXLAN_OVERHEAD: u32 = 50;

/// The name of the VXLAN device of a pod, in the pod's netns on the node and in the root netns of the VM.
pub fn vxlan_name(vni: u32) -> String {
    format!("ppvx{vni}")
}
