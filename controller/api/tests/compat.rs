//! Version 1 of records and configuration: bytes that are never edited must be read, and be written again as they were.

use std::path::PathBuf;

use peerpods_cloud_api::settings::local::{Accelerator, Level};
use peerpods_controller_api::config::{self, ControllerConfig, LogFormat};
use peerpods_controller_api::{
    ClaimId, ClaimKey, ClaimRecord, ClaimRef, ClaimStatus, Class, ClassName, ClassRecord, InstanceId, LaunchKey, LaunchRecord, LaunchToken,
    Mib, NodeName, PodRef, PodVmRecord, PodVmState, Record, RecordError, RecordKind, RootOfTrust, Tee, Zone,
};

fn fixture(path: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/compat").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn claim(status: ClaimStatus) -> Record {
    Record::Claim(ClaimRecord {
        key: ClaimKey::new("node-1/default/web-0").expect("valid"),
        id: ClaimId::from_random(0xfeed),
        pod: PodRef::new("default", "web-0", Some("0a1b".to_owned())).expect("valid"),
        class: Some(ClassName::new("confidential").expect("valid")),
        vcpus: 1.5,
        memory_mib: Mib(2048),
        image: Some("image-2".to_owned()),
        instance_type: None,
        node: NodeName::new("node-1").expect("valid"),
        node_spki: "3059".to_owned(),
        status,
    })
}

fn class() -> Class {
    Class {
        image: Some("image-1".to_owned()),
        allowed_images: vec!["image-2".to_owned()],
        instance_types: vec!["small".to_owned(), "large".to_owned()],
        zone: Some(Zone::new("zone-a").expect("valid")),
        ..Class::new(Tee::Snp, RootOfTrust::CloudTpm).expect("valid")
    }
}

fn launch_key() -> LaunchKey {
    LaunchKey {
        class: ClassName::new("confidential").expect("valid"),
        tee: Tee::Snp,
        instance_type: "small".to_owned(),
        zone: Some(Zone::new("zone-a").expect("valid")),
        image: None,
    }
}

fn records() -> Vec<(&'static str, Record)> {
    let claim_ref = ClaimRef { key: ClaimKey::new("node-1/default/web-0").expect("valid"), id: ClaimId::from_random(0xfeed) };
    let token = LaunchToken::new("0000000000000000000000000000feed").expect("valid");
    let failed = ClaimStatus::Failed { during: "launching".to_owned(), cause: "quota exceeded: vCPUs".to_owned() };
    let pod_vm = |state, address| {
        Record::PodVm(PodVmRecord {
            instance_id: InstanceId::new("i-1").expect("valid"),
            token: LaunchToken::new("0000000000000000000000000000feed").expect("valid"),
            key: launch_key(),
            address,
            state,
            claimed_by: Some(claim_ref.clone()),
        })
    };
    vec![
        ("claim-open", claim(ClaimStatus::Open)),
        ("claim-failed", claim(failed)),
        ("claim-released", claim(ClaimStatus::Released)),
        ("class", Record::Class(ClassRecord { name: ClassName::new("confidential").expect("valid"), class: class() })),
        ("launch", Record::Launch(LaunchRecord { token, key: launch_key(), count: 1, claim: Some(claim_ref.clone()) })),
        ("pod-vm-launching", pod_vm(PodVmState::Launching, None)),
        ("pod-vm-claimed", pod_vm(PodVmState::Claimed, Some([10, 93, 0, 5].into()))),
        ("pod-vm-deleting", pod_vm(PodVmState::Deleting, Some([10, 93, 0, 5].into()))),
    ]
}

#[test]
fn version_1_records_are_read_and_written_as_they_were() {
    for (name, record) in records() {
        let text = fixture(&format!("journal/v1/{name}.json"));
        let bytes = text.trim_end().as_bytes();
        assert_eq!(Record::decode(record.kind(), bytes).unwrap_or_else(|e| panic!("{name}: {e}")), record, "{name}");
        assert_eq!(String::from_utf8_lossy(&record.encode().expect("encodes")), text.trim_end(), "{name}");
    }
}

#[test]
fn records_of_other_versions_or_with_unknown_fields_are_refused() {
    let text = fixture("journal/v1/launch.json");
    let later = text.replacen("\"version\":1", "\"version\":2", 1);
    let error = Record::decode(RecordKind::Launch, later.as_bytes()).expect_err("is of the future");
    assert!(matches!(error, RecordError::UnknownVersion { found: 2, .. }));
    assert!(error.to_string().contains("run the release that wrote it"), "{error}");
    let extended = text.replacen("\"version\":1", "\"version\":1,\"new\":true", 1);
    assert!(matches!(Record::decode(RecordKind::Launch, extended.as_bytes()), Err(RecordError::Malformed { .. })));
    assert!(matches!(Record::decode(RecordKind::PodVm, text.as_bytes()), Err(RecordError::Malformed { .. })));
    assert!(matches!(Record::decode(RecordKind::Launch, &[b' '; 65 << 10]), Err(RecordError::TooLarge { .. })));
}

#[test]
fn version_1_configuration_is_read() {
    let text = fixture("config/v1/controller.toml");
    let config: ControllerConfig = config::load_from(&text, "controller.toml", "PEERPODS_", &[], &[]).expect("loads");
    let local = config.provider.local.as_ref().expect("is there");
    assert_eq!((local.level, local.accelerator, local.scratch_mib), (Level::Qemu, Accelerator::Tcg, Mib(8192)));
    assert_eq!((config.log, config.metrics.map(|a| a.port())), (LogFormat::Json, Some(9464)));
    let name = |name: &str| ClassName::new(name).expect("valid");
    assert_eq!(config.class.get(&name("confidential")), Some(&class()));
    assert_eq!(config.class.get(&name("default")), Class::new(Tee::Sample, RootOfTrust::Insecure).ok().as_ref());
}
