//! The controller's end.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::{Stream, StreamExt as _};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use crate::proto::claims_server::{Claims as Stub, ClaimsServer};
use crate::types::{Claim, ClaimError, ClaimRequest};
use crate::{MAX_MESSAGE_BYTES, proto};

/// States of a claim: the one now, then each change; ends after `Gone`.
pub type StateStream = Pin<Box<dyn Stream<Item = Result<Claim, ClaimError>> + Send>>;

/// What the controller implements.
#[async_trait]
pub trait Claims: Send + Sync + 'static {
    /// Records the wish before returning. Idempotent by key.
    async fn claim(&self, request: ClaimRequest) -> Result<Claim, ClaimError>;
    /// The state now.
    async fn get(&self, key: &str) -> Result<Claim, ClaimError>;
    /// The state now and each change.
    async fn watch(&self, key: &str) -> Result<StateStream, ClaimError>;
    /// Records that the pod VM is no longer wanted before returning. Idempotent.
    async fn release(&self, key: &str) -> Result<(), ClaimError>;
}

/// How often a watch repeats the last state.
pub(crate) const REPEAT_AFTER: Duration = Duration::from_secs(15);
/// Watches that one connection may have open: more pods than a node runs.
const MAX_STREAMS: u32 = 2048;
/// How long calls may take to end once the service stops; watches end at once.
const DRAIN: Duration = Duration::from_secs(2);

/// Listens on `socket`, mode 0600. The name appears only when the mode is set; a socket that a dead process left is replaced.
pub fn bind_socket(socket: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = socket.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut hidden = socket.as_os_str().to_owned();
    hidden.push(".new");
    match std::fs::remove_file(&hidden) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&hidden)?;
    std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&hidden, socket)?;
    Ok(listener)
}

/// Serves until `stop` is done, then lets calls end for a moment.
pub async fn serve(
    listener: UnixListener,
    service: Arc<dyn Claims>,
    stop: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let (stopping, stopped) = watch::channel(false);
    let service = ClaimsServer::new(Adapter { service, stopped: stopped.clone() })
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let stop = async move {
        stop.await;
        stopping.send_replace(true);
    };
    let overdue = async {
        until_true(stopped).await;
        tokio::time::sleep(DRAIN).await;
    };
    let server = tonic::transport::Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .add_service(service)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop);
    tokio::select! {
        result = server => result,
        () = overdue => Ok(()),
    }
}

struct Adapter {
    service: Arc<dyn Claims>,
    /// Watches end with the service; otherwise they would keep it from ending.
    stopped: watch::Receiver<bool>,
}

#[async_trait]
impl Stub for Adapter {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<proto::ClaimReply, Status>> + Send>>;

    async fn claim(&self, request: Request<proto::ClaimRequest>) -> Result<Response<proto::ClaimReply>, Status> {
        let claim = self.service.claim(request.into_inner().try_into()?).await?;
        Ok(Response::new(claim.into()))
    }

    async fn get(&self, request: Request<proto::GetRequest>) -> Result<Response<proto::ClaimReply>, Status> {
        Ok(Response::new(self.service.get(&request.into_inner().key).await?.into()))
    }

    async fn watch(&self, request: Request<proto::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let states = self.service.watch(&request.into_inner().key).await?;
        let replies = repeating(states).map(|item| item.map(Into::into).map_err(Into::into));
        Ok(Response::new(Box::pin(replies.take_until(Box::pin(until_true(self.stopped.clone()))))))
    }

    async fn release(&self, request: Request<proto::ReleaseRequest>) -> Result<Response<proto::ReleaseReply>, Status> {
        self.service.release(&request.into_inner().key).await?;
        Ok(Response::new(proto::ReleaseReply {}))
    }
}

/// Done when the value is true, or nobody can set it any more.
async fn until_true(mut value: watch::Receiver<bool>) {
    let _ = value.wait_for(|is_true| *is_true).await;
}

/// The same stream, with its last item again whenever nothing new has come for a while.
fn repeating(states: StateStream) -> StateStream {
    Box::pin(futures::stream::unfold((states, None::<Claim>), |(mut states, last)| async move {
        match (tokio::time::timeout(REPEAT_AFTER, states.next()).await, last) {
            (Err(_), Some(last)) => Some((Ok(last.clone()), (states, Some(last)))),
            (Ok(Some(Ok(claim))), _) => Some((Ok(claim.clone()), (states, Some(claim)))),
            (Ok(Some(Err(error))), last) => Some((Err(error), (states, last))),
            (Ok(None), _) | (Err(_), None) => None,
        }
    }))
}
