//! Configuration to a cloud provider; the only place that names one.

use std::sync::Arc;

use async_trait::async_trait;
use peerpods_cloud_api::{CloudProvider, InstanceId, ProviderError};
use peerpods_cloud_local::LocalProvider;
use peerpods_controller_api::config::{ProviderConfig, ProviderKind};
use peerpods_engine::Console;

/// A provider with the abilities that it has.
#[derive(Clone)]
pub struct Provider {
    /// The cloud.
    pub cloud: Arc<dyn CloudProvider>,
    /// Its consoles.
    pub console: Option<Arc<dyn Console>>,
    /// What it has made on this host besides instances.
    pub(crate) host: Option<LocalProvider>,
}

impl Provider {
    /// A cloud that has neither consoles nor anything on this host.
    pub fn new(cloud: Arc<dyn CloudProvider>) -> Self {
        Self { cloud, console: None, host: None }
    }
}

/// The provider that the configuration names; nothing is called yet.
pub fn connect(config: &ProviderConfig) -> Result<Provider, ProviderError> {
    match (config.kind, &config.local) {
        (ProviderKind::Local, Some(settings)) => {
            let local = LocalProvider::new(settings.clone())?;
            let cloud = Arc::new(local.clone());
            Ok(Provider { cloud, console: Some(Arc::new(LocalConsole(local.clone()))), host: Some(local) })
        }
        (ProviderKind::Local, None) => Err(ProviderError::InvalidRequest { detail: "provider.local is required".to_owned() }),
    }
}

struct LocalConsole(LocalProvider);

#[async_trait]
impl Console for LocalConsole {
    async fn tail(&self, id: &InstanceId) -> Option<String> {
        self.0.console_tail(id).await.ok().filter(|text| !text.is_empty())
    }
}
