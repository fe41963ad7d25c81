//! [`PodNetwork`]: what the node tells the VM about the pod's network, inside Bind.
//!
//! The node is not trusted by the guest: every field is checked and every list is bounded while it is read.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::address::MacAddress;

/// The newest version of [`PodNetwork`]; this crate reads it and 1, which knows IPv4 only and is written where that is enough.
pub const VERSION: u32 = 2;

/// The pod's network as it must look inside the VM, and where its frames come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct PodNetwork {
    /// 1, or 2 if there is anything of IPv6.
    pub version: u32,
    /// The name of the interface in the pod's netns, usually `eth0`.
    pub interface: String,
    /// The interface's address on the node; the VM uses the same one, so neighbours of the pod notice nothing.
    pub mac: MacAddress,
    /// At least one; the first is the pod's IP.
    pub addresses: Vec<IpNet>,
    /// In the order in which they can be added: those without a gateway first.
    pub routes: Vec<Route>,
    /// Permanent entries only; some CNI plugins give the gateway's that way.
    pub neighbours: Vec<Neighbour>,
    /// Of the pod's interface on the node, in bytes. The VM's has the same, since neighbours may send as much; what the
    /// pod itself sends is kept smaller by its routes if the path between VM and node needs that.
    pub mtu: u32,
    /// The VXLAN network identifier, 1 to 2^24-1, unique among the pods of a node.
    pub vni: u32,
    /// The node's VXLAN end as the VM sees it.
    pub node_address: Ipv4Addr,
}

/// One route of the pod, out of the pod's interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// `None` is the default route of IPv4, as `::/0` is that of IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<IpNet>,
    /// Of the destination's family; `None`: the destination is on the link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// How far away the destination is.
    pub scope: RouteScope,
    /// The gateway is on the link even if no route says so.
    #[serde(default, skip_serializing_if = "is_false")]
    pub onlink: bool,
    /// The source address to prefer, of the destination's family; `None` lets the kernel choose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<IpAddr>,
    /// Smaller wins; `None` is 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<u32>,
    /// The largest packet, in bytes, to send this way; `None` is the interface's MTU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
}

/// How far away a route's destination is, in the kernel's terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RouteScope {
    /// Behind a gateway.
    Global,
    /// On the link.
    Link,
}

/// One permanent entry of the neighbour table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Neighbour {
    /// The neighbour's IP address.
    pub address: IpAddr,
    /// The station that has it.
    pub mac: MacAddress,
}

/// Why a [`PodNetwork`] was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("pod network: {field} {problem}")]
pub struct InvalidPodNetwork {
    field: &'static str,
    problem: String,
}

/// Interfaces of pods have one address, rarely two; the bound is against floods.
const MAX_ADDRESSES: usize = 16;

/// The largest tables seen from CNI plugins have some ten routes.
const MAX_ROUTES: usize = 256;

/// As for routes.
const MAX_NEIGHBOURS: usize = 256;

/// The smallest MTU of a link that carries IPv6 (RFC 8200 section 5).
pub(crate) const IPV6_MIN_MTU: u32 = 1280;

/// The smallest MTU that IPv4 hosts must accept, and the largest of an IPv4 packet.
const MTU_RANGE: std::ops::RangeInclusive<u32> = 576..=65535;

/// IFNAMSIZ less the terminating zero.
const MAX_INTERFACE_NAME: usize = 15;

impl PodNetwork {
    /// Checks what the types alone do not say; deserializing does it as well.
    pub fn check(&self) -> Result<(), InvalidPodNetwork> {
        let invalid = |field, problem: String| Err(InvalidPodNetwork { field, problem });
        if !(1..=VERSION).contains(&self.version) {
            let problem = format!("is {}; this pod VM image reads 1 to {VERSION}: use one of the node's release", self.version);
            return invalid("version", problem);
        }
        if self.version == 1 && self.has_ipv6() {
            return invalid("version", "is 1, which knows IPv4 only, but there is IPv6".to_owned());
        }
        if !is_interface_name(&self.interface) {
            return invalid("interface", format!("{:?} cannot be the name of a pod's interface", self.interface));
        }
        if self.addresses.is_empty() || self.addresses.len() > MAX_ADDRESSES {
            return invalid("addresses", format!("has {} entries, outside 1 to {MAX_ADDRESSES}", self.addresses.len()));
        }
        if let Some(address) = self.addresses.iter().find(|address| !is_host(address.addr())) {
            return invalid("addresses", format!("has {address}, which no host can have"));
        }
        if self.routes.len() > MAX_ROUTES {
            return invalid("routes", format!("has {} entries, more than {MAX_ROUTES}", self.routes.len()));
        }
        if let Some(destination) = self.routes.iter().filter_map(|route| route.destination).find(|net| net.trunc() != *net) {
            return invalid("routes", format!("has destination {destination} with host bits"));
        }
        if let Some(route) = self.routes.iter().find(|route| !route.is_of_one_family()) {
            return invalid("routes", format!("has one to {:?} that mixes IPv4 and IPv6", route.destination));
        }
        if self.neighbours.len() > MAX_NEIGHBOURS {
            return invalid("neighbours", format!("has {} entries, more than {MAX_NEIGHBOURS}", self.neighbours.len()));
        }
        if !MTU_RANGE.contains(&self.mtu) {
            return invalid("mtu", format!("is {}, outside {} to {}", self.mtu, MTU_RANGE.start(), MTU_RANGE.end()));
        }
        if self.has_ipv6() && self.mtu < IPV6_MIN_MTU {
            return invalid("mtu", format!("is {}, less than the {IPV6_MIN_MTU} that IPv6 needs", self.mtu));
        }
        if self.vni == 0 || self.vni >= 1 << 24 {
            return invalid("vni", format!("is {}, outside 1 to 16777215", self.vni));
        }
        if !is_host(self.node_address.into()) {
            return invalid("node_address", format!("is {}, which no host can have", self.node_address));
        }
        Ok(())
    }

    /// Whether the pod has an address of IPv6, or anything else of it.
    pub fn has_ipv6(&self) -> bool {
        has_ipv6(&self.addresses, &self.routes, &self.neighbours)
    }
}

impl Route {
    /// Whether it is a route of IPv6.
    pub fn is_ipv6(&self) -> bool {
        matches!(self.destination, Some(IpNet::V6(_)))
    }

    fn is_of_one_family(&self) -> bool {
        [self.gateway, self.source].iter().flatten().all(|address| address.is_ipv6() == self.is_ipv6())
    }
}

/// Whether version 2 is needed to say it.
pub(crate) fn has_ipv6(addresses: &[IpNet], routes: &[Route], neighbours: &[Neighbour]) -> bool {
    let of_address = addresses.iter().any(|address| matches!(address, IpNet::V6(_)));
    of_address || routes.iter().any(Route::is_ipv6) || neighbours.iter().any(|neighbour| neighbour.address.is_ipv6())
}

/// [`PodNetwork`] as it is on the wire, before [`PodNetwork::check`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchecked {
    version: u32,
    interface: String,
    mac: MacAddress,
    addresses: Vec<IpNet>,
    routes: Vec<Route>,
    neighbours: Vec<Neighbour>,
    mtu: u32,
    vni: u32,
    node_address: Ipv4Addr,
}

impl TryFrom<Unchecked> for PodNetwork {
    type Error = InvalidPodNetwork;

    fn try_from(unchecked: Unchecked) -> Result<Self, Self::Error> {
        let Unchecked { version, interface, mac, addresses, routes, neighbours, mtu, vni, node_address } = unchecked;
        let network = Self { version, interface, mac, addresses, routes, neighbours, mtu, vni, node_address };
        network.check()?;
        Ok(network)
    }
}

/// The kernel's rule for names, less what would be confusing in a pod.
fn is_interface_name(name: &str) -> bool {
    let fits = (1..=MAX_INTERFACE_NAME).contains(&name.len());
    let plain = name.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%'));
    fits && plain && !matches!(name, "." | ".." | "lo")
}

fn is_host(address: IpAddr) -> bool {
    let is_broadcast = address == IpAddr::V4(Ipv4Addr::BROADCAST);
    !(address.is_unspecified() || is_broadcast || address.is_multicast() || address.is_loopback())
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(value: &bool) -> bool {
    !*value
}
