//! The node's end: reads the interface that a CNI plugin gave to a pod, and ties it to the pod's VM.
//!
//! The daemon's own network namespace is the underlay: encapsulated packets leave and arrive there, whatever namespace
//! the VXLAN device itself is in. In the pod's netns nothing but the device and two filters is added, so removing them
//! leaves the pod's interface as the CNI plugin made it. When the netns goes away, so does all of this.
//!
//! VXLAN has no authentication. On the node nothing checks who sends to a VNI; the pod's traffic deserves the trust of
//! any traffic on the cloud's network, and no more.

use std::future::Future;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::address::MacAddress;
use crate::error::NetworkError;
use crate::link::{Link, Vxlan};
use crate::netlink::{self, Netlink};
use crate::netns::Netns;
use crate::pod::{Neighbour, PodNetwork, Route, VERSION, has_ipv6};
pub use crate::route::Underlay;
use crate::vxlan_name;

/// What a CNI plugin gave to a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspected {
    /// The interface's name in the pod's netns.
    pub interface: String,
    /// Its Ethernet address.
    pub mac: MacAddress,
    /// At least one; those of IPv6 are not link-local, since the VM makes that one by itself.
    pub addresses: Vec<IpNet>,
    /// Out of this interface, in the order in which they can be added again.
    pub routes: Vec<Route>,
    /// Permanent entries only.
    pub neighbours: Vec<Neighbour>,
    /// The interface's MTU, in bytes.
    pub mtu: u32,
}

/// The kernel answers in milliseconds; under load, network namespaces being torn down can hold its lock for seconds.
const LIMIT: Duration = Duration::from_secs(30);

impl Inspected {
    /// What to tell the VM that sees this node as `underlay` says.
    pub fn pod_network(&self, vni: u32, underlay: &Underlay) -> PodNetwork {
        PodNetwork {
            version: if has_ipv6(&self.addresses, &self.routes, &self.neighbours) { VERSION } else { 1 },
            interface: self.interface.clone(),
            mac: self.mac,
            addresses: self.addresses.clone(),
            routes: self.routes.clone(),
            neighbours: self.neighbours.clone(),
            mtu: self.mtu,
            vni,
            node_address: underlay.source,
        }
    }
}

/// Reads the pod's interface: the one of the default route, or else the only Ethernet interface there is.
/// Gives the same answer before and after [`ensure`].
pub async fn inspect(netns: &Path) -> Result<Inspected, NetworkError> {
    limited("inspect the pod's network", async {
        let pod = Netns::open(netns)?.netlink().await?;
        let link = pod_link(&pod, netns).await?;
        let unusable = |problem| NetworkError::ReadInterface { interface: link.name.clone(), problem };
        let mac = link.mac.ok_or_else(|| unusable("has no Ethernet address"))?;
        let addresses = pod.addresses(&link).await?;
        if addresses.is_empty() {
            return Err(unusable("has no address"));
        }
        let routes = pod.routes(&link).await?;
        let neighbours = pod.neighbours(&link).await?;
        Ok(Inspected { interface: link.name, mac, addresses, routes, neighbours, mtu: link.mtu })
    })
    .await
}

/// How the daemon reaches the VM: the address that the VM sees, and the largest packet that gets there.
pub async fn underlay(vm: Ipv4Addr) -> Result<Underlay, NetworkError> {
    limited("find the way to the VM", async { netlink::own()?.underlay(vm).await }).await
}

/// Ties the pod's interface to the VM's VXLAN device. Idempotent; also replaces what an earlier VM of the pod left.
pub async fn ensure(netns: &Path, vm: Ipv4Addr, vni: u32, inspected: &Inspected) -> Result<(), NetworkError> {
    limited("connect the pod's network", async {
        let inside = Netns::open(netns)?;
        let pod = inside.netlink().await?;
        let own = netlink::own()?;
        let source = own.underlay(vm).await?.source;
        let Some(interface) = pod.link(&inspected.interface).await? else {
            return Err(NetworkError::InterfaceMissing { name: inspected.interface.clone(), waited: Duration::ZERO });
        };
        let wanted = Vxlan { vni, local: source, remote: vm };
        let vxlan = own.ensure_vxlan(&pod, Some(&inside), &vxlan_name(vni), wanted, inspected.mtu).await?;
        pod.ensure_redirect(&vxlan, &interface).await?;
        pod.set_up_mute(&vxlan).await?;
        pod.ensure_redirect(&interface, &vxlan).await
    })
    .await
}

/// Undoes [`ensure`], as far as it got. Idempotent.
pub async fn remove(netns: &Path, vni: u32) -> Result<(), NetworkError> {
    limited("disconnect the pod's network", async {
        let pod = Netns::open(netns)?.netlink().await?;
        for link in pod.links().await?.iter().filter(|link| link.is_ethernet && !link.is_any_vxlan()) {
            pod.remove_redirect(link).await?;
        }
        match pod.link(&vxlan_name(vni)).await? {
            Some(vxlan) => pod.delete_link(&vxlan).await,
            None => Ok(()),
        }
    })
    .await
}

async fn pod_link(pod: &Netlink, netns: &Path) -> Result<Link, NetworkError> {
    let default = pod.default_link().await?;
    let links = pod.links().await?;
    let mut candidates: Vec<Link> = links.into_iter().filter(|link| link.is_ethernet && !link.is_any_vxlan()).collect();
    if let Some(at) = candidates.iter().position(|link| Some(link.index) == default) {
        return Ok(candidates.swap_remove(at));
    }
    match <[Link; 1]>::try_from(candidates) {
        Ok([only]) => Ok(only),
        Err(candidates) => {
            Err(NetworkError::FindInterface { path: netns.to_owned(), candidates: candidates.into_iter().map(|link| link.name).collect() })
        }
    }
}

/// Bounds a public operation.
pub(crate) async fn limited<T>(operation: &'static str, work: impl Future<Output = Result<T, NetworkError>>) -> Result<T, NetworkError> {
    tokio::time::timeout(LIMIT, work).await.unwrap_or(Err(NetworkError::Deadline { operation, limit: LIMIT }))
}
