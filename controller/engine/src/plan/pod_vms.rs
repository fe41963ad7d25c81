//! Pod VMs: assign them when they run, delete them when nobody wants them, forget them when the cloud has.

use std::collections::HashSet;
use std::net::IpAddr;

use peerpods_cloud_api::{Instance, InstanceState};
use peerpods_controller_api::{InstanceId, PodVmRecord, PodVmState, Record, RecordKey};

use super::matching::Matching;
use super::{Input, Planner};
use crate::{Call, Observed};

/// How a pod VM does, as far as has been seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Health {
    /// Not seen yet in this life of the process.
    Unknown,
    /// Not in a listing that should have it; only a read can say that it is gone.
    Missing,
    /// Accepted, not yet up.
    Coming,
    /// Running, with an address.
    Up(IpAddr),
    /// It will not serve anybody.
    Dead(&'static str),
}

pub(super) fn health(observed: &Observed, pod_vm: &PodVmRecord) -> Health {
    if pod_vm.state == PodVmState::Deleting {
        return Health::Dead("the instance is being deleted");
    }
    if observed.gone.contains_key(&pod_vm.instance_id) {
        return Health::Dead("the instance is gone");
    }
    match observed.instances.get(&pod_vm.instance_id) {
        Some(seen) => state_health(&seen.instance),
        None => {
            let adopted = observed.adopted.get(&pod_vm.instance_id).copied().unwrap_or_default();
            if observed.listed.is_some_and(|began| began > adopted) { Health::Missing } else { Health::Unknown }
        }
    }
}

impl Planner<'_> {
    /// The record that follows from what an instance shows; `None` if it is the same.
    pub(super) fn advanced(&self, pod_vm: &PodVmRecord, instance: &Instance) -> Option<PodVmRecord> {
        let Health::Up(address) = state_health(instance) else { return None };
        let is_next = matches!(pod_vm.state, PodVmState::Launching | PodVmState::Running);
        let state = if pod_vm.claimed_by.is_some() { PodVmState::Claimed } else { PodVmState::Running };
        (is_next && pod_vm.state != state).then(|| PodVmRecord { state, address: Some(address), ..pod_vm.clone() })
    }

    pub(super) fn plan_pod_vms(&mut self, matching: &Matching<'_>) {
        let given: HashSet<&InstanceId> = matching.given.iter().map(|(_, pod_vm)| &pod_vm.instance_id).collect();
        let idle: HashSet<&InstanceId> = matching.idle.iter().map(|pod_vm| &pod_vm.instance_id).collect();
        for pod_vm in self.input.records.pod_vms.values() {
            if pod_vm.state == PodVmState::Deleting {
                self.delete(pod_vm);
                continue;
            }
            let is_wanted = match &pod_vm.claimed_by {
                None => true,
                claim => self.input.records.is_wanted(claim.as_ref()),
            };
            match health(self.input.observed, pod_vm) {
                Health::Coming | Health::Up(_) | Health::Unknown if !is_wanted && pod_vm.state == PodVmState::Launching => {
                    let record = PodVmRecord { claimed_by: None, ..pod_vm.clone() };
                    self.put(Record::PodVm(record), "its claim is gone, and no node was told of it");
                }
                _ if !is_wanted => self.put_deleting(pod_vm, "nobody wants it"),
                Health::Missing => self.call(Call::Get(pod_vm.instance_id.clone())),
                Health::Coming | Health::Unknown => self.is_urgent = true,
                // What changes its owner, or goes, in this plan advances in the next one.
                Health::Up(_) if given.contains(&pod_vm.instance_id) => {}
                Health::Up(_) => {
                    let seen = self.input.observed.instances.get(&pod_vm.instance_id);
                    if let Some(record) = seen.and_then(|seen| self.advanced(pod_vm, &seen.instance)) {
                        if idle.contains(&pod_vm.instance_id) {
                            self.advancing.insert(pod_vm.instance_id.clone());
                        }
                        self.put(Record::PodVm(record), "it runs");
                    }
                }
                Health::Dead(why) if pod_vm.claimed_by.is_none() => self.put_deleting(pod_vm, why),
                // Its claim fails first, so that the cause is recorded before the instance is deleted.
                Health::Dead(_) => {}
            }
        }
    }

    pub(super) fn put_deleting(&mut self, pod_vm: &PodVmRecord, why: &'static str) {
        let record = PodVmRecord { state: PodVmState::Deleting, ..pod_vm.clone() };
        self.put(Record::PodVm(record), why);
    }

    /// Asks for the deletion, and again if nothing comes of it, until the cloud says that there is nothing to delete.
    fn delete(&mut self, pod_vm: &PodVmRecord) {
        let Input { observed, timing, now, .. } = self.input;
        let id = &pod_vm.instance_id;
        if observed.gone.contains_key(id) {
            return self.remove(RecordKey::pod_vm(id), "the cloud says that it is gone");
        }
        let Some(asked) = observed.deleted.get(id).copied() else { return self.call(Call::Delete(id.clone())) };
        let again = asked + timing.delete_again;
        match observed.instances.contains_key(id) {
            // A cloud may forget what it has accepted.
            true if again <= now => self.call(Call::Delete(id.clone())),
            // A listing may miss it; only a read can say that it is gone.
            false if observed.listed.is_some_and(|began| began > asked) => self.call(Call::Get(id.clone())),
            // One listing shows what all of them have come to.
            is_listed => {
                self.is_urgent = true;
                if is_listed {
                    self.wake_at(again);
                }
            }
        }
    }

    /// Deletes instances that carry our owner tag and that no record accounts for.
    pub(super) fn plan_unowned(&mut self) {
        let records = self.input.records;
        for seen in self.input.observed.instances.values() {
            let instance = &seen.instance;
            let is_recorded = records.pod_vms.contains_key(&instance.id) || records.launches.contains_key(&instance.token);
            if !is_recorded && instance.owner == *self.input.owner && instance.state != InstanceState::Deleting {
                self.call(Call::Delete(instance.id.clone()));
            }
        }
    }
}

fn state_health(instance: &Instance) -> Health {
    match (instance.state, instance.address) {
        (InstanceState::Pending, _) | (InstanceState::Running, None) => Health::Coming,
        (InstanceState::Running, Some(address)) => Health::Up(address),
        (InstanceState::Stopped, _) => Health::Dead("the instance stopped by itself"),
        (InstanceState::Deleting, _) => Health::Dead("the instance is being deleted by somebody else"),
    }
}
