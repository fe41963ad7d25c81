//! How others talk to the driver.

use peerpods_controller_api::report::StateReport;
use peerpods_controller_api::{ClaimKey, InstanceId};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{AdmissionError, ClaimSpec, ClaimView, Totals};

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// It cannot be accepted.
    #[error(transparent)]
    Refused(#[from] AdmissionError),
    /// The Journal could not record it; it may have been recorded all the same. Try again.
    #[error("the request could not be recorded: {detail}")]
    NotRecorded {
        /// Why.
        detail: String,
    },
    /// The driver has stopped.
    #[error("the engine has stopped")]
    Stopped,
}

/// Sends requests to a running driver; cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    pub(crate) requests: mpsc::Sender<Request>,
    pub(crate) totals: watch::Receiver<Totals>,
}

#[derive(Debug)]
pub(crate) enum Request {
    Claim(Box<ClaimSpec>, oneshot::Sender<Result<ClaimView, RequestError>>),
    Get(ClaimKey, oneshot::Sender<ClaimView>),
    Watch(ClaimKey, oneshot::Sender<watch::Receiver<ClaimView>>),
    Release(ClaimKey, oneshot::Sender<Result<(), RequestError>>),
    ReleaseAll(oneshot::Sender<Result<(), RequestError>>),
    Report(oneshot::Sender<StateReport>),
    Delete(InstanceId, oneshot::Sender<Result<bool, RequestError>>),
}

impl Handle {
    /// Wants a pod VM; recorded when this returns.
    pub async fn claim(&self, spec: ClaimSpec) -> Result<ClaimView, RequestError> {
        self.ask(|reply| Request::Claim(Box::new(spec), reply)).await?
    }

    /// How the claim stands.
    pub async fn get(&self, key: &ClaimKey) -> Result<ClaimView, RequestError> {
        self.ask(|reply| Request::Get(key.clone(), reply)).await
    }

    /// How the claim stands, now and after every change.
    pub async fn watch(&self, key: &ClaimKey) -> Result<watch::Receiver<ClaimView>, RequestError> {
        self.ask(|reply| Request::Watch(key.clone(), reply)).await
    }

    /// Wants the pod VM no longer; recorded when this returns. Unknown keys are no error.
    pub async fn release(&self, key: &ClaimKey) -> Result<(), RequestError> {
        self.ask(|reply| Request::Release(key.clone(), reply)).await?
    }

    /// Releases every claim.
    pub async fn release_all(&self) -> Result<(), RequestError> {
        self.ask(Request::ReleaseAll).await?
    }

    /// Everything that there is, for people.
    pub async fn report(&self) -> Result<StateReport, RequestError> {
        self.ask(Request::Report).await
    }

    /// Deletes a pod VM whoever has it; recorded when this returns. A claim that it serves fails. False: there is none of that name.
    pub async fn delete(&self, id: &InstanceId) -> Result<bool, RequestError> {
        self.ask(|reply| Request::Delete(id.clone(), reply)).await?
    }

    /// Counts, now and after every change.
    pub fn totals(&self) -> watch::Receiver<Totals> {
        self.totals.clone()
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, RequestError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| RequestError::Stopped)?;
        answer.await.map_err(|_| RequestError::Stopped)
    }
}
