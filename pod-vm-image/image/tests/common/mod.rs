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
    eventually("nothing is left in tmp", || names(&temporary), Vec::is_empty).await;
}

/// Waits until what is seen is as it should be.
pub async fn eventually<T: std::fmt::Debug>(what: &str, see: impl Fn() -> T, is_so: impl Fn(&T) -> bool) {
    let so = async {
        while !is_so(&see()) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), so).await.unwrap_or_else(|_| panic!("{what}: {:?}", see()));
}

/// Files of the store's `tmp/` that this process has open and that have no name any more: what they were called, and their length.
pub fn nameless(folder: &Path) -> Vec<(String, u64)> {
    let temporary = folder.join("store/tmp");
    let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten().filter_map(|entry| {
        let link = std::fs::read_link(entry.path()).ok()?;
        let name = link.strip_prefix(&temporary).ok()?.to_str()?.strip_suffix(" (deleted)")?.to_owned();
        // A descriptor that was closed since is not counted.
        Some((name, std::fs::metadata(entry.path()).ok()?.len()))
    });
    open.collect()
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
