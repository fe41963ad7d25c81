//! Claims: give each open one a pod VM, fail those that cannot be served, forget released ones.

use peerpods_controller_api::{ClaimRecord, ClaimRef, ClaimStatus, PodVmRecord, PodVmState, Record, RecordKey};

use super::Planner;
use super::matching::Matching;
use crate::Call;
use crate::plan::pod_vms::{Health, health};

/// Longest cause that is recorded.
const MAX_CAUSE: usize = 4096;

impl<'a> Planner<'a> {
    pub(super) fn plan_claims(&mut self, matching: &Matching<'a>) {
        let records = self.input.records;
        for claim in records.claims.values() {
            let (launch, pod_vm) = (self.index.launch_of(claim), self.index.pod_vm_of(claim));
            match (&claim.status, launch, pod_vm) {
                (ClaimStatus::Released, None, None) => self.remove(RecordKey::claim(&claim.key), "everything made for it is gone"),
                (ClaimStatus::Released | ClaimStatus::Failed { .. }, ..) | (ClaimStatus::Open, _, None) => {}
                (ClaimStatus::Open, _, Some(pod_vm)) => match health(self.input.observed, pod_vm) {
                    Health::Dead(cause) => match self.input.observed.consoles.get(&pod_vm.instance_id) {
                        None => self.call(Call::Examine(pod_vm.instance_id.clone())),
                        Some(None) => self.fail(claim, pod_vm.state.as_str(), cause.to_owned()),
                        Some(Some(console)) => {
                            self.fail(claim, pod_vm.state.as_str(), format!("{cause}; its console ended with: {console}"));
                        }
                    },
                    Health::Unknown | Health::Missing | Health::Coming | Health::Up(_) => {}
                },
            }
        }
        for (claim, during, why) in &matching.hopeless {
            self.fail(claim, during, why.clone());
        }
        for (claim, pod_vm) in &matching.given {
            let state = if pod_vm.state == PodVmState::Running { PodVmState::Claimed } else { pod_vm.state.clone() };
            let record = PodVmRecord { state, claimed_by: Some(reference(claim)), ..(*pod_vm).clone() };
            self.put(Record::PodVm(record), "it was waiting for such a claim");
        }
        if matching.needs_types {
            self.call(Call::Types);
        }
    }

    fn fail(&mut self, claim: &ClaimRecord, during: &str, mut cause: String) {
        // Parts of it come from the cloud and from a machine's console; the record must stay small.
        cause.truncate(cause.floor_char_boundary(MAX_CAUSE));
        let status = ClaimStatus::Failed { during: during.to_owned(), cause };
        self.put(Record::Claim(ClaimRecord { status, ..claim.clone() }), "it cannot be served");
    }
}

pub(super) fn reference(claim: &ClaimRecord) -> ClaimRef {
    ClaimRef { key: claim.key.clone(), id: claim.id.clone() }
}
