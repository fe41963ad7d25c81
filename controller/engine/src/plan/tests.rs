//! A model of the Journal and the cloud, driven at random: plans are carried out in part, calls fail with and without effect, the
//! process forgets what it has seen, instances die. Whatever happens, nothing is doubled, and once the faults end, nothing is left.

use std::collections::{BTreeMap, BTreeSet};

use peerpods_cloud_api::{Instance, InstanceId, InstanceState, InstanceType, LaunchToken, Launched, ProviderError};
use peerpods_controller_api::{
    ClaimId, ClaimKey, ClaimStatus, Class, ClassName, ClassRecord, Mib, NodeName, PodRef, PodVmState, RootOfTrust, Tee,
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
    launched: BTreeSet<LaunchToken>,
    created: u32,
    claimed: u128,
    now: Duration,
}

fn owner() -> OwnerTag {
    OwnerTag::new("owner-1").expect("valid")
}

impl Model {
    fn new() -> Self {
        let mut model = Self::default();
        let class = Class::new(Tee::Snp, RootOfTrust::Hardware).expect("valid");
        model.records.insert(Record::Class(ClassRecord { name: ClassName::new("default").expect("valid"), class }));
        model
    }

    fn plan(&self) -> Plan {
        let timing = Timing { grace: Duration::ZERO, ..Timing::default() };
        let plan = plan(&Input { records: &self.records, observed: &self.observed, owner: &owner(), timing: &timing, now: self.now });
        let keys = plan.writes.iter().map(|(write, _)| match write {
            Write::Put(record) => record.key(),
            Write::Remove(key) => key.clone(),
        });
        assert_eq!(keys.collect::<BTreeSet<_>>().len(), plan.writes.len(), "one plan writes each record at most once: {plan:?}");
        for call in &plan.calls {
            assert!(!self.observed.in_flight.contains(call), "a call is made once at a time");
            if let Call::Delete(id) = call {
                let pod_vm = self.records.pod_vms.get(id);
                let is_wanted = pod_vm.is_some_and(|p| self.records.is_wanted(p.claimed_by.as_ref()) && p.state != PodVmState::Deleting);
                assert!(!is_wanted, "a wanted pod VM is not deleted");
            }
        }
        plan
    }

    fn write(&mut self, write: &Write) {
        match write {
            Write::Put(record) => {
                if let Record::PodVm(pod_vm) = record {
                    self.observed.adopt(&pod_vm.instance_id, self.now);
                }
                self.records.insert(record.clone());
            }
            Write::Remove(key) => {
                if key.kind == peerpods_controller_api::RecordKind::PodVm {
                    let id = InstanceId::new(key.name.clone()).expect("valid");
                    assert!(!self.instances.contains_key(&id), "a record goes only after its instance");
                    self.observed.forget_instance(&id);
                }
                self.records.remove(key);
            }
        }
    }

    fn start(&mut self, call: Call) {
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
                if self.launched.insert(token.clone()) {
                    self.created += 1;
                    let id = InstanceId::new(format!("i-{}", self.created)).expect("valid");
                    let instance =
                        Instance { id: id.clone(), owner: owner(), token: token.clone(), state: InstanceState::Pending, address: None };
                    self.instances.insert(id, instance);
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
                    if n % 2 == 0 {
                        self.instances.remove(&ids[i]);
                    } else if let Some(instance) = self.instances.get_mut(&ids[i]) {
                        instance.state = InstanceState::Stopped;
                    }
                }
            }
            Step::Restart => self.restart(),
            Step::Pass(millis) => self.now += Duration::from_millis(u64::from(*millis)),
        }
        let tokens: BTreeSet<_> = self.instances.values().map(|i| &i.token).collect();
        assert_eq!(tokens.len(), self.instances.len(), "one launch makes one instance");
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
            let is_up = self.records.pod_vms.values().all(|p| p.state == PodVmState::Claimed);
            let is_settled = is_served && is_up && self.records.launches.is_empty();
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
    fn nothing_is_doubled_and_nothing_is_left(steps in proptest::collection::vec(any_step(), 0..120)) {
        let mut model = Model::new();
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
        prop_assert!(model.records.claims.is_empty() && model.records.pod_vms.is_empty() && model.records.launches.is_empty());
        prop_assert!(model.instances.is_empty(), "left: {:?}", model.instances);
        prop_assert!(u128::from(model.created) <= model.claimed, "more instances than lives of claims");
    }
}
