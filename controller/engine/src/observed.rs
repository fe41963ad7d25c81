//! What has been seen of the cloud in this life of the process, and how the results of calls change it.
//!
//! All of it is lost with the process and found again by asking: nothing here is an intent.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use peerpods_cloud_api::{Instance, InstanceId, InstanceState, InstanceType, LaunchToken, Launched, ProviderError};

use peerpods_controller_api::{LaunchKey, LaunchRecord, PodVmRecord};

use crate::{Buckets, Timing};

/// A call of the provider; there is at most one of each under way.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Call {
    /// List everything that carries our owner tag.
    List,
    /// List the instance types.
    Types,
    /// Launch what the record with this token says.
    Launch(LaunchToken),
    /// Read one instance.
    Get(InstanceId),
    /// Delete one instance.
    Delete(InstanceId),
    /// Read what a dead instance has last written to its console.
    Examine(InstanceId),
}

impl Call {
    /// The instance that it is about.
    pub fn instance_id(&self) -> Option<&InstanceId> {
        match self {
            Call::List | Call::Types | Call::Launch(_) => None,
            Call::Get(id) | Call::Delete(id) | Call::Examine(id) => Some(id),
        }
    }
}

/// What a call has given.
#[derive(Debug)]
pub enum Outcome {
    /// Of [`Call::List`].
    Listed(Result<Vec<Instance>, ProviderError>),
    /// Of [`Call::Types`].
    Types(Result<Vec<InstanceType>, ProviderError>),
    /// Of [`Call::Launch`].
    Launched(Result<Launched, ProviderError>),
    /// Of [`Call::Get`].
    Got(Result<Instance, ProviderError>),
    /// Of [`Call::Delete`].
    Deleted(Result<(), ProviderError>),
    /// Of [`Call::Examine`]: the console's end, if the provider gives one.
    Examined(Option<String>),
}

/// An instance as last seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// What was seen.
    pub instance: Instance,
    /// When: a listing that did not begin later cannot contradict it.
    pub at: Duration,
}

/// When a call may be made again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pause {
    /// How many times in a row it has been made without the wanted result.
    pub times: u32,
    /// Not before.
    pub until: Duration,
    /// The failure, for people; `None` when only waiting.
    pub cause: Option<String>,
}

/// Why a launch with some key was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// In the cloud's words.
    pub cause: String,
    /// The cloud has no room for this key: another zone or size may do. Else no launch of the class will.
    pub is_full: bool,
    /// Until when it counts, once its launch is forgotten.
    pub until: Duration,
}

/// Everything that has been seen. Times are since the driver's start.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// Instances that exist, as far as we know.
    pub instances: BTreeMap<InstanceId, Seen>,
    /// When the newest complete listing began; `None` before the first one.
    pub listed: Option<Duration>,
    /// When that listing ended.
    pub list_ended: Duration,
    /// Listings since something was last launched or deleted.
    pub looks: u32,
    /// What may be launched.
    pub types: Option<Vec<InstanceType>>,
    /// Why the types cannot be listed, if trying again does not help.
    pub types_refused: Option<String>,
    /// Instances that the cloud has said are not found, and when.
    pub gone: BTreeMap<InstanceId, Duration>,
    /// Dead instances whose console has been asked for.
    pub consoles: BTreeMap<InstanceId, Option<String>>,
    /// Launches that trying again does not help, and why.
    pub refused: BTreeMap<LaunchToken, Refusal>,
    /// Launches that the cloud has answered with all that they give.
    pub answered: BTreeSet<LaunchToken>,
    /// What was refused a moment ago, and is not asked for again until then.
    pub refusals: BTreeMap<LaunchKey, Refusal>,
    /// When the last try of a launch ended.
    pub tried: BTreeMap<LaunchToken, Duration>,
    /// When a pod VM's record appeared in memory, or last changed while nobody had it.
    pub adopted: BTreeMap<InstanceId, Duration>,
    /// Calls under way.
    pub in_flight: BTreeSet<Call>,
    /// Calls that wait before they are made again.
    pub pauses: BTreeMap<Call, Pause>,
    /// When the cloud last accepted a deletion.
    pub deleted: BTreeMap<InstanceId, Duration>,
    /// What the cloud's limits leave.
    pub buckets: Buckets,
}

impl Observed {
    /// Notes that a call begins; `count` is how many instances it asks for.
    pub fn begin(&mut self, call: &Call, count: u32, now: Duration) {
        self.in_flight.insert(call.clone());
        self.buckets.take(call, count, now);
    }

    /// Takes in the result of a call that began and ended at these times.
    pub fn take(&mut self, call: &Call, outcome: Outcome, began: Duration, now: Duration, timing: &Timing, jitter: u32) {
        self.in_flight.remove(call);
        match (call, outcome) {
            (Call::List, Outcome::Listed(Ok(instances))) => {
                self.take_listing(instances, began, now);
                self.pauses.remove(call);
            }
            (Call::Types, Outcome::Types(Ok(types))) => {
                (self.types, self.types_refused) = (Some(types), None);
                self.pauses.remove(call);
            }
            (Call::Types, Outcome::Types(Err(error))) => {
                self.types_refused = (!is_passing(&error)).then(|| error.to_string());
                self.pause(call, &error, now, timing, jitter);
            }
            (Call::Launch(token), Outcome::Launched(result)) => {
                self.tried.insert(token.clone(), now);
                match result {
                    Ok(launched) => {
                        if launched.instances.is_empty() {
                            self.refuse(token, "the cloud launched no instance".to_owned(), true);
                        }
                        self.answered.insert(token.clone());
                        for instance in launched.instances {
                            self.instances.insert(instance.id.clone(), Seen { instance, at: now });
                        }
                        self.looks = 0;
                        self.pauses.remove(call);
                    }
                    Err(error) if is_passing(&error) => self.pause(call, &error, now, timing, jitter),
                    Err(error) => {
                        let is_full = matches!(error, ProviderError::InsufficientCapacity { .. });
                        self.refuse(token, error.to_string(), is_full);
                    }
                }
            }
            (Call::Get(id), Outcome::Got(Ok(instance))) => {
                self.instances.insert(id.clone(), Seen { instance, at: began });
                self.wait(call, now, timing);
            }
            (Call::Get(id), Outcome::Got(Err(ProviderError::NotFound))) if self.is_in_grace(id, now, timing) => {
                self.wait(call, now, timing);
            }
            (Call::Get(id), Outcome::Got(Err(ProviderError::NotFound)))
            | (Call::Delete(id), Outcome::Deleted(Err(ProviderError::NotFound))) => self.take_gone(id, now),
            (Call::Delete(id), Outcome::Deleted(Ok(()))) => {
                if let Some(seen) = self.instances.get_mut(id) {
                    seen.instance.state = InstanceState::Deleting;
                    seen.at = now;
                }
                self.deleted.insert(id.clone(), now);
                self.looks = 0;
                self.wait(call, now, timing);
            }
            (Call::Examine(id), Outcome::Examined(console)) => drop(self.consoles.insert(id.clone(), console)),
            (_, Outcome::Listed(Err(error)) | Outcome::Got(Err(error)) | Outcome::Deleted(Err(error))) => {
                self.pause(call, &error, now, timing, jitter);
            }
            (call, outcome) => tracing::error!(?call, ?outcome, "a call gave the result of another one"),
        }
    }

    /// Notes that a pod VM's record is in memory.
    pub fn adopt(&mut self, id: &InstanceId, now: Duration) {
        self.adopted.entry(id.clone()).or_insert(now);
    }

    /// Notes that a pod VM's record was written.
    pub fn recorded(&mut self, pod_vm: &PodVmRecord, now: Duration) {
        if pod_vm.claimed_by.is_none() {
            self.adopted.insert(pod_vm.instance_id.clone(), now);
        }
        self.adopt(&pod_vm.instance_id, now);
    }

    /// Forgets what only served a pod VM whose record is removed.
    pub fn forget_instance(&mut self, id: &InstanceId) {
        self.instances.remove(id);
        self.adopted.remove(id);
        self.deleted.remove(id);
        self.consoles.remove(id);
        self.forget_calls(id);
    }

    /// Forgets what only served a launch whose record is removed; a refusal is remembered for a while.
    pub fn forget_launch(&mut self, launch: &LaunchRecord, now: Duration, timing: &Timing) {
        if let Some(refusal) = self.refused.remove(&launch.token) {
            self.refusals.insert(launch.key.clone(), Refusal { until: now + timing.refusal, ..refusal });
        }
        self.refusals.retain(|_, refusal| refusal.until > now);
        self.forget_token(&launch.token);
    }

    /// Forgets what a call has left whose launch was forgotten before it answered.
    pub fn forget_token(&mut self, token: &LaunchToken) {
        self.refused.remove(token);
        self.answered.remove(token);
        self.tried.remove(token);
        self.pauses.remove(&Call::Launch(token.clone()));
    }

    fn refuse(&mut self, token: &LaunchToken, cause: String, is_full: bool) {
        self.refused.insert(token.clone(), Refusal { cause, is_full, until: Duration::ZERO });
    }

    fn take_listing(&mut self, instances: Vec<Instance>, began: Duration, now: Duration) {
        self.instances.retain(|_, seen| seen.at >= began);
        // What was found gone while this listing was made may still be in it; older findings have done their service.
        self.gone.retain(|id, at| *at >= began || self.adopted.contains_key(id));
        for instance in instances {
            if self.gone.get(&instance.id).is_none_or(|at| *at < began) {
                self.instances.entry(instance.id.clone()).or_insert(Seen { instance, at: began });
            }
        }
        let is_known = |id: &InstanceId| self.instances.contains_key(id) || self.adopted.contains_key(id);
        self.pauses.retain(|call, _| call.instance_id().is_none_or(is_known));
        self.deleted.retain(|id, _| is_known(id));
        self.listed = Some(began);
        self.list_ended = now;
        self.looks = self.looks.saturating_add(1);
    }

    fn take_gone(&mut self, id: &InstanceId, now: Duration) {
        self.instances.remove(id);
        self.gone.insert(id.clone(), now);
        self.forget_calls(id);
    }

    fn forget_calls(&mut self, id: &InstanceId) {
        for call in [Call::Get(id.clone()), Call::Delete(id.clone()), Call::Examine(id.clone())] {
            self.pauses.remove(&call);
        }
    }

    fn is_in_grace(&self, id: &InstanceId, now: Duration, timing: &Timing) -> bool {
        let is_new = self.adopted.get(id).is_some_and(|at| now < *at + timing.grace);
        is_new && !self.pauses.contains_key(&Call::Delete(id.clone()))
    }

    fn pause(&mut self, call: &Call, error: &ProviderError, now: Duration, timing: &Timing, jitter: u32) {
        let times = self.pauses.get(call).map_or(0, |pause| pause.times).saturating_add(1);
        let asked_for = match error {
            ProviderError::Throttled { retry_after } => retry_after.unwrap_or_default(),
            _ => Duration::ZERO,
        };
        let until = now + timing.retry(times, jitter).max(asked_for);
        tracing::warn!(?call, %error, times, "a call of the cloud failed and will be made again");
        self.pauses.insert(call.clone(), Pause { times, until, cause: Some(error.to_string()) });
    }

    fn wait(&mut self, call: &Call, now: Duration, timing: &Timing) {
        let times = self.pauses.get(call).map_or(0, |pause| pause.times);
        self.pauses.insert(call.clone(), Pause { times: times.saturating_add(1), until: now + timing.poll(times), cause: None });
    }
}

/// Whether the same call may succeed later without anybody changing anything.
fn is_passing(error: &ProviderError) -> bool {
    match error {
        ProviderError::Throttled { .. } | ProviderError::Unavailable { .. } | ProviderError::DeadlineExceeded => true,
        ProviderError::NotFound
        | ProviderError::AlreadyExists { .. }
        | ProviderError::InsufficientCapacity { .. }
        | ProviderError::QuotaExceeded { .. }
        | ProviderError::PermissionDenied { .. }
        | ProviderError::InvalidRequest { .. }
        | ProviderError::Internal { .. } => false,
    }
}
