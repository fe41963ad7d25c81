//! One sandbox's record with its file and its published view, changed together.

use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use tokio::sync::watch;

use crate::admission::Known;
use crate::metrics::Metrics;
use crate::record::{BoundTo, ClaimDuty, Failure, Phase, SandboxRecord, SandboxState, unix_ms};
use crate::store::{Store, StoreError};

/// What others see of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The state's name.
    pub state: &'static str,
    /// The state as admission sees it.
    pub known: Known,
    /// The pod VM.
    pub instance_id: Option<String>,
    /// The pod VM and its key, once it may be dialled.
    pub bound: Option<BoundTo>,
    /// Why bring-up has failed.
    pub failure: Option<Failure>,
    /// What is being tried again at the moment, and why.
    pub trouble: Option<String>,
    /// Whether the claim is this sandbox's to release.
    pub owns_claim: bool,
}

/// The record's only writer is the sandbox's task.
#[derive(Debug)]
pub struct Ledger {
    record: Mutex<SandboxRecord>,
    view: watch::Sender<View>,
    store: Store,
    metrics: Metrics,
}

impl Ledger {
    /// For a record that is on disk already.
    pub fn new(record: SandboxRecord, store: Store, metrics: Metrics) -> (Self, watch::Receiver<View>) {
        let (view, receiver) = watch::channel(view_of(&record, None));
        (Self { record: Mutex::new(record), view, store, metrics }, receiver)
    }

    /// Reads the record.
    pub fn read<T>(&self, read: impl FnOnce(&SandboxRecord) -> T) -> T {
        read(&self.lock())
    }

    /// The state, copied.
    pub fn state(&self) -> SandboxState {
        self.read(|record| record.state.clone())
    }

    /// Changes the record on disk, then in memory, then tells everybody. Nothing changes when the disk refuses.
    pub fn update(&self, change: impl FnOnce(&mut SandboxRecord)) -> Result<(), StoreError> {
        let mut record = self.lock();
        let mut new = record.clone();
        change(&mut new);
        self.store.write(&new)?;
        self.install(&mut record, new);
        Ok(())
    }

    /// As [`Ledger::update`], but changes the record in memory also when the disk refuses: for what must happen anyway.
    pub fn force(&self, change: impl FnOnce(&mut SandboxRecord)) -> Result<(), StoreError> {
        let mut record = self.lock();
        let mut new = record.clone();
        change(&mut new);
        let written = self.store.write(&new);
        self.install(&mut record, new);
        written
    }

    /// Changes the record in memory; the disk learns of it with the next update. For times, which may be lost.
    pub fn note(&self, change: impl FnOnce(&mut SandboxRecord)) {
        change(&mut self.lock());
    }

    /// Says what is being tried again.
    pub fn set_trouble(&self, trouble: Option<&str>) {
        self.view.send_if_modified(|view| {
            let is_new = view.trouble.as_deref() != trouble;
            if is_new {
                view.trouble = trouble.map(str::to_owned);
            }
            is_new
        });
    }

    /// Removes the file: the last thing that happens to a sandbox.
    pub fn remove(&self) -> Result<(), StoreError> {
        self.store.remove(&self.lock().sandbox_id)
    }

    fn install(&self, record: &mut SandboxRecord, new: SandboxRecord) {
        for phase in new.phases.iter().filter(|phase| !record.phases.contains(phase)) {
            self.metrics.observe(phase.phase, phase.ms);
        }
        *record = new;
        self.view.send_replace(view_of(record, None));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, SandboxRecord> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The time as records carry it.
pub fn now_ms() -> u64 {
    unix_ms(SystemTime::now())
}

/// Ends the phases that lead to Ready.
pub fn end_bring_up(record: &mut SandboxRecord) {
    let now = now_ms();
    record.end_phase(Phase::Link, now);
    record.push_phase(Phase::Total, now.saturating_sub(record.created_unix_ms));
}

fn view_of(record: &SandboxRecord, trouble: Option<String>) -> View {
    let (known, failure) = match &record.state {
        SandboxState::Ready(_) => (Known::Ready, None),
        SandboxState::Failed(failure) => (Known::Failed, Some(failure.clone())),
        SandboxState::Stopping(_) => (Known::Stopping, None),
        _ => (Known::Starting, None),
    };
    let bound = if let SandboxState::Ready(vm) = &record.state { Some(vm.clone()) } else { None };
    View {
        bound,
        state: record.state.as_str(),
        known,
        instance_id: record.state.instance_id().map(str::to_owned),
        failure,
        trouble,
        owns_claim: matches!(record.state, SandboxState::Created) || record.state.claim_duty() != ClaimDuty::Nothing,
    }
}
