//! What an image is, as this node's containerd has resolved it.

use async_trait::async_trait;

/// Asks containerd.
#[async_trait]
pub trait ImageResolver: Send + Sync + 'static {
    /// What the guest is to pull for a container of containerd's `namespace`.
    ///
    /// The container's record names its image and wins; `image_name` is what the CRI says of it, for a container that is not recorded
    /// yet. May be called again at any time; changes nothing. Ends by itself, in a few seconds at most.
    async fn resolve(&self, namespace: &str, container_id: &str, image_name: &str) -> Result<Resolved, ResolveFailure>;
}

/// An image that means the same bytes for ever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Reference by manifest digest, `host/repository@sha256:<hex>`.
    pub reference: String,
    /// Digest of the image's configuration, `sha256:<hex>`.
    pub config_digest: String,
}

/// Why an image is not resolved. The texts are for the pod's events: what was asked, the cause, the next step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveFailure {
    /// containerd cannot be reached or does not answer; try again.
    #[error("{0}")]
    Unavailable(String),
    /// containerd knows neither the container nor the image.
    #[error("{0}")]
    NotFound(String),
    /// The image cannot be pulled by a guest: no registry reference, no manifest for the platform, content that is not there.
    #[error("{0}")]
    Unusable(String),
    /// This daemon has no resolver.
    #[error("{0}")]
    NotConfigured(String),
}
