use std::sync::Arc;

use async_trait::async_trait;
use aws_sdk_ec2::Client;
use aws_sdk_ec2::error::ProvideErrorMetadata as _;
use aws_sdk_ec2::types::Filter;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use peerpods_cloud_api::settings::aws::AwsSettings;
use peerpods_cloud_api::{
    CloudProvider, Instance, InstanceId, InstanceType, LaunchRequest, Launched, Limits, OwnerTag, ProviderError, Zone,
};
use tokio::sync::OnceCell;

use crate::error::provider_error;
use crate::facts::Facts;
use crate::instance::{Address, OWNER, TOKEN, instance, is_gone, is_instance_id};
use crate::{client, request, verify};

/// States of instances that exist; terminated ones are shown by EC2 for about an hour.
const EXISTING: [&str; 5] = ["pending", "running", "stopping", "stopped", "shutting-down"];

/// The largest page of `DescribeInstances`.
const PAGE: i32 = 1000;

/// How much of a console is worth reading.
const CONSOLE_TAIL: usize = 4096;

/// EC2 as a cloud.
#[derive(Debug, Clone)]
pub struct AwsProvider {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    settings: AwsSettings,
    client: OnceCell<Client>,
    facts: Facts,
}

impl AwsProvider {
    /// Checks the settings; connects to nothing.
    pub fn new(settings: AwsSettings) -> Result<Self, ProviderError> {
        settings.check().map_err(|(key, problem)| ProviderError::InvalidRequest { detail: format!("provider.aws.{key} {problem}") })?;
        Ok(Self { inner: Arc::new(Inner { settings, client: OnceCell::new(), facts: Facts::default() }) })
    }

    /// The end of what an instance wrote to its console: the reason, where one has stopped by itself.
    /// Written by the guest: at most 4 KiB, control characters replaced.
    pub async fn console_tail(&self, id: &InstanceId) -> Result<String, ProviderError> {
        if !is_instance_id(id) {
            return Err(ProviderError::NotFound);
        }
        let call = self.client().await?.get_console_output().instance_id(id.as_str()).latest(true);
        let answer = call.send().await.map_err(|error| provider_error("GetConsoleOutput", &error))?;
        let bytes = BASE64_STANDARD.decode(answer.output().unwrap_or_default()).unwrap_or_default();
        let tail = &bytes[bytes.len().saturating_sub(CONSOLE_TAIL)..];
        let is_shown = |c: char| c == '\n' || !c.is_control();
        Ok(String::from_utf8_lossy(tail).chars().filter(|c| *c != '\r').map(|c| if is_shown(c) { c } else { '?' }).collect())
    }

    async fn client(&self) -> Result<&Client, ProviderError> {
        self.inner.client.get_or_try_init(|| client::connect(&self.inner.settings)).await
    }

    fn address(&self) -> Address {
        if self.inner.settings.public_address { Address::Public } else { Address::Private }
    }
}

#[async_trait]
impl CloudProvider for AwsProvider {
    async fn verify(&self) -> Result<(), ProviderError> {
        verify::verify(self.client().await?, &self.inner.settings, &self.inner.facts).await
    }

    async fn launch(&self, request: &LaunchRequest) -> Result<Launched, ProviderError> {
        let (client, settings, facts) = (self.client().await?, &self.inner.settings, &self.inner.facts);
        request::check(request, facts.types(client, settings).await?)?;
        let subnet = request::choose_subnet(request, facts.subnets(client, settings).await?)?;
        let image = facts.image(client, request.image.as_ref().unwrap_or(&settings.image)).await?;
        match request::run_instances(settings, request, &image, subnet).send_with(client).await {
            Ok(answer) => {
                let instances = answer.instances().iter().filter_map(|described| instance(described, self.address()));
                Ok(Launched { instances: instances.collect() })
            }
            // All of them are gone already.
            Err(error) if error.code() == Some("IdempotentInstanceTerminated") => Ok(Launched { instances: Vec::new() }),
            Err(error) => Err(provider_error("RunInstances", &error)),
        }
    }

    async fn get(&self, id: &InstanceId) -> Result<Instance, ProviderError> {
        if !is_instance_id(id) {
            return Err(ProviderError::NotFound);
        }
        let answer = self.client().await?.describe_instances().instance_ids(id.as_str()).send().await;
        let answer = answer.map_err(|error| provider_error("DescribeInstances", &error))?;
        let mut described = answer.reservations().iter().flat_map(|reservation| reservation.instances());
        let Some(one) = described.find(|one| one.instance_id() == Some(id.as_str()) && !is_gone(one)) else {
            return Err(ProviderError::NotFound);
        };
        // Whoever asks knows it by its id. Without its tags no listing shows it, but gone it is not.
        let detail = || format!("{id} has lost its tags {OWNER} and {TOKEN}: put them back, or terminate it by hand");
        instance(one, self.address()).ok_or_else(|| ProviderError::Internal { detail: detail() })
    }

    async fn delete(&self, id: &InstanceId) -> Result<(), ProviderError> {
        if !is_instance_id(id) {
            return Err(ProviderError::NotFound);
        }
        let answer = self.client().await?.terminate_instances().instance_ids(id.as_str()).send().await;
        answer.map(drop).map_err(|error| provider_error("TerminateInstances", &error))
    }

    async fn list(&self, owner: &OwnerTag) -> Result<Vec<Instance>, ProviderError> {
        let filter = |name: String, values: &[&str]| {
            let values = values.iter().map(|value| (*value).to_owned()).collect();
            Filter::builder().name(name).set_values(Some(values)).build()
        };
        let call = self.client().await?.describe_instances().max_results(PAGE);
        let call = call.filters(filter(format!("tag:{OWNER}"), &[owner.as_str()]));
        let mut pages = call.filters(filter("instance-state-name".to_owned(), &EXISTING)).into_paginator().send();
        let mut instances: Vec<Instance> = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| provider_error("DescribeInstances", &error))?;
            let described = page.reservations().iter().flat_map(|reservation| reservation.instances());
            // A tag's filter is EC2's to apply; whose an instance is decides what is deleted, so it is looked at again.
            instances.extend(described.filter_map(|one| instance(one, self.address())).filter(|one| one.owner == *owner));
        }
        Ok(instances)
    }

    async fn instance_types(&self) -> Result<Vec<InstanceType>, ProviderError> {
        Ok(self.inner.facts.types(self.client().await?, &self.inner.settings).await?.to_vec())
    }

    async fn zones(&self) -> Result<Vec<Zone>, ProviderError> {
        let subnets = self.inner.facts.subnets(self.client().await?, &self.inner.settings).await?;
        let mut zones: Vec<Zone> = Vec::new();
        for subnet in subnets {
            if !zones.contains(&subnet.zone) {
                zones.push(subnet.zone.clone());
            }
        }
        Ok(zones)
    }

    fn limits(&self) -> Limits {
        Limits::EC2
    }
}
