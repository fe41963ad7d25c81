//! The sandbox files: version 1 as it was first written, and what a crash or a foreign hand leaves.

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use peerpods_controller_api::{Mib, PodRef};
use peerpods_node::id::SandboxId;
use peerpods_node::record::{
    Assigned, BoundTo, ClaimDuty, Failure, Phase, PhaseRecord, SandboxRecord, SandboxState, StopReason, Stopping, VERSION,
};
use peerpods_node::request::PodRequest;
use peerpods_node::store::{Store, StoreError};
use peerpods_tunnel::node::Pin;

fn record(id: &str, state: SandboxState) -> SandboxRecord {
    SandboxRecord {
        shim: None,
        version: VERSION,
        sandbox_id: SandboxId::new(id).expect("valid"),
        pod: PodRef::new("default", "web", None).expect("valid"),
        netns: Some(PathBuf::from("/var/run/netns/cni-1")),
        vni: 1_000_000,
        claim_key: "node-1/default/web".to_owned(),
        taken_from: None,
        request: PodRequest { vcpus: 1.5, memory_mib: Mib(512), image: None, instance_type: None, class: None, initdata: None },
        state,
        phases: vec![PhaseRecord { phase: Phase::Claim, ms: 3 }, PhaseRecord { phase: Phase::PodVmPending, ms: 40_000 }],
        created_unix_ms: 1_790_000_000_000,
        phase_began_unix_ms: 1_790_000_040_003,
    }
}

fn address() -> IpAddr {
    [10, 93, 0, 5].into()
}

fn goldens() -> [(&'static str, &'static str, SandboxRecord); 6] {
    let bound = BoundTo { instance_id: "i-0123".to_owned(), address: address(), pin: Pin([0xab; 32]), host_access: Vec::new() };
    let mut claiming = record("claiming", SandboxState::Claiming);
    claiming.taken_from = Some(SandboxId::new("older").expect("valid"));
    claiming.request.initdata = Some("algorithm = \"sha384\"\nversion = \"0.1.0\"\n\n[data]\n".to_owned());
    claiming.request.instance_type = Some("c6a.large".to_owned());
    let assigned = Assigned {
        instance_id: "i-0123".to_owned(),
        address: address(),
        tee: "sample".to_owned(),
        root_of_trust: peerpods_evidence::RootOfTrust::Insecure,
        reference_values: peerpods_evidence::ReferenceValues::default(),
        attested_key: None,
        network: serde_json::json!({ "version": 1, "vni": 1_000_000 }),
        host_access: Vec::new(),
    };
    let attested = Assigned {
        tee: "snp-tpm".to_owned(),
        root_of_trust: peerpods_evidence::RootOfTrust::CloudTpm,
        reference_values: peerpods_evidence::ReferenceValues([("tpm.pcr11".to_owned(), vec!["00ff".to_owned()])].into()),
        attested_key: Some(Pin([0xab; 32])),
        ..assigned.clone()
    };
    let failed = SandboxState::Failed(Failure {
        during: "reach the pod VM".to_owned(),
        cause: "connection refused".to_owned(),
        advice: "look at its console".to_owned(),
        instance_id: Some("i-0123".to_owned()),
        claim: ClaimDuty::Release,
    });
    let stopping = SandboxState::Stopping(Stopping {
        reason: StopReason::StopVm,
        instance_id: None,
        claim: ClaimDuty::Offer,
        since_unix_ms: 1_790_000_050_000,
    });
    [
        ("claiming", include_str!("../../../tests/compat/node/v1/claiming.json"), claiming),
        ("assigned", include_str!("../../../tests/compat/node/v1/assigned.json"), record("assigned", SandboxState::Assigned(assigned))),
        ("attested", include_str!("../../../tests/compat/node/v1/attested.json"), record("attested", SandboxState::Attested(attested))),
        ("ready", include_str!("../../../tests/compat/node/v1/ready.json"), record("ready", SandboxState::Ready(bound))),
        ("failed", include_str!("../../../tests/compat/node/v1/failed.json"), record("failed", failed)),
        ("stopping", include_str!("../../../tests/compat/node/v1/stopping.json"), record("stopping", stopping)),
    ]
}

#[test]
fn files_of_version_1_are_read_and_written_as_ever() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = Store::open(dir.path()).expect("a folder");
    for (name, golden, record) in goldens() {
        store.write(&record).expect("written");
        let path = dir.path().join(format!("sandboxes/{name}.json"));
        assert_eq!(std::fs::read_to_string(&path).expect("there"), golden, "{name}");
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        std::fs::write(&path, golden).expect("written");
    }
    let loaded = store.load().expect("readable");
    assert!(loaded.damaged.is_empty(), "{:?}", loaded.damaged);
    for (_, _, record) in goldens() {
        assert!(loaded.records.contains(&record), "{record:?}");
    }
}

#[test]
fn half_written_file_is_ignored_and_removed_and_the_old_record_stays() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = Store::open(dir.path()).expect("a folder");
    let old = record("s1", SandboxState::Claiming);
    store.write(&old).expect("written");
    let half = dir.path().join("sandboxes/s1.tmp");
    std::fs::write(&half, &b"{\"version\": 1, \"sandbox_id\": \"s"[..]).expect("written");
    let loaded = store.load().expect("readable");
    assert_eq!(loaded.records, [old]);
    store.tidy(&loaded.damaged).expect("tidied");
    assert!(!half.exists());
}

#[test]
fn damaged_files_are_set_aside_with_their_bytes_and_the_others_are_read() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = Store::open(dir.path()).expect("a folder");
    store.write(&record("s1", SandboxState::Claiming)).expect("written");
    let folder = dir.path().join("sandboxes");
    let whole = std::fs::read(folder.join("s1.json")).expect("there");
    let mut with_unknown_field: serde_json::Value = serde_json::from_slice(&whole).expect("JSON");
    with_unknown_field["colour"] = "red".into();
    for (name, bytes) in [
        ("cut.json", &whole[..whole.len() / 2]),
        ("empty.json", &b""[..]),
        ("zeros.json", &[0; 64][..]),
        ("misnamed.json", &whole[..]),
        ("unversioned.json", &b"{}"[..]),
        ("unknown-field.json", with_unknown_field.to_string().as_bytes()),
    ] {
        std::fs::write(folder.join(name), bytes).expect("written");
    }
    for _ in 0..2 {
        let loaded = store.load().expect("readable");
        assert_eq!((loaded.records.len(), loaded.damaged.len()), (1, 6));
        store.tidy(&loaded.damaged).expect("tidied");
        assert_eq!(std::fs::read(folder.join("misnamed.json.damaged")).expect("kept"), whole);
        assert!(store.load().expect("readable").damaged.is_empty());
        // The same again: what was set aside first is not overwritten.
        for name in ["cut", "empty", "zeros", "misnamed", "unversioned", "unknown-field"] {
            std::fs::write(folder.join(format!("{name}.json")), b"again").expect("written");
        }
    }
    assert_eq!(std::fs::read(folder.join("misnamed.json.damaged")).expect("kept"), whole);
    assert_eq!(std::fs::read(folder.join("misnamed.json.damaged.1")).expect("kept"), b"again");
}

#[test]
fn unknown_version_is_refused_and_nothing_is_touched() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = Store::open(dir.path()).expect("a folder");
    store.write(&record("s1", SandboxState::Claiming)).expect("written");
    let path = dir.path().join("sandboxes/s2.json");
    std::fs::write(&path, r#"{"version":2,"sandbox_id":"s2","new":1}"#).expect("written");
    let error = store.load().expect_err("refused");
    assert!(matches!(error, StoreError::UnknownVersion { found: 2, .. }));
    assert!(error.to_string().contains("start the release that wrote it"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).expect("there"), r#"{"version":2,"sandbox_id":"s2","new":1}"#);
}

#[test]
fn looking_at_a_folder_that_is_not_there_finds_nothing_and_makes_nothing() {
    let dir = tempfile::tempdir().expect("tempdir");
    let absent = dir.path().join("absent");
    assert!(Store::look(&absent).expect("nothing").records.is_empty());
    assert!(!absent.exists());
}
