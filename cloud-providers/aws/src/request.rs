//! A launch of ours as `RunInstances`. Pure: what is asked for can be read in a test.

use aws_sdk_ec2::operation::run_instances::RunInstancesInput;
use aws_sdk_ec2::operation::run_instances::builders::RunInstancesInputBuilder;
use aws_sdk_ec2::types::{
    AmdSevSnpSpecification, BlockDeviceMapping, CpuOptionsRequest, EbsBlockDevice, HttpTokensState, IamInstanceProfileSpecification,
    InstanceMetadataEndpointState, InstanceMetadataOptionsRequest, InstanceNetworkInterfaceSpecification, LaunchTemplateSpecification,
    ResourceType, ShutdownBehavior, Tag, TagSpecification, VolumeType,
};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use peerpods_cloud_api::settings::aws::AwsSettings;
use peerpods_cloud_api::{InstanceType, LaunchRequest, ProviderError, Tee};

use crate::facts::{ImageFacts, SubnetFacts};
use crate::instance::{OWNER, TOKEN};

/// User data of pod VMs is tiny by design; EC2 would allow 16 KiB.
const MAX_USER_DATA: usize = 1024;

/// What EC2 need not be asked to know that it is wrong.
pub(crate) fn check<'a>(request: &LaunchRequest, types: &'a [InstanceType]) -> Result<&'a InstanceType, ProviderError> {
    let invalid = |detail: String| Err(ProviderError::InvalidRequest { detail });
    if !(1..=100).contains(&request.count) {
        return invalid(format!("count {}: 1 to 100 is allowed", request.count));
    }
    if request.user_data.len() > MAX_USER_DATA {
        return invalid(format!("user data of {} bytes: at most {MAX_USER_DATA} are allowed", request.user_data.len()));
    }
    let Some(offered) = types.iter().find(|offered| offered.name == request.instance_type) else {
        return invalid(format!("instance type {:?} is not in provider.aws.instance_types", request.instance_type));
    };
    if !offered.tees.contains(&request.tee) {
        return invalid(format!("tee {:?}: instance type {} does not have it", request.tee.as_str(), offered.name));
    }
    Ok(offered)
}

/// The subnet for the zone that is asked for.
pub(crate) fn choose_subnet<'a>(request: &LaunchRequest, subnets: &'a [SubnetFacts]) -> Result<&'a SubnetFacts, ProviderError> {
    let fits = |subnet: &&SubnetFacts| request.zone.as_ref().is_none_or(|zone| *zone == subnet.zone);
    let detail = || match &request.zone {
        Some(zone) => format!("zone {zone}: none of provider.aws.subnets is in it"),
        None => "provider.aws.subnets is empty".to_owned(),
    };
    subnets.iter().find(fits).ok_or_else(|| ProviderError::InvalidRequest { detail: detail() })
}

/// The call. Every part says that it goes with its instance.
pub(crate) fn run_instances(
    settings: &AwsSettings,
    request: &LaunchRequest,
    image: &ImageFacts,
    subnet: &SubnetFacts,
) -> RunInstancesInputBuilder {
    let count = i32::try_from(request.count).unwrap_or(i32::MAX);
    let mut call = RunInstancesInput::builder()
        .client_token(request.token.as_str())
        .image_id(&image.id)
        .instance_type(request.instance_type.as_str().into())
        // All that there is room for: the engine asks for the rest elsewhere.
        .min_count(1)
        .max_count(count)
        .user_data(BASE64_STANDARD.encode(&request.user_data))
        .network_interfaces(network_interface(settings, subnet))
        .block_device_mappings(root_volume(settings, image))
        .metadata_options(metadata_options())
        // A guest that has ended is of no use to anybody, and a stopped instance would be paid for.
        .instance_initiated_shutdown_behavior(ShutdownBehavior::Terminate)
        .set_key_name(settings.key_name.clone())
        .set_launch_template(settings.launch_template.as_deref().map(launch_template))
        .set_iam_instance_profile(settings.instance_profile.as_deref().map(instance_profile));
    for kind in [ResourceType::Instance, ResourceType::Volume, ResourceType::NetworkInterface] {
        call = call.tag_specifications(TagSpecification::builder().resource_type(kind).set_tags(Some(tags(settings, request))).build());
    }
    if matches!(request.tee, Tee::Snp | Tee::SnpTpm) {
        call = call.cpu_options(CpuOptionsRequest::builder().amd_sev_snp(AmdSevSnpSpecification::Enabled).build());
    }
    call
}

fn network_interface(settings: &AwsSettings, subnet: &SubnetFacts) -> InstanceNetworkInterfaceSpecification {
    InstanceNetworkInterfaceSpecification::builder()
        .device_index(0)
        .subnet_id(&subnet.id)
        .set_groups(Some(settings.security_groups.clone()))
        .associate_public_ip_address(settings.public_address)
        .delete_on_termination(true)
        .build()
}

fn root_volume(settings: &AwsSettings, image: &ImageFacts) -> BlockDeviceMapping {
    let (volume, signed) = (&settings.root_volume, |value: u32| i32::try_from(value).unwrap_or(i32::MAX));
    let ebs = EbsBlockDevice::builder()
        .volume_size(signed(volume.size_gib).max(image.size_gib))
        .volume_type(VolumeType::from(volume.kind.as_str()))
        .set_iops(volume.iops.map(signed))
        .set_throughput(volume.throughput_mib_per_second.map(signed))
        .set_kms_key_id(volume.kms_key.clone())
        .encrypted(true)
        .delete_on_termination(true)
        .build();
    BlockDeviceMapping::builder().device_name(&image.root_device).ebs(ebs).build()
}

/// The metadata service answers sessions only, and its answers die one hop away: what runs behind the guest cannot reach it.
fn metadata_options() -> InstanceMetadataOptionsRequest {
    InstanceMetadataOptionsRequest::builder()
        .http_endpoint(InstanceMetadataEndpointState::Enabled)
        .http_tokens(HttpTokensState::Required)
        .http_put_response_hop_limit(1)
        .build()
}

fn launch_template(name: &str) -> LaunchTemplateSpecification {
    let template = LaunchTemplateSpecification::builder();
    if name.starts_with("lt-") { template.launch_template_id(name) } else { template.launch_template_name(name) }.build()
}

fn instance_profile(name: &str) -> IamInstanceProfileSpecification {
    let profile = IamInstanceProfileSpecification::builder();
    if name.starts_with("arn:") { profile.arn(name) } else { profile.name(name) }.build()
}

fn tags(settings: &AwsSettings, request: &LaunchRequest) -> Vec<Tag> {
    let ours = [("Name", "peerpods pod VM"), (OWNER, request.owner.as_str()), (TOKEN, request.token.as_str())];
    let theirs = settings.tags.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    let has_name = settings.tags.contains_key("Name");
    let all = ours.into_iter().filter(|(key, _)| !(has_name && *key == "Name")).chain(theirs);
    all.map(|(key, value)| Tag::builder().key(key).value(value).build()).collect()
}

#[cfg(test)]
mod tests {
    use peerpods_cloud_api::{LaunchToken, Mib, OwnerTag, Zone};

    use super::*;

    const SETTINGS: &str = r#"
        image = "ami-0123456789abcdef0"
        subnets = ["subnet-a", "subnet-b"]
        security_groups = ["sg-1"]
        public_address = true
        instance_profile = "arn:aws:iam::123456789012:instance-profile/pods"
        launch_template = "lt-0123456789abcdef0"
        tags = { team = "blue" }
        root_volume = { size_gib = 4, iops = 4000, kms_key = "alias/pods" }
    "#;

    fn request(tee: Tee) -> LaunchRequest {
        LaunchRequest {
            token: LaunchToken::new("token-1").expect("a token"),
            owner: OwnerTag::new("owner-1").expect("an owner"),
            instance_type: "m6a.large".to_owned(),
            zone: None,
            image: None,
            tee,
            count: 7,
            user_data: b"{}".to_vec(),
        }
    }

    fn subnet(id: &str, zone: &str) -> SubnetFacts {
        SubnetFacts { id: id.to_owned(), zone: Zone::new(zone).expect("a zone"), vpc: "vpc-1".to_owned(), free_addresses: 9 }
    }

    fn input(tee: Tee) -> RunInstancesInput {
        let settings: AwsSettings = toml::from_str(SETTINGS).expect("settings");
        let image = ImageFacts { id: settings.image.clone(), root_device: "/dev/xvda".to_owned(), size_gib: 8 };
        run_instances(&settings, &request(tee), &image, &subnet("subnet-a", "eu-west-1a")).build().expect("complete")
    }

    #[test]
    fn a_launch_is_idempotent_and_goes_with_its_instance() {
        let input = input(Tee::Snp);
        assert_eq!(input.client_token(), Some("token-1"));
        assert_eq!((input.min_count(), input.max_count()), (Some(1), Some(7)));
        assert_eq!(input.instance_initiated_shutdown_behavior(), Some(&ShutdownBehavior::Terminate));
        let network = &input.network_interfaces()[0];
        assert_eq!((network.delete_on_termination(), network.associate_public_ip_address()), (Some(true), Some(true)));
        let ebs = input.block_device_mappings()[0].ebs().expect("a volume");
        assert_eq!((ebs.delete_on_termination(), ebs.encrypted(), ebs.volume_size()), (Some(true), Some(true), Some(8)));
        assert_eq!((ebs.iops(), ebs.kms_key_id()), (Some(4000), Some("alias/pods")));
    }

    #[test]
    fn instance_volume_and_interface_carry_the_same_tags() {
        let input = input(Tee::Snp);
        let kinds: Vec<_> = input.tag_specifications().iter().filter_map(TagSpecification::resource_type).collect();
        assert_eq!(kinds, [&ResourceType::Instance, &ResourceType::Volume, &ResourceType::NetworkInterface]);
        for specification in input.tag_specifications() {
            let tags: Vec<_> = specification.tags().iter().filter_map(|tag| Some((tag.key()?, tag.value()?))).collect();
            let expected = [("Name", "peerpods pod VM"), (OWNER, "owner-1"), (TOKEN, "token-1"), ("team", "blue")];
            assert_eq!(tags, expected);
        }
    }

    #[test]
    fn the_metadata_service_wants_sessions_and_reaches_one_hop() {
        let input = input(Tee::Snp);
        let options = input.metadata_options().expect("options");
        assert_eq!((options.http_tokens(), options.http_put_response_hop_limit()), (Some(&HttpTokensState::Required), Some(1)));
    }

    #[test]
    fn snp_is_asked_for_when_the_class_wants_it_alone() {
        let snp = |input: &RunInstancesInput| input.cpu_options().and_then(|options| options.amd_sev_snp()).cloned();
        for tee in [Tee::Snp, Tee::SnpTpm] {
            assert_eq!(snp(&input(tee)), Some(AmdSevSnpSpecification::Enabled));
        }
        assert_eq!(snp(&input(Tee::Sample)), None);
    }

    #[test]
    fn the_zone_chooses_the_subnet() {
        let subnets = [subnet("subnet-a", "eu-west-1a"), subnet("subnet-b", "eu-west-1b")];
        let chosen = |zone: Option<&str>| {
            let zone = zone.map(|zone| Zone::new(zone).expect("a zone"));
            choose_subnet(&LaunchRequest { zone, ..request(Tee::Snp) }, &subnets).map(|subnet| subnet.id.clone())
        };
        assert_eq!(chosen(None).as_deref(), Ok("subnet-a"));
        assert_eq!(chosen(Some("eu-west-1b")).as_deref(), Ok("subnet-b"));
        assert!(matches!(chosen(Some("eu-west-1c")), Err(ProviderError::InvalidRequest { detail }) if detail.contains("zone")));
    }

    #[test]
    fn what_cannot_be_launched_is_refused_by_its_field() {
        let offered =
            |tees: &[Tee]| vec![InstanceType { name: "m6a.large".to_owned(), vcpus: 2, memory: Mib(8192), gpus: 0, tees: tees.to_vec() }];
        let said = |request: &LaunchRequest| match check(request, &offered(&[Tee::Sample])) {
            Err(ProviderError::InvalidRequest { detail }) => detail,
            other => panic!("{other:?}"),
        };
        assert!(said(&request(Tee::Snp)).contains("tee"));
        assert!(said(&LaunchRequest { count: 0, ..request(Tee::Sample) }).contains("count"));
        assert!(said(&LaunchRequest { count: 101, ..request(Tee::Sample) }).contains("count"));
        assert!(said(&LaunchRequest { user_data: vec![0; 1025], ..request(Tee::Sample) }).contains("user data"));
        assert!(said(&LaunchRequest { instance_type: "m5.large".to_owned(), ..request(Tee::Sample) }).contains("instance type"));
        assert!(check(&request(Tee::Sample), &offered(&[Tee::Sample])).is_ok());
    }
}
