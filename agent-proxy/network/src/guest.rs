//! The VM's end: the VM's own interface, and the pod's netns with an interface that looks like the pod's on the node.
//!
//! The VXLAN device stays in the VM's root netns and is tied to the root end of a veth pair by redirects in both
//! directions, so no frame of the workload ever reaches the root netns's own IP stack. The guards sit on the root side:
//!
//! * at the root end of the pair: only ARP, untagged IPv4 and, if the pod has an address of it, untagged IPv6 leave the
//!   pod, and nothing to the VM's own addresses or to the cloud's metadata service, which would answer for the node;
//! * at the VM's own interface: VXLAN from the node only, and nothing from the pod's addresses to the channel's port.
//!
//! In the pod's netns a workload with CAP_NET_ADMIN may do as it likes to its interface without reaching the guards,
//! which are filters of devices in another namespace. What they do not stop: in the *initial user namespace* that
//! capability also counts in the root netns, and the kernel then lets RTM_NEWLINK name that netns by the id that the
//! veth shows (IFLA_LINK_NETNSID), for example to put a macvlan over the VM's own interface. Whoever may grant
//! CAP_NET_ADMIN to a container must therefore be trusted with the VM's network, or the container needs a user
//! namespace of its own.
//!
//! A pod in the host's network has no [`PodNetwork`]; nothing here is called for it, and its containers get a fresh
//! netns with nothing but loopback.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;

use futures::StreamExt;
use ipnet::Ipv4Net;
use netlink_packet_core::NetlinkPayload;
use rtnetlink::LinkUnspec;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::bpf;
use crate::error::NetworkError;
use crate::link::{Link, Vxlan, link_of};
use crate::netlink::{self, Netlink, refused};
use crate::netns::Netns;
use crate::node::limited;
use crate::pod::{IPV6_MIN_MTU, PodNetwork, Route, RouteScope};
use crate::route::PrefixRoute;
use crate::traffic::Priority;
use crate::{VXLAN_OVERHEAD, vxlan_name};

/// Where the pod's netns is pinned in the VM.
pub const POD_NETNS: &str = "/run/peerpods/netns/pod";

/// The kernel modules this needs, each after those it depends on, by their names in Debian's kernels. Loading one that
/// is built in fails harmlessly.
pub const GUEST_MODULES: &[&str] = &["udp_tunnel", "ip6_udp_tunnel", "vxlan", "veth", "sch_ingress", "cls_u32", "cls_bpf", "act_mirred"];

/// The VM's own network, from the machine's boot configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkConfig {
    /// The VM's address.
    pub address: Ipv4Net,
    /// `None`: the VM reaches its own network only.
    #[serde(default)]
    pub gateway: Option<Ipv4Addr>,
    /// Not used here; the guest writes its resolver configuration from it.
    #[serde(default)]
    pub dns: Vec<Ipv4Addr>,
    /// In bytes.
    pub mtu: u32,
}

/// The metadata service of AWS, Azure, GCP and others, which hands out the identity of whoever asks.
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// Its addresses of IPv6: AWS's (EC2 user guide, "Instance metadata") and GCP's (Compute Engine, "About VM metadata").
const METADATA_IPV6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)];

/// The root end of the veth pair.
const ROOT_VETH: &str = "ppveth";

/// A link that is up and has no address yet: what a DHCP client needs to know of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BareLink {
    /// The kernel's number of it.
    pub index: u32,
    /// Its hardware address.
    pub mac: [u8; 6],
}

/// Waits until `interface` is there, at most `deadline`, and brings it up without an address. Idempotent.
pub async fn bring_up_bare(interface: &str, deadline: Duration) -> Result<BareLink, NetworkError> {
    let link = wait_for_link(interface, deadline).await?;
    limited("bring up the VM's link", async {
        netlink::own()?.set_link(LinkUnspec::new_with_index(link.index).up(), interface).await?;
        let mac = link.mac.map(|mac| *mac.as_bytes()).ok_or_else(|| NetworkError::InterfaceMissing {
            name: format!("{interface} with a hardware address"),
            waited: Duration::ZERO,
        })?;
        Ok(BareLink { index: link.index, mac })
    })
    .await
}

/// Waits until `interface` is there, at most `deadline`, and configures it and loopback. Idempotent.
pub async fn bring_up(interface: &str, config: &LinkConfig, deadline: Duration) -> Result<(), NetworkError> {
    let link = wait_for_link(interface, deadline).await?;
    limited("bring up the VM's network", async {
        let root = netlink::own()?;
        ensure_loopback(&root).await?;
        root.set_link(LinkUnspec::new_with_index(link.index).mtu(config.mtu).up(), interface).await?;
        root.ensure_address(&link, config.address.into(), PrefixRoute::Automatic).await?;
        let Some(gateway) = config.gateway else { return Ok(()) };
        // Clouds that give out single addresses (/32) have their gateway outside the network.
        let onlink = !config.address.contains(&gateway);
        let route = Route {
            destination: None,
            gateway: Some(gateway.into()),
            scope: RouteScope::Global,
            onlink,
            source: None,
            metric: None,
            mtu: None,
        };
        root.ensure_route(&link, &route).await?;
        greet(config.address.addr(), gateway).await;
        Ok(())
    })
    .await
}

/// Lets the gateway learn our hardware address now.
///
/// A node on the same segment dials before we have an address; its kernel repeats its question only once a second, but takes the
/// answer from our own question for the gateway. An empty datagram to the discard port makes us ask. It is a hint: without it the
/// node only waits longer.
async fn greet(own: Ipv4Addr, gateway: Ipv4Addr) {
    const DISCARD: u16 = 9;
    if let Ok(socket) = tokio::net::UdpSocket::bind((own, 0)).await {
        let _ = socket.send_to(&[], (gateway, DISCARD)).await;
    }
}

/// Makes the pod's network in this VM: [`POD_NETNS`] with the pod's interface, tied to the node. Idempotent.
///
/// `underlay` is the VM's own interface, which [`bring_up`] has configured; `vm_port` is the channel's TCP port there.
/// It must run in the VM's root netns.
pub async fn ensure(network: &PodNetwork, underlay: &str, vm_port: u16) -> Result<(), NetworkError> {
    ensure_at(Path::new(POD_NETNS), network, underlay, vm_port).await
}

/// [`ensure`] with the pod's netns pinned elsewhere, for machines that hold more than one VM, as tests do.
pub async fn ensure_at(netns: &Path, network: &PodNetwork, underlay: &str, vm_port: u16) -> Result<(), NetworkError> {
    network.check()?;
    limited("make the pod's network", async {
        let root = netlink::own()?;
        let Some(own) = root.link(underlay).await? else {
            return Err(NetworkError::InterfaceMissing { name: underlay.to_owned(), waited: Duration::ZERO });
        };
        let path = root.underlay(network.node_address).await?;
        let largest = path.path_mtu.saturating_sub(VXLAN_OVERHEAD);

        // Guards come before what they guard, and the root end of the pair goes up last.
        let (pod_addresses, _) = by_family(network.addresses.iter().map(|address| address.addr()));
        root.ensure_guard(&own, Priority::Guard, &bpf::vxlan_guard(network.node_address)).await?;
        root.ensure_guard(&own, Priority::ChannelGuard, &bpf::channel_guard(vm_port, &pod_addresses)).await?;
        let wanted = Vxlan { vni: network.vni, local: path.source, remote: network.node_address };
        let vxlan = root.ensure_vxlan(&root, None, &vxlan_name(network.vni), wanted, network.mtu).await?;

        let inside = Netns::ensure(netns).await?;
        let pod = inside.netlink().await?;
        let veth = ensure_pair(&root, &pod, &inside, network).await?;
        let (mut forbidden, mut forbidden_ipv6) = by_family(root.addresses(&own).await?.iter().map(|address| address.addr()));
        forbidden.push(METADATA);
        forbidden_ipv6.extend(METADATA_IPV6);
        let forbidden_ipv6 = network.has_ipv6().then_some(&forbidden_ipv6[..]);
        root.ensure_guard(&veth, Priority::Guard, &bpf::workload_guard(&forbidden, forbidden_ipv6)).await?;
        root.ensure_redirect(&veth, &vxlan).await?;
        root.ensure_redirect(&vxlan, &veth).await?;

        configure_pod(&pod, network, largest).await?;
        root.set_up_mute(&vxlan).await?;
        root.set_up_mute(&veth).await
    })
    .await
}

// ---------------------------------------------------------------------------

/// The root end of the veth pair whose other end is the pod's interface.
async fn ensure_pair(root: &Netlink, pod: &Netlink, inside: &Netns, network: &PodNetwork) -> Result<Link, NetworkError> {
    let here = root.link(ROOT_VETH).await?;
    let there = pod.link(&network.interface).await?;
    match (here, there) {
        (Some(here), Some(there)) if here.is_veth() && there.is_veth() && there.mac == Some(network.mac) => return Ok(here),
        (here, there) => {
            // Half of something else: a VM has one pod, so whatever has these names is in the way.
            if let Some(link) = here {
                root.delete_link(&link).await?;
            }
            if let Some(link) = there {
                pod.delete_link(&link).await?;
            }
        }
    }
    root.create_veth(ROOT_VETH, inside, &network.interface, network.mac, network.mtu).await?;
    root.link(ROOT_VETH)
        .await?
        .ok_or_else(|| NetworkError::ReadInterface { interface: ROOT_VETH.to_owned(), problem: "is gone right after it was made" })
}

/// `largest` is the size of the largest packet that reaches the node without being cut in pieces on the way.
///
/// It bounds the routes, not the interface: a neighbour with the pod's MTU would find a smaller interface deaf to its
/// full-size datagrams, without a word, as this is a link and no router. Those come in pieces of VXLAN instead.
async fn configure_pod(pod: &Netlink, network: &PodNetwork, largest: u32) -> Result<(), NetworkError> {
    ensure_loopback(pod).await?;
    let Some(link) = pod.link(&network.interface).await? else {
        return Err(NetworkError::InterfaceMissing { name: network.interface.clone(), waited: Duration::ZERO });
    };
    for address in &network.addresses {
        pod.ensure_address(&link, *address, PrefixRoute::Explicit).await?;
    }
    pod.set_link(LinkUnspec::new_with_index(link.index).mtu(network.mtu).up(), &link.name).await?;
    for neighbour in &network.neighbours {
        pod.ensure_neighbour(&link, neighbour).await?;
    }
    for route in &network.routes {
        let smallest = if route.is_ipv6() { IPV6_MIN_MTU } else { 0 };
        let mtu = route.mtu.unwrap_or(network.mtu).min(largest).max(smallest);
        let mtu = (mtu < network.mtu).then_some(mtu);
        pod.ensure_route(&link, &Route { mtu, ..route.clone() }).await?;
    }
    Ok(())
}

fn by_family(addresses: impl Iterator<Item = IpAddr>) -> (Vec<Ipv4Addr>, Vec<Ipv6Addr>) {
    let (mut ipv4, mut ipv6) = (Vec::new(), Vec::new());
    for address in addresses {
        match address {
            IpAddr::V4(address) => ipv4.push(address),
            IpAddr::V6(address) => ipv6.push(address),
        }
    }
    (ipv4, ipv6)
}

async fn ensure_loopback(netlink: &Netlink) -> Result<(), NetworkError> {
    match netlink.link("lo").await? {
        Some(lo) => netlink.set_up(&lo).await,
        None => Err(NetworkError::InterfaceMissing { name: "lo".to_owned(), waited: Duration::ZERO }),
    }
}

/// Drivers probe in their own time; the kernel tells when an interface appears.
async fn wait_for_link(name: &str, deadline: Duration) -> Result<Link, NetworkError> {
    let (netlink, mut events) = Netlink::here_with_link_events().map_err(refused("open", "rtnetlink socket"))?;
    let appeared = async {
        if let Some(link) = netlink.link(name).await? {
            return Ok(link);
        }
        while let Some((event, _)) = events.next().await {
            if let NetlinkPayload::InnerMessage(message) = event.payload
                && let Some(link) = link_of(message)
                && link.name == name
            {
                return Ok(link);
            }
        }
        Err(refused("wait for", "link events")(std::io::ErrorKind::UnexpectedEof.into()))
    };
    timeout(deadline, appeared).await.unwrap_or_else(|_| Err(NetworkError::InterfaceMissing { name: name.to_owned(), waited: deadline }))
}
