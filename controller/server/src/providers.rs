//! Configuration to a cloud provider; the only place that names one.

use std::sync::Arc;

use async_trait::async_trait;
use peerpods_cloud_api::settings::aws::AwsSettings;
use peerpods_cloud_api::{CloudProvider, InstanceId, ProviderError};
#[cfg(feature = "aws")]
use peerpods_cloud_aws::AwsProvider;
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
    let missing = |key: &str| ProviderError::InvalidRequest { detail: format!("{key} is required") };
    match config.kind {
        ProviderKind::Local => {
            let local = LocalProvider::new(config.local.clone().ok_or_else(|| missing("provider.local"))?)?;
            let cloud = Arc::new(local.clone());
            Ok(Provider { cloud, console: Some(Arc::new(LocalConsole(local.clone()))), host: Some(local) })
        }
        ProviderKind::Aws => aws(config.aws.clone().ok_or_else(|| missing("provider.aws"))?),
    }
}

#[cfg(feature = "aws")]
fn aws(settings: AwsSettings) -> Result<Provider, ProviderError> {
    let aws = AwsProvider::new(settings)?;
    Ok(Provider { cloud: Arc::new(aws.clone()), console: Some(Arc::new(AwsConsole(aws))), host: None })
}

#[cfg(not(feature = "aws"))]
fn aws(_: AwsSettings) -> Result<Provider, ProviderError> {
    let detail = "provider.kind \"aws\" is not in this build (cargo feature \"aws\")".to_owned();
    Err(ProviderError::InvalidRequest { detail })
}

#[cfg(feature = "aws")]
struct AwsConsole(AwsProvider);

#[cfg(feature = "aws")]
#[async_trait]
impl Console for AwsConsole {
    async fn tail(&self, id: &InstanceId) -> Option<String> {
        self.0.console_tail(id).await.ok().filter(|text| !text.is_empty())
    }
}

struct LocalConsole(LocalProvider);

#[async_trait]
impl Console for LocalConsole {
    async fn tail(&self, id: &InstanceId) -> Option<String> {
        self.0.console_tail(id).await.ok().filter(|text| !text.is_empty())
    }
}
