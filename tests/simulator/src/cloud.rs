//! A cloud as clouds are: asynchronous, eventually consistent, throttled, full, and sometimes wrong about what it has done.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use peerpods_cloud_api::{
    CloudProvider, Instance, InstanceId, InstanceState, InstanceType, LaunchRequest, LaunchToken, Launched, Limits, OwnerTag, ProviderError,
};
use tokio::time::Instant;

use crate::Report;
use crate::account::{Account, Draw};
use crate::offer::{instance_types, wrong_field};

/// The cloud; outlives every controller.
pub(crate) struct ModelCloud {
    state: Mutex<State>,
}

struct State {
    rng: fastrand::Rng,
    is_faulty: bool,
    instances: BTreeMap<InstanceId, Vm>,
    tokens: BTreeMap<LaunchToken, (LaunchRequest, Vec<InstanceId>)>,
    full: BTreeSet<String>,
    account: Account,
    /// When it last made an instance.
    launched: Option<Instant>,
    /// Healthy instances that a node uses: nobody may delete them.
    held: BTreeSet<InstanceId>,
    report: Report,
    violations: Vec<String>,
}

struct Vm {
    instance: Instance,
    address: Ipv4Addr,
    /// When reads begin to show it.
    visible: Instant,
    runs: Instant,
    /// When it stops by itself.
    stops: Option<Instant>,
    /// When it is gone, once it is being deleted.
    gone: Option<Instant>,
}

/// How a call goes wrong.
#[derive(Clone, Copy, PartialEq)]
enum Trouble {
    None,
    Before,
    After,
    Silence,
}

impl ModelCloud {
    /// One with these limits; a faulty one fails until it is mended.
    pub(crate) fn new(seed: u64, limits: Limits, is_faulty: bool) -> Self {
        let state = State {
            rng: fastrand::Rng::with_seed(seed),
            is_faulty,
            account: Account::new(limits),
            launched: None,
            instances: BTreeMap::new(),
            tokens: BTreeMap::new(),
            full: BTreeSet::new(),
            held: BTreeSet::new(),
            report: Report { schedules: 1, ..Report::default() },
            violations: Vec::new(),
        };
        Self { state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_faulty(&self) -> bool {
        self.state().is_faulty
    }

    /// From now on everything works.
    pub(crate) fn mend(&self) {
        let mut state = self.state();
        state.is_faulty = false;
        state.full.clear();
    }

    pub(crate) fn note(&self, fault: &'static str) {
        self.state().report.fault(fault);
    }

    pub(crate) fn reach(&self, what: &'static str) {
        self.state().report.states.insert(what);
    }

    pub(crate) fn killed(&self) {
        self.state().report.kills += 1;
    }

    /// A zone fills up, or has room again.
    pub(crate) fn fill(&self, zone: &str, is_full: bool) {
        let mut state = self.state();
        if is_full {
            state.full.insert(zone.to_owned());
        } else {
            state.full.remove(zone);
        }
    }

    /// An instance of somebody else's.
    pub(crate) fn plant(&self, owner: &str) {
        let mut state = self.state();
        let id = state.new_id();
        let (Ok(owner), Ok(token)) = (OwnerTag::new(owner), LaunchToken::new("theirs")) else { return };
        state.add(id, owner, token, false);
    }

    /// A node uses this instance, or does so no more.
    pub(crate) fn hold(&self, id: &InstanceId, is_held: bool) {
        let mut state = self.state();
        if is_held {
            state.held.insert(id.clone());
        } else {
            state.held.remove(id);
        }
    }

    /// When it last made an instance, and the counts.
    pub(crate) fn launched(&self) -> (Option<Instant>, Report) {
        let state = self.state();
        (state.launched, state.report.clone())
    }

    pub(crate) fn violation(&self, what: String) {
        self.state().violations.push(what);
    }

    /// What was done wrong so far, what carries this tag, and the counts.
    pub(crate) fn end(&self, owner: &OwnerTag) -> (Vec<String>, Vec<Instance>, Report) {
        let mut state = self.state();
        state.tick();
        let left = state.instances.values().filter(|vm| vm.instance.owner == *owner).map(|vm| vm.instance.clone()).collect();
        (state.violations.clone(), left, state.report.clone())
    }

    /// Waits as long as a call takes; the future may be dropped before, in the middle or after.
    async fn call<T>(
        &self,
        most_ms: u64,
        draw: Draw,
        work: impl FnOnce(&mut State) -> Result<T, ProviderError>,
    ) -> Result<T, ProviderError> {
        let (there, back, trouble, error) = {
            let mut state = self.state();
            *state.report.calls.entry(draw.name()).or_default() += 1;
            let trouble = state.trouble();
            (state.rng.u64(0..=most_ms / 2), state.rng.u64(0..=most_ms / 2), trouble, state.error())
        };
        tokio::time::sleep(Duration::from_millis(there)).await;
        if trouble == Trouble::Before {
            self.note("error without effect");
            return Err(error);
        }
        let result = {
            let mut state = self.state();
            state.tick();
            if state.account.draw(draw) {
                work(&mut state)
            } else {
                state.report.fault("over the limit");
                Err(ProviderError::Throttled { retry_after: None })
            }
        };
        if trouble == Trouble::Silence {
            self.note("no answer");
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(Duration::from_millis(back)).await;
        if trouble == Trouble::After {
            self.note("error after effect");
            return Err(error);
        }
        result
    }
}

impl State {
    fn trouble(&mut self) -> Trouble {
        if !self.is_faulty {
            return Trouble::None;
        }
        match self.rng.u32(0..100) {
            0..4 => Trouble::Before,
            4..8 => Trouble::After,
            8 => Trouble::Silence,
            _ => Trouble::None,
        }
    }

    fn error(&mut self) -> ProviderError {
        match self.rng.u32(0..20) {
            0..6 => ProviderError::Throttled { retry_after: None },
            6..9 => ProviderError::Throttled { retry_after: Some(Duration::from_secs(self.rng.u64(1..8))) },
            9..14 => ProviderError::Unavailable { detail: "503".to_owned() },
            14..19 => ProviderError::DeadlineExceeded,
            _ => ProviderError::Internal { detail: "bug".to_owned() },
        }
    }

    /// What time has done.
    fn tick(&mut self) {
        let now = Instant::now();
        for vm in self.instances.values_mut() {
            let state = match vm {
                Vm { gone: Some(_), .. } => InstanceState::Deleting,
                Vm { stops: Some(at), .. } if *at <= now => InstanceState::Stopped,
                Vm { runs, .. } if *runs <= now => InstanceState::Running,
                _ => InstanceState::Pending,
            };
            vm.instance.state = state;
            vm.instance.address = (vm.runs <= now).then(|| vm.address.into());
        }
        self.instances.retain(|_, vm| vm.gone.is_none_or(|gone| gone > now));
    }

    fn new_id(&mut self) -> InstanceId {
        self.report.instances += 1;
        InstanceId::new(format!("i-{}", self.report.instances)).unwrap_or_else(|_| unreachable!("digits are a name"))
    }

    fn add(&mut self, id: InstanceId, owner: OwnerTag, token: LaunchToken, may_fail: bool) -> Instance {
        let now = Instant::now();
        let millis = |rng: &mut fastrand::Rng, most| Duration::from_millis(rng.u64(0..most));
        let instance = Instance { id: id.clone(), owner, token, state: InstanceState::Pending, address: None };
        let is_half_made = may_fail && self.is_faulty && self.rng.u32(0..100) < 4;
        if is_half_made {
            self.report.fault("instance that stops by itself");
        }
        let number = u32::try_from(self.report.instances).unwrap_or_default();
        let vm = Vm {
            instance: instance.clone(),
            address: Ipv4Addr::from(FIRST_ADDRESS + number),
            visible: now + if self.is_faulty { millis(&mut self.rng, 4000) } else { Duration::ZERO },
            runs: now + millis(&mut self.rng, 20_000),
            stops: is_half_made.then(|| now + millis(&mut self.rng, 60_000)),
            gone: None,
        };
        self.instances.insert(id, vm);
        self.launched = Some(now);
        instance
    }

    fn launch(&mut self, request: &LaunchRequest) -> Result<Launched, ProviderError> {
        if let Some(wrong) = wrong_field(request) {
            return Err(ProviderError::InvalidRequest { detail: format!("{wrong} is not one that this cloud has") });
        }
        if let Some((first, ids)) = self.tokens.get(&request.token) {
            if first != request {
                return Err(ProviderError::AlreadyExists { detail: "the token".to_owned() });
            }
            let known = ids.iter().filter_map(|id| self.instances.get(id)).map(|vm| vm.instance.clone());
            return Ok(Launched { instances: known.collect() });
        }
        if request.zone.as_ref().is_some_and(|zone| self.full.contains(zone.as_str())) {
            self.report.fault("no capacity");
            return Err(ProviderError::InsufficientCapacity { detail: "the zone is full".to_owned() });
        }
        let mut count = request.count;
        if self.is_faulty && count > 1 && self.rng.u32(0..100) < 15 {
            self.report.fault("fewer than asked for");
            count = self.rng.u32(1..count);
        }
        let instances: Vec<Instance> = (0..count)
            .map(|_| {
                let id = self.new_id();
                self.add(id, request.owner.clone(), request.token.clone(), true)
            })
            .collect();
        self.tokens.insert(request.token.clone(), (request.clone(), instances.iter().map(|instance| instance.id.clone()).collect()));
        Ok(Launched { instances })
    }

    fn delete(&mut self, id: &InstanceId, owner: &str) -> Result<(), ProviderError> {
        let now = Instant::now();
        let delay = Duration::from_millis(self.rng.u64(500..15_000));
        let is_held = self.held.contains(id);
        let vm = self.instances.get_mut(id).ok_or(ProviderError::NotFound)?;
        if vm.instance.owner.as_str() != owner {
            self.violations.push(format!("{id} of {} was deleted", vm.instance.owner));
        }
        if is_held && vm.instance.state == InstanceState::Running {
            self.violations.push(format!("{id} was deleted while a claim had it"));
        }
        vm.gone.get_or_insert(now + delay);
        Ok(())
    }
}

/// 10.0.0.0.
const FIRST_ADDRESS: u32 = 0x0a00_0000;

/// Whose instances the engine under test has.
pub(crate) const OWNER: &str = "ours";

#[async_trait]
impl CloudProvider for ModelCloud {
    async fn verify(&self) -> Result<(), ProviderError> {
        Ok(())
    }

    async fn launch(&self, request: &LaunchRequest) -> Result<Launched, ProviderError> {
        self.call(2000, Draw::Launch(request.count), |state| state.launch(request)).await
    }

    async fn get(&self, id: &InstanceId) -> Result<Instance, ProviderError> {
        self.call(200, Draw::Read, |state| {
            let visible = state.instances.get(id).filter(|vm| vm.visible <= Instant::now());
            visible.map(|vm| vm.instance.clone()).ok_or(ProviderError::NotFound)
        })
        .await
    }

    async fn delete(&self, id: &InstanceId) -> Result<(), ProviderError> {
        self.call(500, Draw::Delete, |state| state.delete(id, OWNER)).await
    }

    async fn list(&self, owner: &OwnerTag) -> Result<Vec<Instance>, ProviderError> {
        self.call(400, Draw::Read, |state| {
            let now = Instant::now();
            let visible = state.instances.values().filter(|vm| vm.visible <= now && vm.instance.owner == *owner);
            Ok(visible.map(|vm| vm.instance.clone()).collect())
        })
        .await
    }

    async fn instance_types(&self) -> Result<Vec<InstanceType>, ProviderError> {
        self.call(200, Draw::Read, |_| Ok(instance_types())).await
    }

    fn limits(&self) -> Limits {
        self.state().account.limits
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use peerpods_cloud_api::{Tee, Zone};
    use peerpods_cloud_conformance::Subject;

    use super::*;

    /// What the engine is simulated against is a cloud as the others are.
    #[tokio::test(start_paused = true)]
    async fn model_conforms() {
        let cloud = Arc::new(ModelCloud::new(1, Limits::default(), false));
        let subject = Subject {
            open: Box::new(move || Arc::clone(&cloud) as _),
            owner_prefix: "conformance/".to_owned(),
            instance_type: "small".to_owned(),
            tee: Tee::Snp,
            zone: Zone::new("a").ok(),
            largest_batch: 100,
        };
        let outcome = peerpods_cloud_conformance::run(&subject, "").await;
        assert!(outcome.failed.is_empty() && outcome.passed >= 60, "{outcome:#?}");
    }
}
