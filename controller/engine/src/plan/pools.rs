//! Pools: pod VMs that wait for pods, and what is left over.

use std::collections::BTreeMap;
use std::time::Duration;

use peerpods_controller_api::{ClassName, ClassRecord, LaunchToken, PodVmRecord, Pool};

use super::Planner;
use super::matching::{Catalogue, Matching};
use crate::Call;

impl<'a> Planner<'a> {
    /// Deletes what no pool keeps, and wants what pools lack. Gives the launches that pools wait for.
    pub(super) fn plan_pools(&mut self, matching: &mut Matching<'a>, catalogue: &mut Catalogue<'a>) -> BTreeMap<&'a LaunchToken, u32> {
        let mut kept = BTreeMap::new();
        let mut waiting: BTreeMap<&ClassName, u32> = BTreeMap::new();
        for pod_vm in std::mem::take(&mut matching.idle) {
            let name = &pod_vm.key.class;
            let rank = waiting.entry(name).or_default();
            let record = self.input.records.classes.get(name).filter(|record| is_offered(record, pod_vm, catalogue));
            let pool = record.and_then(|record| record.class.pool);
            // Claims whose needs are not known yet may want it.
            if matching.needs_types || self.advancing.contains(&pod_vm.instance_id) || self.is_kept(pod_vm, *rank, pool) {
                // What is kept for a moment alone fills no pool.
                *rank += u32::from(pool.is_some());
            } else {
                self.put_deleting(pod_vm, "nobody wants it");
            }
        }
        for record in self.input.records.classes.values() {
            let Some(pool) = record.class.pool.filter(|pool| pool.min > 0) else { continue };
            let candidates = match catalogue.of_class(record) {
                Ok(Some(candidates)) => candidates,
                // Also to learn whether what waits is still offered; until then launches go on.
                Ok(None) => {
                    matching.needs_types = true;
                    self.call(Call::Types);
                    continue;
                }
                // A class that can launch nothing says so to every claim.
                Err(_) => continue,
            };
            let mut have = waiting.get(&record.name).copied().unwrap_or_default();
            for launch in self.input.records.launches.values().filter(|launch| candidates.contains(&launch.key)) {
                let spare = matching.spare.get(&launch.token).copied().unwrap_or_default();
                if have < pool.min && spare > 0 {
                    have = have.saturating_add(spare);
                    kept.insert(&launch.token, spare);
                }
            }
            // A pool that the cloud refuses is asked for again when the refusal is forgotten; claims hear of it.
            if have < pool.min
                && let Ok(key) = catalogue.choose(&candidates)
            {
                *matching.wanted.entry(key.clone()).or_default() += pool.min - have;
            }
        }
        kept
    }

    /// The first ones are the pool; of the others as many as may be, for a time; any other for the moment in which its claim may return.
    fn is_kept(&mut self, pod_vm: &PodVmRecord, rank: u32, pool: Option<Pool>) -> bool {
        if pool.is_some_and(|pool| rank < pool.min) {
            return true;
        }
        let ttl = pool.filter(|pool| rank < pool.max).map_or(Duration::ZERO, |pool| Duration::from_secs(pool.ttl_secs));
        let since = self.input.observed.adopted.get(&pod_vm.instance_id).copied().unwrap_or_default();
        let until = since.saturating_add(ttl.max(self.input.timing.reuse));
        let is_kept = until > self.input.now;
        if is_kept {
            self.wake_at(until);
        }
        is_kept
    }
}

/// Whether the class would still launch such a pod VM; one of an image or a zone that it has no more serves nobody.
fn is_offered<'a>(record: &'a ClassRecord, pod_vm: &PodVmRecord, catalogue: &mut Catalogue<'a>) -> bool {
    // While the types are not known, nothing speaks against it.
    !matches!(catalogue.of_class(record), Ok(Some(candidates)) if !candidates.contains(&pod_vm.key))
}
