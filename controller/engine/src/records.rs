//! The Journal's records in memory.

use std::collections::{BTreeMap, HashMap};

use peerpods_controller_api::{
    ClaimId, ClaimKey, ClaimRecord, ClaimRef, ClaimStatus, ClassName, ClassRecord, InstanceId, LaunchRecord, LaunchToken, PodVmRecord,
    Record, RecordKey, RecordKind,
};

use crate::Call;

/// All records by their keys. Changed only after the Journal has accepted a write.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Records {
    /// Wishes of nodes.
    pub claims: BTreeMap<ClaimKey, ClaimRecord>,
    /// What the cloud has given.
    pub pod_vms: BTreeMap<InstanceId, PodVmRecord>,
    /// What is offered.
    pub classes: BTreeMap<ClassName, ClassRecord>,
    /// What is being asked of the cloud.
    pub launches: BTreeMap<LaunchToken, LaunchRecord>,
}

impl Records {
    /// The class that a claim asks for, if it is offered.
    pub(crate) fn class_of(&self, claim: &ClaimRecord) -> Option<&ClassRecord> {
        let wanted = claim.class.as_ref().map_or("default", ClassName::as_str);
        self.classes.values().find(|record| record.name.as_str() == wanted)
    }

    /// Takes a record in place of an older one with its key.
    pub fn insert(&mut self, record: Record) {
        match record {
            Record::Claim(claim) => drop(self.claims.insert(claim.key.clone(), claim)),
            Record::PodVm(pod_vm) => drop(self.pod_vms.insert(pod_vm.instance_id.clone(), pod_vm)),
            Record::Class(class) => drop(self.classes.insert(class.name.clone(), class)),
            Record::Launch(launch) => drop(self.launches.insert(launch.token.clone(), launch)),
        }
    }

    /// Forgets a record and gives it.
    pub fn remove(&mut self, key: &RecordKey) -> Option<Record> {
        // A name that breaks its kind's grammar is the key of no record.
        let name = key.name.as_str();
        match key.kind {
            RecordKind::Claim => self.claims.remove(&ClaimKey::new(name).ok()?).map(Record::Claim),
            RecordKind::PodVm => self.pod_vms.remove(&InstanceId::new(name).ok()?).map(Record::PodVm),
            RecordKind::Class => self.classes.remove(&ClassName::new(name).ok()?).map(Record::Class),
            RecordKind::Launch => self.launches.remove(&LaunchToken::new(name).ok()?).map(Record::Launch),
        }
    }

    /// Whether this life of the claim still wants a pod VM.
    pub fn is_wanted(&self, claim: Option<&ClaimRef>) -> bool {
        let record = claim.and_then(|claim| self.claims.get(&claim.key).filter(|record| record.id == claim.id));
        record.is_some_and(|record| record.status == ClaimStatus::Open)
    }

    /// How many instances a call asks for.
    pub(crate) fn count_of(&self, call: &Call) -> u32 {
        let Call::Launch(token) = call else { return 0 };
        self.launches.get(token).map_or(0, |launch| launch.count)
    }

    /// What refers to which claim.
    pub(crate) fn index(&self) -> Index<'_> {
        let claims = |claim: &Option<ClaimRef>| claim.as_ref().map(|claim| claim.id.clone());
        let mut recorded = HashMap::new();
        for pod_vm in self.pod_vms.values() {
            *recorded.entry(&pod_vm.token).or_default() += 1;
        }
        Index {
            pod_vms: self.pod_vms.values().filter_map(|pod_vm| Some((claims(&pod_vm.claimed_by)?, pod_vm))).collect(),
            launches: self.launches.values().filter_map(|launch| Some((claims(&launch.claim)?, launch))).collect(),
            recorded,
        }
    }
}

/// References between records, followed backwards. Made anew for every decision: it is no state.
pub(crate) struct Index<'a> {
    pod_vms: HashMap<ClaimId, &'a PodVmRecord>,
    launches: HashMap<ClaimId, &'a LaunchRecord>,
    recorded: HashMap<&'a LaunchToken, usize>,
}

impl<'a> Index<'a> {
    /// The pod VM that serves or will serve this life of the claim, one that is being deleted included.
    pub(crate) fn pod_vm_of(&self, claim: &ClaimRecord) -> Option<&'a PodVmRecord> {
        self.pod_vms.get(&claim.id).copied()
    }

    /// The launch made for this life of the claim.
    pub(crate) fn launch_of(&self, claim: &ClaimRecord) -> Option<&'a LaunchRecord> {
        self.launches.get(&claim.id).copied()
    }

    /// How many pod VMs of this launch have records.
    pub(crate) fn count_of(&self, launch: &LaunchRecord) -> usize {
        self.recorded.get(&launch.token).copied().unwrap_or_default()
    }
}
