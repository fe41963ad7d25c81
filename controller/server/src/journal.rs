//! The Journal in one file.
//!
//! One redb table maps `kind/name` to the revision (eight bytes, big-endian) followed by the record. The last revision given and the
//! file's format stand in a second table and change in the same transaction. A transaction is durable when it has committed. redb
//! locks the file, so a second controller cannot open it: there is nobody who could fence this one.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use peerpods_controller_api::{Record, RecordError, RecordKey, RecordKind};
use peerpods_engine::{Journal, JournalError, Revision, Stored};
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition, WriteTransaction};

const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("records");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const FORMAT: &str = "format";
const LAST_REVISION: &str = "last-revision";
const FORMAT_VERSION: u64 = 1;
/// Pages kept in memory; the whole file of a small installation.
const CACHE_BYTES: usize = 8 << 20;

/// A Journal in a file of this machine.
#[derive(Debug, Clone)]
pub struct RedbJournal {
    database: Arc<Database>,
}

/// A file that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("another controller is using it; stop that one first")]
    InUse,
    /// Written by a release that this one does not know.
    #[error("it has format {found}, this release knows {FORMAT_VERSION}; run the release that wrote it, or upgrade one release at a time")]
    UnknownFormat {
        /// Its format.
        found: u64,
    },
    /// The store failed.
    #[error("the store failed")]
    Store(#[source] redb::Error),
}

impl RedbJournal {
    /// Opens the file, making it if it is missing.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let database = redb::Builder::new().set_cache_size(CACHE_BYTES).create(path).map_err(|error| match error {
            redb::DatabaseError::DatabaseAlreadyOpen => OpenError::InUse,
            error => OpenError::Store(error.into()),
        })?;
        let found = format_of(&database).map_err(OpenError::Store)?;
        match found {
            Some(FORMAT_VERSION) => {}
            Some(found) => return Err(OpenError::UnknownFormat { found }),
            None => prepare(&database).map_err(OpenError::Store)?,
        }
        Ok(Self { database: Arc::new(database) })
    }

    /// Runs a transaction where blocking is allowed.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, JournalError> {
        let database = Arc::clone(&self.database);
        match tokio::task::spawn_blocking(move || work(&database)).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(Fault::Journal(error))) => Err(error),
            Ok(Err(Fault::Store(error))) => Err(JournalError::Unavailable { detail: error.to_string() }),
            Err(error) => Err(JournalError::Unavailable { detail: error.to_string() }),
        }
    }
}

#[async_trait]
impl Journal for RedbJournal {
    async fn load(&self) -> Result<Vec<Stored>, JournalError> {
        self.blocking(|database| {
            let table = database.begin_read()?.open_table(RECORDS)?;
            let mut all = Vec::new();
            for entry in table.iter()? {
                let (name, value) = entry?;
                let key = parse_key(name.value())?;
                let (revision, bytes) = split(&key, value.value())?;
                let record = Record::decode(key.kind, bytes).map_err(|source| JournalError::Unreadable { key, source })?;
                all.push(Stored { record, revision });
            }
            Ok(all)
        })
        .await
    }

    async fn put(&self, record: &Record, expected: Option<Revision>) -> Result<Revision, JournalError> {
        let key = record.key();
        let bytes = record.encode().map_err(|error| match error {
            RecordError::TooLarge { .. } => JournalError::TooLarge { key: key.clone() },
            source => JournalError::Unreadable { key: key.clone(), source },
        })?;
        self.blocking(move |database| {
            let transaction = database.begin_write()?;
            if present(&transaction, &key)? != expected {
                return Err(JournalError::Conflict { key }.into());
            }
            let revision = next_revision(&transaction)?;
            let value = [revision.0.to_be_bytes().as_slice(), &bytes].concat();
            transaction.open_table(RECORDS)?.insert(name(&key).as_str(), value.as_slice())?;
            transaction.commit()?;
            Ok(revision)
        })
        .await
    }

    async fn remove(&self, key: &RecordKey, expected: Revision) -> Result<(), JournalError> {
        let key = key.clone();
        self.blocking(move |database| {
            let transaction = database.begin_write()?;
            match present(&transaction, &key)? {
                None => return Ok(()),
                Some(revision) if revision != expected => return Err(JournalError::Conflict { key }.into()),
                Some(_) => {}
            }
            transaction.open_table(RECORDS)?.remove(name(&key).as_str())?;
            transaction.commit()?;
            Ok(())
        })
        .await
    }
}

/// What ends a transaction early; dropping it undoes it.
enum Fault {
    Journal(JournalError),
    Store(redb::Error),
}

impl From<JournalError> for Fault {
    fn from(error: JournalError) -> Self {
        Fault::Journal(error)
    }
}

macro_rules! from_store {
    ($($error:ident)*) => {$(
        impl From<redb::$error> for Fault {
            fn from(error: redb::$error) -> Self {
                Fault::Store(error.into())
            }
        }
    )*};
}

from_store! { TransactionError TableError StorageError CommitError }

fn format_of(database: &Database) -> Result<Option<u64>, redb::Error> {
    let transaction = database.begin_read()?;
    match transaction.open_table(META) {
        Ok(table) => Ok(table.get(FORMAT)?.map(|value| value.value())),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn prepare(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(RECORDS)?;
    transaction.open_table(META)?.insert(FORMAT, FORMAT_VERSION)?;
    transaction.commit()?;
    Ok(())
}

fn name(key: &RecordKey) -> String {
    format!("{}/{}", key.kind.as_str(), key.name)
}

fn parse_key(name: &str) -> Result<RecordKey, JournalError> {
    let found = name.split_once('/').and_then(|(kind, name)| Some((RecordKind::ALL.into_iter().find(|k| k.as_str() == kind)?, name)));
    let unknown = || JournalError::Unavailable {
        detail: format!("it has a record {name:?} of a kind that this release does not know; run the release that wrote it"),
    };
    found.map(|(kind, name)| RecordKey { kind, name: name.to_owned() }).ok_or_else(unknown)
}

fn split<'a>(key: &RecordKey, value: &'a [u8]) -> Result<(Revision, &'a [u8]), JournalError> {
    let cut = || JournalError::Unavailable { detail: format!("{key} is cut short") };
    let (revision, bytes) = value.split_first_chunk::<8>().ok_or_else(cut)?;
    Ok((Revision(u64::from_be_bytes(*revision)), bytes))
}

fn present(transaction: &WriteTransaction, key: &RecordKey) -> Result<Option<Revision>, Fault> {
    let table = transaction.open_table(RECORDS)?;
    let value = table.get(name(key).as_str())?;
    Ok(value.map(|value| split(key, value.value()).map(|(revision, _)| revision)).transpose()?)
}

fn next_revision(transaction: &WriteTransaction) -> Result<Revision, Fault> {
    let mut meta = transaction.open_table(META)?;
    let last = meta.get(LAST_REVISION)?.map_or(0, |value| value.value());
    meta.insert(LAST_REVISION, last + 1)?;
    Ok(Revision(last + 1))
}

#[cfg(test)]
mod tests {
    use peerpods_engine::conformance;

    use super::*;

    #[tokio::test]
    async fn redb_journal_conforms() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("journal.redb");
        conformance::check(async || Box::new(RedbJournal::open(&path).expect("opens")) as Box<dyn Journal>).await;
    }

    #[test]
    fn unknown_format_is_refused_and_untouched() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("journal.redb");
        drop(RedbJournal::open(&path).expect("is made"));
        let database = Database::open(&path).expect("opens");
        let transaction = database.begin_write().expect("begins");
        transaction.open_table(META).expect("is there").insert(FORMAT, 2).expect("inserted");
        transaction.commit().expect("commits");
        drop(database);
        let error = RedbJournal::open(&path).expect_err("is of the future");
        assert!(error.to_string().contains("format 2"), "{error}");
        let database = Database::open(&path).expect("opens");
        assert_eq!(format_of(&database).expect("readable"), Some(2));
    }

    #[tokio::test]
    async fn record_of_a_later_version_fails_the_load_by_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let journal = RedbJournal::open(&folder.path().join("journal.redb")).expect("is made");
        let transaction = journal.database.begin_write().expect("begins");
        let value = [1_u64.to_be_bytes().as_slice(), br#"{"version":2,"new":true}"#].concat();
        transaction.open_table(RECORDS).expect("is there").insert("launch/t-1", value.as_slice()).expect("inserted");
        transaction.commit().expect("commits");
        match journal.load().await {
            Err(JournalError::Unreadable { key, source: RecordError::UnknownVersion { found: 2, .. } }) => {
                assert_eq!(key.to_string(), "launch t-1");
            }
            other => panic!("must be refused: {other:?}"),
        }
    }
}
