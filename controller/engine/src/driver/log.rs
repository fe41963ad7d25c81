//! One log line a decision, with the ids that an operator searches for.

use peerpods_controller_api::{ClaimRef, ClaimStatus, Record};
use tracing::field::display;

use crate::Records;
use crate::plan::Write;

pub(super) fn written(records: &Records, write: &Write, why: &'static str) {
    let pod_of = |claim: Option<&ClaimRef>| claim.and_then(|claim| records.claims.get(&claim.key)).map(|claim| display(&claim.pod));
    let key_of = |claim: Option<&ClaimRef>| claim.map(|claim| claim.key.to_string());
    match write {
        Write::Put(Record::PodVm(pod_vm)) => {
            let (claim, pod) = (key_of(pod_vm.claimed_by.as_ref()), pod_of(pod_vm.claimed_by.as_ref()));
            let address = pod_vm.address.map(display);
            tracing::info!(instance_id = %pod_vm.instance_id, claim, pod, address, state = pod_vm.state.as_str(), why, "pod VM");
        }
        Write::Put(Record::Launch(launch)) => {
            let key = &launch.key;
            let zone = key.zone.as_ref().map(display);
            tracing::info!(token = %launch.token, count = launch.count, class = %key.class, instance_type = key.instance_type, zone, why, "launch");
        }
        Write::Put(Record::Claim(claim)) => {
            if let ClaimStatus::Failed { during, cause } = &claim.status {
                tracing::warn!(claim = %claim.key, pod = %claim.pod, during, cause, "claim failed");
            }
        }
        Write::Put(Record::Class(_)) => {}
        Write::Remove(key) => tracing::info!(record = %key, why, "record removed"),
    }
}
