//! The engine's state for people.

use peerpods_cloud_api::InstanceId;
use peerpods_controller_api::report::{ClaimReport, LaunchReport, PodVmReport, StateReport};
use peerpods_controller_api::{ClaimRecord, ClaimStatus, ClassName, LaunchRecord, PodVmRecord};

use crate::records::Index;
use crate::view::view;
use crate::{Call, ClaimView, Observed, Records};

pub(crate) fn report(records: &Records, observed: &Observed) -> StateReport {
    let index = records.index();
    StateReport {
        claims: records.claims.values().filter_map(|claim| claim_report(records, &index, observed, claim)).collect(),
        pod_vms: records.pod_vms.values().map(|pod_vm| pod_vm_report(observed, pod_vm)).collect(),
        launches: records.launches.values().map(|launch| launch_report(observed, launch)).collect(),
        classes: records.classes.values().cloned().collect(),
        instance_types: observed.types.clone(),
    }
}

fn claim_report(records: &Records, index: &Index<'_>, observed: &Observed, claim: &ClaimRecord) -> Option<ClaimReport> {
    let (status, detail) = match (&claim.status, view(records, index, observed, &claim.key)) {
        (ClaimStatus::Released, _) => ("released", None),
        (_, ClaimView::Pending { phase }) => ("pending", Some(phase)),
        (_, ClaimView::Failed { during, cause }) => ("failed", Some(format!("{during}: {cause}"))),
        (_, ClaimView::Assigned { .. }) => ("assigned", None),
        (_, ClaimView::Gone) => return None,
    };
    Some(ClaimReport {
        key: claim.key.clone(),
        pod: claim.pod.clone(),
        node: claim.node.clone(),
        class: claim.class.clone().or_else(|| ClassName::new("default").ok())?,
        vcpus: claim.vcpus,
        memory_mib: claim.memory_mib,
        instance_type: claim.instance_type.clone(),
        status: status.to_owned(),
        detail,
        instance_id: index.pod_vm_of(claim).map(|pod_vm| pod_vm.instance_id.clone()),
    })
}

fn pod_vm_report(observed: &Observed, pod_vm: &PodVmRecord) -> PodVmReport {
    PodVmReport {
        instance_id: pod_vm.instance_id.clone(),
        class: pod_vm.key.class.clone(),
        tee: pod_vm.key.tee,
        instance_type: pod_vm.key.instance_type.clone(),
        zone: pod_vm.key.zone.clone(),
        image: pod_vm.key.image.clone(),
        state: pod_vm.state.as_str().to_owned(),
        cloud_state: observed.instances.get(&pod_vm.instance_id).map(|seen| seen.instance.state),
        address: pod_vm.address,
        claim: pod_vm.claimed_by.as_ref().map(|claim| claim.key.clone()),
        detail: trouble(observed, &pod_vm.instance_id),
    }
}

fn trouble(observed: &Observed, id: &InstanceId) -> Option<String> {
    let calls = [Call::Delete(id.clone()), Call::Get(id.clone())];
    calls.iter().find_map(|call| observed.pauses.get(call)?.cause.clone())
}

fn launch_report(observed: &Observed, launch: &LaunchRecord) -> LaunchReport {
    let refused = observed.refused.get(&launch.token).map(|refusal| refusal.cause.clone());
    let paused = || observed.pauses.get(&Call::Launch(launch.token.clone()))?.cause.clone();
    LaunchReport {
        token: launch.token.clone(),
        class: launch.key.class.clone(),
        instance_type: launch.key.instance_type.clone(),
        zone: launch.key.zone.clone(),
        count: launch.count,
        detail: refused.or_else(paused),
    }
}
