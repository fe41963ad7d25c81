use std::net::{IpAddr, Ipv4Addr};

use peerpods_cloud_api::settings::local::Level;
use peerpods_cloud_api::{Instance, InstanceId, InstanceState, LaunchRequest};
use serde::{Deserialize, Serialize};

use super::ProcessId;

/// The version of `machine.json` that is written and understood.
pub(crate) const VERSION: u32 = 1;

/// What `machine.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Always [`VERSION`]; read before the rest.
    pub version: u32,
    /// The machine.
    pub id: InstanceId,
    /// The launch that made it, with owner tag and token.
    pub request: LaunchRequest,
    /// Its address on the bridge.
    pub address: Ipv4Addr,
    /// How it is made.
    pub level: Level,
    /// How far it has come.
    pub phase: Phase,
    /// Its process, recorded before it does anything; `None` until there is one.
    pub process: Option<ProcessId>,
}

/// How far a machine has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// It may have a process, a link and files, or none.
    Planned,
    /// Its process runs or has run.
    Started,
    /// It must go.
    Deleting,
}

impl Record {
    /// The end of every name that belongs to this machine: 12 hex digits.
    pub(crate) fn suffix(&self) -> &str {
        let id = self.id.as_str();
        id.rsplit_once('-').map_or(id, |(_, suffix)| suffix)
    }

    /// The machine's link on the bridge; at most 15 characters.
    pub(crate) fn link(&self) -> String {
        format!("pp{}", self.suffix())
    }

    /// The machine's hardware address. Made from its address, so that neighbours' caches stay right when an address is used again.
    pub fn mac(&self) -> [u8; 6] {
        let [a, b, c, d] = self.address.octets();
        [0x02, 0x70, a, b, c, d]
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.process.as_ref().is_some_and(ProcessId::is_alive)
    }

    /// The machine as the contract tells it.
    pub fn instance(&self) -> Instance {
        let state = match (self.phase, self.is_alive()) {
            (Phase::Planned, _) => InstanceState::Pending,
            (Phase::Started, true) => InstanceState::Running,
            (Phase::Started, false) => InstanceState::Stopped,
            (Phase::Deleting, _) => InstanceState::Deleting,
        };
        Instance {
            id: self.id.clone(),
            owner: self.request.owner.clone(),
            token: self.request.token.clone(),
            state,
            address: Some(IpAddr::V4(self.address)),
        }
    }
}
