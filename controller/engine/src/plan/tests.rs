//! A model of the Journal and the cloud, driven at random: plans are carried out in part, calls fail with and without effect, the
//! process forgets what it has seen, instances die. Whatever happens, nothing is doubled, and once the faults end, nothing is left.

use std::collections::{BTreeMap, BTreeSet};

use peerpods_cloud_api::{Instance, InstanceId, InstanceState, InstanceType, LaunchToken, Launched, ProviderError};
use peerpods_controller_api::{
    ClaimId, ClaimKey, ClaimStatus, Class, ClassName, ClassRecord, LaunchRecord, Mib, NodeName, PodRef, PodVmState, Pool, RootOfTrust, Tee,
    Zone,
};
use proptest::prelude::*;

use super::*;
use crate::{ClaimSpec, Outcome, admission};

/// What happens next. Numbers choose among what is possible then.
#[derive(Debug, Clone)]
enum Step {
    Claim(u8),
    Release(u8),
    /// Carry out one write of the plan.
    Write(u8),
    /// Start one call of the plan.
    Start(u8),
    /// End one call under way: it takes effect, and answers.
    End(u8),
    /// It takes effect, and the answer is lost.
    Lose(u8),
    /// It fails without effect.
    Fail(u8, u8),
    /// A listing that was made now answers later.
    Boot(u8),
    Die(u8),
    Restart,
    Pass(u16),
    /// A zone has no capacity, or has some again.
    Fill(bool),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0_u8..4).prop_map(Step::Claim),
        2 => (0_u8..4).prop_map(Step::Release),
        8 => any::<u8>().prop_map(Step::Write),
        8 => any::<u8>().prop_map(Step::Start),
        8 => any::<u8>().prop_map(Step::End),
        2 => any::<u8>().prop_map(Step::Lose),
        2 => (any::<u8>(), any::<u8>()).prop_map(|(which, error)| Step::Fail(which, error)),
        3 => any::<u8>().prop_map(Step::Boot),
        1 => any::<u8>().prop_map(Step::Die),
        1 => Just(Step::Restart),
        4 => (1_u16..3000).prop_map(Step::Pass),
        1 => any::<bool>().prop_map(Step::Fill),
    ]
}

#[derive(Debug, Default)]
struct Model {
    records: Records,
    observed: Observed,
    instances: BTreeMap<InstanceId, Instance>,
    /// Answers that listings under way will give, made when they began.
    listings: BTreeMap<Call, Vec<Instance>>,
    began: BTreeMap<Call, Duration>,
    launched: BTreeMap<LaunchToken, u32>,
    /// What the model's cloud has no capacity for.
    full: BTreeSet<String>,
    created: u32,
    died: u32,
    /// Instances of launches without room; a launch that a restart has forgotten may be asked for again beside its replacement.
    refused: u32,
    /// What was asked for; its record may go before the answer comes.
    requests: BTreeMap<LaunchToken, LaunchRecord>,
    claimed: u128,
    planned: std::cell::Cell<u128>,
    now: Duration,
}

fn owner() -> OwnerTag {
    OwnerTag::new("owner-1").expect("valid")
}

impl Model {
    fn new(pool: Option<Pool>) -> Self {
        let mut model = Self::default();
        let zones = ["a", "b"].map(|zone| Zone::new(zone).expect("valid")).to_vec();
        let class = Class { zones, pool, ..Class::new(Tee::Snp, RootOfTrust::Hardware).expect("valid") };
        model.records.insert(Record::Class(ClassRecord { name: ClassName::new("default").expect("valid"), class }));
        model
    }

    fn pool(&self) -> Option<Pool> {
        self.records.classes.values().next().and_then(|record| record.class.pool)
    }

    fn plan(&self) -> Plan {
        let timing = Timing { grace: Duration::ZERO, ..Timing::default() };
        self.planned.set(self.planned.get() + 1000);
        let (owner, seed) = (owner(), self.planned.get());
        let plan = plan(&Input {
            records: &self.records,
            observed: &self.observed,
            owner: &owner,
            timing: &timing,
            now: self.now,
            hold: None,
            seed,
        });
        let keys = plan.writes.iter().map(|(write, _)| match write {
            Write::Put(record) => record.key(),
            Write::Remove(key) => key.clone(),
        });
        assert_eq!(keys.collect::<BTreeSet<_>>().len(), plan.writes.len(), "one plan writes each record at most once: {plan:?}");
        for call in &plan.calls {
            assert!(!self.observed.in_flight.contains(call), "a call is made once at a time");
            if let Call::Delete(id) = call {
                let pod_vm = self.records.pod_vms.get(id);
                let is_wanted = pod_vm.is_some_and(|p| p.state != PodVmState::Deleting);
                assert!(!is_wanted, "a pod VM is recorded as deleted first");
            }
        }
        plan
    }

    fn write(&mut self, write: &Write) {
        match write {
            Write::Put(record) => {
                if let Record::PodVm(pod_vm) = record {
                    let old = self.records.pod_vms.get(&pod_vm.instance_id);
                    let had = old.and_then(|old| old.claimed_by.clone()).filter(|claim| self.records.is_wanted(Some(claim)));
                    assert!(had.is_none() || had == pod_vm.claimed_by, "an assignment does not change: {old:?} {pod_vm:?}");
                    let is_new = pod_vm.claimed_by.is_some() && had != pod_vm.claimed_by;
                    let others = self.records.pod_vms.values().filter(|p| p.instance_id != pod_vm.instance_id);
                    assert!(!is_new || others.into_iter().all(|p| p.claimed_by != pod_vm.claimed_by), "a claim has one pod VM");
                    self.observed.recorded(pod_vm, self.now);
                }
                self.records.insert(record.clone());
            }
            Write::Remove(key) => {
                if key.kind == peerpods_controller_api::RecordKind::PodVm {
                    let id = InstanceId::new(key.name.clone()).expect("valid");
                    assert!(!self.instances.contains_key(&id), "a record goes only after its instance");
                    self.observed.forget_instance(&id);
                }
                if let Some(Record::Launch(launch)) = self.records.remove(key) {
                    self.observed.forget_launch(&launch, self.now, &Timing::default());
                }
            }
        }
    }

    fn start(&mut self, call: Call) {
        if let Call::Launch(token) = &call {
            self.requests.insert(token.clone(), self.records.launches[token].clone());
        }
        if call == Call::List {
            self.listings.insert(call.clone(), self.instances.values().cloned().collect());
        }
        self.began.insert(call.clone(), self.now);
        self.observed.in_flight.insert(call);
    }

    /// What the call does and answers.
    fn carry_out(&mut self, call: &Call) -> Outcome {
        match call {
            Call::List => Outcome::Listed(Ok(self.listings.remove(call).unwrap_or_default())),
            Call::Types => Outcome::Types(Ok(vec![InstanceType {
                name: "small".to_owned(),
                vcpus: 2,
                memory: Mib(4096),
                gpus: 0,
                tees: vec![Tee::Snp],
            }])),
            Call::Launch(token) => {
                let launch = &self.requests[token];
                if launch.key.zone.as_ref().is_some_and(|zone| self.full.contains(zone.as_str())) && !self.launched.contains_key(token) {
                    self.refused += launch.count;
                    return Outcome::Launched(Err(ProviderError::InsufficientCapacity { detail: "full".to_owned() }));
                }
                let count = launch.count;
                assert!((1..=100).contains(&count));
                if self.launched.insert(token.clone(), count).is_none() {
                    for _ in 0..count {
                        self.created += 1;
                        let id = InstanceId::new(format!("i-{}", self.created)).expect("valid");
                        let instance =
                            Instance { id: id.clone(), owner: owner(), token: token.clone(), state: InstanceState::Pending, address: None };
                        self.instances.insert(id, instance);
                    }
                }
                Outcome::Launched(Ok(Launched { instances: self.instances.values().filter(|i| i.token == *token).cloned().collect() }))
            }
            Call::Get(id) => Outcome::Got(self.instances.get(id).cloned().ok_or(ProviderError::NotFound)),
            Call::Delete(id) => match self.instances.get_mut(id) {
                None => Outcome::Deleted(Err(ProviderError::NotFound)),
                Some(instance) if instance.state == InstanceState::Deleting => {
                    self.instances.remove(id);
                    Outcome::Deleted(Ok(()))
                }
                Some(instance) => {
                    instance.state = InstanceState::Deleting;
                    Outcome::Deleted(Ok(()))
                }
            },
            Call::Examine(_) => Outcome::Examined(Some("panic".to_owned())),
        }
    }

    fn answer(&mut self, call: &Call, outcome: Outcome) {
        let began = self.began.remove(call).expect("it has begun");
        let timing = Timing { grace: Duration::ZERO, ..Timing::default() };
        // Results of one moment still have an order.
        self.now += Duration::from_micros(1);
        self.observed.take(call, outcome, began, self.now, &timing, 500);
        if let Call::Launch(token) = call
            && !self.records.launches.contains_key(token)
        {
            self.observed.forget_token(token);
        }
    }

    fn step(&mut self, step: &Step) {
        let nth = |len: usize, n: u8| (len > 0).then(|| usize::from(n) % len.max(1));
        let under_way: Vec<Call> = self.observed.in_flight.iter().cloned().collect();
        match step {
            Step::Claim(n) => {
                self.claimed += 1;
                let id = ClaimId::from_random(self.claimed);
                if let Ok(Some(record)) = admission::admit_claim(&self.records, spec(*n), id) {
                    self.records.insert(record);
                }
            }
            Step::Release(n) => {
                if let Some(record) = admission::admit_release(&self.records, &spec(*n).key) {
                    self.records.insert(record);
                }
            }
            Step::Write(n) => {
                let plan = self.plan();
                if let Some(i) = nth(plan.writes.len(), *n) {
                    self.write(&plan.writes[i].0);
                }
            }
            Step::Start(n) => {
                let plan = self.plan();
                if let Some(i) = nth(plan.calls.len(), *n) {
                    self.start(plan.calls[i].clone());
                }
            }
            Step::End(n) => {
                if let Some(call) = nth(under_way.len(), *n).map(|i| under_way[i].clone()) {
                    let outcome = self.carry_out(&call);
                    self.answer(&call, outcome);
                }
            }
            Step::Lose(n) => {
                if let Some(call) = nth(under_way.len(), *n).map(|i| under_way[i].clone()) {
                    self.carry_out(&call);
                    self.answer(&call, failed(&call, ProviderError::DeadlineExceeded));
                }
            }
            Step::Fail(n, error) => {
                let errors = [
                    ProviderError::Throttled { retry_after: Some(Duration::from_secs(1)) },
                    ProviderError::Unavailable { detail: "down".to_owned() },
                    ProviderError::QuotaExceeded { detail: "instances".to_owned() },
                    ProviderError::Internal { detail: "bug".to_owned() },
                ];
                if let Some(call) = nth(under_way.len(), *n).map(|i| under_way[i].clone()) {
                    self.listings.remove(&call);
                    self.answer(&call, failed(&call, errors[usize::from(*error) % errors.len()].clone()));
                }
            }
            Step::Boot(n) => {
                let pending: Vec<_> = self.instances.values_mut().filter(|i| i.state == InstanceState::Pending).collect();
                if let Some(i) = nth(pending.len(), *n) {
                    let instance = pending.into_iter().nth(i).expect("in range");
                    instance.state = InstanceState::Running;
                    instance.address = Some([10, 0, 0, 1].into());
                }
            }
            Step::Die(n) => {
                let ids: Vec<_> = self.instances.keys().cloned().collect();
                if let Some(i) = nth(ids.len(), *n) {
                    self.died += 1;
                    if n % 2 == 0 {
                        self.instances.remove(&ids[i]);
                    } else if let Some(instance) = self.instances.get_mut(&ids[i]) {
                        instance.state = InstanceState::Stopped;
                    }
                }
            }
            Step::Restart => self.restart(),
            Step::Fill(true) => drop(self.full.insert("a".to_owned())),
            Step::Fill(false) => self.full.clear(),
            Step::Pass(millis) => self.now += Duration::from_millis(u64::from(*millis)),
        }
        let mut of_token: BTreeMap<&LaunchToken, u32> = BTreeMap::new();
        for instance in self.instances.values() {
            *of_token.entry(&instance.token).or_default() += 1;
        }
        assert!(of_token.iter().all(|(token, count)| *count <= self.launched[*token]), "a launch makes no more than it says");
    }

    fn restart(&mut self) {
        (self.observed, self.listings, self.began, self.now) = (Observed::default(), BTreeMap::new(), BTreeMap::new(), Duration::ZERO);
        for id in self.records.pod_vms.keys().cloned().collect::<Vec<_>>() {
            self.observed.adopt(&id, self.now);
        }
    }

    /// Everything works and time passes, until nothing happens any more.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            self.instances.retain(|_, instance| instance.state != InstanceState::Deleting);
            for instance in self.instances.values_mut().filter(|i| i.state == InstanceState::Pending) {
                (instance.state, instance.address) = (InstanceState::Running, Some([10, 0, 0, 1].into()));
            }
            let under_way: Vec<Call> = self.observed.in_flight.iter().cloned().collect();
            for call in under_way {
                let outcome = self.carry_out(&call);
                self.answer(&call, outcome);
            }
            let plan = self.plan();
            for (write, _) in &plan.writes {
                self.write(write);
            }
            let only_sweeps = plan.writes.is_empty() && plan.calls.iter().all(|call| *call == Call::List);
            let is_served = self.records.claims.values().all(|claim| match claim.status {
                ClaimStatus::Open => self.records.index().pod_vm_of(claim).is_some(),
                ClaimStatus::Failed { .. } => true,
                ClaimStatus::Released => false,
            });
            let is_up = self.records.pod_vms.values().all(|p| matches!(p.state, PodVmState::Claimed | PodVmState::Running));
            let is_settled = is_served && is_up && self.records.launches.is_empty() && self.has_its_pool();
            if only_sweeps && is_settled && self.observed.instances.len() == self.records.pod_vms.len() && self.is_seen() {
                return;
            }
            let is_idle = plan.writes.is_empty() && plan.calls.is_empty();
            for call in plan.calls {
                self.start(call);
            }
            if is_idle {
                self.now = self.now.max(plan.wake.expect("something is waited for"));
            }
        }
        panic!("does not settle: {self:#?}\n{:#?}", self.plan());
    }

    /// The class keeps nothing ready any more.
    fn drain(&mut self) {
        for record in self.records.classes.values_mut() {
            record.class.pool = None;
        }
        self.settle();
    }

    /// Whether as many wait as should, and no more than may.
    fn has_its_pool(&self) -> bool {
        let waiting = self.records.pod_vms.values().filter(|p| p.claimed_by.is_none()).count();
        match self.pool() {
            None => waiting == 0,
            Some(pool) => (pool.min as usize..=pool.max as usize).contains(&waiting),
        }
    }

    /// Whether what is observed is what exists.
    fn is_seen(&self) -> bool {
        self.instances.len() == self.observed.instances.len()
            && self.instances.iter().all(|(id, i)| self.observed.instances.get(id).is_some_and(|seen| seen.instance == *i))
    }
}

fn failed(call: &Call, error: ProviderError) -> Outcome {
    match call {
        Call::List => Outcome::Listed(Err(error)),
        Call::Types => Outcome::Types(Err(error)),
        Call::Launch(_) => Outcome::Launched(Err(error)),
        Call::Get(_) => Outcome::Got(Err(error)),
        Call::Delete(_) => Outcome::Deleted(Err(error)),
        Call::Examine(_) => Outcome::Examined(None),
    }
}

fn spec(n: u8) -> ClaimSpec {
    ClaimSpec {
        key: ClaimKey::new(format!("node-1/default/pod-{n}")).expect("valid"),
        pod: PodRef::new("default", format!("pod-{n}"), None).expect("valid"),
        class: None,
        vcpus: 1.0,
        memory: Mib(512),
        image: None,
        instance_type: None,
        node: NodeName::new("node-1").expect("valid"),
        node_spki: "aa".to_owned(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
    #[test]
    fn nothing_is_doubled_and_nothing_is_left(
        steps in proptest::collection::vec(any_step(), 0..120),
        pool in proptest::option::of((0_u32..3, 0_u32..3).prop_map(|(min, more)| Pool { min, max: min + more, ttl_secs: 1 })),
    ) {
        let mut model = Model::new(pool);
        for step in &steps {
            model.step(step);
        }
        model.settle();
        for claim in model.records.claims.values() {
            let pod_vm = model.records.index().pod_vm_of(claim);
            match claim.status {
                ClaimStatus::Open => prop_assert_eq!(pod_vm.map(|p| &p.state), Some(&PodVmState::Claimed)),
                ClaimStatus::Failed { .. } => prop_assert!(pod_vm.is_none()),
                ClaimStatus::Released => prop_assert!(false, "a released claim is forgotten"),
            }
        }
        for n in 0..4 {
            model.step(&Step::Release(n));
        }
        model.settle();
        prop_assert!(model.records.claims.is_empty() && model.records.launches.is_empty());
        model.drain();
        prop_assert!(model.records.pod_vms.is_empty(), "left: {:?}", model.records.pod_vms);
        prop_assert!(model.instances.is_empty(), "left: {:?}", model.instances);
        if pool.is_none() {
            let most = model.claimed + u128::from(model.died) + u128::from(model.refused);
            prop_assert!(u128::from(model.created) <= most, "more instances than lives of claims");
        }
    }
}
