//! What operators have written once keeps its meaning.

use std::net::Ipv4Addr;

use peerpods_cloud_api::Mib;
use peerpods_cloud_api::settings::local::{Accelerator, Firmware, Level, LocalSettings};

const FULL: &str = include_str!("../../../tests/compat/settings/v1/local.toml");
const MINIMAL: &str = include_str!("../../../tests/compat/settings/v1/local-minimal.toml");

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
        tsc_khz: None,
    };
    assert_eq!(toml::from_str(MINIMAL), Ok(minimal));
}

#[test]
fn unknown_keys_and_values_are_errors_that_name_them() {
    let said = |text: &str| toml::from_str::<LocalSettings>(text).expect_err("refused").to_string();
    assert!(said(&format!("{MINIMAL}brigde = \"a\"")).contains("brigde"));
    let said = said(&MINIMAL.replace("sandbox", "docker"));
    assert!(said.contains("docker") && said.contains("qemu") && said.contains("sandbox"), "{said}");
}
