//! Launches: one for all claims that want the same and for what pools lack, adopted from the cloud's answer, withdrawn when nobody
//! wants them.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use peerpods_controller_api::{ClaimRef, LaunchKey, LaunchRecord, LaunchToken, PodVmRecord, PodVmState, Record, RecordKey};

use super::Planner;
use super::claims::reference;
use super::matching::{BATCH, Matching};
use crate::Call;

impl<'a> Planner<'a> {
    pub(super) fn plan_launches(&mut self, matching: &mut Matching<'a>, kept: &BTreeMap<&LaunchToken, u32>) {
        for launch in self.input.records.launches.values() {
            let count = usize::try_from(launch.count).unwrap_or(usize::MAX);
            let recorded = self.index.count_of(launch);
            let adopted = if recorded < count { self.adopt(launch, count - recorded, matching) } else { 0 };
            if adopted > 0 {
                continue;
            }
            let is_answered = self.input.observed.answered.contains(&launch.token);
            if recorded >= count || is_answered && recorded > 0 {
                self.remove(RecordKey::launch(&launch.token), "its pod VMs are recorded");
                continue;
            }
            let is_waited_for = matching.waiting.get(&launch.token).is_some_and(|waiting| !waiting.is_empty());
            // While the types are unknown, it is not known who waits for what.
            let is_wanted = is_waited_for || kept.contains_key(&launch.token) || matching.needs_types && launch.claim.is_none();
            let is_refused = self.input.observed.refused.contains_key(&launch.token);
            if is_wanted && !is_refused && !is_answered { self.launch(launch) } else { self.withdraw(launch) }
        }
        if let Some(until) = self.input.hold.filter(|until| *until > self.input.now) {
            return self.wake_at(until);
        }
        let mut number = 0;
        for (key, count) in std::mem::take(&mut matching.wanted) {
            let mut left = count;
            while left > 0 {
                let count = left.min(BATCH);
                left -= count;
                self.intend(&key, count, number);
                number += 1;
            }
        }
    }

    /// Records a launch. Its token is random: whoever finds the record finds what it made.
    fn intend(&mut self, key: &LaunchKey, count: u32, number: u128) {
        let token = format!("{:032x}", self.input.seed.wrapping_add(number));
        // Digits are a token whatever their number.
        let Ok(token) = LaunchToken::new(token) else { return };
        self.put(Record::Launch(LaunchRecord { token, key: key.clone(), count, claim: None }), "it is wanted and not there");
    }

    /// Records instances of a launch that have no record yet, each for the next claim that waits for one. How many there were.
    fn adopt(&mut self, launch: &LaunchRecord, missing: usize, matching: &mut Matching<'a>) -> usize {
        let (records, observed) = (self.input.records, self.input.observed);
        let found = observed.instances.values().map(|seen| &seen.instance);
        let new = found.filter(|i| i.token == launch.token && i.owner == *self.input.owner && !records.pod_vms.contains_key(&i.id));
        let new: Vec<_> = new.take(missing).collect();
        for instance in &new {
            let next = matching.waiting.get_mut(&launch.token).and_then(VecDeque::pop_front);
            let claimed_by: Option<ClaimRef> = next.map(reference);
            let is_unwanted = claimed_by.is_none() && launch.claim.is_some();
            let pod_vm = PodVmRecord {
                instance_id: instance.id.clone(),
                token: launch.token.clone(),
                key: launch.key.clone(),
                address: None,
                state: if is_unwanted { PodVmState::Deleting } else { PodVmState::Launching },
                claimed_by: claimed_by.or_else(|| launch.claim.clone()),
            };
            let record = self.advanced(&pod_vm, instance).unwrap_or(pod_vm);
            self.put(Record::PodVm(record), "the cloud has launched it");
        }
        new.len()
    }

    fn launch(&mut self, launch: &LaunchRecord) {
        // An earlier life of this process may have launched it: the listing comes first.
        if self.input.observed.listed.is_some() {
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
