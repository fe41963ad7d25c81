//! What a machine is told at boot: user data, its instance id, its own network.
//!
//! | machine | network | user data, instance id |
//! |---|---|---|
//! | of the local provider | a file of QEMU's firmware configuration, or of the sandbox | the same |
//! | of a cloud | DHCP | the cloud's metadata service |
//!
//! Which one it is, the files tell: where they are, the machine is local. Nothing here is secret and nothing is believed: user data is
//! measured with the evidence, a wrong instance id or address only keeps the machine from being found. Sizes are limited before reading.

mod files;
mod lease;
mod metadata;

use std::time::Duration;

use peerpods_network::NetworkError;
use peerpods_network::guest::{bring_up, bring_up_bare};

use files::Files;
pub(crate) use lease::Lease;

/// How long the machine's link may take to appear; its driver is loaded already.
const LINK_APPEARS_WITHIN: Duration = Duration::from_secs(10);

/// More than any item needs.
const LARGEST_ITEM: u64 = 64 << 10;

/// An item of the boot configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Item {
    /// See `peerpods_tunnel::user_data`.
    UserData,
    /// The cloud's name of this machine.
    InstanceId,
    /// The machine's own interface.
    Network,
}

impl Item {
    fn name(self) -> &'static str {
        match self {
            Self::UserData => "user-data",
            Self::InstanceId => "instance-id",
            Self::Network => "network",
        }
    }
}

/// What this program runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// A machine of its own.
    Machine,
    /// Namespaces of somebody else's kernel, made by the local provider, for tests. Mounts, modules and disk are its affair.
    Sandbox,
}

impl Level {
    /// Told by a file that only the local provider can have put there: a machine's `/run` is empty when `init` starts.
    pub(crate) fn detect() -> Self {
        if Files::is_sandbox() { Self::Sandbox } else { Self::Machine }
    }
}

/// Whether this machine is one of the local provider, which gives each a scratch disk.
pub(crate) fn is_local() -> bool {
    Files::find(Level::Machine).is_some()
}

/// What a machine was told.
pub(crate) struct Told {
    /// Its name servers.
    pub(crate) dns: Vec<std::net::Ipv4Addr>,
    /// 1 to 128 printable characters.
    pub(crate) instance_id: String,
    /// Not looked at, at most 64 KiB.
    pub(crate) user_data: Vec<u8>,
    /// What must be renewed for the machine to keep its address; `None` where it simply has one.
    pub(crate) lease: Option<Lease>,
}

/// Configures the machine's own interface and finds out what it is.
pub(crate) async fn find_out(level: Level, interface: &str) -> Result<Told, BootError> {
    if let Some(files) = Files::find(level) {
        let network = files.network()?;
        bring_up(interface, &network, LINK_APPEARS_WITHIN).await.map_err(BootError::Network)?;
        let (instance_id, user_data) = (instance_id(&files.read(Item::InstanceId)?)?, files.read(Item::UserData)?);
        return Ok(Told { dns: network.dns, instance_id, user_data, lease: None });
    }
    let link = bring_up_bare(interface, LINK_APPEARS_WITHIN).await.map_err(BootError::Network)?;
    let (lease, network) = Lease::get(interface, link).await?;
    crate::console::event("lease");
    bring_up(interface, &network, LINK_APPEARS_WITHIN).await.map_err(BootError::Network)?;
    let told = metadata::ask().await?;
    let instance_id = instance_id(&told.instance_id)?;
    Ok(Told { dns: network.dns, instance_id, user_data: told.user_data, lease: Some(lease) })
}

/// Checks [`Item::InstanceId`].
fn instance_id(bytes: &[u8]) -> Result<String, BootError> {
    let id = bytes.trim_ascii();
    match std::str::from_utf8(id) {
        Ok(text) if (1..=128).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic) => Ok(text.to_owned()),
        _ => Err(BootError::InstanceId),
    }
}

/// The boot configuration is unusable.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    /// An item is not there.
    #[error("read boot configuration item {}", item.name())]
    ReadItem {
        /// Which.
        item: Item,
        /// Why.
        source: std::io::Error,
    },
    /// An item exceeds the limit.
    #[error("boot configuration item {} has more than {LARGEST_ITEM} bytes", item.name())]
    LongItem {
        /// Which.
        item: Item,
    },
    /// An item is not what it should be.
    #[error("parse boot configuration item {}", item.name())]
    ParseItem {
        /// Which.
        item: Item,
        /// Why.
        source: serde_json::Error,
    },
    /// The instance id is empty, long or unprintable.
    #[error("the instance id is not 1 to 128 printable characters")]
    InstanceId,
    /// The interface cannot be configured.
    #[error("configure the machine's own network")]
    Network(#[source] NetworkError),
    /// No DHCP server gave the machine a usable address.
    #[error("no usable DHCP lease: {detail}")]
    Lease {
        /// What was tried last.
        detail: String,
    },
    /// The metadata service does not say what the machine is.
    #[error("the metadata service gives no {}: {detail}", item.name())]
    Metadata {
        /// Which.
        item: Item,
        /// The last try's outcome.
        detail: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instance_id_is_trimmed_and_checked() {
        assert_eq!(instance_id(b"i-1\n").expect("valid"), "i-1");
        for bad in [&b""[..], b"\n", b"a b", b"\xff", &[b'a'; 129]] {
            assert!(instance_id(bad).is_err(), "{bad:?}");
        }
    }
}
