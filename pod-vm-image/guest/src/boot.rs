//! What the hypervisor tells a machine at boot: user data, its instance id, its own network.
//!
//! Nothing here is secret and nothing is believed: user data is measured with the evidence, a wrong instance id or address only keeps
//! the machine from being found. Sizes are limited before reading.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use peerpods_network::guest::LinkConfig;

/// Where a sandbox finds its boot configuration.
const SANDBOX_FOLDER: &str = "/run/peerpods/boot";
/// Where QEMU's firmware configuration device appears.
const FW_CFG_FOLDER: &str = "/sys/firmware/qemu_fw_cfg/by_name/opt/org.peerpods";
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

/// A way to hand a machine its boot configuration.
pub(crate) trait BootConfig {
    /// The bytes of an item, at most 64 KiB. Reading is repeatable.
    fn read(&self, item: Item) -> Result<Vec<u8>, BootError>;
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
        if Path::new(SANDBOX_FOLDER).join("sandbox").exists() { Self::Sandbox } else { Self::Machine }
    }

    /// The boot configuration at this level.
    pub(crate) fn boot_config(self) -> Box<dyn BootConfig> {
        match self {
            Self::Machine => Box::new(Files { folder: FW_CFG_FOLDER.into(), leaf: "raw" }),
            Self::Sandbox => Box::new(Files { folder: SANDBOX_FOLDER.into(), leaf: "" }),
        }
    }
}

/// Items as files: `<folder>/<item>`, or `<folder>/<item>/<leaf>` with a leaf.
struct Files {
    folder: PathBuf,
    leaf: &'static str,
}

impl BootConfig for Files {
    fn read(&self, item: Item) -> Result<Vec<u8>, BootError> {
        let mut path = self.folder.join(item.name());
        if !self.leaf.is_empty() {
            path.push(self.leaf);
        }
        let read = || -> std::io::Result<Vec<u8>> {
            let mut bytes = Vec::new();
            std::fs::File::open(&path)?.take(LARGEST_ITEM + 1).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = read().map_err(|source| BootError::ReadItem { item, source })?;
        if bytes.len() as u64 > LARGEST_ITEM {
            return Err(BootError::LongItem { item });
        }
        Ok(bytes)
    }
}

/// Reads [`Item::Network`].
pub(crate) fn network(config: &dyn BootConfig) -> Result<LinkConfig, BootError> {
    let bytes = config.read(Item::Network)?;
    serde_json::from_slice(&bytes).map_err(|source| BootError::ParseItem { item: Item::Network, source })
}

/// Reads [`Item::InstanceId`]: 1 to 128 printable characters.
pub(crate) fn instance_id(config: &dyn BootConfig) -> Result<String, BootError> {
    let bytes = config.read(Item::InstanceId)?;
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
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed<'a>(&'a [u8]);

    impl BootConfig for Fixed<'_> {
        fn read(&self, _: Item) -> Result<Vec<u8>, BootError> {
            Ok(self.0.to_vec())
        }
    }

    #[test]
    fn network_of_the_local_provider_is_read() {
        let text = br#"{"address":"10.93.0.5/24","gateway":"10.93.0.1","dns":[],"mtu":1500}"#;
        let network = network(&Fixed(text)).expect("valid");
        assert_eq!((network.address.to_string().as_str(), network.mtu), ("10.93.0.5/24", 1500));
    }

    #[test]
    fn unknown_network_key_is_refused() {
        assert!(network(&Fixed(br#"{"address":"10.93.0.5/24","gateway":"10.93.0.1","mtu":1500,"script":"x"}"#)).is_err());
    }

    #[test]
    fn instance_id_is_trimmed_and_checked() {
        assert_eq!(instance_id(&Fixed(b"i-1\n")).expect("valid"), "i-1");
        for bad in [&b""[..], b"\n", b"a b", b"\xff", &[b'a'; 129]] {
            assert!(instance_id(&Fixed(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn long_item_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        std::fs::write(folder.path().join("user-data"), vec![0; 65 << 10]).expect("write");
        let config = Files { folder: folder.path().to_owned(), leaf: "" };
        assert!(matches!(config.read(Item::UserData), Err(BootError::LongItem { .. })));
    }
}
