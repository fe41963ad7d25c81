//! The one task that owns all records.
//!
//! It answers requests, carries out plans, and publishes. Calls of the provider run concurrently inside it; writes of the Journal one
//! at a time. When the Journal fails, nothing is decided until it answers again; when somebody else has written to it, it is loaded
//! anew; when it is fenced, the driver stops. Dropping the driver cancels everything; the next one finds out what took effect.

mod log;
mod requests;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::{FuturesUnordered, StreamExt as _};
use peerpods_cloud_api::{CloudProvider, InstanceId, LaunchRequest, OwnerTag, ProviderError, Tee};
use peerpods_controller_api::{ClaimKey, Class, ClassName, LaunchToken, Record};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::handle::{Handle, Request};
use crate::plan::{Input, Write, plan};
use crate::store::Store;
use crate::{Buckets, Call, ClaimView, Journal, JournalError, Observed, Outcome, Timing, Totals, admission, view};

/// Reads what a machine has last written to its console; an ability that not every provider has.
#[async_trait]
pub trait Console: Send + Sync {
    /// The end of the console's text, short enough for an error message; `None` if there is none.
    async fn tail(&self, id: &InstanceId) -> Option<String>;
}

/// What a driver is made of.
pub struct Parts {
    /// Where records are kept.
    pub journal: Arc<dyn Journal>,
    /// The cloud.
    pub provider: Arc<dyn CloudProvider>,
    /// The provider's consoles, if it has them.
    pub console: Option<Arc<dyn Console>>,
    /// Marks everything that this controller owns.
    pub owner: OwnerTag,
    /// What is offered; replaces the stored classes.
    pub classes: BTreeMap<ClassName, Class>,
    /// The user data of every launch with this TEE. Must not change while launches are recorded.
    pub user_data: Box<dyn Fn(Tee) -> Vec<u8> + Send + Sync>,
    /// Random numbers for claim ids.
    pub random: Box<dyn FnMut() -> u128 + Send>,
    /// Intervals and limits.
    pub timing: Timing,
}

/// Why a driver has stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The records cannot be loaded at the start, or another controller has taken over.
    #[error("the engine cannot go on")]
    Journal(#[from] JournalError),
}

/// The engine's task.
pub struct Driver {
    parts: Parts,
    started: Instant,
    store: Store,
    observed: Observed,
    /// No decision is made before this time, because the Journal has failed so many times in a row.
    journal_pause: Option<(Duration, u32)>,
    /// Until then claims are gathered for one launch.
    hold: Option<Duration>,
    calls: FuturesUnordered<BoxFuture<'static, (Call, Duration, Outcome)>>,
    requests: mpsc::Receiver<Request>,
    watchers: HashMap<ClaimKey, watch::Sender<ClaimView>>,
    totals: Totals,
    published: watch::Sender<Totals>,
}

/// Requests that may wait for the driver before senders do.
const QUEUE: usize = 256;
/// How long calls of the provider may take to end once the driver stops.
const DRAIN: Duration = Duration::from_secs(5);
/// How long a console may take to be read.
const CONSOLE_DEADLINE: Duration = Duration::from_secs(5);

impl Driver {
    /// A driver and the handle that reaches it once it runs.
    pub fn new(parts: Parts) -> (Self, Handle) {
        let (sender, requests) = mpsc::channel(QUEUE);
        let (published, totals) = watch::channel(Totals::default());
        let driver = Self {
            store: Store::new(Arc::clone(&parts.journal)),
            started: Instant::now(),
            observed: Observed { buckets: Buckets::new(parts.provider.limits()), ..Observed::default() },
            parts,
            journal_pause: None,
            hold: None,
            calls: FuturesUnordered::new(),
            requests,
            watchers: HashMap::new(),
            totals: Totals::default(),
            published,
        };
        (driver, Handle { requests: sender, totals })
    }

    /// Runs until `stop` is done; instances keep running. Returns early only when it cannot go on.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> Result<(), DriverError> {
        self.load().await?;
        for write in admission::admit_classes(&self.store.records, &self.parts.classes) {
            self.write(&write).await?;
        }
        tracing::info!(
            claims = self.store.records.claims.len(),
            pod_vms = self.store.records.pod_vms.len(),
            "the engine has loaded its records"
        );
        tokio::pin!(stop);
        loop {
            let wake = self.settle(Act::Fully).await?;
            self.publish();
            let woken = async {
                match wake {
                    Some(at) => tokio::time::sleep_until(self.started + at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // One order, so that a simulated schedule can be replayed.
                biased;
                () = &mut stop => break,
                Some((call, began, outcome)) = self.calls.next() => {
                    self.take(&call, began, outcome);
                    // A burst of results is one occasion to plan.
                    while let Some(Some((call, began, outcome))) = self.calls.next().now_or_never() {
                        self.take(&call, began, outcome);
                    }
                }
                Some(request) = self.requests.recv() => {
                    self.answer(request).await?;
                    // A burst of requests too; not more of them than could wait, so that planning has its turn.
                    for _ in 0..QUEUE {
                        let Ok(request) = self.requests.try_recv() else { break };
                        self.answer(request).await?;
                    }
                }
                () = woken => {}
            }
        }
        // What the cloud has already been asked for is recorded if it answers soon; the next start would find out by itself.
        let drain = async {
            while let Some((call, began, outcome)) = self.calls.next().await {
                self.take(&call, began, outcome);
                self.settle(Act::OnRecords).await?;
            }
            Ok(())
        };
        tokio::time::timeout(DRAIN, drain).await.unwrap_or(Ok(()))
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn jitter(&mut self) -> u32 {
        u32::try_from((self.parts.random)() % 1000).unwrap_or_default()
    }

    // ------------------------------------------------------------------------------------------------ plans

    /// Carries out plans until only waiting is left; gives when to look again.
    async fn settle(&mut self, act: Act) -> Result<Option<Duration>, DriverError> {
        loop {
            if let Some((until, _)) = self.journal_pause.filter(|(until, _)| *until > self.now()) {
                return Ok(Some(until));
            }
            if self.store.is_stale()
                && let Err(error) = self.load().await
            {
                self.journal_failed(error)?;
                continue;
            }
            let (now, seed, hold) = (self.now(), (self.parts.random)(), self.hold);
            let Parts { owner, timing, .. } = &self.parts;
            let plan = plan(&Input { records: &self.store.records, observed: &self.observed, owner, timing, now, hold, seed });
            for call in plan.calls.into_iter().filter(|_| act == Act::Fully) {
                self.start(call);
            }
            if plan.writes.is_empty() {
                return Ok(plan.wake);
            }
            for (write, why) in &plan.writes {
                match self.write(write).await {
                    Ok(()) => log::written(&self.store.records, write, why),
                    Err(error) => {
                        self.journal_failed(error)?;
                        break;
                    }
                }
            }
        }
    }

    fn start(&mut self, call: Call) {
        let began = self.now();
        let limit = self.parts.timing.call_deadline;
        let provider = Arc::clone(&self.parts.provider);
        let future: BoxFuture<'static, Outcome> = match &call {
            Call::List => {
                let owner = self.parts.owner.clone();
                Box::pin(async move { Outcome::Listed(within(limit, provider.list(&owner)).await) })
            }
            Call::Types => Box::pin(async move { Outcome::Types(within(limit, provider.instance_types()).await) }),
            Call::Launch(token) => {
                let Some(request) = self.launch_request(token) else { return };
                Box::pin(async move { Outcome::Launched(within(limit, provider.launch(&request)).await) })
            }
            Call::Get(id) => {
                let id = id.clone();
                Box::pin(async move { Outcome::Got(within(limit, provider.get(&id)).await) })
            }
            Call::Delete(id) => {
                let id = id.clone();
                Box::pin(async move { Outcome::Deleted(within(limit, provider.delete(&id)).await) })
            }
            Call::Examine(id) => {
                let (id, console) = (id.clone(), self.parts.console.clone());
                Box::pin(async move {
                    let Some(console) = console else { return Outcome::Examined(None) };
                    Outcome::Examined(tokio::time::timeout(CONSOLE_DEADLINE, console.tail(&id)).await.ok().flatten())
                })
            }
        };
        tracing::debug!(?call, "calling the cloud");
        self.observed.begin(&call, self.store.records.count_of(&call), began);
        self.calls.push(Box::pin(async move { (call, began, future.await) }));
    }

    /// The same request for the same record, every time.
    fn launch_request(&self, token: &LaunchToken) -> Option<LaunchRequest> {
        let launch = self.store.records.launches.get(token)?;
        Some(LaunchRequest {
            token: launch.token.clone(),
            owner: self.parts.owner.clone(),
            instance_type: launch.key.instance_type.clone(),
            zone: launch.key.zone.clone(),
            image: launch.key.image.clone(),
            tee: launch.key.tee,
            count: launch.count,
            user_data: (self.parts.user_data)(launch.key.tee),
        })
    }

    fn take(&mut self, call: &Call, began: Duration, outcome: Outcome) {
        let (name, is_ok) = describe(&outcome);
        let counts = if is_ok { &mut self.totals.calls } else { &mut self.totals.call_failures };
        *counts.entry(name).or_default() += 1;
        let (now, jitter) = (self.now(), self.jitter());
        self.observed.take(call, outcome, began, now, &self.parts.timing, jitter);
        // A listing may have shown all of a launch before its call answered.
        if let Call::Launch(token) = call
            && !self.store.records.launches.contains_key(token)
        {
            self.observed.forget_token(token);
        }
    }

    // ---------------------------------------------------------------------------------------------- records

    async fn load(&mut self) -> Result<(), JournalError> {
        self.store.load().await?;
        let now = self.now();
        for id in self.store.records.pod_vms.keys() {
            self.observed.adopt(id, now);
        }
        Ok(())
    }

    /// Writes one record; memory follows only if the Journal has accepted it.
    async fn write(&mut self, write: &Write) -> Result<(), JournalError> {
        self.totals.journal_writes += 1;
        match write {
            Write::Put(record) => {
                self.store.put(record).await?;
                if let Record::PodVm(pod_vm) = record {
                    self.observed.recorded(pod_vm, self.now());
                }
            }
            Write::Remove(key) => match self.store.remove(key).await? {
                Some(Record::PodVm(pod_vm)) => self.observed.forget_instance(&pod_vm.instance_id),
                Some(Record::Launch(launch)) => {
                    let now = self.now();
                    self.observed.forget_launch(&launch, now, &self.parts.timing);
                }
                Some(Record::Claim(_) | Record::Class(_)) | None => {}
            },
        }
        self.journal_pause = None;
        Ok(())
    }

    /// A failed write may have taken effect: nothing is decided until the Journal has been loaded again.
    fn journal_failed(&mut self, error: JournalError) -> Result<(), DriverError> {
        self.totals.journal_failures += 1;
        match error {
            JournalError::Fenced | JournalError::Unreadable { .. } => Err(error.into()),
            JournalError::Conflict { .. } | JournalError::TooLarge { .. } | JournalError::Unavailable { .. } => {
                let times = self.journal_pause.map_or(0, |(_, times)| times).saturating_add(1);
                let jitter = self.jitter();
                let pause = self.parts.timing.retry(times, jitter);
                tracing::warn!(error = &error as &dyn std::error::Error, times, "the journal failed; it will be loaded again");
                self.journal_pause = Some((self.now() + pause, times));
                Ok(())
            }
        }
    }

    // ------------------------------------------------------------------------------------------ publication

    fn view(&self, key: &ClaimKey) -> ClaimView {
        view::view(&self.store.records, &self.store.records.index(), &self.observed, key)
    }

    fn publish(&mut self) {
        self.watchers.retain(|_, sender| sender.receiver_count() > 0);
        let index = self.store.records.index();
        for (key, sender) in &self.watchers {
            let now = view::view(&self.store.records, &index, &self.observed, key);
            sender.send_if_modified(|last| std::mem::replace(last, now.clone()) != now);
        }
        self.totals.count(&self.store.records, &self.observed);
        let totals = &self.totals;
        self.published.send_if_modified(|last| {
            let is_changed = last != totals;
            if is_changed {
                last.clone_from(totals);
            }
            is_changed
        });
    }
}

/// How much of a plan is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    /// Writes and calls.
    Fully,
    /// Writes only: the driver is stopping.
    OnRecords,
}

async fn within<T>(limit: Duration, call: impl Future<Output = Result<T, ProviderError>>) -> Result<T, ProviderError> {
    tokio::time::timeout(limit, call).await.unwrap_or(Err(ProviderError::DeadlineExceeded))
}

/// The call's name in metrics, and whether it succeeded. `NotFound` answers the question of a read and of a deletion.
fn describe(outcome: &Outcome) -> (&'static str, bool) {
    let is_answer = |error: Option<&ProviderError>| matches!(error, None | Some(ProviderError::NotFound));
    match outcome {
        Outcome::Listed(result) => ("list", result.is_ok()),
        Outcome::Types(result) => ("instance_types", result.is_ok()),
        Outcome::Launched(result) => ("launch", result.is_ok()),
        Outcome::Got(result) => ("get", is_answer(result.as_ref().err())),
        Outcome::Deleted(result) => ("delete", is_answer(result.as_ref().err())),
        Outcome::Examined(_) => ("console", true),
    }
}
