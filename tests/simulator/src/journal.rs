//! A journal that fails now and then, before or after it has written.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use peerpods_controller_api::{Record, RecordKey};
use peerpods_engine::{Journal, JournalError, MemoryJournal, Revision, Stored};

use crate::cloud::ModelCloud;

/// One opening of the records.
pub(crate) struct FaultyJournal {
    pub(crate) inner: MemoryJournal,
    pub(crate) cloud: Arc<ModelCloud>,
    pub(crate) rng: Mutex<fastrand::Rng>,
}

impl FaultyJournal {
    async fn faulty<T>(&self, work: impl Future<Output = Result<T, JournalError>>) -> Result<T, JournalError> {
        let (delay, chance) = {
            let mut rng = self.rng.lock().unwrap_or_else(PoisonError::into_inner);
            (rng.u64(0..3), rng.u32(0..100))
        };
        tokio::time::sleep(Duration::from_millis(delay)).await;
        let unavailable = || JournalError::Unavailable { detail: "injected".to_owned() };
        match chance {
            0 if self.cloud.is_faulty() => {
                self.cloud.note("journal before");
                Err(unavailable())
            }
            1 if self.cloud.is_faulty() => {
                let result = work.await;
                self.cloud.note("journal after");
                result.and(Err(unavailable()))
            }
            _ => work.await,
        }
    }
}

#[async_trait]
impl Journal for FaultyJournal {
    async fn load(&self) -> Result<Vec<Stored>, JournalError> {
        self.inner.load().await
    }

    async fn put(&self, record: &Record, expected: Option<Revision>) -> Result<Revision, JournalError> {
        self.faulty(self.inner.put(record, expected)).await
    }

    async fn remove(&self, key: &RecordKey, expected: Revision) -> Result<(), JournalError> {
        self.faulty(self.inner.remove(key, expected)).await
    }
}
