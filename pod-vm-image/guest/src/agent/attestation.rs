//! The machine's one attester, shared: by Bind, by the key broker's client, by the workload API.
//!
//! The hardware makes one piece of evidence at a time and takes up to seconds for it, so a turn has a thread for blocking work. Whoever
//! waits for a turn has none and may leave; a turn that has begun is finished even when nobody waits for it any more.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use peerpods_attester::{Attester, AttesterError};
use peerpods_evidence::tpm::credential::Challenge;
use tokio::sync::Mutex;
use tokio::time::timeout;

/// For one's turn and the wait for it. Hardware takes seconds; after this time it has stopped answering.
const TURN_WITHIN: Duration = Duration::from_secs(60);

/// Clones share the attester.
#[derive(Clone)]
pub(super) struct Attestation {
    tee: &'static str,
    attester: Arc<Mutex<Attester>>,
}

/// The attester did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum AttestationError {
    /// It said why.
    #[error(transparent)]
    Attester(#[from] AttesterError),
    /// It is at work, or does not come back.
    #[error("the attester did not answer within {} s", TURN_WITHIN.as_secs())]
    Late,
    /// Its thread ended without a result.
    #[error("the attester's thread did not finish")]
    Interrupted,
}

impl Attestation {
    pub(super) fn new(attester: Attester) -> Self {
        Self { tee: attester.tee(), attester: Arc::new(Mutex::new(attester)) }
    }

    /// The kind of evidence.
    pub(super) fn tee(&self) -> &'static str {
        self.tee
    }

    /// Evidence with this report data.
    pub(super) async fn evidence(&self, report_data: [u8; 48]) -> Result<Vec<u8>, AttestationError> {
        self.turn(move |attester| attester.evidence(&report_data)).await
    }

    /// Extends the initdata register.
    pub(super) async fn extend_initdata(&self, digest: Vec<u8>) -> Result<(), AttestationError> {
        self.turn(move |attester| attester.extend_initdata(&digest)).await
    }

    /// Opens what a verifier encrypted to the TPM's endorsement key.
    pub(super) async fn activate(&self, challenge: Challenge) -> Result<Vec<u8>, AttestationError> {
        self.turn(move |attester| attester.activate(&challenge)).await
    }

    /// Whether the register could take this digest.
    pub(super) async fn check_initdata(&self, digest: Vec<u8>) -> Result<(), AttestationError> {
        self.turn(move |attester| attester.check_initdata(&digest)).await
    }

    async fn turn<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Attester) -> Result<T, AttesterError> + Send + 'static,
    ) -> Result<T, AttestationError> {
        let turn = async {
            let mut attester = Arc::clone(&self.attester).lock_owned().await;
            tokio::task::spawn_blocking(move || work(&mut attester)).await
        };
        let done = timeout(TURN_WITHIN, turn).await.map_err(|_| AttestationError::Late)?;
        Ok(done.map_err(|_| AttestationError::Interrupted)??)
    }
}

#[async_trait]
impl peerpods_key_broker::Attester for Attestation {
    fn tee(&self) -> String {
        self.tee.to_owned()
    }

    async fn evidence(&self, report_data: [u8; 48]) -> Result<serde_json::Value, peerpods_key_broker::BoxError> {
        Ok(serde_json::from_slice(&self.evidence(report_data).await?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn attestation() -> Attestation {
        Attestation::new(Attester::for_tee("sample").expect("an attester"))
    }

    /// A runtime with two threads for blocking work, one of which a turn holds until the sender is dropped.
    fn with_busy_attester<F: Future>(test: impl FnOnce(Attestation, std::sync::mpsc::Sender<()>) -> F) -> F::Output {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().max_blocking_threads(2).build().expect("a runtime");
        runtime.block_on(async {
            let (attestation, (done, wait)) = (attestation(), std::sync::mpsc::channel());
            let (begun, begins) = tokio::sync::oneshot::channel();
            let busy = attestation.clone();
            tokio::spawn(async move {
                let turn = busy.turn(move |_| {
                    let _ = begun.send(());
                    let _ = wait.recv();
                    Ok(())
                });
                turn.await
            });
            begins.await.expect("a turn");
            test(attestation, done).await
        })
    }

    #[test]
    fn waiting_for_a_turn_takes_no_thread_and_can_be_given_up() {
        with_busy_attester(|attestation, done| async move {
            let has_run = Arc::new(AtomicBool::new(false));
            let (waiting, mark) = (attestation.clone(), has_run.clone());
            let given_up = tokio::spawn(async move {
                let turn = waiting.turn(move |_| {
                    mark.store(true, Ordering::Relaxed);
                    Ok(())
                });
                turn.await
            });
            let other = attestation.clone();
            let waits = tokio::spawn(async move { other.evidence([1; 48]).await });
            tokio::task::yield_now().await;
            let free = tokio::task::spawn_blocking(|| ());
            timeout(Duration::from_secs(30), free).await.expect("a thread is free").expect("it ends");
            given_up.abort();
            let _ = given_up.await;
            drop(done);
            waits.await.expect("it ends").expect("evidence");
            assert!(!has_run.load(Ordering::Relaxed));
        });
    }

    #[test]
    fn attester_that_does_not_come_back_is_an_error() {
        with_busy_attester(|attestation, done| async move {
            tokio::time::pause();
            let waits = tokio::spawn(async move { attestation.evidence([1; 48]).await });
            tokio::task::yield_now().await;
            // The clock of a runtime that has blocking work at hand does not go on by itself.
            tokio::time::advance(TURN_WITHIN + Duration::from_secs(1)).await;
            assert!(matches!(waits.await.expect("it ends"), Err(AttestationError::Late)));
            drop(done);
        });
    }
}
