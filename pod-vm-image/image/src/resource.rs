//! Where credentials and policies named by a resource URI come from.
//!
//! The guest gives an implementation that asks the key broker; this crate knows only the trait.

use async_trait::async_trait;

/// A resource could not be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot get resource {uri}")]
pub struct ResourceError {
    /// The resource URI; never its content.
    pub uri: String,
    /// Why.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Gets resources such as `kbs:///default/credential/test`.
///
/// `get` is idempotent, has its own deadline, returns the whole content, and an error tells nothing of the content.
#[async_trait]
pub trait ResourceSource: Send + Sync {
    /// The content of the resource.
    async fn get(&self, uri: &str) -> Result<Vec<u8>, ResourceError>;
}
