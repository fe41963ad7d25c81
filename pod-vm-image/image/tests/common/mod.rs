//! A store in a folder of its own, a registry in this process, and images made entry by entry.

#![allow(dead_code, unused_imports, unreachable_pub, missing_docs, clippy::unwrap_used, reason = "each test binary uses a part")]

pub mod broker;
pub mod image;
pub mod registry;
pub mod signing;

use std::path::Path;

use peerpods_image::{Limits, PullError, PullPolicy, PulledImage, Registries, Store, StoreConfig};

pub use broker::Broker;
pub use image::{Image, Layer};
pub use registry::Registry;

/// A store with these limits; without the machine's roots.
pub fn store_with(folder: &Path, limits: Limits) -> Store {
    let config = StoreConfig { limits, root_certificates: folder.join("none"), ..StoreConfig::new(folder.join("store")) };
    Store::open(config).unwrap()
}

/// Limits under which small test images pass however full the disk is.
pub fn limits() -> Limits {
    Limits { reserve_bytes: 0, retry_pause: std::time::Duration::from_millis(1), ..Limits::default() }
}

pub fn store(folder: &Path) -> Store {
    store_with(folder, limits())
}

pub fn policy(registry: &Registry) -> PullPolicy {
    PullPolicy { registries: Registries::insecure(&registry.host()), ..PullPolicy::default() }
}

/// Pushes the image as `app:1` and pulls it.
pub async fn pull(store: &Store, registry: &Registry, image: &Image) -> Result<PulledImage, PullError> {
    registry.push("app", "1", image);
    store.pull(&format!("{}/app:1", registry.host()), &policy(registry), None).await
}

/// Names in a folder, sorted.
pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Waits until nothing is under way in the store's `tmp/`.
pub async fn settled(folder: &Path) {
    let temporary = folder.join("store/tmp");
    let empty = async {
        while !names(&temporary).is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), empty)
        .await
        .unwrap_or_else(|_| panic!("left in tmp: {:?}", names(&temporary)));
}

/// An error with its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text += &format!(": {cause}");
        next = cause.source();
    }
    text
}
