//! Pod networks in the kernel.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use async_trait::async_trait;
use nix::sys::statfs::{NSFS_MAGIC, statfs};
use peerpods_network::node;

use super::{NetworkTrouble, PodNetworks, chain};

/// The kernel that the daemon runs on.
#[derive(Debug, Clone, Copy, Default)]
pub struct Kernel;

#[async_trait]
impl PodNetworks for Kernel {
    async fn inspect(&self, netns: &Path) -> Result<(), NetworkTrouble> {
        if !self.exists(netns) {
            return Err(NetworkTrouble(format!("there is no network namespace at {}", netns.display())));
        }
        node::inspect(netns).await.map(drop).map_err(|error| trouble(&error))
    }

    async fn describe(&self, netns: &Path, vm: IpAddr, vni: u32) -> Result<serde_json::Value, NetworkTrouble> {
        let inspected = node::inspect(netns).await.map_err(|error| trouble(&error))?;
        let underlay = node::underlay(ipv4(vm)?).await.map_err(|error| trouble(&error))?;
        serde_json::to_value(inspected.pod_network(vni, &underlay)).map_err(|error| NetworkTrouble(error.to_string()))
    }

    async fn ensure(&self, netns: &Path, vm: IpAddr, vni: u32) -> Result<(), NetworkTrouble> {
        let inspected = node::inspect(netns).await.map_err(|error| trouble(&error))?;
        node::ensure(netns, ipv4(vm)?, vni, &inspected).await.map_err(|error| trouble(&error))
    }

    async fn remove(&self, netns: &Path, vni: u32) -> Result<(), NetworkTrouble> {
        match node::remove(netns, vni).await {
            // What was in the namespace went with it.
            Err(_) if !self.exists(netns) => Ok(()),
            done => done.map_err(|error| trouble(&error)),
        }
    }

    fn exists(&self, netns: &Path) -> bool {
        statfs(netns).is_ok_and(|found| found.filesystem_type() == NSFS_MAGIC)
    }
}

fn ipv4(vm: IpAddr) -> Result<Ipv4Addr, NetworkTrouble> {
    match vm {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(address) => Err(NetworkTrouble(format!("the pod VM's address {address} is IPv6; the pod network needs IPv4"))),
    }
}

fn trouble(error: &peerpods_network::NetworkError) -> NetworkTrouble {
    NetworkTrouble(chain(error))
}
