//! What does not change while the controller runs, read once: images, subnets, sizes of instance types.

use std::collections::BTreeMap;

use aws_sdk_ec2::Client;
use aws_sdk_ec2::types::{ArchitectureType, InstanceType as Ec2Type, InstanceTypeInfo, SupportedAdditionalProcessorFeature};
use peerpods_cloud_api::settings::aws::AwsSettings;
use peerpods_cloud_api::{InstanceType, Mib, ProviderError, Tee, Zone};
use tokio::sync::OnceCell;

use crate::error::provider_error;

/// An AMI, as far as a launch needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageFacts {
    pub(crate) id: String,
    /// The device that its root volume is mapped to.
    pub(crate) root_device: String,
    /// The size of its snapshot.
    pub(crate) size_gib: i32,
}

/// A subnet, as far as a launch needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SubnetFacts {
    pub(crate) id: String,
    pub(crate) zone: Zone,
    pub(crate) vpc: String,
    pub(crate) free_addresses: i32,
}

/// A read that fails is tried again by whoever needs it next.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    images: tokio::sync::Mutex<BTreeMap<String, ImageFacts>>,
    subnets: OnceCell<Vec<SubnetFacts>>,
    types: OnceCell<Vec<InstanceType>>,
}

/// More images than these are asked for by nobody who means well.
const MAX_IMAGES: usize = 64;

impl Facts {
    pub(crate) async fn image(&self, client: &Client, id: &str) -> Result<ImageFacts, ProviderError> {
        if let Some(known) = self.images.lock().await.get(id) {
            return Ok(known.clone());
        }
        let image = read_image(client, id).await?;
        let mut images = self.images.lock().await;
        if images.len() < MAX_IMAGES {
            images.insert(id.to_owned(), image.clone());
        }
        Ok(image)
    }

    /// The configured subnets in their order.
    pub(crate) async fn subnets(&self, client: &Client, settings: &AwsSettings) -> Result<&[SubnetFacts], ProviderError> {
        Ok(self.subnets.get_or_try_init(|| read_subnets(client, settings)).await?)
    }

    /// The configured types in their order.
    pub(crate) async fn types(&self, client: &Client, settings: &AwsSettings) -> Result<&[InstanceType], ProviderError> {
        Ok(self.types.get_or_try_init(|| read_types(client, settings)).await?)
    }
}

async fn read_image(client: &Client, id: &str) -> Result<ImageFacts, ProviderError> {
    let unknown = || ProviderError::InvalidRequest { detail: format!("image {id:?} is not an AMI that this account may use") };
    if !id.starts_with("ami-") {
        return Err(unknown());
    }
    let answer = client.describe_images().image_ids(id).send().await;
    let answer = answer.map_err(|error| match provider_error("DescribeImages", &error) {
        ProviderError::InvalidRequest { .. } => unknown(),
        other => other,
    })?;
    let image = answer.images().first().ok_or_else(unknown)?;
    let root_device = image.root_device_name().unwrap_or("/dev/xvda");
    let mapping = image.block_device_mappings().iter().find(|mapping| mapping.device_name() == Some(root_device));
    let size_gib = mapping.and_then(|mapping| mapping.ebs()).and_then(|ebs| ebs.volume_size()).unwrap_or(1);
    Ok(ImageFacts { id: id.to_owned(), root_device: root_device.to_owned(), size_gib })
}

pub(crate) async fn read_subnets(client: &Client, settings: &AwsSettings) -> Result<Vec<SubnetFacts>, ProviderError> {
    let answer = client.describe_subnets().set_subnet_ids(Some(settings.subnets.clone())).send().await;
    let answer = answer.map_err(|error| provider_error("DescribeSubnets", &error))?;
    let mut subnets = Vec::new();
    for id in &settings.subnets {
        let subnet = answer.subnets().iter().find(|subnet| subnet.subnet_id() == Some(id));
        let zone = subnet.and_then(|subnet| subnet.availability_zone()).and_then(|zone| Zone::new(zone).ok());
        let (Some(subnet), Some(zone)) = (subnet, zone) else {
            return Err(ProviderError::InvalidRequest { detail: format!("provider.aws.subnets: {id} does not exist in this region") });
        };
        let free_addresses = subnet.available_ip_address_count().unwrap_or(0);
        subnets.push(SubnetFacts { id: id.clone(), zone, vpc: subnet.vpc_id().unwrap_or_default().to_owned(), free_addresses });
    }
    Ok(subnets)
}

async fn read_types(client: &Client, settings: &AwsSettings) -> Result<Vec<InstanceType>, ProviderError> {
    let names: Vec<Ec2Type> = settings.instance_types.iter().map(|name| Ec2Type::from(name.as_str())).collect();
    let mut offered = Vec::new();
    let mut foreign = Vec::new();
    // The API takes a hundred names in a call.
    for names in names.chunks(100) {
        let answer = client.describe_instance_types().set_instance_types(Some(names.to_vec())).send().await;
        let answer = answer.map_err(|error| provider_error("DescribeInstanceTypes", &error))?;
        offered.extend(answer.instance_types().iter().map(instance_type));
        let is_ours = |info: &&InstanceTypeInfo| {
            info.processor_info().is_some_and(|processor| processor.supported_architectures().contains(&ArchitectureType::X8664))
        };
        foreign.extend(answer.instance_types().iter().filter(|info| !is_ours(info)).map(|info| instance_type(info).name));
    }
    if let Some(name) = foreign.first() {
        let detail = format!("provider.aws.instance_types: {name} is not for x86_64, which the pod VM image is");
        return Err(ProviderError::InvalidRequest { detail });
    }
    let in_order = settings.instance_types.iter().map(|name| {
        let found = offered.iter().find(|one| one.name == *name).cloned();
        let detail = format!("provider.aws.instance_types: {name} does not exist in this region");
        found.ok_or(ProviderError::InvalidRequest { detail })
    });
    in_order.collect()
}

fn instance_type(info: &InstanceTypeInfo) -> InstanceType {
    let features = info.processor_info().map(|processor| processor.supported_features()).unwrap_or_default();
    let has_snp = features.contains(&SupportedAdditionalProcessorFeature::AmdSevSnp);
    let number = |value: i64| u32::try_from(value).unwrap_or(0);
    let gpus = info.gpu_info().map(|gpus| gpus.gpus().iter().filter_map(|gpu| gpu.count()).map(i64::from).sum()).unwrap_or(0);
    InstanceType {
        name: info.instance_type().map(|name| name.as_str().to_owned()).unwrap_or_default(),
        vcpus: number(info.v_cpu_info().and_then(|vcpus| vcpus.default_v_cpus()).unwrap_or(0).into()),
        memory: Mib(number(info.memory_info().and_then(|memory| memory.size_in_mib()).unwrap_or(0))),
        gpus: number(gpus),
        tees: if has_snp { vec![Tee::Snp, Tee::SnpTpm, Tee::Sample] } else { vec![Tee::Sample] },
    }
}
