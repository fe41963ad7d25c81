//! All sandboxes of the node: who exists, who is being made, who was stopped.
//!
//! One file because everything in it happens under the one lock.
//!
//! A sandbox's record is written and its task started under one lock, so StopVM finds either nothing recorded, which it keeps from being
//! recorded, or a task that it can stop.
//!
//! # Who owns a claim
//!
//! Our own shim sends the pod's UID, which is the claim's key. Kata's shims do not, so theirs is `node/namespace/name`. When the kubelet tries a pod again with a new sandbox
//! id, the new sandbox takes the key, and with it the pod VM that is coming, from the old one, if the old one was stopped or its network
//! namespace is gone, the pod VM cannot have been bound, the release was not sent, and both ask for the same sizes. The old sandbox's own
//! task decides, between two of its steps: it writes the new sandbox's record first and then lets go in its own, so after a crash at any
//! point exactly one of them releases. Otherwise the new sandbox gets a key of its own, `node/namespace/name/<first digits of its id>`:
//! a release that is on its way for the old key can then never hit it.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use peerpods_controller_api::PodRef;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::admission::{Call, Decision, Known, admit};
use crate::call::{CallError, NewSandbox};
use crate::driver::{self, Command, Context};
use crate::id::SandboxId;
use crate::ledger::{Ledger, View, now_ms};
use crate::ports::chain;
use crate::record::{BoundTo, SandboxRecord, SandboxState, StopReason, VERSION};
use crate::request::PodRequest;
use crate::stopped::Stopped;

/// The sandboxes.
pub struct Registry {
    context: Arc<Context>,
    inner: Mutex<Inner>,
}

struct Inner {
    slots: HashMap<SandboxId, Slot>,
    stopped: Stopped,
    next_vni: u32,
    tasks: JoinSet<()>,
}

enum Slot {
    Creating { is_cancelled: bool, done: watch::Receiver<Option<Result<(), CallError>>> },
    Live(Box<Handle>),
}

struct Handle {
    commands: mpsc::Sender<Command>,
    view: watch::Receiver<View>,
    pod: PodRef,
    claim_key: String,
    request: PodRequest,
    vni: u32,
}

/// Below are numbers that CNI plugins use.
const FIRST_VNI: u32 = 1_000_000;
const LAST_VNI: u32 = (1 << 24) - 1;
/// A netlink dump of a namespace; it is milliseconds unless the kernel is in trouble.
const INSPECT_LIMIT: Duration = Duration::from_secs(10);
/// A task answers between two awaits.
const COMMAND_LIMIT: Duration = Duration::from_secs(5);
const COMMANDS: usize = 8;
/// Sandbox ids in a claim's key: 600 characters less the longest names of node, namespace and pod.
const KEY_ID_CHARS: usize = 24;

impl Registry {
    /// Goes on with every sandbox that is on disk.
    pub fn start(context: Arc<Context>, mut records: Vec<SandboxRecord>) -> Arc<Self> {
        finish_hand_overs(&mut records);
        let next_vni = records.iter().map(|record| record.vni + 1).max().unwrap_or(FIRST_VNI);
        let inner = Inner { slots: HashMap::new(), stopped: Stopped::default(), next_vni, tasks: JoinSet::new() };
        let registry = Arc::new(Self { context, inner: Mutex::new(inner) });
        let mut inner = registry.lock();
        for record in records {
            tracing::info!(sandbox_id = %record.sandbox_id, state = record.state.as_str(), "going on with a sandbox");
            registry.spawn(&mut inner, record, true);
        }
        drop(inner);
        registry
    }

    /// CreateVM: records the sandbox and starts claiming; gives the path of the agent socket.
    pub async fn create(self: &Arc<Self>, new: NewSandbox) -> Result<PathBuf, CallError> {
        let socket = self.context.ports.links.socket(&new.id);
        let mut done = {
            let mut inner = self.lock();
            match admit(Call::Create, inner.known(&new.id)) {
                Decision::Begin => {
                    let (sender, done) = watch::channel(None);
                    inner.slots.insert(new.id.clone(), Slot::Creating { is_cancelled: false, done: done.clone() });
                    // A task of its own: the shim may hang up while the namespace is being looked at.
                    let registry = Arc::clone(self);
                    inner.tasks.spawn(async move { registry.creation(new, sender).await });
                    done
                }
                Decision::JoinCreation => match inner.slots.get(&new.id) {
                    Some(Slot::Creating { done, .. }) => done.clone(),
                    _ => return Ok(socket),
                },
                Decision::RefuseStopped => return Err(CallError::Stopped(new.id)),
                _ => return Ok(socket),
            }
        };
        settled(&mut done).await.map(|()| socket)
    }

    /// StartVM: waits until the sandbox is Ready or has failed, at most `limit`.
    pub async fn start_vm(&self, id: &SandboxId, limit: Duration) -> Result<(), CallError> {
        loop {
            let creation = {
                let inner = self.lock();
                match (admit(Call::Start, inner.known(id)), inner.slots.get(id)) {
                    (Decision::JoinCreation, Some(Slot::Creating { done, .. })) => Err(done.clone()),
                    (Decision::RefuseUnknown, _) => return Err(CallError::Unknown(id.clone())),
                    (Decision::RefuseStopped, _) => return Err(CallError::Stopped(id.clone())),
                    (_, Some(Slot::Live(handle))) => Ok(handle.view.clone()),
                    _ => return Err(CallError::Unknown(id.clone())),
                }
            };
            match creation {
                Ok(view) => return ready(id, view, limit).await,
                Err(mut done) => settled(&mut done).await?,
            }
        }
    }

    /// The pod VM of a sandbox that is Ready.
    pub fn bound(&self, id: &SandboxId) -> Option<BoundTo> {
        match self.lock().slots.get(id) {
            Some(Slot::Live(handle)) => handle.view.borrow().bound.clone(),
            _ => None,
        }
    }

    /// Waits until the sandbox is over, and gives the reason; `None` when it is not within `limit`.
    pub async fn over(&self, id: &SandboxId, limit: Duration) -> Result<Option<String>, CallError> {
        let mut view = match self.lock().slots.get(id) {
            Some(Slot::Live(handle)) => handle.view.clone(),
            Some(Slot::Creating { .. }) => return Ok(None),
            None => return Err(CallError::Unknown(id.clone())),
        };
        let is_over = |view: &View| matches!(view.known, Known::Failed | Known::Stopping);
        match timeout(limit, view.wait_for(is_over)).await {
            Ok(Ok(view)) => Ok(Some(match &view.failure {
                Some(failure) => format!("cannot {}: {}; next: {}", failure.during, failure.cause, failure.advice),
                None => "it was stopped".to_owned(),
            })),
            // The daemon ends; the next one is asked again.
            Ok(Err(_)) => Err(CallError::ShuttingDown),
            Err(_) => Ok(None),
        }
    }

    /// StopVM: when this returns, the sandbox is gone for good, also after a crash; what is left of it is removed in the background.
    pub async fn stop(&self, id: &SandboxId, reason: StopReason) -> Result<(), CallError> {
        let commands = {
            let mut inner = self.lock();
            let decision = admit(Call::Stop, inner.known(id));
            match (decision, inner.slots.get_mut(id)) {
                (Decision::CancelCreation, Some(Slot::Creating { is_cancelled, .. })) => {
                    *is_cancelled = true;
                    return Ok(());
                }
                (Decision::Stop, Some(Slot::Live(handle))) => handle.commands.clone(),
                _ => return Ok(()),
            }
        };
        let (reply, answer) = oneshot::channel();
        let asked = timeout(COMMAND_LIMIT, async {
            commands.send(Command::Stop { reason, reply }).await.ok()?;
            answer.await.ok()
        });
        match asked.await {
            Ok(Some(Ok(()))) => Ok(()),
            Ok(Some(Err(cause))) => Err(CallError::Record(cause)),
            // The task has ended: nothing of the sandbox is left, or the daemon ends and the next one is asked again.
            Ok(None) if self.lock().known(id) == Known::Stopped => Ok(()),
            Ok(None) => Err(CallError::ShuttingDown),
            Err(_) => Err(CallError::Record("its task does not answer".to_owned())),
        }
    }

    /// The states' names, for metrics.
    pub fn states(&self) -> Vec<&'static str> {
        let live = |slot: &Slot| match slot {
            Slot::Live(handle) => Some(handle.view.borrow().state),
            Slot::Creating { .. } => None,
        };
        self.lock().slots.values().filter_map(live).collect()
    }

    /// Ends every task where it is; the next daemon goes on from the files.
    pub async fn shut_down(&self) {
        let mut tasks = std::mem::take(&mut self.lock().tasks);
        tasks.shutdown().await;
    }

    async fn creation(self: Arc<Self>, new: NewSandbox, done: watch::Sender<Option<Result<(), CallError>>>) {
        let id = new.id.clone();
        let result = self.try_creation(new).await;
        let mut inner = self.lock();
        if let Some(Slot::Creating { is_cancelled, .. }) = inner.slots.get(&id) {
            let is_cancelled = *is_cancelled;
            inner.slots.remove(&id);
            if is_cancelled {
                inner.stopped.insert(id);
            }
        }
        drop(inner);
        done.send_replace(Some(result));
    }

    async fn try_creation(self: &Arc<Self>, new: NewSandbox) -> Result<(), CallError> {
        if let Some(netns) = &new.netns {
            let inspected = timeout(INSPECT_LIMIT, self.context.ports.networks.inspect(netns)).await;
            match inspected {
                Ok(inspected) => inspected.map_err(|error| CallError::Netns(error.to_string()))?,
                Err(_) => return Err(CallError::Netns(format!("{} gives no answer", netns.display()))),
            }
        }
        // Only our own shim knows the pod's UID; no other pod ever has it.
        let key = match (&new.shim, new.pod.uid()) {
            (Some(_), Some(uid)) => uid.to_owned(),
            _ => format!("{}/{}/{}", self.context.node, new.pod.namespace(), new.pod.name()),
        };
        if let Some((owner, commands)) = self.owner_of(&key, &new) {
            let (registry, new, key) = (Arc::clone(self), new.clone(), key.clone());
            let commit = Box::new(move || registry.commit(&new, key, Some(owner)).is_ok());
            let (reply, answer) = oneshot::channel();
            let asked = timeout(COMMAND_LIMIT, async {
                commands.send(Command::HandOver { commit, reply }).await.ok()?;
                answer.await.ok()
            });
            if asked.await == Ok(Some(true)) {
                return Ok(());
            }
        }
        self.commit(&new, key, None)
    }

    /// The older sandbox of the same pod that has the claim, if its claim would do for the new one.
    fn owner_of(&self, key: &str, new: &NewSandbox) -> Option<(SandboxId, mpsc::Sender<Command>)> {
        let inner = self.lock();
        inner.slots.iter().find_map(|(id, slot)| match slot {
            Slot::Live(handle)
                if handle.claim_key == key
                    && handle.pod == new.pod
                    && handle.view.borrow().owns_claim
                    && asks_the_same(&handle.request, &new.request) =>
            {
                Some((id.clone(), handle.commands.clone()))
            }
            _ => None,
        })
    }

    /// Writes the first record and starts the task, unless StopVM came meanwhile.
    fn commit(self: &Arc<Self>, new: &NewSandbox, key: String, taken_from: Option<SandboxId>) -> Result<(), CallError> {
        let mut inner = self.lock();
        match inner.slots.get(&new.id) {
            Some(Slot::Creating { is_cancelled: false, .. }) => {}
            Some(Slot::Live(_)) => return Err(CallError::Record("it is recorded already".to_owned())),
            _ => return Err(CallError::Stopped(new.id.clone())),
        }
        let claim_key = match &taken_from {
            None if inner.is_owned(&key) => {
                let digits: String = new.id.as_str().chars().take(KEY_ID_CHARS).collect();
                format!("{key}/{digits}")
            }
            _ => key,
        };
        let now = now_ms();
        let record = SandboxRecord {
            version: VERSION,
            sandbox_id: new.id.clone(),
            pod: new.pod.clone(),
            netns: new.netns.clone(),
            vni: inner.take_vni().ok_or_else(|| CallError::Record("every VXLAN number is in use".to_owned()))?,
            claim_key,
            taken_from,
            shim: new.shim,
            request: new.request.clone(),
            state: SandboxState::Created,
            phases: Vec::new(),
            created_unix_ms: now,
            phase_began_unix_ms: now,
        };
        self.context.store.write(&record).map_err(|error| CallError::Record(chain(&error)))?;
        tracing::info!(sandbox_id = %new.id, pod = %new.pod, vni = record.vni, claim_key = record.claim_key,
            taken_from = record.taken_from.as_ref().map(SandboxId::as_str), "recorded");
        self.spawn(&mut inner, record, false);
        Ok(())
    }

    fn spawn(self: &Arc<Self>, inner: &mut Inner, record: SandboxRecord, is_resumed: bool) {
        let id = record.sandbox_id.clone();
        let (commands, receiver) = mpsc::channel(COMMANDS);
        let (pod, claim_key, vni) = (record.pod.clone(), record.claim_key.clone(), record.vni);
        let request = PodRequest { initdata: None, ..record.request.clone() };
        let (ledger, view) = Ledger::new(record, self.context.store.clone(), self.context.metrics.clone());
        inner.slots.insert(id.clone(), Slot::Live(Box::new(Handle { commands, view, pod, claim_key, request, vni })));
        let registry = Arc::clone(self);
        while inner.tasks.try_join_next().is_some() {}
        inner.tasks.spawn(async move {
            driver::run(Arc::clone(&registry.context), ledger, receiver, is_resumed).await;
            let mut inner = registry.lock();
            inner.slots.remove(&id);
            inner.stopped.insert(id);
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn known(&self, id: &SandboxId) -> Known {
        match self.slots.get(id) {
            Some(Slot::Creating { is_cancelled: true, .. }) => Known::Stopped,
            Some(Slot::Creating { .. }) => Known::Creating,
            Some(Slot::Live(handle)) => handle.view.borrow().known,
            None if self.stopped.contains(id) => Known::Stopped,
            None => Known::Unknown,
        }
    }

    fn is_owned(&self, key: &str) -> bool {
        self.slots.values().any(|slot| matches!(slot, Slot::Live(handle) if handle.claim_key == key && handle.view.borrow().owns_claim))
    }

    /// Numbers go up and begin again at the end, so that one is not used again while packets of its last user may be about.
    fn take_vni(&mut self) -> Option<u32> {
        let used: BTreeSet<u32> =
            self.slots.values().filter_map(|slot| if let Slot::Live(handle) = slot { Some(handle.vni) } else { None }).collect();
        let from = if (FIRST_VNI..=LAST_VNI).contains(&self.next_vni) { self.next_vni } else { FIRST_VNI };
        let vni = (from..=LAST_VNI).chain(FIRST_VNI..from).find(|vni| !used.contains(vni))?;
        self.next_vni = vni + 1;
        Some(vni)
    }
}

/// A daemon that died within a hand-over had written the newer record only: the older one lets go now.
fn finish_hand_overs(records: &mut [SandboxRecord]) {
    let taken: Vec<(SandboxId, String)> =
        records.iter().filter_map(|record| Some((record.taken_from.clone()?, record.claim_key.clone()))).collect();
    for record in records {
        if taken.iter().any(|(from, key)| *from == record.sandbox_id && *key == record.claim_key) {
            driver::let_go(record);
        }
    }
}

fn asks_the_same(a: &PodRequest, b: &PodRequest) -> bool {
    PodRequest { initdata: None, ..a.clone() } == PodRequest { initdata: None, ..b.clone() }
}

async fn settled(done: &mut watch::Receiver<Option<Result<(), CallError>>>) -> Result<(), CallError> {
    match done.wait_for(Option::is_some).await {
        Ok(result) => result.clone().unwrap_or(Err(CallError::ShuttingDown)),
        Err(_) => Err(CallError::ShuttingDown),
    }
}

/// What a sandbox in bring-up waits for, in words.
fn waiting_for(view: &View) -> String {
    let pod_vm = view.instance_id.as_deref().unwrap_or("?");
    match view.state {
        "created" | "claiming" => "the controller has not given a pod VM yet".to_owned(),
        "assigned" => format!("pod VM {pod_vm} has not answered yet; it may not have booted"),
        state => format!("pod VM {pod_vm} has come no further than {state}"),
    }
}

async fn ready(id: &SandboxId, mut view: watch::Receiver<View>, limit: Duration) -> Result<(), CallError> {
    let waited = timeout(limit, view.wait_for(|view| view.known != Known::Starting)).await.map(|seen| seen.map(|view| view.clone()));
    match waited {
        Ok(Ok(view)) => match (&view.known, &view.failure) {
            (Known::Ready, _) => Ok(()),
            (_, Some(failure)) => Err(CallError::Failed {
                id: id.clone(),
                during: failure.during.clone(),
                cause: failure.cause.clone(),
                advice: failure.advice.clone(),
            }),
            _ => Err(CallError::Stopped(id.clone())),
        },
        Ok(Err(_)) => Err(CallError::ShuttingDown),
        Err(_) => {
            let view = view.borrow();
            let trouble = view.trouble.as_ref().map_or(String::new(), |trouble| format!(", {trouble}"));
            let waiting_for = waiting_for(&view);
            Err(CallError::Timeout { id: id.clone(), waited_secs: limit.as_secs(), waiting_for, trouble })
        }
    }
}
