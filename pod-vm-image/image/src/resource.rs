//! Where credentials and policies named by a resource URI come from.
//!
//! The guest gives an implementation that asks the key broker; this crate knows only the trait.

use std::fmt;
use std::sync::Arc;

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

/// Where a pull gets keys and other resources from, if from anywhere. Prints nothing of it.
#[derive(Clone, Default)]
pub struct Resources(Option<Arc<dyn ResourceSource>>);

impl Resources {
    /// From this source.
    pub fn from_source(source: Arc<dyn ResourceSource>) -> Self {
        Self(Some(source))
    }

    /// The source; `None` when there is no key broker.
    pub fn source(&self) -> Option<&dyn ResourceSource> {
        self.0.as_deref()
    }
}

impl fmt::Debug for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Resources").field(&self.0.is_some()).finish()
    }
}
