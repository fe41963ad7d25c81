//! What is published of the engine's state.

use std::collections::BTreeMap;
use std::net::IpAddr;

use peerpods_controller_api::{ClaimKey, ClaimRecord, ClaimStatus, HostAccess, InstanceId, NodeName, PodVmState, RootOfTrust, Tee};

use crate::records::Index;
use crate::{Call, Observed, Records};

/// A claim as its node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimView {
    /// The pod VM is coming, or going after a release.
    Pending {
        /// The pod VM's state, with a cause when something is being tried again.
        phase: String,
    },
    /// The pod VM runs and is this claim's.
    Assigned {
        /// The cloud's name of it.
        instance_id: InstanceId,
        /// Where it is reached.
        address: IpAddr,
        /// Its TEE.
        tee: Tee,
        /// What must stand behind its evidence.
        root_of_trust: RootOfTrust,
        /// What claims of its evidence must be.
        reference_values: BTreeMap<String, Vec<String>>,
        /// The node that may bind it.
        node: NodeName,
        /// The node's public key, as hex digits.
        node_spki: String,
        /// What the pod's class lets it use of that node.
        host_access: Vec<HostAccess>,
    },
    /// It cannot be served, or what served it has failed.
    Failed {
        /// What was being done.
        during: String,
        /// Why.
        cause: String,
    },
    /// Nothing of it is left, or it never was.
    Gone,
}

/// Counts of what there is, and of what has been done since the driver's start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    /// Claims by status: `open`, `failed`, `released`.
    pub claims: BTreeMap<&'static str, u64>,
    /// Pod VMs by state; launches without a pod VM count as `intended`.
    pub pod_vms: BTreeMap<&'static str, u64>,
    /// Instances with our owner tag that no record accounts for.
    pub unowned: u64,
    /// Whether the cloud has been listed since the driver's start: before that, `unowned` means nothing.
    pub is_listed: bool,
    /// Calls of the provider that succeeded, by name.
    pub calls: BTreeMap<&'static str, u64>,
    /// Calls of the provider that failed, by name.
    pub call_failures: BTreeMap<&'static str, u64>,
    /// Writes of the Journal.
    pub journal_writes: u64,
    /// Writes of the Journal that failed.
    pub journal_failures: u64,
}

impl Totals {
    /// Whether nothing is wanted and nothing is left.
    pub fn is_empty(&self) -> bool {
        self.is_listed && self.unowned == 0 && self.claims.values().chain(self.pod_vms.values()).all(|count| *count == 0)
    }

    /// Takes over the counts of what there is.
    pub(crate) fn count(&mut self, records: &Records, observed: &Observed) {
        (self.claims, self.pod_vms) = (BTreeMap::new(), BTreeMap::new());
        for claim in records.claims.values() {
            let status = match claim.status {
                ClaimStatus::Open => "open",
                ClaimStatus::Failed { .. } => "failed",
                ClaimStatus::Released => "released",
            };
            *self.claims.entry(status).or_default() += 1;
        }
        for pod_vm in records.pod_vms.values() {
            *self.pod_vms.entry(pod_vm.state.as_str()).or_default() += 1;
        }
        if !records.launches.is_empty() {
            let count = u64::try_from(records.launches.len()).unwrap_or(u64::MAX);
            self.pod_vms.insert(PodVmState::Intended.as_str(), count);
        }
        let is_recorded = |id: &InstanceId| records.pod_vms.contains_key(id);
        self.unowned = observed.instances.keys().filter(|id| !is_recorded(id)).map(|_| 1).sum();
        self.is_listed = observed.listed.is_some();
    }
}

/// How the claim with this key stands.
pub(crate) fn view(records: &Records, index: &Index<'_>, observed: &Observed, key: &ClaimKey) -> ClaimView {
    let Some(claim) = records.claims.get(key) else { return ClaimView::Gone };
    match &claim.status {
        ClaimStatus::Released => ClaimView::Pending { phase: PodVmState::Deleting.as_str().to_owned() },
        ClaimStatus::Failed { during, cause } => ClaimView::Failed { during: during.clone(), cause: cause.clone() },
        ClaimStatus::Open => open_view(records, index, observed, claim),
    }
}

fn open_view(records: &Records, index: &Index<'_>, observed: &Observed, claim: &ClaimRecord) -> ClaimView {
    let (pod_vm, launch) = (index.pod_vm_of(claim), index.launch_of(claim));
    if let Some((pod_vm, address)) = pod_vm.and_then(|p| Some((p, p.address?))).filter(|(p, _)| p.state == PodVmState::Claimed) {
        let class = records.class_of(claim).map(|record| &record.class);
        return ClaimView::Assigned {
            instance_id: pod_vm.instance_id.clone(),
            address,
            tee: pod_vm.key.tee,
            node: claim.node.clone(),
            node_spki: claim.node_spki.clone(),
            // A class that was taken away leaves the strictest: a claim that no evidence has. What runs is left alone.
            root_of_trust: class.map_or(RootOfTrust::Hardware, |class| class.root_of_trust),
            reference_values: class
                .map_or_else(|| [("(the class was removed)".to_owned(), Vec::new())].into(), |class| class.reference_values.clone()),
            host_access: class.into_iter().flat_map(|class| class.host_access.iter().copied()).collect(),
        };
    }
    let state = pod_vm.map_or(PodVmState::Intended.as_str(), |pod_vm| pod_vm.state.as_str());
    let calls = match (launch, pod_vm) {
        (_, Some(pod_vm)) => vec![Call::List, Call::Get(pod_vm.instance_id.clone())],
        (Some(launch), None) => vec![Call::List, Call::Launch(launch.token.clone())],
        // Which of the launches of its class it waits for is decided anew all the time; what troubles one of them troubles the claim.
        (None, None) => {
            let class = claim.class.as_ref().map_or("default", |class| class.as_str());
            let of_class = records.launches.values().filter(|launch| launch.key.class.as_str() == class);
            [Call::List, Call::Types].into_iter().chain(of_class.map(|launch| Call::Launch(launch.token.clone()))).collect()
        }
    };
    let cause = calls.iter().filter_map(|call| observed.pauses.get(call)?.cause.as_ref()).next_back();
    ClaimView::Pending { phase: cause.map_or_else(|| state.to_owned(), |cause| format!("{state} (trying again: {cause})")) }
}
