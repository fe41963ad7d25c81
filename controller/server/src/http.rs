//! HTTP for scrapers and operators: hyper speaks it; a few connections at once, each with time limits.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Connections served at once; others wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 8;
/// How long a connection may take for its request's head.
const HEAD_DEADLINE: Duration = Duration::from_secs(5);
/// How long a connection may last. Whoever keeps it open dials again.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(120);
/// The longest head that is read.
const HEAD_BYTES: usize = 16 << 10;

pub(crate) type Answer = Response<Full<Bytes>>;

/// What connections come from.
pub(crate) trait Listen {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listen for TcpListener {
    type Stream = TcpStream;
    async fn next(&self) -> io::Result<TcpStream> {
        Ok(self.accept().await?.0)
    }
}

impl Listen for UnixListener {
    type Stream = UnixStream;
    async fn next(&self) -> io::Result<UnixStream> {
        Ok(self.accept().await?.0)
    }
}

/// Serves until dropped; bodies of requests are not read.
pub(crate) async fn serve<R>(listener: impl Listen, respond: impl Fn(Request<Incoming>) -> R + Clone + Send + 'static)
where
    R: Future<Output = Answer> + Send + 'static,
{
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        match listener.next().await {
            Ok(stream) => {
                let respond = respond.clone();
                connections.spawn(async move {
                    let _slot = slot;
                    let _ = tokio::time::timeout(CONNECTION_DEADLINE, serve_connection(stream, respond)).await;
                });
            }
            Err(error) => {
                // Out of file descriptors, most likely: wait for some to come back.
                tracing::warn!(%error, "cannot accept an HTTP connection");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn serve_connection<R>(stream: impl AsyncRead + AsyncWrite + Unpin + Send, respond: impl Fn(Request<Incoming>) -> R)
where
    R: Future<Output = Answer>,
{
    let respond = service_fn(move |request| {
        let answer = respond(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), respond);
    if let Err(error) = served.await {
        tracing::debug!(%error, "an HTTP connection broke");
    }
}

/// An answer of plain text.
pub(crate) fn plain(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response
}
