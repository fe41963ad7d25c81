//! A Journal that dies with the process, for tests.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use peerpods_controller_api::{Record, RecordError, RecordKey};

use super::{Journal, JournalError, Revision, Stored};

/// Records in memory, encoded as every Journal stores them.
#[derive(Debug, Default)]
pub struct MemoryJournal {
    store: Arc<Mutex<Store>>,
    /// Which opening of the store this is; an older one is fenced.
    epoch: u64,
}

#[derive(Debug, Default)]
struct Store {
    records: BTreeMap<RecordKey, (Revision, Vec<u8>)>,
    last_revision: u64,
    epoch: u64,
}

impl MemoryJournal {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens the same store again, as the next controller does; this one is fenced from now on.
    pub fn reopen(&self) -> Self {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        store.epoch += 1;
        Self { store: Arc::clone(&self.store), epoch: store.epoch }
    }

    /// The same opening, for two holders.
    pub fn share(&self) -> Self {
        Self { store: Arc::clone(&self.store), epoch: self.epoch }
    }

    fn store(&self) -> Result<MutexGuard<'_, Store>, JournalError> {
        let store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        if store.epoch == self.epoch { Ok(store) } else { Err(JournalError::Fenced) }
    }
}

#[async_trait]
impl Journal for MemoryJournal {
    async fn load(&self) -> Result<Vec<Stored>, JournalError> {
        let store = self.store()?;
        let decode = |(key, (revision, bytes)): (&RecordKey, &(Revision, Vec<u8>))| match Record::decode(key.kind, bytes) {
            Ok(record) => Ok(Stored { record, revision: *revision }),
            Err(source) => Err(JournalError::Unreadable { key: key.clone(), source }),
        };
        store.records.iter().map(decode).collect()
    }

    async fn put(&self, record: &Record, expected: Option<Revision>) -> Result<Revision, JournalError> {
        let key = record.key();
        let bytes = record.encode().map_err(|error| match error {
            RecordError::TooLarge { .. } => JournalError::TooLarge { key: key.clone() },
            source => JournalError::Unreadable { key: key.clone(), source },
        })?;
        let mut store = self.store()?;
        if store.records.get(&key).map(|(revision, _)| *revision) != expected {
            return Err(JournalError::Conflict { key });
        }
        store.last_revision += 1;
        let revision = Revision(store.last_revision);
        store.records.insert(key, (revision, bytes));
        Ok(revision)
    }

    async fn remove(&self, key: &RecordKey, expected: Revision) -> Result<(), JournalError> {
        let mut store = self.store()?;
        match store.records.get(key) {
            Some((revision, _)) if *revision != expected => Err(JournalError::Conflict { key: key.clone() }),
            _ => {
                store.records.remove(key);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance;

    #[tokio::test]
    async fn memory_journal_conforms() {
        let first = MemoryJournal::new();
        conformance::check(async || Box::new(first.reopen()) as Box<dyn Journal>).await;
    }

    #[tokio::test]
    async fn older_opening_is_fenced() {
        let first = MemoryJournal::new();
        let second = first.reopen();
        conformance::check_fenced(&first).await;
        assert!(second.load().await.is_ok());
    }
}
