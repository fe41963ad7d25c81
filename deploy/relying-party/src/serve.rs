//! The broker behind HTTP/1.1, with TLS or without: bounded connections, heads and bodies, and a deadline for each step.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use peerpods_key_broker::wire::{PREFIX, SESSION_COOKIE};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::broker::{Answer, Broker, Call};
use crate::error::ApiError;

/// Longest body, in bytes, as Trustee's by default.
pub const MAX_BODY_BYTES: usize = 2 << 20;

/// Connections at once; others wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 256;
/// Calls at once: each may evaluate a policy, which takes a thread.
const MAX_CALLS: usize = 16;
/// Longest request for a nonce, which anybody may send; upstream's has some hundred bytes.
const MAX_AUTH_BYTES: usize = 16 << 10;
/// Longest head: a token of 120 KiB, and as much again.
const MAX_HEAD_BYTES: usize = 256 << 10;
const TLS_DEADLINE: Duration = Duration::from_secs(10);
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// From the head of a request to its answer.
const CALL_DEADLINE: Duration = Duration::from_secs(30);
/// How long a connection may last. Whoever keeps it open dials again.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(300);
/// How long connections may go on when the broker stops.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);

/// A certificate chain with its key.
#[derive(Clone)]
pub struct Tls(TlsAcceptor);

/// A bound socket.
pub struct Listening {
    listener: TcpListener,
    tls: Option<Tls>,
}

impl Tls {
    /// Reads both from PEM; the error says what is wrong.
    pub fn from_pem(certificates: &[u8], key: &[u8]) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let chain = CertificateDer::pem_slice_iter(certificates).collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(key)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }
}

impl Listening {
    /// Binds. `None` speaks plain HTTP.
    pub async fn bind(address: SocketAddr, tls: Option<Tls>) -> std::io::Result<Self> {
        Ok(Self { listener: TcpListener::bind(address).await?, tls })
    }

    /// Where it listens, with the port that was given.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// Serves until told to stop, then lets connections finish for some seconds.
pub async fn serve(broker: Arc<Broker>, listening: Listening, stop: CancellationToken) {
    let router = router(broker);
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = async {
            let slot = Arc::clone(&slots).acquire_owned().await;
            (slot, listening.listener.accept().await)
        };
        let (slot, accepted) = tokio::select! {
            accepted = accepted => accepted,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                // An answer is written in pieces, and the last must not wait 40 ms for the acknowledgement of the first.
                let _ = stream.set_nodelay(true);
                let (router, tls, stop) = (router.clone(), listening.tls.clone(), stop.clone());
                connections.spawn(async move {
                    let _slot = slot;
                    let served = async {
                        match tls {
                            None => serve_connection(stream, router, stop).await,
                            Some(Tls(acceptor)) => match timeout(TLS_DEADLINE, acceptor.accept(stream)).await {
                                Ok(Ok(stream)) => serve_connection(stream, router, stop).await,
                                _ => tracing::debug!("no TLS came about"),
                            },
                        }
                    };
                    // What is in flight when the time of a connection is over is answered still.
                    let _ = timeout(TLS_DEADLINE + CONNECTION_DEADLINE + CALL_DEADLINE, served).await;
                });
            }
            Err(error) => {
                // Out of file descriptors, most likely: wait for some to come back.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
    drop(listening);
    let drained = async { while connections.join_next().await.is_some() {} };
    let _ = timeout(DRAIN_DEADLINE, drained).await;
}

async fn serve_connection(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, router: Router, stop: CancellationToken) {
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = async { tokio::select! { () = stop.cancelled() => {}, () = tokio::time::sleep(CONNECTION_DEADLINE) => {} } } => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a connection broke");
    }
}

#[derive(Clone)]
struct Shared {
    broker: Arc<Broker>,
    calls: Arc<Semaphore>,
}

fn router(broker: Arc<Broker>) -> Router {
    let shared = Shared { broker, calls: Arc::new(Semaphore::new(MAX_CALLS)) };
    Router::new().route("/healthz", get(|| async { "ok" })).fallback(answer).with_state(shared)
}

async fn answer(State(shared): State<Shared>, request: Request) -> Response {
    timeout(CALL_DEADLINE, handle(shared, request)).await.unwrap_or_else(|_| StatusCode::REQUEST_TIMEOUT.into_response())
}

async fn handle(shared: Shared, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let method = head.method.as_str().to_owned();
    let Some(path) = head.uri.path().strip_prefix(PREFIX).and_then(|path| path.strip_prefix('/')).map(str::to_owned) else {
        return refuse(&ApiError::InvalidRequestPath(head.uri.path().chars().take(80).collect()), &method);
    };
    // Anybody may say this much; what is longer is said by who has begun something, or is an admin.
    let limit = if path == "auth" { MAX_AUTH_BYTES } else { MAX_BODY_BYTES };
    let Ok(body) = to_bytes(body, limit).await else { return StatusCode::PAYLOAD_TOO_LARGE.into_response() };
    let query = Query::try_from_uri(&head.uri).map(|Query(query)| query).unwrap_or_default();
    let call = Call { method, path, query, cookie: cookie(&head.headers), bearer: bearer(&head.headers), body: Vec::from(body).into() };
    let Ok(permit) = shared.calls.acquire_owned().await else { return StatusCode::SERVICE_UNAVAILABLE.into_response() };
    let method = call.method.clone();
    // A call that outlives its deadline keeps its permit until it ends.
    let handled = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        shared.broker.handle(&call)
    });
    match handled.await {
        Ok(Ok(answer)) => respond(answer),
        Ok(Err(error)) => refuse(&error, &method),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

fn respond(answer: Answer) -> Response {
    let mut response = Response::new(Body::from(answer.body));
    if let Some(content_type) = answer.content_type {
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    }
    if let Some(cookie) = answer.cookie.and_then(|cookie| HeaderValue::from_str(&cookie).ok()) {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    response
}

fn refuse(error: &ApiError, method: &str) -> Response {
    // As quoted text: much of it is what a caller wrote.
    tracing::info!(method, error = error.to_string(), reason = error.reason(), "refused");
    let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::UNAUTHORIZED);
    (status, serde_json::to_string(&error.info()).unwrap_or_default()).into_response()
}

fn cookie(headers: &HeaderMap) -> Option<String> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|cookies| cookies.split(';')).filter_map(|cookie| cookie.trim().split_once('='));
    pairs.find(|(name, _)| *name == SESSION_COOKIE).map(|(_, value)| value.to_owned())
}

fn bearer(headers: &HeaderMap) -> Option<String> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned())
}
