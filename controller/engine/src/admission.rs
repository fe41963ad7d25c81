//! Which requests are accepted, and what they write. Pure.

use std::collections::BTreeMap;

use peerpods_controller_api::{
    ClaimId, ClaimKey, ClaimRecord, ClaimStatus, Class, ClassName, ClassRecord, Mib, NodeName, PodRef, Record, RecordKey,
};

use crate::Records;
use crate::plan::Write;

/// A wish as a node states it, parsed.
#[derive(Debug, Clone, PartialEq)]
pub struct ClaimSpec {
    /// What the node calls it.
    pub key: ClaimKey,
    /// The pod.
    pub pod: PodRef,
    /// The class; `None` means `default`.
    pub class: Option<ClassName>,
    /// Virtual processors; 0 means any.
    pub vcpus: f32,
    /// Memory; 0 means any.
    pub memory: Mib,
    /// Pod VM image.
    pub image: Option<String>,
    /// Instance type.
    pub instance_type: Option<String>,
    /// The node.
    pub node: NodeName,
    /// The node's public key as hex digits of its SubjectPublicKeyInfo.
    pub node_spki: String,
}

/// A request that cannot be accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdmissionError {
    /// The key is in use for another wish.
    #[error("claim {key} exists with another {difference}; release it first")]
    InUse {
        /// The key.
        key: ClaimKey,
        /// The first field that differs.
        difference: &'static str,
    },
}

/// What a claim request writes; `None` when the record is there already.
///
/// The same wish again changes nothing, except that a node may show another key of its own: its earlier one may have died with it.
/// A key whose earlier life is released begins another one, whatever of the earlier one is still being deleted.
pub(crate) fn admit_claim(records: &Records, spec: ClaimSpec, id: ClaimId) -> Result<Option<Record>, AdmissionError> {
    let fresh = ClaimRecord {
        key: spec.key,
        id,
        pod: spec.pod,
        class: spec.class,
        vcpus: spec.vcpus,
        memory_mib: spec.memory,
        image: spec.image,
        instance_type: spec.instance_type,
        node: spec.node,
        node_spki: spec.node_spki,
        status: ClaimStatus::Open,
    };
    let Some(old) = records.claims.get(&fresh.key).filter(|old| old.status != ClaimStatus::Released) else {
        return Ok(Some(Record::Claim(fresh)));
    };
    if let Some(difference) = difference(old, &fresh) {
        return Err(AdmissionError::InUse { key: fresh.key, difference });
    }
    let is_same_key = old.node_spki == fresh.node_spki;
    Ok((!is_same_key).then(|| Record::Claim(ClaimRecord { node_spki: fresh.node_spki, ..old.clone() })))
}

/// What a release writes; `None` when there is nothing to release.
pub(crate) fn admit_release(records: &Records, key: &ClaimKey) -> Option<Record> {
    let claim = records.claims.get(key).filter(|claim| claim.status != ClaimStatus::Released)?;
    Some(Record::Claim(ClaimRecord { status: ClaimStatus::Released, ..claim.clone() }))
}

/// Writes that make the stored classes those of the configuration.
pub(crate) fn admit_classes(records: &Records, classes: &BTreeMap<ClassName, Class>) -> Vec<Write> {
    let stale = records.classes.keys().filter(|name| !classes.contains_key(*name));
    let removed = stale.map(|name| Write::Remove(RecordKey::class(name)));
    let changed = classes.iter().filter(|(name, class)| records.classes.get(*name).is_none_or(|record| record.class != **class));
    let changed = changed.map(|(name, class)| Write::Put(Record::Class(ClassRecord { name: name.clone(), class: class.clone() })));
    removed.chain(changed).collect()
}

fn difference(old: &ClaimRecord, new: &ClaimRecord) -> Option<&'static str> {
    let differences = [
        ("pod", old.pod != new.pod),
        ("class", old.class != new.class),
        ("vcpus", old.vcpus.to_bits() != new.vcpus.to_bits()),
        ("memory", old.memory_mib != new.memory_mib),
        ("image", old.image != new.image),
        ("instance type", old.instance_type != new.instance_type),
        ("node", old.node != new.node),
    ];
    differences.into_iter().find(|(_, differs)| *differs).map(|(field, _)| field)
}

#[cfg(test)]
mod tests {
    use peerpods_controller_api::{RootOfTrust, Tee};

    use super::*;

    fn spec() -> ClaimSpec {
        ClaimSpec {
            key: ClaimKey::new("node-1/default/web").expect("valid"),
            pod: PodRef::new("default", "web", None).expect("valid"),
            class: None,
            vcpus: 1.0,
            memory: Mib(512),
            image: None,
            instance_type: None,
            node: NodeName::new("node-1").expect("valid"),
            node_spki: "aa".to_owned(),
        }
    }

    fn with_claim(spec: ClaimSpec) -> Records {
        let mut records = Records::default();
        records.insert(admit_claim(&records, spec, ClaimId::from_random(1)).expect("admitted").expect("is new"));
        records
    }

    #[test]
    fn claim_is_idempotent() {
        let records = with_claim(spec());
        assert_eq!(admit_claim(&records, spec(), ClaimId::from_random(2)), Ok(None));
    }

    #[test]
    fn another_key_of_the_node_replaces_the_old_one_in_the_same_life() {
        let mut records = with_claim(spec());
        let admitted = admit_claim(&records, ClaimSpec { node_spki: "bb".to_owned(), ..spec() }, ClaimId::from_random(2));
        records.insert(admitted.expect("admitted").expect("changes the record"));
        let claim = records.claims.values().next().expect("is there");
        assert_eq!((claim.node_spki.as_str(), &claim.id), ("bb", &ClaimId::from_random(1)));
    }

    #[test]
    fn another_wish_under_the_same_key_is_refused_by_field() {
        let records = with_claim(spec());
        let error = admit_claim(&records, ClaimSpec { memory: Mib(1024), ..spec() }, ClaimId::from_random(2)).expect_err("differs");
        assert_eq!(error.to_string(), "claim node-1/default/web exists with another memory; release it first");
    }

    #[test]
    fn release_is_idempotent_and_a_new_life_follows_it() {
        let mut records = with_claim(spec());
        let released = admit_release(&records, &spec().key).expect("there is something to release");
        records.insert(released);
        assert_eq!(admit_release(&records, &spec().key), None);
        assert_eq!(admit_release(&Records::default(), &spec().key), None);
        let next = admit_claim(&records, ClaimSpec { vcpus: 2.0, ..spec() }, ClaimId::from_random(2)).expect("admitted");
        assert!(matches!(next, Some(Record::Claim(claim)) if claim.id == ClaimId::from_random(2)));
    }

    #[test]
    fn classes_follow_the_configuration() {
        let class = |tee| Class::new(tee, RootOfTrust::Hardware).expect("valid");
        let name = |name: &str| ClassName::new(name).expect("valid");
        let mut records = Records::default();
        for write in admit_classes(&records, &BTreeMap::from([(name("a"), class(Tee::Snp)), (name("b"), class(Tee::Snp))])) {
            if let Write::Put(record) = write {
                records.insert(record);
            }
        }
        let writes = admit_classes(&records, &BTreeMap::from([(name("b"), class(Tee::Tdx)), (name("c"), class(Tee::Snp))]));
        assert_eq!(writes.len(), 3, "a goes, b changes, c comes: {writes:?}");
        assert_eq!(admit_classes(&records, &BTreeMap::from([(name("a"), class(Tee::Snp)), (name("b"), class(Tee::Snp))])), []);
    }
}
