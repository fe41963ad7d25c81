//! Settings to a client of the SDK.

use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_credential_types::Credentials;
use aws_sdk_ec2::Client;
use peerpods_cloud_api::ProviderError;
use peerpods_cloud_api::settings::aws::AwsSettings;

/// `RunInstances` for a hundred takes EC2 some seconds; more than this is an outage.
const CALL: Duration = Duration::from_secs(45);
const CONNECT: Duration = Duration::from_secs(5);

/// Reads profiles and the environment; the instance's metadata service only where nothing else names a region. Calls no API.
pub(crate) async fn connect(settings: &AwsSettings) -> Result<Client, ProviderError> {
    let timeouts = TimeoutConfig::builder().connect_timeout(CONNECT).operation_timeout(CALL).build();
    let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12()).retry_config(RetryConfig::disabled()).timeout_config(timeouts);
    if let Some(profile) = &settings.profile {
        loader = loader.profile_name(profile);
    }
    if let Some(region) = &settings.region {
        loader = loader.region(Region::new(region.clone()));
    }
    if let Some(endpoint) = &settings.endpoint {
        loader = loader.endpoint_url(endpoint);
    }
    if let (Some(id), Some(secret)) = (&settings.access_key_id, &settings.secret_access_key) {
        let token = settings.session_token.as_ref().map(|token| token.expose().to_owned());
        loader = loader.credentials_provider(Credentials::new(id, secret.expose(), token, None, "provider.aws"));
    }
    let config = loader.load().await;
    if config.region().is_none() {
        let detail = "provider.aws.region: no region is set, and neither AWS_REGION nor the profile nor the instance names one".to_owned();
        return Err(ProviderError::InvalidRequest { detail });
    }
    Ok(Client::new(&config))
}
