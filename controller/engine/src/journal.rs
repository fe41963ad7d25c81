//! Where records are kept.

mod memory;

use async_trait::async_trait;
use peerpods_controller_api::{Record, RecordError, RecordKey};

pub use memory::MemoryJournal;

/// Which writing of a record: changes with every write, never comes back. Opaque; only equality means something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Revision(pub u64);

/// A record as stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// The record.
    pub record: Record,
    /// Its revision.
    pub revision: Revision,
}

/// Why a Journal could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The record is not at the expected revision: load again and decide again.
    #[error("{key} was written by somebody else")]
    Conflict {
        /// Which record.
        key: RecordKey,
    },
    /// Another controller has taken over; this one must stop.
    #[error("another controller has taken over the journal")]
    Fenced,
    /// The record exceeds [`peerpods_controller_api::MAX_RECORD_BYTES`].
    #[error("{key} is too large for the journal")]
    TooLarge {
        /// Which record.
        key: RecordKey,
    },
    /// The store fails or cannot be reached; a write may have taken effect.
    #[error("the journal is unavailable: {detail}")]
    Unavailable {
        /// What failed.
        detail: String,
    },
    /// A stored record cannot be read; nothing was changed.
    #[error("{key} cannot be read")]
    Unreadable {
        /// Which record.
        key: RecordKey,
        /// Why.
        #[source]
        source: RecordError,
    },
}

/// A durable map from record keys to records.
///
/// Each write is atomic for its one record and durable when it returns; nothing relies on two records changing together.
/// All calls may be cancelled at any await; a cancelled write may have taken effect.
#[async_trait]
pub trait Journal: Send + Sync {
    /// All records, in any order. One that cannot be read fails the whole load and changes nothing.
    async fn load(&self) -> Result<Vec<Stored>, JournalError>;

    /// Writes a record. `expected` is its present revision, `None` that it must not exist. Gives its new revision.
    async fn put(&self, record: &Record, expected: Option<Revision>) -> Result<Revision, JournalError>;

    /// Removes a record at this revision. One that is not there is no error: an earlier try may have removed it.
    async fn remove(&self, key: &RecordKey, expected: Revision) -> Result<(), JournalError>;
}
