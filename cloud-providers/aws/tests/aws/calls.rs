//! What is called, and how often.

use std::collections::BTreeMap;

use peerpods_cloud_api::{CloudProvider as _, Instance, InstanceState, LaunchRequest, OwnerTag, ProviderError, Tee, Zone};
use peerpods_mock_cloud::{Call, Cloud, Options};

use crate::world::{World, request, until, until_gone};

fn calls(cloud: &Cloud, action: &str) -> Vec<Call> {
    cloud.calls().into_iter().filter(|call| call.action == action).collect()
}

#[tokio::test]
async fn a_batch_is_one_call_with_everything_in_it() {
    let world = World::start(Options::default()).await;
    let provider = world.provider();
    let launched = provider.launch(&LaunchRequest { count: 40, ..request("batch") }).await.unwrap();
    assert_eq!(launched.instances.len(), 40);
    assert!(launched.instances.iter().all(|one| one.state == InstanceState::Pending && one.address.is_some()));
    let [call] = calls(&world.cloud, "RunInstances").try_into().unwrap();
    let expected: BTreeMap<&str, &str> = [
        ("ClientToken", "batch"),
        ("MinCount", "1"),
        ("MaxCount", "40"),
        ("CpuOptions.AmdSevSnp", "enabled"),
        ("MetadataOptions.HttpTokens", "required"),
        ("MetadataOptions.HttpPutResponseHopLimit", "1"),
        ("BlockDeviceMapping.1.Ebs.Encrypted", "true"),
        ("BlockDeviceMapping.1.Ebs.DeleteOnTermination", "true"),
        ("NetworkInterface.1.DeleteOnTermination", "true"),
        ("NetworkInterface.1.AssociatePublicIpAddress", "false"),
        ("InstanceInitiatedShutdownBehavior", "terminate"),
        ("TagSpecification.3.ResourceType", "network-interface"),
    ]
    .into();
    for (key, value) in expected {
        assert_eq!(call.parameters.get(key).map(String::as_str), Some(value), "{key}");
    }
    // Facts are read once: a second batch is one call alone.
    let before = world.cloud.calls().len();
    provider.launch(&request("second")).await.unwrap();
    assert_eq!(world.cloud.calls().len(), before + 1);
}

#[tokio::test]
async fn a_listing_reads_all_pages_and_nothing_terminated() {
    let world = World::start(Options::default()).await;
    let provider = world.provider();
    for batch in 0..2 {
        provider.launch(&LaunchRequest { count: 100, ..request(&format!("b{batch}")) }).await.unwrap();
    }
    let owner = OwnerTag::new("cluster-a").unwrap();
    let listed = provider.list(&owner).await.unwrap();
    assert_eq!(listed.len(), 200);
    provider.delete(&listed[0].id).await.unwrap();
    until_gone(provider.as_ref(), &listed[0].id).await;
    assert_eq!(provider.list(&owner).await.unwrap().len(), 199);
}

#[tokio::test]
async fn a_tag_put_on_a_foreign_instance_makes_it_nobodys() {
    let world = World::start(Options::default()).await;
    let provider = world.provider();
    let (ours, theirs) = (OwnerTag::new("cluster-a").unwrap(), OwnerTag::new("cluster-b").unwrap());
    let foreign = provider.launch(&LaunchRequest { owner: theirs.clone(), ..request("foreign") }).await.unwrap().instances.remove(0);
    // Somebody who may tag, but not launch with our token, claims it for us.
    let tag = |key: &str, value: &str| {
        world.cloud.account(|account, _| {
            account.update(foreign.id.as_str(), |one| drop(one.tags.insert(key.to_owned(), value.to_owned())));
        })
    };
    tag("peerpods:owner", "cluster-a");
    tag("peerpods:token", "stolen");
    assert_eq!(provider.list(&ours).await.unwrap(), [], "its ClientToken is not that token");
    assert_eq!(provider.list(&theirs).await.unwrap(), []);
}

#[tokio::test]
async fn an_instance_that_lost_its_tags_is_not_gone() {
    let world = World::start(Options::default()).await;
    let provider = world.provider();
    let id = provider.launch(&request("tags")).await.unwrap().instances.remove(0).id;
    world.cloud.account(|account, _| account.update(id.as_str(), |one| one.tags.clear()));
    let said = provider.get(&id).await;
    assert!(matches!(&said, Err(ProviderError::Internal { detail }) if detail.contains("has lost its tags")), "{said:?}");
    // It can still be deleted, and is then gone.
    provider.delete(&id).await.unwrap();
    until_gone(provider.as_ref(), &id).await;
}

#[tokio::test]
async fn zones_choose_subnets_and_public_addresses_come_with_running() {
    let world = World::start(Options::default()).await;
    let zones: Vec<String> = world.provider().zones().await.unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(zones, ["eu-west-1a", "eu-west-1b", "eu-west-1c"], "as the subnets stand in the settings");
    let provider = world.provider_with(|settings| settings.public_address = true);
    let zone = Some(Zone::new("eu-west-1c").unwrap());
    let launched = provider.launch(&LaunchRequest { zone, ..request("c") }).await.unwrap().instances.remove(0);
    assert_eq!(launched.address, None, "EC2 gives the public address when it runs");
    let is_running = |seen: &Result<Instance, ProviderError>| seen.as_ref().is_ok_and(|one| one.state == InstanceState::Running);
    let running = until(&provider, &launched.id, is_running).await.unwrap();
    assert!(running.address.unwrap().to_string().starts_with("203.0.113."));
    let report = peerpods_mock_cloud::admin::instances(&world.cloud).remove(0);
    assert_eq!((report.zone.as_str(), report.snp), ("eu-west-1c", true));
}

#[tokio::test]
async fn settings_that_a_user_can_make_reach_the_call() {
    let world = World::start(Options::default()).await;
    let provider = world.provider_with(|settings| {
        settings.key_name = Some("peerpods".to_owned());
        settings.launch_template = Some("lt-00000000000000001".to_owned());
        settings.instance_profile = Some("pod-vms".to_owned());
        settings.tags = [("team".to_owned(), "blue".to_owned())].into();
        settings.root_volume.iops = Some(4000);
        settings.root_volume.throughput_mib_per_second = Some(250);
        settings.root_volume.kms_key = Some("alias/pods".to_owned());
    });
    provider.launch(&LaunchRequest { tee: Tee::Sample, instance_type: "t3.micro".to_owned(), ..request("all") }).await.unwrap();
    let call = calls(&world.cloud, "RunInstances").remove(0);
    let has = |key: &str, value: &str| call.parameters.get(key).is_some_and(|found| found == value);
    assert!(has("KeyName", "peerpods") && has("LaunchTemplate.LaunchTemplateId", "lt-00000000000000001"));
    assert!(has("IamInstanceProfile.Name", "pod-vms") && has("BlockDeviceMapping.1.Ebs.KmsKeyId", "alias/pods"));
    assert!(has("BlockDeviceMapping.1.Ebs.Iops", "4000") && has("BlockDeviceMapping.1.Ebs.Throughput", "250"));
    assert!(has("TagSpecification.1.Tag.4.Key", "team") && !call.parameters.contains_key("CpuOptions.AmdSevSnp"));
}
