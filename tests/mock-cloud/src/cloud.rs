//! The cloud behind the front ends: one account, its limits and faults, and the machines that its instances are.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use peerpods_cloud_api::{InstanceId, Limits};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::Machines;
use crate::account::{Account, Admission, Instance, Launch, Refusal, State as Life};
use crate::buckets::{Buckets, Call as Toll};
use crate::faults::{Fault, Faults, Kind, Span};
use crate::journal::{Call, Journal};

/// How the cloud behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its limits; the default has none.
    pub limits: Limits,
    /// How long a call takes.
    pub call: Span,
    /// How much longer a launch takes.
    pub launch: Span,
    /// How long an instance is pending where there is no machine behind it.
    pub pending: Span,
    /// How long its end takes.
    pub shutting_down: Span,
    /// How long reads may miss an instance after its launch; every second one does.
    pub stale: Duration,
    /// What chance derives from.
    pub seed: u64,
    /// How many of a thousand calls go wrong by chance.
    pub faults_per_mille: u32,
    /// Access keys with their secrets; empty takes any.
    pub access_keys: BTreeMap<String, String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            call: Span::NONE,
            launch: Span::NONE,
            pending: Span::ms(20, 60),
            shutting_down: Span::ms(20, 60),
            stale: Duration::ZERO,
            seed: 2026,
            faults_per_mille: 0,
            access_keys: BTreeMap::new(),
        }
    }
}

/// A handle to the cloud; clones share it.
#[derive(Debug, Clone)]
pub struct Cloud {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    options: Options,
    state: Mutex<State>,
    machines: Option<Machines>,
    /// Launches are made one after the other, so that a token's second use finds the first.
    launching: tokio::sync::Mutex<()>,
    work: mpsc::Sender<Work>,
    begin: Instant,
}

#[derive(Debug)]
struct State {
    account: Account,
    buckets: Buckets,
    faults: Faults,
    journal: Journal,
    random: fastrand::Rng,
    /// The machines of instances.
    machines: HashMap<String, InstanceId>,
}

/// What takes time behind an instance.
#[derive(Debug)]
enum Work {
    Start { instance: String, machine: InstanceId },
    End { instance: String, machine: InstanceId },
}

/// Must be driven for machines to come and go.
#[derive(Debug)]
pub struct Driver {
    cloud: Cloud,
    work: mpsc::Receiver<Work>,
}

/// More instances than this never begin or end between two looks of the driver.
const WORK: usize = 4096;

/// How often machines are looked at: one may end by itself.
const LOOK: Duration = Duration::from_millis(200);

impl Cloud {
    /// A cloud with nothing in it, and what drives its machines.
    pub fn new(options: Options, machines: Option<Machines>) -> (Self, Driver) {
        let begin = Instant::now();
        let (sender, work) = mpsc::channel(WORK);
        let state = State {
            account: Account::default(),
            buckets: Buckets::new(options.limits, begin),
            faults: Faults::new(options.seed, options.faults_per_mille),
            journal: Journal::default(),
            random: fastrand::Rng::with_seed(options.seed ^ 0x5eed),
            machines: HashMap::new(),
        };
        let inner = Inner { options, state: Mutex::new(state), machines, launching: tokio::sync::Mutex::default(), work: sender, begin };
        let cloud = Self { inner: Arc::new(inner) };
        (cloud.clone(), Driver { cloud, work })
    }

    /// How it behaves.
    pub fn options(&self) -> &Options {
        &self.inner.options
    }

    /// Reads or changes the account.
    pub fn account<T>(&self, work: impl FnOnce(&mut Account, Instant) -> T) -> T {
        work(&mut self.state().account, Instant::now())
    }

    /// One more fault to come.
    pub fn add_fault(&self, fault: Fault) {
        self.state().faults.add(fault);
    }

    /// No more faults.
    pub fn clear_faults(&self) {
        self.state().faults.clear();
    }

    /// How many calls have gone wrong.
    pub fn faults_injected(&self) -> u64 {
        self.state().faults.injected()
    }

    /// What was called so far.
    pub fn calls(&self) -> Vec<Call> {
        self.state().journal.all()
    }

    /// The time since the cloud began.
    pub fn age(&self) -> Duration {
        self.inner.begin.elapsed()
    }

    pub(crate) fn record(&self, call: Call) {
        self.state().journal.add(call);
    }

    pub(crate) fn fault(&self, action: &str) -> Option<Kind> {
        self.state().faults.next(action)
    }

    pub(crate) fn take(&self, toll: Toll) -> bool {
        self.state().buckets.take(toll, Instant::now())
    }

    /// Waits as long as a call takes.
    pub(crate) async fn pass_time(&self, is_launch: bool) {
        let time = {
            let mut state = self.state();
            let call = self.inner.options.call.draw(&mut state.random);
            if is_launch { call + self.inner.options.launch.draw(&mut state.random) } else { call }
        };
        if !time.is_zero() {
            tokio::time::sleep(time).await;
        }
    }

    /// Whether this read misses an instance that was just made.
    pub(crate) fn misses(&self, instance: &Instance) -> bool {
        let is_new = instance.created.elapsed() < self.inner.options.stale;
        is_new && self.state().random.bool()
    }

    /// Makes instances, or finds those of the same launch.
    pub(crate) async fn launch(&self, launch: Launch) -> Result<Vec<Instance>, Problem> {
        let _one_at_a_time = self.inner.launching.lock().await;
        let admission = self.state().account.admit(&launch, Instant::now()).map_err(Problem::Refused)?;
        let count = match admission {
            Admission::Known(ids) => return Ok(self.find(&ids)),
            Admission::New(count) => count,
        };
        let planned = match &self.inner.machines {
            Some(machines) => machines.plan(&launch, count).await.map_err(Problem::Broken)?.into_iter().map(Some).collect(),
            None => vec![None; usize::try_from(count).unwrap_or(0)],
        };
        let addresses: Vec<Option<Ipv4Addr>> = planned.iter().map(|one| one.as_ref().map(|(_, address)| *address)).collect();
        let ids = {
            let mut state = self.state();
            let now = Instant::now();
            let running_at = match self.inner.machines {
                Some(_) => None,
                None => Some(now + self.inner.options.pending.draw(&mut state.random)),
            };
            let ids = state.account.create(launch, &addresses, now, running_at);
            for (id, (machine, _)) in ids.iter().zip(planned.iter().flatten()) {
                state.machines.insert(id.clone(), machine.clone());
            }
            ids
        };
        for (id, (machine, _)) in ids.iter().zip(planned.into_iter().flatten()) {
            let _ = self.inner.work.send(Work::Start { instance: id.clone(), machine }).await;
        }
        Ok(self.find(&ids))
    }

    /// Begins the ends of instances.
    pub(crate) async fn terminate(&self, ids: &[String]) {
        for id in ids {
            let work = {
                let mut state = self.state();
                let now = Instant::now();
                let machine = state.machines.get(id).cloned();
                let gone_at = match machine {
                    Some(_) => None,
                    None => Some(now + self.inner.options.shutting_down.draw(&mut state.random)),
                };
                if !state.account.terminate(id, now, gone_at) {
                    continue;
                }
                machine.map(|machine| Work::End { instance: id.clone(), machine })
            };
            if let Some(work) = work {
                let _ = self.inner.work.send(work).await;
            }
        }
    }

    /// The end of an instance's console.
    pub(crate) async fn console(&self, id: &str) -> String {
        let machine = self.state().machines.get(id).cloned();
        match (&self.inner.machines, machine) {
            (Some(machines), Some(machine)) => machines.console(machine).await,
            _ => String::new(),
        }
    }

    /// The instance that has an address, while it exists.
    pub(crate) fn by_address(&self, address: Ipv4Addr) -> Option<Instance> {
        let now = Instant::now();
        let state = self.state();
        state.account.all(now).find(|one| one.address == address && one.state(now) != Life::Terminated).cloned()
    }

    fn find(&self, ids: &[String]) -> Vec<Instance> {
        let now = Instant::now();
        let state = self.state();
        ids.iter().filter_map(|id| state.account.get(id, now).cloned()).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why there is no launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Problem {
    Refused(Refusal),
    /// The machines behind cannot be made.
    Broken(String),
}

impl Driver {
    /// Runs until dropped. Does nothing where there are no machines.
    pub async fn run(mut self) {
        let Some(machines) = self.cloud.inner.machines.clone() else { return std::future::pending().await };
        let mut tasks = JoinSet::new();
        let mut looks = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                work = self.work.recv() => match work {
                    Some(Work::Start { instance, machine }) => {
                        tasks.spawn(start(self.cloud.clone(), machines.clone(), instance, machine));
                    }
                    Some(Work::End { instance, machine }) => {
                        tasks.spawn(end(self.cloud.clone(), machines.clone(), instance, machine));
                    }
                    None => return,
                },
                Some(_) = tasks.join_next() => {}
                _ = looks.tick() => self.look(&machines).await,
            }
        }
    }

    /// A guest that has ended ends its instance: `InstanceInitiatedShutdownBehavior=terminate`.
    async fn look(&self, machines: &Machines) {
        let now = Instant::now();
        let running: Vec<(String, InstanceId)> = {
            let state = self.cloud.state();
            let is_running = |id: &String| state.account.get(id, now).is_some_and(|one| one.state(now) == Life::Running);
            state.machines.iter().filter(|(id, _)| is_running(id)).map(|(id, machine)| (id.clone(), machine.clone())).collect()
        };
        for (instance, machine) in running {
            if !machines.is_running(machine).await {
                tracing::info!(instance, "its guest has ended");
                self.cloud.terminate(&[instance]).await;
            }
        }
    }
}

async fn start(cloud: Cloud, machines: Machines, instance: String, machine: InstanceId) {
    let started = machines.start(machine).await;
    let now = Instant::now();
    match started {
        Ok(()) => cloud.account(|account, _| account.update(&instance, |one| one.running_at = Some(now))),
        Err(error) => {
            tracing::warn!(instance, error, "its machine does not start");
            cloud.terminate(&[instance]).await;
        }
    }
}

async fn end(cloud: Cloud, machines: Machines, instance: String, machine: InstanceId) {
    while let Err(error) = machines.delete(machine.clone()).await {
        tracing::warn!(instance, error, "its machine stays for now");
        tokio::time::sleep(LOOK).await;
    }
    cloud.account(|account, now| account.update(&instance, |one| one.gone_at = Some(now)));
    cloud.state().machines.remove(&instance);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn in_virtual_time_an_instances_life_takes_none() {
        let options = Options { pending: Span::ms(3000, 8000), shutting_down: Span::ms(60_000, 60_000), ..Options::default() };
        let (cloud, _driver) = Cloud::new(options, None);
        let begin = std::time::SystemTime::now();
        let made = cloud.launch(Launch::of_somebody(3, BTreeMap::new())).await.expect("room");
        let states = |cloud: &Cloud| cloud.account(|account, now| account.all(now).map(|one| one.state(now)).collect::<Vec<_>>());
        assert_eq!(states(&cloud), [Life::Pending; 3]);
        tokio::time::sleep(Duration::from_secs(8)).await;
        assert_eq!(states(&cloud), [Life::Running; 3]);
        cloud.terminate(&[made[0].id.clone()]).await;
        assert_eq!(states(&cloud).iter().filter(|state| **state == Life::ShuttingDown).count(), 1);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(states(&cloud).iter().filter(|state| **state == Life::Terminated).count(), 1);
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(states(&cloud), [Life::Running; 2], "after an hour EC2 forgets it");
        assert!(begin.elapsed().expect("a clock") < Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn limits_come_back_with_time() {
        let (cloud, _driver) = Cloud::new(Options { limits: Limits::EC2, ..Options::default() }, None);
        let taken = |cloud: &Cloud| (0..100).filter(|_| cloud.take(Toll::Launch(1))).count();
        assert_eq!(taken(&cloud), 5);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(taken(&cloud), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn reads_may_miss_what_is_new_and_never_what_is_old() {
        let (cloud, _driver) = Cloud::new(Options { stale: Duration::from_secs(2), ..Options::default() }, None);
        let made = cloud.launch(Launch::of_somebody(1, BTreeMap::new())).await.expect("room");
        let missed = |cloud: &Cloud| (0..100).filter(|_| cloud.misses(&made[0])).count();
        assert!((20..80).contains(&missed(&cloud)));
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(missed(&cloud), 0);
    }
}
