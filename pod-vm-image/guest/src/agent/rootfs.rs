//! Container root file systems: images pulled into the store on the scratch disk.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use peerpods_agent::{ImageInfo, ImageRequest, RootfsError, RootfsSource};
use peerpods_image::{OpenError, PullPolicy, Store, StoreConfig};
use tokio::sync::Mutex;

use super::broker::Broker;

/// Longer than any shim waits; it ends a pull whose registry drips.
const PULL_WITHIN: Duration = Duration::from_secs(30 * 60);

/// The store of this machine with the policy of its pod.
pub(super) struct ImageRootfs {
    store: Store,
    /// What initdata says, and once the first pull has asked the broker, what that says.
    policy: Mutex<PullPolicy>,
    broker: Broker,
}

impl ImageRootfs {
    /// Opens the store below the scratch folder.
    pub(super) fn open(scratch: &Path, policy: PullPolicy, broker: Broker) -> Result<Self, OpenError> {
        Ok(Self { store: Store::open(StoreConfig::new(scratch.join("images")))?, policy: Mutex::new(policy), broker })
    }

    /// The policy with the broker's parts in it. They are asked for when the first image is wanted, not at Bind: a broker that cannot be
    /// reached fails this pull, and the next one asks again.
    async fn policy(&self, image: &str) -> Result<PullPolicy, RootfsError> {
        let mut policy = self.policy.lock().await;
        let source = Arc::new(self.broker.clone());
        policy.resolve(source).await.map_err(|e| RootfsError::new(format!("prepare to pull image {image}"), e))?;
        Ok(policy.clone())
    }
}

#[async_trait]
impl RootfsSource for ImageRootfs {
    /// The node's word binds: an image with another configuration than the one that it made the container from is refused.
    async fn pull(&self, request: &ImageRequest, _container_id: &str, target: &Path) -> Result<ImageInfo, RootfsError> {
        let image = &request.reference;
        let mut policy = self.policy(image).await?;
        if let Some(text) = &request.config_digest {
            let digest = text.parse().map_err(|e| RootfsError::new(format!("read the configuration's digest {text:?}"), e))?;
            policy.expected_config = Some(digest);
        }
        let pull = self.store.pull(image, &policy, None);
        let pulled = match tokio::time::timeout(PULL_WITHIN, pull).await {
            Ok(result) => result.map_err(|e| RootfsError::new(format!("pull image {image}"), e))?,
            Err(elapsed) => return Err(RootfsError::new(format!("pull image {image}"), elapsed)),
        };
        self.store.mount(&pulled, target).await.map_err(|e| RootfsError::new(format!("mount image {image}"), e))?;
        let user = pulled.config.config().as_ref().and_then(|config| config.user().clone()).unwrap_or_default();
        Ok(ImageInfo { user })
    }

    async fn remove(&self, container_id: &str, target: &Path) -> Result<(), RootfsError> {
        self.store.unmount(target).await.map_err(|e| RootfsError::new(format!("unmount the image of container {container_id}"), e))
    }
}
