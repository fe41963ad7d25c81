//! A referee nobody here wrote: the contract's cases on moto, as far as moto carries them.
//!
//! A case that moto cannot carry is listed in [`EXCLUDED`] with what moto was seen to do. One that passes all the same fails this test: it
//! is no longer to be excluded.
//!
//! `PEERPODS_MOTO` is the path of `moto_server`, which `cargo xtask test` installs; without it nothing is tested, and this says so.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use aws_sdk_ec2::types::{ArchitectureValues, BootModeValues};
use peerpods_cloud_api::Tee;
use peerpods_cloud_api::settings::aws::AwsSettings;
use peerpods_cloud_aws::AwsProvider;
use peerpods_cloud_conformance::{CASES, Subject, run};

// Cases that moto 5.2.5 does not carry, by what it was seen to do.

/// It launches MinCount instances, where EC2 launches as many up to MaxCount as it has room for; the batch has one.
const MINCOUNT: &[&str] = &[
    "three_instances_have_three_ids",
    "the_largest_batch_is_launched",
    "instances_carry_the_token",
    "two_launches_at_once_are_two",
    "the_same_request_gives_the_same_instances",
    "the_same_request_of_another_opening_gives_the_same",
    "the_same_request_at_once_launches_once",
    "a_deleted_instance_does_not_come_back",
    "a_token_with_other_user_data_is_refused",
    "a_token_with_a_larger_count_is_refused",
    "a_token_with_a_smaller_count_is_refused",
    "a_token_with_another_type_is_refused",
    "a_token_of_another_owner_is_refused",
    "running_instances_have_different_addresses",
    "a_batch_is_listed_whole",
    "owners_see_their_own_alone",
    "another_opening_lists_the_same",
    "listings_during_a_launch_show_nothing_twice",
    "the_rest_of_a_batch_stays",
    "an_instance_may_be_deleted_at_once",
    "a_launch_that_is_dropped_is_found_by_its_token",
];

/// It keeps a ClientToken and does not honour it: the same token launches again, and other parameters are not refused.
const TOKENS: &[&str] = &[
    "a_token_may_have_every_allowed_character",
    "a_token_may_be_as_long_as_allowed",
    "ten_of_the_same_at_once_launch_once",
    "the_same_request_later_gives_the_same",
    "a_refused_token_keeps_its_instances",
];

/// It ends a terminated instance again by looking for its network interface, which is gone: InvalidNetworkInterfaceID.NotFound.
const INTERFACES: &[&str] = &[
    "a_deletion_again_is_no_error",
    "a_gone_instance_is_not_found",
    "five_deletions_at_once_are_one",
    "a_deletion_that_is_dropped_can_be_repeated",
];

/// It forgets the architecture and the boot mode that RegisterImage was given.
const IMAGES: &[&str] = &["verify_says_that_all_is_well", "verify_changes_nothing"];

/// All of them.
const EXCLUDED: [&[&str]; 4] = [MINCOUNT, TOKENS, INTERFACES, IMAGES];

const REGION: &str = "us-east-1";

struct Moto {
    server: Child,
    endpoint: String,
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

impl Moto {
    fn start(program: &str) -> Self {
        let mut server = Command::new(program)
            .args(["-H", "127.0.0.1", "-p", "0"])
            // Over a thousand images that nobody asks for; reading them takes moto half a minute.
            .env("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(server.stderr.take().unwrap()).lines();
        let said = lines.by_ref().map_while(Result::ok).find_map(|line| Some(line.split_once("Running on ")?.1.trim().to_owned()));
        // It logs every call: whoever does not read on would stop it.
        std::thread::spawn(move || lines.for_each(drop));
        Self { server, endpoint: said.expect("moto says where it listens") }
    }

    /// An account with an image, as an operator makes it; the rest moto has by itself.
    async fn settings(&self) -> AwsSettings {
        let config = aws_config::defaults(aws_config::BehaviorVersion::v2026_01_12())
            .region(aws_config::Region::new(REGION))
            .endpoint_url(&self.endpoint)
            .credentials_provider(aws_credential_types::Credentials::new("any", "any", None, None, "moto"))
            .load()
            .await;
        let client = aws_sdk_ec2::Client::new(&config);
        let image = client.register_image().name("pod-vm").root_device_name("/dev/xvda");
        let image = image.architecture(ArchitectureValues::X8664).boot_mode(BootModeValues::Uefi).send().await.unwrap();
        let subnets = client.describe_subnets().send().await.unwrap();
        let subnet = subnets.subnets().iter().find(|subnet| subnet.availability_zone() == Some("us-east-1a")).unwrap();
        let groups = client.describe_security_groups().send().await.unwrap();
        let group = groups.security_groups().iter().find(|group| group.vpc_id() == subnet.vpc_id()).unwrap();
        toml::from_str(&format!(
            "endpoint = {:?}\nregion = {REGION:?}\naccess_key_id = \"any\"\nsecret_access_key = \"any\"\nimage = {:?}\n\
             subnets = [{:?}]\nsecurity_groups = [{:?}]\ninstance_types = [\"m6a.large\", \"m6a.xlarge\"]",
            self.endpoint,
            image.image_id().unwrap(),
            subnet.subnet_id().unwrap(),
            group.group_id().unwrap()
        ))
        .unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn provider_conforms_as_far_as_moto_does() {
    let Ok(program) = std::env::var("PEERPODS_MOTO") else {
        println!("nothing was tested: PEERPODS_MOTO does not name moto_server");
        return;
    };
    let moto = Moto::start(&program);
    let settings = moto.settings().await;
    let subject = Subject {
        open: Box::new(move || std::sync::Arc::new(AwsProvider::new(settings.clone()).unwrap())),
        owner_prefix: "conformance/moto-".to_owned(),
        instance_type: "m6a.large".to_owned(),
        tee: Tee::Sample,
        zone: None,
        largest_batch: 20,
    };
    let outcome = run(&subject, "").await;
    let failed: BTreeSet<&str> = outcome.failed.iter().map(|(name, _)| *name).collect();
    let excluded: BTreeSet<&str> = EXCLUDED.concat().into_iter().collect();
    assert_eq!(failed, excluded, "left: what failed; right: what is known to fail");
    println!("moto: {} of {} cases pass, {} are excluded", outcome.passed, CASES.len(), excluded.len());
}
