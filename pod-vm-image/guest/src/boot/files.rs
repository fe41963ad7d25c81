//! Boot configuration in files that the local provider has put there.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use peerpods_network::guest::LinkConfig;

use super::{BootError, Item, LARGEST_ITEM, Level};

/// Where a sandbox finds them.
const SANDBOX_FOLDER: &str = "/run/peerpods/boot";
/// Where QEMU's firmware configuration device appears.
const FW_CFG_FOLDER: &str = "/sys/firmware/qemu_fw_cfg/by_name/opt/org.peerpods";

/// Items as files: `<folder>/<item>`, or `<folder>/<item>/<leaf>` with a leaf.
pub(super) struct Files {
    folder: PathBuf,
    leaf: &'static str,
}

impl Files {
    /// Whether this is a sandbox.
    pub(super) fn is_sandbox() -> bool {
        Path::new(SANDBOX_FOLDER).join("sandbox").exists()
    }

    /// Those of this machine; `None` when it has none.
    pub(super) fn find(level: Level) -> Option<Self> {
        let files = match level {
            Level::Machine => Self { folder: FW_CFG_FOLDER.into(), leaf: "raw" },
            Level::Sandbox => Self { folder: SANDBOX_FOLDER.into(), leaf: "" },
        };
        files.path(Item::UserData).exists().then_some(files)
    }

    /// The bytes of an item. Reading is repeatable.
    pub(super) fn read(&self, item: Item) -> Result<Vec<u8>, BootError> {
        let read = || -> std::io::Result<Vec<u8>> {
            let mut bytes = Vec::new();
            std::fs::File::open(self.path(item))?.take(LARGEST_ITEM + 1).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = read().map_err(|source| BootError::ReadItem { item, source })?;
        if bytes.len() as u64 > LARGEST_ITEM {
            return Err(BootError::LongItem { item });
        }
        Ok(bytes)
    }

    /// [`Item::Network`].
    pub(super) fn network(&self) -> Result<LinkConfig, BootError> {
        let item = Item::Network;
        serde_json::from_slice(&self.read(item)?).map_err(|source| BootError::ParseItem { item, source })
    }

    fn path(&self, item: Item) -> PathBuf {
        let path = self.folder.join(item.name());
        if self.leaf.is_empty() { path } else { path.join(self.leaf) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(item: Item, content: &[u8]) -> (tempfile::TempDir, Files) {
        let folder = tempfile::tempdir().expect("folder");
        std::fs::write(folder.path().join(item.name()), content).expect("write");
        let files = Files { folder: folder.path().to_owned(), leaf: "" };
        (folder, files)
    }

    #[test]
    fn network_of_the_local_provider_is_read() {
        let (_folder, files) = with(Item::Network, br#"{"address":"10.93.0.5/24","gateway":"10.93.0.1","dns":[],"mtu":1500}"#);
        let network = files.network().expect("valid");
        assert_eq!((network.address.to_string().as_str(), network.mtu), ("10.93.0.5/24", 1500));
    }

    #[test]
    fn unknown_network_key_is_refused() {
        let (_folder, files) = with(Item::Network, br#"{"address":"10.93.0.5/24","gateway":"10.93.0.1","mtu":1500,"script":"x"}"#);
        assert!(files.network().is_err());
    }

    #[test]
    fn long_item_is_refused() {
        let (_folder, files) = with(Item::UserData, &vec![0; 65 << 10]);
        assert!(matches!(files.read(Item::UserData), Err(BootError::LongItem { .. })));
    }
}
