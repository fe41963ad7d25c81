//! The machine's one attester, shared: by Bind, by the key broker's client, by the workload API.
//!
//! The hardware makes one piece of evidence at a time and takes up to seconds for it, so each turn has a thread for blocking work.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use peerpods_attester::{Attester, AttesterError};

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

    /// Whether the register could take this digest.
    pub(super) async fn check_initdata(&self, digest: Vec<u8>) -> Result<(), AttestationError> {
        self.turn(move |attester| attester.check_initdata(&digest)).await
    }

    async fn turn<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Attester) -> Result<T, AttesterError> + Send + 'static,
    ) -> Result<T, AttestationError> {
        let attester = Arc::clone(&self.attester);
        let turn = tokio::task::spawn_blocking(move || work(&mut attester.lock().unwrap_or_else(PoisonError::into_inner)));
        Ok(turn.await.map_err(|_| AttestationError::Interrupted)??)
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
