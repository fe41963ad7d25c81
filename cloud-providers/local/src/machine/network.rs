//! The bridge that machines are plugged into, and their links.
//!
//! The bridge is ours if its hardware address is the one that we derive from the state folder: the only mark that the kernel sets in
//! the same step as it makes the link. Anything else of that name is somebody else's and is left alone.

use std::net::Ipv4Addr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use peerpods_cloud_api::settings::local::LocalSettings;

use super::netlink::{Link, Netlink};
use super::{MachineError, Record};

/// The bridge of one state folder.
#[derive(Debug, Clone)]
pub(crate) struct Bridge {
    name: String,
    mac: [u8; 6],
    gateway: Ipv4Addr,
    /// One more address, which belongs to no network.
    service: Option<Ipv4Addr>,
}

/// What has the bridge's name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Nothing,
    Ours(Link),
    Foreign,
}

impl Bridge {
    pub(crate) fn new(settings: &LocalSettings) -> Self {
        Self { name: settings.bridge.clone(), mac: mark(&settings.state_dir), gateway: settings.gateway, service: None }
    }

    pub(crate) fn with_service(self, address: Ipv4Addr) -> Self {
        Self { service: Some(address), ..self }
    }

    pub(crate) fn find(&self, netlink: &mut Netlink) -> Result<Found, MachineError> {
        Ok(match netlink.find(&self.name).map_err(MachineError::network("look for", &self.name))? {
            None => Found::Nothing,
            Some(link) if link.is_bridge && link.mac == self.mac => Found::Ours(link),
            Some(_) => Found::Foreign,
        })
    }

    /// Makes what is missing of the bridge.
    pub(crate) fn ensure(&self, netlink: &mut Netlink) -> Result<Link, MachineError> {
        if self.find(netlink)? == Found::Nothing {
            netlink.create_bridge(&self.name, self.mac).map_err(MachineError::network("create bridge", &self.name))?;
        }
        let Found::Ours(link) = self.find(netlink)? else { return Err(self.foreign()) };
        let mut give = |address, prefix| netlink.ensure_address(link.index, address, prefix);
        let given = give(self.gateway, 24).and_then(|()| self.service.map_or(Ok(()), |address| give(address, 32)));
        given.map_err(MachineError::network("give an address to", &self.name))?;
        netlink.set_up(link.index).map_err(MachineError::network("bring up", &self.name))?;
        Ok(link)
    }

    /// Removes it if it is ours. True when it was there.
    pub(crate) fn remove(&self, netlink: &mut Netlink) -> Result<bool, MachineError> {
        let Found::Ours(_) = self.find(netlink)? else { return Ok(false) };
        netlink.delete(&self.name).map_err(MachineError::network("delete bridge", &self.name))?;
        Ok(true)
    }

    pub(crate) fn foreign(&self) -> MachineError {
        MachineError::invalid(format!("link {} exists and is not ours; choose another provider.local.bridge", self.name))
    }

    /// Plugs a machine's link in, apart from those of the other machines.
    pub(crate) fn plug(&self, netlink: &mut Netlink, name: &str) -> Result<(), MachineError> {
        let Found::Ours(bridge) = self.find(netlink)? else { return Err(self.foreign()) };
        let find = netlink.find(name).and_then(|link| link.ok_or_else(|| nix::errno::Errno::ENODEV.into()));
        let link = find.map_err(MachineError::network("find link", name))?;
        netlink.attach(link.index, bridge.index).map_err(MachineError::network("plug in", name))?;
        netlink.isolate(link.index).map_err(MachineError::network("isolate", name))?;
        netlink.set_up(link.index).map_err(MachineError::network("bring up", name))
    }
}

/// The machine's `network` boot file.
pub(crate) fn boot_file(settings: &LocalSettings, record: &Record) -> Vec<u8> {
    let network = serde_json::json!({
        "address": format!("{}/24", record.address),
        "gateway": settings.gateway.to_string(),
        "dns": [],
        "mtu": 1500,
    });
    network.to_string().into_bytes()
}

/// A locally administered hardware address that only this state folder has: FNV-1a of its path.
fn mark(state_dir: &Path) -> [u8; 6] {
    let hash = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let [a, b, c, d, e, ..] = state_dir.as_os_str().as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, hash).to_be_bytes();
    [0x02, a, b, c, d, e]
}
