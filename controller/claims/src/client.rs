//! The node's end.

use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::proto::claims_client::ClaimsClient;
use crate::proto::{GetRequest, ReleaseRequest, WatchRequest};
use crate::types::{Claim, ClaimError, ClaimRequest};
use crate::{MAX_MESSAGE_BYTES, proto};

/// Changes of a claim. The first item is its state now; an error or the end of the stream means that it must be watched again.
pub type ClaimStream = Pin<Box<dyn Stream<Item = Result<Claim, ClaimError>> + Send>>;

/// A claim or release is a durable write; anything slower than this is a controller in trouble.
const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// The server repeats itself every [`crate::service::REPEAT_AFTER`]; three missed ones are a lost connection.
const SILENCE_LIMIT: Duration = Duration::from_secs(45);

/// Calls the controller over its unix socket. Cheap to clone; clones share the connection.
#[derive(Debug, Clone)]
pub struct Client {
    stub: ClaimsClient<Channel>,
}

impl Client {
    /// A client that dials with its first call, and again with the next call after a connection has broken.
    ///
    /// Must be called within a tokio runtime.
    pub fn connect(socket: &Path) -> Self {
        let socket = socket.to_owned();
        let dial = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        // The address is never resolved; HTTP/2 wants one.
        let channel = Endpoint::from_static("http://claims").connect_timeout(CALL_DEADLINE).connect_with_connector_lazy(dial);
        let stub = ClaimsClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES);
        Self { stub }
    }

    /// Wants a pod VM. The wish is durable once this returns; a second call with the same key and wish gives the claim as it stands.
    pub async fn claim(&self, request: ClaimRequest) -> Result<Claim, ClaimError> {
        let reply = within(self.stub.clone().claim(proto::ClaimRequest::from(request))).await?;
        reply.into_inner().try_into()
    }

    /// The claim as it stands, with a fresh certificate if it is assigned.
    pub async fn get(&self, key: &str) -> Result<Claim, ClaimError> {
        let reply = within(self.stub.clone().get(GetRequest { key: key.to_owned() })).await?;
        reply.into_inner().try_into()
    }

    /// The claim as it stands and then each change, until it is gone or the connection breaks.
    pub async fn watch(&self, key: &str) -> Result<ClaimStream, ClaimError> {
        let replies = within(self.stub.clone().watch(WatchRequest { key: key.to_owned() })).await?.into_inner();
        let claims = futures::stream::unfold((replies, None::<Claim>, false), |(mut replies, last, is_over)| async move {
            if is_over {
                return None;
            }
            loop {
                let item = match tokio::time::timeout(SILENCE_LIMIT, replies.next()).await {
                    Err(_) => Err(ClaimError::DeadlineExceeded),
                    Ok(None) => return None,
                    Ok(Some(Err(status))) => Err(status.into()),
                    Ok(Some(Ok(reply))) => Claim::try_from(reply),
                };
                match item {
                    Ok(claim) if last.as_ref() == Some(&claim) => {}
                    Ok(claim) => return Some((Ok(claim.clone()), (replies, Some(claim), false))),
                    Err(error) => return Some((Err(error), (replies, last, true))),
                }
            }
        });
        Ok(Box::pin(claims))
    }

    /// Wants the pod VM no longer. Durable once this returns; unknown keys are no error.
    pub async fn release(&self, key: &str) -> Result<(), ClaimError> {
        within(self.stub.clone().release(ReleaseRequest { key: key.to_owned() })).await.map(|_| ())
    }
}

async fn within<T>(call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>) -> Result<tonic::Response<T>, ClaimError> {
    let reply = tokio::time::timeout(CALL_DEADLINE, call).await.map_err(|_| ClaimError::DeadlineExceeded)?;
    reply.map_err(ClaimError::from)
}
