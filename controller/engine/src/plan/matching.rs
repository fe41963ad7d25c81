//! Who is served by what: open claims on one side, pod VMs that nobody has and launches under way on the other.
//!
//! Nothing of it is stored but [`PodVmRecord::claimed_by`](peerpods_controller_api::PodVmRecord::claimed_by): it is made anew for every
//! plan, in the order of the claims' keys, and comes out the same while nothing changes.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use peerpods_controller_api::{
    ClaimRecord, ClaimStatus, ClassName, ClassRecord, Demand, LaunchKey, LaunchRecord, LaunchToken, Mib, PodVmRecord, PodVmState,
    fitting_instance_types,
};

use super::pod_vms::{Health, health};
use crate::records::Index;
use crate::{Observed, Records, Refusal};

/// How many instances one launch may ask for ([`peerpods_cloud_api::LaunchRequest::count`]).
pub(super) const BATCH: u32 = 100;

/// What a claim fails during, when nothing can be launched for it, or nothing is.
const CHOOSING: &str = "choosing an instance type";
const LAUNCHING: &str = "launching";

/// The result.
#[derive(Default)]
pub(super) struct Matching<'a> {
    /// A pod VM that nobody has, for a claim that has none.
    pub(super) given: Vec<(&'a ClaimRecord, &'a PodVmRecord)>,
    /// Claims that wait for a launch, in the order in which its instances are given out.
    pub(super) waiting: HashMap<&'a LaunchToken, VecDeque<&'a ClaimRecord>>,
    /// What is to be launched, and for how many claims.
    pub(super) wanted: BTreeMap<LaunchKey, u32>,
    /// Claims that cannot be served: what fails, and why.
    pub(super) hopeless: Vec<(&'a ClaimRecord, &'static str, String)>,
    /// Pod VMs that nobody has or is given, those that run first.
    pub(super) idle: Vec<&'a PodVmRecord>,
    /// How many instances of a launch nobody waits for.
    pub(super) spare: HashMap<&'a LaunchToken, u32>,
    /// The instance types have to be known before more can be decided.
    pub(super) needs_types: bool,
}

/// What a claim, or a pool, can be served by: the best first.
pub(super) type Candidates = Rc<Vec<LaunchKey>>;

/// Works out candidates, each question once.
pub(super) struct Catalogue<'a> {
    records: &'a Records,
    observed: &'a Observed,
    now: Duration,
    refused: HashMap<&'a LaunchKey, &'a Refusal>,
    known: HashMap<Question<'a>, Result<Option<Candidates>, String>>,
}

#[derive(PartialEq, Eq, Hash)]
struct Question<'a> {
    class: &'a str,
    vcpus: u32,
    memory: Mib,
    instance_type: Option<&'a str>,
    image: Option<&'a str>,
}

impl<'a> Catalogue<'a> {
    pub(super) fn new(records: &'a Records, observed: &'a Observed, now: Duration) -> Self {
        let remembered = observed.refusals.iter().filter(|(_, refusal)| refusal.until > now);
        let mut refused: HashMap<&LaunchKey, &Refusal> = remembered.collect();
        for launch in records.launches.values() {
            if let Some(refusal) = observed.refused.get(&launch.token) {
                refused.insert(&launch.key, refusal);
            }
        }
        Self { records, observed, now, refused, known: HashMap::new() }
    }

    /// What to launch, past what the cloud has no room for; or why a launch would be refused, as one was a moment ago.
    pub(super) fn choose<'c>(&self, candidates: &'c [LaunchKey]) -> Result<&'c LaunchKey, &'a str> {
        let mut last = "there is nothing to launch";
        for key in candidates {
            match self.refused.get(key) {
                None => return Ok(key),
                Some(refusal) if !refusal.is_full => return Err(&refusal.cause),
                Some(refusal) => last = &refusal.cause,
            }
        }
        Err(last)
    }

    /// For a claim; `None` until the instance types are known.
    pub(super) fn of_claim(&mut self, claim: &'a ClaimRecord) -> Result<Option<Candidates>, String> {
        let question = Question {
            class: claim.class.as_ref().map_or("default", ClassName::as_str),
            vcpus: claim.vcpus.to_bits(),
            memory: claim.memory_mib,
            instance_type: claim.instance_type.as_deref(),
            image: claim.image.as_deref(),
        };
        self.answer(question)
    }

    /// For the pool of a class: any size, and so the cheapest.
    pub(super) fn of_class(&mut self, class: &'a ClassRecord) -> Result<Option<Candidates>, String> {
        self.answer(Question { class: class.name.as_str(), vcpus: 0, memory: Mib(0), instance_type: None, image: None })
    }

    fn answer(&mut self, question: Question<'a>) -> Result<Option<Candidates>, String> {
        if let Some(known) = self.known.get(&question) {
            return known.clone();
        }
        let answer = self.work_out(&question);
        self.known.insert(question, answer.clone());
        answer
    }

    fn work_out(&self, question: &Question<'_>) -> Result<Option<Candidates>, String> {
        let wanted = question.class;
        let Some(record) = self.records.classes.values().find(|record| record.name.as_str() == wanted) else {
            let offered: Vec<&str> = self.records.classes.keys().map(ClassName::as_str).collect();
            return Err(format!("class {wanted:?} is not offered; offered: {}", offered.join(", ")));
        };
        let class = &record.class;
        if let Some(image) = question.image.filter(|image| !class.allows_image(image)) {
            return Err(format!("image {image:?} is not allowed by class {wanted:?}"));
        }
        let Some(types) = &self.observed.types else {
            // A refusal counts until the question may be asked again.
            let is_fresh = self.observed.pauses.get(&crate::Call::Types).is_some_and(|pause| pause.until > self.now);
            return self.observed.types_refused.as_ref().filter(|_| is_fresh).map_or(Ok(None), |cause| Err(cause.clone()));
        };
        let demand = Demand { vcpus: f32::from_bits(question.vcpus), memory: question.memory, instance_type: question.instance_type };
        let fitting = fitting_instance_types(types, class, &demand).map_err(|error| error.to_string())?;
        let image = question.image.map(str::to_owned).or_else(|| class.image.clone());
        let key = |instance_type: &str, zone| LaunchKey {
            class: record.name.clone(),
            tee: class.tee,
            instance_type: instance_type.to_owned(),
            zone,
            image: image.clone(),
        };
        let places = class.places();
        let candidates = fitting.iter().flat_map(|fit| places.iter().map(|zone| key(&fit.name, zone.clone())));
        Ok(Some(Rc::new(candidates.take(MAX_CANDIDATES).collect())))
    }
}

/// Beyond so many sizes and zones a claim is told that there is no capacity.
const MAX_CANDIDATES: usize = 64;

/// Matches claims with what there is.
pub(super) fn match_up<'a>(records: &'a Records, index: &Index<'a>, observed: &'a Observed, catalogue: &mut Catalogue<'a>) -> Matching<'a> {
    let mut matching = Matching::default();
    let mut supply = Supply::new(records, index, observed);
    for claim in records.claims.values().filter(|claim| claim.status == ClaimStatus::Open && index.pod_vm_of(claim).is_none()) {
        // Recorded by a release that launched for each claim alone.
        if let Some(own) = index.launch_of(claim) {
            match observed.refused.get(&own.token) {
                None => matching.waiting.entry(&own.token).or_default().push_back(claim),
                Some(refusal) => matching.hopeless.push((claim, LAUNCHING, refusal.cause.clone())),
            }
            continue;
        }
        let candidates = match catalogue.of_claim(claim) {
            Ok(Some(candidates)) => candidates,
            Ok(None) => {
                matching.needs_types = true;
                continue;
            }
            Err(why) => {
                matching.hopeless.push((claim, CHOOSING, why));
                continue;
            }
        };
        if let Some(pod_vm) = supply.take_pod_vm(&candidates) {
            matching.given.push((claim, pod_vm));
        } else if let Some(launch) = supply.take_slot(&candidates) {
            matching.waiting.entry(&launch.token).or_default().push_back(claim);
        } else {
            match catalogue.choose(&candidates) {
                Ok(key) => *matching.wanted.entry(key.clone()).or_default() += 1,
                Err(cause) => matching.hopeless.push((claim, LAUNCHING, cause.to_owned())),
            }
        }
    }
    (matching.idle, matching.spare) = supply.left();
    matching
}

/// Pod VMs that nobody has, and instances that launches will give, by what they are.
struct Supply<'a> {
    pod_vms: HashMap<&'a LaunchKey, VecDeque<&'a PodVmRecord>>,
    slots: HashMap<&'a LaunchKey, VecDeque<(&'a LaunchRecord, u32)>>,
}

impl<'a> Supply<'a> {
    fn new(records: &'a Records, index: &Index<'a>, observed: &'a Observed) -> Self {
        let mut supply = Self { pod_vms: HashMap::new(), slots: HashMap::new() };
        let is_free = |pod_vm: &&PodVmRecord| pod_vm.claimed_by.is_none() && pod_vm.state != PodVmState::Deleting;
        let mut free: Vec<&PodVmRecord> = records.pod_vms.values().filter(is_free).collect();
        free.retain(|pod_vm| !matches!(health(observed, pod_vm), Health::Dead(_) | Health::Missing));
        // Those that run serve at once, and the longer they have run, the surer their guests are up.
        free.sort_by_key(|pod_vm| (pod_vm.state != PodVmState::Running, observed.adopted.get(&pod_vm.instance_id)));
        for pod_vm in free {
            supply.pod_vms.entry(&pod_vm.key).or_default().push_back(pod_vm);
        }
        for launch in records.launches.values().filter(|launch| launch.claim.is_none() && !observed.refused.contains_key(&launch.token)) {
            let recorded = u32::try_from(index.count_of(launch)).unwrap_or(u32::MAX);
            // What the cloud has answered with is all that comes.
            let seen = || observed.instances.values().filter(|seen| seen.instance.token == launch.token);
            let coming = || seen().filter(|seen| !records.pod_vms.contains_key(&seen.instance.id)).count();
            let left = match observed.answered.contains(&launch.token) {
                true => u32::try_from(coming()).unwrap_or(u32::MAX),
                false => launch.count.saturating_sub(recorded),
            };
            if left > 0 {
                supply.slots.entry(&launch.key).or_default().push_back((launch, left));
            }
        }
        supply
    }

    /// The best candidate that runs, else the best that comes.
    fn take_pod_vm(&mut self, candidates: &[LaunchKey]) -> Option<&'a PodVmRecord> {
        let is_running = |queue: &VecDeque<&PodVmRecord>| queue.front().is_some_and(|pod_vm| pod_vm.state == PodVmState::Running);
        let running = candidates.iter().find(|key| self.pod_vms.get(key).is_some_and(is_running));
        let any = running.or_else(|| candidates.iter().find(|key| self.pod_vms.get(key).is_some_and(|queue| !queue.is_empty())))?;
        self.pod_vms.get_mut(any)?.pop_front()
    }

    fn take_slot(&mut self, candidates: &[LaunchKey]) -> Option<&'a LaunchRecord> {
        let key = candidates.iter().find(|key| self.slots.get(key).is_some_and(|queue| !queue.is_empty()))?;
        let queue = self.slots.get_mut(key)?;
        let (launch, left) = queue.front_mut()?;
        let launch = *launch;
        *left -= 1;
        if *left == 0 {
            queue.pop_front();
        }
        Some(launch)
    }

    fn left(self) -> (Vec<&'a PodVmRecord>, HashMap<&'a LaunchToken, u32>) {
        let mut idle: Vec<&PodVmRecord> = self.pod_vms.into_values().flatten().collect();
        idle.sort_by_key(|pod_vm| (pod_vm.state != PodVmState::Running, &pod_vm.instance_id));
        (idle, self.slots.into_values().flatten().map(|(launch, left)| (&launch.token, left)).collect())
    }
}
