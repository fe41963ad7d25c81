//! What operators have written once keeps its meaning.

use std::net::Ipv4Addr;

use peerpods_cloud_api::Mib;
use peerpods_cloud_api::settings::aws::{AwsSettings, RootVolume};
use peerpods_cloud_api::settings::local::{Accelerator, Firmware, Level, LocalSettings};

const FULL: &str = include_str!("../../../tests/compat/settings/v1/local.toml");
const MINIMAL: &str = include_str!("../../../tests/compat/settings/v1/local-minimal.toml");

const AWS: &str = include_str!("../../../tests/compat/settings/v1/aws.toml");
const AWS_MINIMAL: &str = include_str!("../../../tests/compat/settings/v1/aws-minimal.toml");

#[test]
fn aws_settings_of_v1_mean_what_they_meant() {
    let full: AwsSettings = toml::from_str(AWS).expect("settings");
    assert_eq!(full.check(), Ok(()));
    let text = |value: &str| Some(value.to_owned());
    assert_eq!(
        (&full.region, &full.access_key_id, &full.endpoint),
        (&text("eu-west-1"), &text("AKIAEXAMPLE"), &text("https://ec2.example"))
    );
    assert_eq!(full.secret_access_key.as_ref().map(|secret| secret.expose()), Some("a secret"));
    assert_eq!(full.session_token.as_ref().map(|secret| secret.expose()), Some("a token"));
    assert_eq!((full.subnets.len(), full.security_groups.len(), full.public_address), (2, 1, true));
    assert_eq!((&full.instance_profile, &full.key_name, &full.launch_template), (&text("pods"), &text("admin"), &text("lt-1")));
    assert_eq!((full.instance_types.as_slice(), full.tags["team"].as_str()), (&["c6a.large".to_owned()][..], "blue"));
    let volume = RootVolume {
        size_gib: 8,
        kind: "io2".to_owned(),
        iops: Some(4000),
        throughput_mib_per_second: Some(250),
        kms_key: text("alias/pods"),
    };
    assert_eq!(full.root_volume, volume);
    assert!(!toml::to_string(&full).expect("TOML").contains("a secret"), "secrets are not written");
}

#[test]
fn aws_settings_of_v1_have_the_same_defaults() {
    let minimal: AwsSettings = toml::from_str(AWS_MINIMAL).expect("settings");
    assert_eq!(minimal.check(), Ok(()));
    assert_eq!(minimal.instance_types, ["m6a.large", "m6a.xlarge", "m6a.2xlarge", "m6a.4xlarge", "m6a.8xlarge"]);
    let volume = RootVolume { size_gib: 30, kind: "gp3".to_owned(), iops: None, throughput_mib_per_second: None, kms_key: None };
    assert_eq!((minimal.root_volume, minimal.public_address, minimal.region), (volume, false, None));
}

#[test]
fn local_settings_of_v1_mean_what_they_meant() {
    let full = LocalSettings {
        level: Level::Qemu,
        insecure_sandbox: true,
        image: "/usr/lib/peerpods/image".into(),
        state_dir: "/var/lib/peerpods/local".into(),
        bridge: "peerpods1".to_owned(),
        gateway: Ipv4Addr::new(10, 94, 0, 1),
        scratch_mib: Mib(1024),
        accelerator: Accelerator::Kvm,
        firmware: Firmware::None,
        measured: false,
        tsc_khz: Some(2_596_124),
    };
    assert_eq!(toml::from_str::<LocalSettings>(FULL), Ok(full.clone()));
    assert_eq!(toml::from_str::<toml::Table>(&toml::to_string(&full).expect("TOML")), toml::from_str(FULL));
}

#[test]
fn local_settings_of_v1_have_the_same_defaults() {
    let minimal = LocalSettings {
        level: Level::Sandbox,
        insecure_sandbox: false,
        image: "/usr/bin/peerpods-guest".into(),
        state_dir: "/var/lib/peerpods/local".into(),
        bridge: "peerpods0".to_owned(),
        gateway: Ipv4Addr::new(10, 93, 0, 1),
        scratch_mib: Mib(8192),
        accelerator: Accelerator::Auto,
        firmware: Firmware::None,
        measured: false,
        tsc_khz: None,
    };
    assert_eq!(toml::from_str(MINIMAL), Ok(minimal));
}

#[test]
fn measured_local_settings_are_written_as_they_are_read() {
    let text = format!("{MINIMAL}firmware = \"uefi\"\nmeasured = true\n");
    let settings: LocalSettings = toml::from_str(&text).expect("settings");
    assert!(settings.measured);
    let written = toml::to_string(&settings).expect("TOML");
    assert_eq!(toml::from_str::<LocalSettings>(&written), Ok(settings));
}

#[test]
fn unknown_keys_and_values_are_errors_that_name_them() {
    let said = |text: &str| toml::from_str::<LocalSettings>(text).expect_err("refused").to_string();
    assert!(said(&format!("{MINIMAL}brigde = \"a\"")).contains("brigde"));
    let said = said(&MINIMAL.replace("sandbox", "docker"));
    assert!(said.contains("docker") && said.contains("qemu") && said.contains("sandbox"), "{said}");
}
