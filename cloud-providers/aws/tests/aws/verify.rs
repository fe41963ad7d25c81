//! What the proof before the first launch finds.

use peerpods_cloud_api::settings::aws::AwsSettings;
use peerpods_cloud_api::{CloudProvider as _, ProviderError};
use peerpods_mock_cloud::{Options, catalog};

use crate::world::World;

async fn said(world: &World, change: impl FnOnce(&mut AwsSettings)) -> String {
    match world.provider_with(change).verify().await {
        Err(ProviderError::InvalidRequest { detail }) => detail,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn it_changes_nothing_and_asks_read_only_questions() {
    let world = World::start(Options::default()).await;
    assert_eq!(world.provider().verify().await, Ok(()));
    let calls = world.cloud.calls();
    let launches: Vec<_> = calls.iter().filter(|call| !call.action.starts_with("Describe")).collect();
    assert!(launches.iter().all(|call| call.outcome == "DryRunOperation") && launches.len() == 1, "{launches:?}");
    assert_eq!(peerpods_mock_cloud::admin::summary(&world.cloud).shown, 0);
}

#[tokio::test]
async fn every_wrong_setting_is_named() {
    let world = World::start(Options::default()).await;
    let image = said(&world, |settings| settings.image = "ami-0000000000000dead".to_owned()).await;
    assert!(image.contains("provider.aws.image") && image.contains("ami-0000000000000dead"), "{image}");
    let legacy = said(&world, |settings| settings.image = catalog::LEGACY_IMAGE.to_owned()).await;
    assert!(legacy.contains("provider.aws.image") && legacy.contains("UEFI"), "{legacy}");
    let subnet = said(&world, |settings| settings.subnets.push("subnet-dead".to_owned())).await;
    assert!(subnet.contains("subnet-dead"), "{subnet}");
    let group = said(&world, |settings| settings.security_groups = vec![catalog::FOREIGN_GROUP.to_owned()]).await;
    assert!(group.contains("provider.aws.security_groups") && group.contains(catalog::VPC), "{group}");
    let types = said(&world, |settings| settings.instance_types.push("m6a.huge".to_owned())).await;
    assert!(types.contains("m6a.huge"), "{types}");
    let gpus = said(&world, |settings| settings.instance_types = vec!["g4dn.xlarge".to_owned()]).await;
    assert!(gpus.contains("eu-west-1b") && gpus.contains("provider.aws.instance_types"), "{gpus}");
    let key = said(&world, |settings| settings.key_name = Some("nobodys".to_owned())).await;
    assert!(key.contains("InvalidKeyPair.NotFound"), "{key}");
}

#[tokio::test]
async fn several_wrong_settings_are_said_at_once() {
    let world = World::start(Options::default()).await;
    let all = said(&world, |settings| {
        settings.image = catalog::LEGACY_IMAGE.to_owned();
        settings.security_groups = vec![catalog::FOREIGN_GROUP.to_owned()];
        settings.instance_types = vec!["m6a.huge".to_owned()];
    })
    .await;
    assert!(["UEFI", "security_groups", "m6a.huge"].iter().all(|part| all.contains(part)), "{all}");
}

#[tokio::test]
async fn wrong_credentials_are_a_matter_of_permission() {
    let world = World::start(Options::default()).await;
    let provider = world.provider_with(|settings| settings.access_key_id = Some("AKIANOBODY".to_owned()));
    let said = provider.verify().await;
    assert!(matches!(&said, Err(ProviderError::PermissionDenied { detail }) if detail.contains("AuthFailure")), "{said:?}");
    let provider = world.provider_with(|settings| settings.secret_access_key = toml::Value::from("wrong").try_into().ok());
    let said = provider.verify().await;
    assert!(matches!(&said, Err(ProviderError::PermissionDenied { detail }) if detail.contains("SignatureDoesNotMatch")), "{said:?}");
}

#[test]
fn settings_that_contradict_themselves_are_refused_by_key() {
    let settings = |text: &str| -> AwsSettings {
        let base = "image = \"ami-1\"\nsubnets = [\"subnet-1\"]\nsecurity_groups = [\"sg-1\"]\n";
        toml::from_str(&format!("{base}{text}")).unwrap()
    };
    let key = |text: &str| settings(text).check().expect_err(text).0;
    assert!(settings("").check().is_ok());
    assert_eq!(key("access_key_id = \"a\""), "secret_access_key");
    assert_eq!(key("secret_access_key = \"a\""), "access_key_id");
    assert_eq!(key("access_key_id = \"a\"\nsecret_access_key = \"b\"\nprofile = \"c\""), "profile");
    assert_eq!(key("instance_types = []"), "instance_types");
    assert_eq!(key("tags = { \"peerpods:owner\" = \"x\" }"), "tags");
    assert_eq!(key("root_volume = { size_gib = 0 }"), "root_volume.size_gib");
    assert!(toml::from_str::<AwsSettings>("image = \"ami-1\"").is_err());
}
