//! What every [`Journal`] must show. Panics name what was not shown.

use peerpods_controller_api::{
    Class, ClassName, ClassRecord, InstanceId, LaunchKey, LaunchRecord, LaunchToken, MAX_RECORD_BYTES, PodVmRecord, PodVmState, Record,
    RootOfTrust, Tee,
};

use crate::{Journal, JournalError, Revision};

/// Runs the suite. Each call of `open` must open the same store, empty at first, after the previous opening has been dropped.
pub async fn check(open: impl AsyncFn() -> Box<dyn Journal>) {
    let journal = open().await;
    assert!(journal.load().await.expect("an empty store loads").is_empty(), "the store must be empty at first");

    // Created once, and only if absent.
    let created = journal.put(&class(Tee::Snp), None).await.expect("a new record is written");
    conflicts("creating what exists", &journal.put(&class(Tee::Tdx), None).await);
    conflicts("replacing what does not exist", &journal.put(&launch(1), Some(created)).await);

    // Replaced only at its revision; a conflict changes nothing.
    let replaced = journal.put(&class(Tee::Tdx), Some(created)).await.expect("a record is replaced at its revision");
    assert_ne!(created, replaced, "every write has another revision");
    conflicts("replacing at an old revision", &journal.put(&class(Tee::Snp), Some(created)).await);
    assert_eq!(only(&*journal).await, (class(Tee::Tdx), replaced));

    // Kinds do not share names.
    let token = journal.put(&launch(1), None).await.expect("another kind is written");
    let same_name = pod_vm(launch(1).key().name);
    let other = journal.put(&same_name, None).await.expect("two kinds may use one name");
    assert_eq!(journal.load().await.expect("loads").len(), 3);

    // Removed only at its revision; absent is fine; a new record does not get an old revision.
    match journal.remove(&launch(1).key(), Revision(u64::MAX)).await {
        Err(JournalError::Conflict { .. }) => {}
        other => panic!("removing at another revision must conflict: {other:?}"),
    }
    journal.remove(&launch(1).key(), token).await.expect("a record is removed at its revision");
    journal.remove(&launch(1).key(), token).await.expect("removing what is absent is no error");
    journal.remove(&same_name.key(), other).await.expect("the other kind is still there");
    let again = journal.put(&launch(2), None).await.expect("a removed record can be created again");
    assert_ne!(again, token, "a revision never comes back");

    // Limits.
    let full = filled(MAX_RECORD_BYTES);
    assert_eq!(full.encode().map(|b| b.len()).ok(), Some(MAX_RECORD_BYTES));
    let full_revision = journal.put(&full, None).await.expect("the largest record is accepted");
    match journal.put(&filled_beyond(), Some(full_revision)).await {
        Err(JournalError::TooLarge { .. }) => {}
        other => panic!("a larger record must be refused: {other:?}"),
    }

    // What was written is there for the next one, and what was not is not.
    drop(journal);
    let journal = open().await;
    let mut found: Vec<_> = journal.load().await.expect("loads again").into_iter().map(|s| (s.record, s.revision)).collect();
    found.sort_by_key(|(record, _)| record.key());
    let mut expected = vec![(class(Tee::Tdx), replaced), (launch(2), again), (full.clone(), full_revision)];
    expected.sort_by_key(|(record, _)| record.key());
    assert_eq!(found, expected, "the store must hold what was written last");
    journal.put(&class(Tee::Snp), Some(replaced)).await.expect("revisions outlive an opening");
    let fresh = journal.put(&pod_vm("i-2".to_owned()), None).await.expect("a new record is written");
    assert!(![created, replaced, token, other, again, full_revision].contains(&fresh), "a revision never comes back");
}

/// For Journals that can be taken over: this one has been.
pub async fn check_fenced(journal: &dyn Journal) {
    let fenced = |what: &str, result: Option<JournalError>| {
        assert!(matches!(result, Some(JournalError::Fenced)), "{what} must be fenced: {result:?}");
    };
    fenced("load", journal.load().await.err());
    fenced("put", journal.put(&launch(1), None).await.err());
    fenced("remove", journal.remove(&launch(1).key(), Revision(1)).await.err());
}

fn conflicts(what: &str, result: &Result<Revision, JournalError>) {
    assert!(matches!(result, Err(JournalError::Conflict { .. })), "{what} must conflict: {result:?}");
}

async fn only(journal: &dyn Journal) -> (Record, Revision) {
    let mut all = journal.load().await.expect("loads");
    assert_eq!(all.len(), 1, "one record is expected");
    all.pop().map(|stored| (stored.record, stored.revision)).expect("just counted")
}

fn class(tee: Tee) -> Record {
    let class = Class::new(tee, RootOfTrust::Hardware).expect("valid");
    Record::Class(ClassRecord { name: ClassName::new("default").expect("valid"), class })
}

fn launch_key() -> LaunchKey {
    LaunchKey {
        class: ClassName::new("default").expect("valid"),
        tee: Tee::Snp,
        instance_type: "small".to_owned(),
        zone: None,
        image: None,
    }
}

fn launch(count: u32) -> Record {
    Record::Launch(LaunchRecord { token: LaunchToken::new("token-1").expect("valid"), key: launch_key(), count, claim: None })
}

fn pod_vm(name: String) -> Record {
    Record::PodVm(PodVmRecord {
        instance_id: InstanceId::new(name).expect("valid"),
        token: LaunchToken::new("token-1").expect("valid"),
        key: launch_key(),
        address: None,
        state: PodVmState::Launching,
        claimed_by: None,
    })
}

fn with_image(len: usize) -> Record {
    let Record::PodVm(mut record) = pod_vm("i-1".to_owned()) else { unreachable!("pod_vm makes pod VMs") };
    record.key.image = Some("x".repeat(len));
    Record::PodVm(record)
}

/// A record whose stored form has exactly this many bytes.
fn filled(bytes: usize) -> Record {
    let overhead = with_image(0).encode().expect("small").len();
    with_image(bytes - overhead)
}

fn filled_beyond() -> Record {
    with_image(MAX_RECORD_BYTES)
}
