//! Version 1 of the wire: bytes that are never edited must be read, and be written again as they were.

use std::collections::BTreeMap;
use std::path::PathBuf;

use prost::Message;

use crate::proto;
use crate::{Assignment, Claim, ClaimRequest, ClaimState, Mib, PodRef};

fn fixture(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/compat/claims/v1").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    hex::decode(text.trim()).expect("fixtures are hex")
}

fn check<M: Message + Default + PartialEq + std::fmt::Debug>(name: &str, expected: &M) -> M {
    let bytes = fixture(name);
    let message = M::decode(bytes.as_slice()).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(&message, expected, "{name}");
    assert_eq!(hex::encode(expected.encode_to_vec()), hex::encode(bytes), "{name}");
    message
}

fn request(is_full: bool) -> ClaimRequest {
    let text = |text: &str| is_full.then(|| text.to_owned());
    ClaimRequest {
        key: "node-1/default/web-0".to_owned(),
        pod: PodRef::new("default", "web-0", text("0a1b")).expect("valid"),
        class: text("confidential"),
        vcpus: if is_full { 1.5 } else { 0.0 },
        memory: Mib(if is_full { 2048 } else { 0 }),
        image: text("image-2"),
        instance_type: text("small"),
        node: "node-1".to_owned(),
        node_spki: vec![0x30, 0x59],
    }
}

#[test]
fn version_1_requests_are_read_and_written_as_they_were() {
    for (name, is_full) in [("ClaimRequest.full.hex", true), ("ClaimRequest.least.hex", false)] {
        let message = check(name, &proto::ClaimRequest::from(request(is_full)));
        assert_eq!(ClaimRequest::try_from(message).expect("valid"), request(is_full));
    }
    let key = || "node-1/default/web-0".to_owned();
    check("GetRequest.hex", &proto::GetRequest { key: key() });
    check("WatchRequest.hex", &proto::WatchRequest { key: key() });
    check("ReleaseRequest.hex", &proto::ReleaseRequest { key: key() });
}

#[test]
fn version_1_answers_are_read_and_written_as_they_were() {
    let assignment = Assignment {
        instance_id: "i-1".to_owned(),
        address: [10, 93, 0, 5].into(),
        tee: "sample".to_owned(),
        root_of_trust: "insecure".to_owned(),
        reference_values: BTreeMap::new(),
        chain: vec![vec![0x30, 1], vec![0x30, 2]],
        valid_secs: 3600,
        host_access: Vec::new(),
    };
    let states = [
        ("pending", ClaimState::Pending { phase: "launching".to_owned() }),
        ("assigned", ClaimState::Assigned(assignment)),
        ("failed", ClaimState::Failed { during: "launching".to_owned(), cause: "quota exceeded: vCPUs".to_owned() }),
        ("gone", ClaimState::Gone),
    ];
    for (name, state) in states {
        let claim = Claim { key: "node-1/default/web-0".to_owned(), state };
        let message = check(&format!("ClaimReply.{name}.hex"), &proto::ClaimReply::from(claim.clone()));
        assert_eq!(Claim::try_from(message).expect("valid"), claim);
    }
}
