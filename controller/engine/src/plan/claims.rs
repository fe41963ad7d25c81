//! Claims: intend a launch for each open one, fail those that cannot be served, forget released ones.

use peerpods_controller_api::{
    ClaimRecord, ClaimRef, ClaimStatus, ClassName, Demand, LaunchKey, LaunchRecord, LaunchToken, Record, RecordKey, choose_instance_type,
};

use super::Planner;
use crate::Call;
use crate::plan::pod_vms::Health;

/// What a claim fails during, when no launch can be made for it.
const CHOOSING: &str = "choosing an instance type";

/// Longest cause that is recorded.
const MAX_CAUSE: usize = 4096;

impl Planner<'_> {
    pub(super) fn plan_claims(&mut self) {
        let records = self.input.records;
        for claim in records.claims.values() {
            let (launch, pod_vm) = (self.index.launch_of(claim), self.index.pod_vm_of(claim));
            match (&claim.status, launch, pod_vm) {
                (ClaimStatus::Released, None, None) => self.remove(RecordKey::claim(&claim.key), "everything made for it is gone"),
                (ClaimStatus::Released | ClaimStatus::Failed { .. }, ..) => {}
                (ClaimStatus::Open, _, Some(pod_vm)) => match self.health(pod_vm) {
                    Health::Dead(cause) => match self.input.observed.consoles.get(&pod_vm.instance_id) {
                        None => self.call(Call::Examine(pod_vm.instance_id.clone())),
                        Some(None) => self.fail(claim, pod_vm.state.as_str(), cause.to_owned()),
                        Some(Some(console)) => {
                            self.fail(claim, pod_vm.state.as_str(), format!("{cause}; its console ended with: {console}"));
                        }
                    },
                    Health::Unknown | Health::Missing | Health::Coming | Health::Up(_) => {}
                },
                (ClaimStatus::Open, Some(launch), None) => {
                    if let Some(cause) = self.input.observed.refused.get(&launch.token) {
                        self.fail(claim, "launching", cause.clone());
                    }
                }
                (ClaimStatus::Open, None, None) => self.intend(claim),
            }
        }
    }

    /// Records the launch for a claim, or why there can be none.
    fn intend(&mut self, claim: &ClaimRecord) {
        match self.launch_key(claim) {
            Ok(Some(key)) => {
                // The token is the claim's life: however often this is decided, there is one launch.
                let Ok(token) = LaunchToken::new(claim.id.as_str()) else {
                    return self.fail(claim, CHOOSING, "the claim's id is no launch token".to_owned());
                };
                let claim = ClaimRef { key: claim.key.clone(), id: claim.id.clone() };
                self.put(Record::Launch(LaunchRecord { token, key, count: 1, claim: Some(claim) }), "an open claim has no pod VM");
            }
            Ok(None) => self.call(Call::Types),
            Err(cause) => self.fail(claim, CHOOSING, cause),
        }
    }

    /// What to launch; `None` until the instance types are known.
    fn launch_key(&self, claim: &ClaimRecord) -> Result<Option<LaunchKey>, String> {
        let wanted = claim.class.as_ref().map_or("default", ClassName::as_str);
        let Some(record) = self.input.records.class_of(claim) else {
            let offered: Vec<&str> = self.input.records.classes.keys().map(ClassName::as_str).collect();
            return Err(format!("class {wanted:?} is not offered; offered: {}", offered.join(", ")));
        };
        let class = &record.class;
        if let Some(image) = claim.image.as_deref().filter(|image| !class.allows_image(image)) {
            return Err(format!("image {image:?} is not allowed by class {wanted:?}"));
        }
        let observed = self.input.observed;
        let Some(types) = &observed.types else {
            // A refusal counts until the question may be asked again.
            let is_fresh = observed.pauses.get(&Call::Types).is_some_and(|pause| pause.until > self.input.now);
            return observed.types_refused.as_ref().filter(|_| is_fresh).map_or(Ok(None), |cause| Err(cause.clone()));
        };
        let demand = Demand { vcpus: claim.vcpus, memory: claim.memory_mib, instance_type: claim.instance_type.as_deref() };
        let chosen = choose_instance_type(types, class, &demand).map_err(|error| error.to_string())?;
        Ok(Some(LaunchKey {
            class: record.name.clone(),
            tee: class.tee,
            instance_type: chosen.name.clone(),
            zone: class.zone.clone(),
            image: claim.image.clone().or_else(|| class.image.clone()),
        }))
    }

    fn fail(&mut self, claim: &ClaimRecord, during: &str, mut cause: String) {
        // Parts of it come from the cloud and from a machine's console; the record must stay small.
        cause.truncate(cause.floor_char_boundary(MAX_CAUSE));
        let status = ClaimStatus::Failed { during: during.to_owned(), cause };
        self.put(Record::Claim(ClaimRecord { status, ..claim.clone() }), "it cannot be served");
    }
}
