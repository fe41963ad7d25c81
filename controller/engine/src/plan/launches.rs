//! Launches: call the cloud while they are wanted, record what it gives, prove the absence of what is not wanted.

use std::time::Duration;

use peerpods_controller_api::{LaunchRecord, PodVmRecord, PodVmState, Record, RecordKey};

use super::Planner;
use crate::Call;

impl Planner<'_> {
    pub(super) fn plan_launches(&mut self) {
        for launch in self.input.records.launches.values() {
            let is_wanted = self.input.records.is_wanted(launch.claim.as_ref());
            let wanted_count = usize::try_from(launch.count).unwrap_or(usize::MAX);
            let recorded = self.index.count_of(launch);
            if recorded >= wanted_count {
                self.remove(RecordKey::launch(&launch.token), "its pod VMs are recorded");
            } else if !self.adopt(launch, wanted_count - recorded, is_wanted) {
                if is_wanted { self.launch(launch) } else { self.withdraw(launch) }
            }
        }
    }

    /// Records instances of a launch that have no record yet. Whether there were any.
    fn adopt(&mut self, launch: &LaunchRecord, missing: usize, is_wanted: bool) -> bool {
        let records = self.input.records;
        let found = self.input.observed.instances.values().map(|seen| &seen.instance);
        let new = found.filter(|i| i.token == launch.token && i.owner == *self.input.owner && !records.pod_vms.contains_key(&i.id));
        let new: Vec<_> = new.take(missing).collect();
        for instance in &new {
            let pod_vm = PodVmRecord {
                instance_id: instance.id.clone(),
                token: launch.token.clone(),
                key: launch.key.clone(),
                address: None,
                state: if is_wanted { PodVmState::Launching } else { PodVmState::Deleting },
                claimed_by: launch.claim.clone(),
            };
            let record = self.advanced(&pod_vm, instance).unwrap_or(pod_vm);
            self.put(Record::PodVm(record), "the cloud has launched it");
        }
        !new.is_empty()
    }

    fn launch(&mut self, launch: &LaunchRecord) {
        let observed = self.input.observed;
        // An earlier life of this process may have launched it: the listing comes first.
        if observed.listed.is_some() && !observed.refused.contains_key(&launch.token) {
            self.call(Call::Launch(launch.token.clone()));
        }
    }

    /// A launch that nobody wants is forgotten once a listing that began after its last try does not show it.
    fn withdraw(&mut self, launch: &LaunchRecord) {
        let observed = self.input.observed;
        if observed.in_flight.contains(&Call::Launch(launch.token.clone())) {
            return;
        }
        let tried = observed.tried.get(&launch.token).copied();
        let is_absent = observed.listed.is_some_and(|began| tried.is_none_or(|tried: Duration| began > tried));
        if is_absent {
            self.remove(RecordKey::launch(&launch.token), "it is not wanted and the cloud knows nothing of it");
        } else {
            self.wants_listing = true;
        }
    }
}
