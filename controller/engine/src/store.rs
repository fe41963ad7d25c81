//! The Journal's records in memory, kept equal to the stored ones.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use peerpods_controller_api::{Record, RecordKey};

use crate::{Journal, JournalError, Records, Revision};

/// How long one operation of the Journal may take. It may have taken effect after that.
const DEADLINE: Duration = Duration::from_secs(30);

/// Records with their revisions. Memory follows a write only when the Journal has accepted it; after one that failed memory is stale,
/// as the write may have taken effect all the same, and only [`Store::load`] makes it fresh.
pub(crate) struct Store {
    journal: Arc<dyn Journal>,
    pub(crate) records: Records,
    revisions: HashMap<RecordKey, Revision>,
    is_stale: bool,
}

impl Store {
    /// An empty one, stale until it is loaded.
    pub(crate) fn new(journal: Arc<dyn Journal>) -> Self {
        Self { journal, records: Records::default(), revisions: HashMap::new(), is_stale: true }
    }

    /// Whether memory may differ from what is stored.
    pub(crate) fn is_stale(&self) -> bool {
        self.is_stale
    }

    pub(crate) async fn load(&mut self) -> Result<(), JournalError> {
        let stored = within(self.journal.load()).await?;
        (self.records, self.revisions) = (Records::default(), HashMap::new());
        for stored in stored {
            self.revisions.insert(stored.record.key(), stored.revision);
            self.records.insert(stored.record);
        }
        self.is_stale = false;
        Ok(())
    }

    pub(crate) async fn put(&mut self, record: &Record) -> Result<(), JournalError> {
        let key = record.key();
        self.is_stale = true;
        let revision = within(self.journal.put(record, self.revisions.get(&key).copied())).await?;
        self.is_stale = false;
        self.revisions.insert(key, revision);
        self.records.insert(record.clone());
        Ok(())
    }

    /// Gives the record that is removed, if there was one.
    pub(crate) async fn remove(&mut self, key: &RecordKey) -> Result<Option<Record>, JournalError> {
        let Some(revision) = self.revisions.get(key).copied() else { return Ok(None) };
        self.is_stale = true;
        within(self.journal.remove(key, revision)).await?;
        self.is_stale = false;
        self.revisions.remove(key);
        Ok(self.records.remove(key))
    }
}

async fn within<T>(work: impl Future<Output = Result<T, JournalError>>) -> Result<T, JournalError> {
    let late = || JournalError::Unavailable { detail: format!("no answer within {DEADLINE:?}") };
    tokio::time::timeout(DEADLINE, work).await.unwrap_or_else(|_| Err(late()))
}
