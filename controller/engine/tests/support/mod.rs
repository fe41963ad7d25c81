//! A cloud in memory with faults on demand, and a fuse that stops a process between any two of its side effects.
//! Shared by the engine's and the server's tests.
#![allow(dead_code, reason = "each test uses its part")]

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use peerpods_cloud_api::{
    CloudProvider, Instance, InstanceId, InstanceState, InstanceType, LaunchRequest, LaunchToken, Launched, Mib, OwnerTag, ProviderError,
    Tee,
};
use peerpods_controller_api::{Record, RecordKey};
use peerpods_engine::{Journal, JournalError, MemoryJournal, Revision, Stored};
use tokio::sync::watch;

/// Lets so many steps happen, then none: whoever reaches it waits for ever, as a dead process does.
pub(crate) struct Fuse {
    left: AtomicI64,
    blown: watch::Sender<bool>,
}

impl Fuse {
    pub(crate) fn new(steps: i64) -> Arc<Self> {
        Arc::new(Self { left: AtomicI64::new(steps), blown: watch::channel(false).0 })
    }

    pub(crate) fn never() -> Arc<Self> {
        Self::new(i64::MAX)
    }

    /// Done when the process is dead.
    pub(crate) async fn blown(&self) {
        let _ = self.blown.subscribe().wait_for(|is_blown| *is_blown).await;
    }

    async fn step(&self) {
        if self.left.fetch_sub(1, Ordering::Relaxed) <= 0 {
            self.blown.send_replace(true);
            std::future::pending::<()>().await;
        }
    }
}

/// A Journal of a process that may die before and after each write.
pub(crate) struct FusedJournal {
    pub(crate) inner: MemoryJournal,
    pub(crate) fuse: Arc<Fuse>,
    /// Writes that fail before they succeed again.
    pub(crate) faults: Arc<Mutex<VecDeque<Fault>>>,
}

/// How an operation of a fake fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Before,
    After,
}

impl FusedJournal {
    async fn faulty<T>(&self, work: impl Future<Output = Result<T, JournalError>>) -> Result<T, JournalError> {
        let fault = self.faults.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let unavailable = || JournalError::Unavailable { detail: "injected".to_owned() };
        self.fuse.step().await;
        if fault == Some(Fault::Before) {
            return Err(unavailable());
        }
        let result = work.await;
        self.fuse.step().await;
        if fault == Some(Fault::After) { Err(unavailable()) } else { result }
    }
}

#[async_trait]
impl Journal for FusedJournal {
    async fn load(&self) -> Result<Vec<Stored>, JournalError> {
        self.fuse.step().await;
        self.inner.load().await
    }

    async fn put(&self, record: &Record, expected: Option<Revision>) -> Result<Revision, JournalError> {
        self.faulty(self.inner.put(record, expected)).await
    }

    async fn remove(&self, key: &RecordKey, expected: Revision) -> Result<(), JournalError> {
        self.faulty(self.inner.remove(key, expected)).await
    }
}

/// The cloud itself; outlives every process.
#[derive(Debug, Default)]
pub(crate) struct FakeCloud {
    state: Mutex<CloudState>,
    created: AtomicU32,
    /// The instance types that launches asked for, those that failed included.
    launched: Mutex<Vec<String>>,
    /// Looks beyond the first until a new instance runs.
    delay: AtomicU32,
}

#[derive(Debug, Default)]
struct CloudState {
    instances: BTreeMap<InstanceId, Machine>,
    tokens: BTreeMap<LaunchToken, LaunchRequest>,
    /// Errors that the next calls of this name give, with or without effect.
    faults: BTreeMap<&'static str, VecDeque<(Fault, ProviderError)>>,
}

#[derive(Debug)]
struct Machine {
    instance: Instance,
    /// Looks until it runs, or until it is gone once it is being deleted.
    looks: u32,
}

impl FakeCloud {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    fn state(&self) -> MutexGuard<'_, CloudState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on a new instance runs only after so many looks.
    pub(crate) fn delay(&self, looks: u32) {
        self.delay.store(looks, Ordering::Relaxed);
    }

    /// The next call of this name (`launch`, `get`, `delete`, `list`, `instance_types`) fails.
    pub(crate) fn fail_next(&self, call: &'static str, fault: Fault, error: ProviderError) {
        self.state().faults.entry(call).or_default().push_back((fault, error));
    }

    pub(crate) fn instances(&self) -> Vec<Instance> {
        self.state().instances.values().map(|machine| machine.instance.clone()).collect()
    }

    /// How many instances there have ever been.
    pub(crate) fn created(&self) -> u32 {
        self.created.load(Ordering::Relaxed)
    }

    /// The instance types that launches have asked for.
    pub(crate) fn launched(&self) -> Vec<String> {
        self.launched.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// An instance stops by itself.
    pub(crate) fn kill(&self, id: &str) {
        for machine in self.state().instances.values_mut().filter(|machine| machine.instance.id.as_str() == id) {
            machine.instance.state = InstanceState::Stopped;
        }
    }

    /// Somebody removes an instance.
    pub(crate) fn vanish(&self, id: &str) {
        self.state().instances.retain(|other, _| other.as_str() != id);
    }

    /// An instance that no launch of ours accounts for.
    pub(crate) fn plant(&self, id: &str, owner: &OwnerTag) {
        let id = InstanceId::new(id).expect("valid");
        let token = LaunchToken::new("forgotten").expect("valid");
        let instance = Instance { id: id.clone(), owner: owner.clone(), token, state: InstanceState::Running, address: None };
        self.state().instances.insert(id, Machine { instance, looks: 0 });
    }

    fn call<T>(&self, name: &'static str, work: impl FnOnce(&mut CloudState) -> Result<T, ProviderError>) -> Result<T, ProviderError> {
        let mut state = self.state();
        match state.faults.get_mut(name).and_then(VecDeque::pop_front) {
            Some((Fault::Before, error)) => Err(error),
            Some((Fault::After, error)) => work(&mut state).and(Err(error)),
            None => work(&mut state),
        }
    }
}

impl CloudState {
    /// Time in this cloud passes by looking.
    fn look(&mut self) {
        for machine in self.instances.values_mut() {
            if machine.looks > 0 {
                machine.looks -= 1;
            } else if machine.instance.state == InstanceState::Pending {
                machine.instance.state = InstanceState::Running;
                machine.instance.address = Some([10, 0, 0, 1].into());
            }
        }
        let is_gone = |machine: &Machine| machine.instance.state == InstanceState::Deleting && machine.looks == 0;
        self.instances.retain(|_, machine| !is_gone(machine));
    }
}

#[async_trait]
impl CloudProvider for FakeCloud {
    async fn verify(&self) -> Result<(), ProviderError> {
        self.call("verify", |_| Ok(()))
    }

    async fn launch(&self, request: &LaunchRequest) -> Result<Launched, ProviderError> {
        self.launched.lock().unwrap_or_else(PoisonError::into_inner).push(request.instance_type.clone());
        self.call("launch", |state| {
            if let Some(first) = state.tokens.get(&request.token) {
                if first != request {
                    return Err(ProviderError::AlreadyExists { detail: "token".to_owned() });
                }
            } else {
                state.tokens.insert(request.token.clone(), request.clone());
                for _ in 0..request.count {
                    let number = self.created.fetch_add(1, Ordering::Relaxed) + 1;
                    let id = InstanceId::new(format!("i-{number}")).expect("valid");
                    let (owner, token) = (request.owner.clone(), request.token.clone());
                    let instance = Instance { id: id.clone(), owner, token, state: InstanceState::Pending, address: None };
                    state.instances.insert(id, Machine { instance, looks: 1 + self.delay.load(Ordering::Relaxed) });
                }
            }
            let instances = state.instances.values().map(|machine| machine.instance.clone());
            Ok(Launched { instances: instances.filter(|instance| instance.token == request.token).collect() })
        })
    }

    async fn get(&self, id: &InstanceId) -> Result<Instance, ProviderError> {
        self.call("get", |state| {
            state.look();
            state.instances.get(id).map(|machine| machine.instance.clone()).ok_or(ProviderError::NotFound)
        })
    }

    async fn delete(&self, id: &InstanceId) -> Result<(), ProviderError> {
        self.call("delete", |state| {
            let machine = state.instances.get_mut(id).ok_or(ProviderError::NotFound)?;
            if machine.instance.state != InstanceState::Deleting {
                (machine.instance.state, machine.looks) = (InstanceState::Deleting, 2);
            }
            Ok(())
        })
    }

    async fn list(&self, owner: &OwnerTag) -> Result<Vec<Instance>, ProviderError> {
        self.call("list", |state| {
            state.look();
            let instances = state.instances.values().map(|machine| machine.instance.clone());
            Ok(instances.filter(|instance| instance.owner == *owner).collect())
        })
    }

    async fn instance_types(&self) -> Result<Vec<InstanceType>, ProviderError> {
        let size = |name: &str, vcpus, memory| InstanceType {
            name: name.to_owned(),
            vcpus,
            memory: Mib(memory),
            gpus: 0,
            tees: vec![Tee::Sample],
        };
        self.call("instance_types", |_| Ok(vec![size("small", 1, 1024), size("large", 8, 16384)]))
    }
}

/// The cloud as a process that may die before and after each call sees it.
pub(crate) struct FusedCloud {
    pub(crate) cloud: Arc<FakeCloud>,
    pub(crate) fuse: Arc<Fuse>,
}

impl FusedCloud {
    async fn fused<T>(&self, call: impl Future<Output = T>) -> T {
        self.fuse.step().await;
        let result = call.await;
        self.fuse.step().await;
        result
    }
}

#[async_trait]
impl CloudProvider for FusedCloud {
    async fn verify(&self) -> Result<(), ProviderError> {
        self.cloud.verify().await
    }

    async fn launch(&self, request: &LaunchRequest) -> Result<Launched, ProviderError> {
        self.fused(self.cloud.launch(request)).await
    }

    async fn get(&self, id: &InstanceId) -> Result<Instance, ProviderError> {
        self.fused(self.cloud.get(id)).await
    }

    async fn delete(&self, id: &InstanceId) -> Result<(), ProviderError> {
        self.fused(self.cloud.delete(id)).await
    }

    async fn list(&self, owner: &OwnerTag) -> Result<Vec<Instance>, ProviderError> {
        self.fused(self.cloud.list(owner)).await
    }

    async fn instance_types(&self) -> Result<Vec<InstanceType>, ProviderError> {
        self.fused(self.cloud.instance_types()).await
    }
}
