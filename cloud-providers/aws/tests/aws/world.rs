//! A mock cloud in this process, and providers that talk to it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use peerpods_cloud_api::settings::aws::AwsSettings;
use peerpods_cloud_api::{CloudProvider, Instance, InstanceId, LaunchRequest, LaunchToken, OwnerTag, ProviderError, Tee};
use peerpods_cloud_aws::AwsProvider;
use peerpods_mock_cloud::{Cloud, Options, Server, ServerOptions, catalog};
use tokio::task::JoinHandle;

/// The access key that the cloud knows.
pub(crate) const KEY_ID: &str = "AKIACANARYKEYID00000";
pub(crate) const SECRET: &str = "canary-secret-access-key-6b1f0e";
pub(crate) const SESSION_TOKEN: &str = "canary-session-token-93ac41";

pub(crate) struct World {
    pub(crate) cloud: Cloud,
    pub(crate) endpoint: String,
    server: JoinHandle<()>,
}

impl World {
    pub(crate) async fn start(options: Options) -> Self {
        let access_keys = [(KEY_ID.to_owned(), SECRET.to_owned())].into();
        let server = Server::start(ServerOptions { cloud: Options { access_keys, ..options }, ..ServerOptions::default() });
        let server = server.await.unwrap();
        let (cloud, endpoint) = (server.cloud().clone(), server.addresses().ec2.clone());
        let server = tokio::spawn(async move { server.run(std::future::pending()).await.unwrap() });
        Self { cloud, endpoint, server }
    }

    /// Settings with which everything works.
    pub(crate) fn settings(&self) -> AwsSettings {
        let subnets: Vec<&str> = catalog::SUBNETS.iter().map(|subnet| subnet.id).collect();
        let text = format!(
            "endpoint = {:?}\nregion = {:?}\naccess_key_id = {KEY_ID:?}\nsecret_access_key = {SECRET:?}\nsession_token = {SESSION_TOKEN:?}\n\
             image = {:?}\nsubnets = {subnets:?}\nsecurity_groups = [{:?}]\ninstance_types = [\"m6a.large\", \"m6a.xlarge\", \"t3.micro\"]",
            self.endpoint,
            catalog::REGION,
            catalog::IMAGE,
            catalog::GROUP
        );
        toml::from_str(&text).unwrap()
    }

    pub(crate) fn provider(&self) -> Arc<dyn CloudProvider> {
        Arc::new(AwsProvider::new(self.settings()).unwrap())
    }

    /// Settings with some of them changed.
    pub(crate) fn provider_with(&self, change: impl FnOnce(&mut AwsSettings)) -> AwsProvider {
        let mut settings = self.settings();
        change(&mut settings);
        AwsProvider::new(settings).unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// More than the mock cloud ever takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// Reads an instance until this is true of what is read.
pub(crate) async fn until(
    provider: &dyn CloudProvider,
    id: &InstanceId,
    is_so: impl Fn(&Result<Instance, ProviderError>) -> bool,
) -> Result<Instance, ProviderError> {
    let begin = Instant::now();
    loop {
        let seen = provider.get(id).await;
        if is_so(&seen) {
            return seen;
        }
        assert!(begin.elapsed() < PATIENCE, "{id}: {seen:?}");
        tokio::task::yield_now().await;
    }
}

/// Waits until an instance is gone.
pub(crate) async fn until_gone(provider: &dyn CloudProvider, id: &InstanceId) {
    let _ = until(provider, id, |seen| *seen == Err(ProviderError::NotFound)).await;
}

/// One SNP instance, please.
pub(crate) fn request(token: &str) -> LaunchRequest {
    LaunchRequest {
        token: LaunchToken::new(token).unwrap(),
        owner: OwnerTag::new("cluster-a").unwrap(),
        instance_type: "m6a.large".to_owned(),
        zone: None,
        image: None,
        tee: Tee::Snp,
        count: 1,
        user_data: b"canary-user-data-5d20".to_vec(),
    }
}
