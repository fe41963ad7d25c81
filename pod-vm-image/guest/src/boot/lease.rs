//! The machine's address from its network's DHCP server, and its renewal.
//!
//! mozim speaks DHCP. It waits some seconds before it asks a second time, which RFC 2131 wants of a busy office and which is much of a
//! pod's start, so a question without an answer is asked anew, by another client, within a second.

use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;
use mozim::{DhcpV4Client, DhcpV4Config, DhcpV4Lease, DhcpV4State};
use peerpods_network::guest::{BareLink, LinkConfig};
use tokio::time::{Instant, sleep, timeout};

use super::BootError;

/// How long one question and its confirmation may take. The client waits up to 200 ms before it asks.
const TRY: Duration = Duration::from_millis(1000);
/// All tries together: more than a cloud's network takes to learn of a new machine.
const DEADLINE: Duration = Duration::from_secs(60);
/// Pause after a renewal that went wrong at once.
const PAUSE: Duration = Duration::from_secs(5);

/// What a network may say of its largest packet: what IPv4 needs, and what EC2's jumbo frames have.
const MTU: std::ops::RangeInclusive<u16> = 576..=9001;
/// Ethernet's.
const USUAL_MTU: u32 = 1500;

/// An address for a time.
#[derive(Debug)]
pub(crate) struct Lease {
    client: DhcpV4Client,
    address: Ipv4Addr,
}

impl Lease {
    /// Asks until somebody answers, and gives the network that was told.
    pub(super) async fn get(interface: &str, link: BareLink) -> Result<(Self, LinkConfig), BootError> {
        let begin = Instant::now();
        loop {
            let mut client = client(interface, link).await?;
            let detail = match timeout(TRY, next_lease(&mut client)).await {
                Ok(Ok(lease)) => {
                    let network = link_config(&lease)?;
                    return Ok((Self { client, address: lease.yiaddr }, network));
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => "nobody answers".to_owned(),
            };
            if begin.elapsed() > DEADLINE {
                return Err(BootError::Lease { detail });
            }
        }
    }

    /// Renews it for as long as the machine lives; returns only when the network gives the machine another address, with which
    /// nobody would find it.
    ///
    /// A server that does not answer takes nothing away: clouds keep a machine's address whether its lease is renewed or not.
    pub(crate) async fn keep(mut self) -> anyhow::Error {
        loop {
            match next_lease(&mut self.client).await {
                Ok(lease) if lease.yiaddr == self.address => crate::console::event("lease-renewed"),
                Ok(_) => return anyhow::anyhow!("the network gives this machine another address"),
                Err(error) => {
                    tracing::warn!("the DHCP lease is not renewed: {error}");
                    self.client.clean_up();
                    sleep(PAUSE).await;
                }
            }
        }
    }
}

async fn client(interface: &str, link: BareLink) -> Result<DhcpV4Client, BootError> {
    let lease = |error: mozim::DhcpError| BootError::Lease { detail: error.to_string() };
    let mut config = DhcpV4Config::new(interface);
    config.set_iface_index(link.index).set_iface_mac_raw(&link.mac).map_err(lease)?;
    config.use_mac_as_client_id();
    DhcpV4Client::init(config, None).await.map_err(lease)
}

/// Drives the client until it has a lease, or another one.
async fn next_lease(client: &mut DhcpV4Client) -> Result<Box<DhcpV4Lease>, mozim::DhcpError> {
    loop {
        if let DhcpV4State::Done(lease) = client.run().await? {
            return Ok(lease);
        }
    }
}

fn link_config(lease: &DhcpV4Lease) -> Result<LinkConfig, BootError> {
    let unusable = |detail: String| BootError::Lease { detail };
    let is_usable =
        |address: Ipv4Addr| !(address.is_unspecified() || address.is_multicast() || address.is_broadcast() || address.is_loopback());
    if !is_usable(lease.yiaddr) {
        return Err(unusable(format!("{} is no machine's address", lease.yiaddr)));
    }
    let address = Ipv4Net::with_netmask(lease.yiaddr, lease.subnet_mask)
        .map_err(|_| unusable(format!("{} is no network's mask", lease.subnet_mask)))?;
    let mtu = lease.mtu.filter(|mtu| MTU.contains(mtu)).map_or(USUAL_MTU, u32::from);
    let gateway = lease.gateways.as_ref().and_then(|all| all.first().copied());
    // resolv.conf has room for three.
    let dns = lease.dns_srvs.iter().flatten().copied().filter(|address| is_usable(*address)).take(3).collect();
    Ok(LinkConfig { address, gateway, dns, mtu })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(address: [u8; 4], mask: [u8; 4]) -> DhcpV4Lease {
        let mut lease = DhcpV4Lease::default();
        (lease.yiaddr, lease.subnet_mask) = (address.into(), mask.into());
        lease.gateways = Some(vec![[10, 0, 1, 1].into()]);
        lease.dns_srvs = Some(vec![[10, 0, 0, 2].into(); 5]);
        lease
    }

    #[test]
    fn lease_of_ec2_is_understood() {
        let mut lease = lease([10, 0, 1, 5], [255, 255, 255, 0]);
        lease.mtu = Some(9001);
        let config = link_config(&lease).expect("usable");
        assert_eq!((config.address.to_string().as_str(), config.mtu, config.dns.len()), ("10.0.1.5/24", 9001, 3));
        assert_eq!(config.gateway, Some([10, 0, 1, 1].into()));
    }

    #[test]
    fn nonsense_is_refused_or_ignored() {
        assert!(link_config(&lease([0, 0, 0, 0], [255, 255, 255, 0])).is_err());
        assert!(link_config(&lease([10, 0, 1, 5], [255, 0, 255, 0])).is_err());
        let mut small = lease([10, 0, 1, 5], [255, 255, 255, 0]);
        small.mtu = Some(68);
        assert_eq!(link_config(&small).expect("usable").mtu, USUAL_MTU);
    }
}
