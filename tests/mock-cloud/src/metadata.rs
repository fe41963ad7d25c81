//! The instance metadata service, version 2 ("Use IMDS to access instance metadata" of the EC2 user guide).
//!
//! Whoever asks is known by the address that it asks from, as on EC2 by the network interface. A session begins with a PUT that no
//! proxy has forwarded; its answers live as many hops as the instance's launch said.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, put};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::Instant;

use crate::Cloud;
use crate::account::Instance;
use crate::catalog::REGION;

/// Where every instance finds it.
pub(crate) const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

const TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";
const TOKEN: &str = "x-aws-ec2-metadata-token";

/// The longest that a session may last, in seconds.
const LONGEST: u64 = 21_600;

#[derive(Debug, Clone)]
struct Service {
    cloud: Cloud,
    sessions: Arc<Mutex<HashMap<String, (Ipv4Addr, Instant)>>>,
}

/// Listens at the well-known address, which need not exist yet: a bridge brings it when the first machine comes.
pub(crate) fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::IpFreebind, &true)?;
    socket.bind(address)?;
    socket.listen(256)
}

/// Serves until dropped.
pub(crate) async fn serve(listener: TcpListener, cloud: Cloud) -> std::io::Result<()> {
    let hops = cloud.clone();
    let listener = HopLimited { listener, cloud: hops };
    axum::serve(listener, router(cloud).into_make_service_with_connect_info::<Peer>()).await
}

fn router(cloud: Cloud) -> Router {
    Router::new()
        .route("/latest/api/token", put(begin_session))
        .route("/latest/user-data", get(user_data))
        .route("/latest/dynamic/instance-identity/document", get(document))
        .route("/latest/meta-data/{*path}", get(meta_data))
        .with_state(Service { cloud, sessions: Arc::default() })
}

/// A listener whose answers to an instance die where its launch said.
struct HopLimited {
    listener: TcpListener,
    cloud: Cloud,
}

impl axum::serve::Listener for HopLimited {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            let Ok((stream, peer)) = self.listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            };
            if let IpAddr::V4(address) = peer.ip()
                && let Some(instance) = self.cloud.by_address(address)
            {
                let _ = stream.set_ttl(instance.launch.hop_limit);
            }
            return (stream, peer);
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// Where a request comes from.
#[derive(Debug, Clone, Copy)]
struct Peer(SocketAddr);

impl axum::extract::connect_info::Connected<axum::serve::IncomingStream<'_, HopLimited>> for Peer {
    fn connect_info(stream: axum::serve::IncomingStream<'_, HopLimited>) -> Self {
        Self(*stream.remote_addr())
    }
}

impl Service {
    /// The instance that asks, once its session is known.
    fn asked_by(&self, peer: SocketAddr, headers: &HeaderMap) -> Result<Instance, StatusCode> {
        let IpAddr::V4(address) = peer.ip() else { return Err(StatusCode::NOT_FOUND) };
        let instance = self.cloud.by_address(address).ok_or(StatusCode::NOT_FOUND)?;
        match headers.get(TOKEN).map(|token| token.to_str().unwrap_or_default()) {
            None if !instance.launch.sessions_required => Ok(instance),
            None => Err(StatusCode::UNAUTHORIZED),
            Some(token) => {
                let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
                let is_open = sessions.get(token).is_some_and(|(of, end)| *of == address && Instant::now() < *end);
                if is_open { Ok(instance) } else { Err(StatusCode::UNAUTHORIZED) }
            }
        }
    }
}

async fn begin_session(State(service): State<Service>, ConnectInfo(Peer(peer)): ConnectInfo<Peer>, headers: HeaderMap) -> Response {
    if headers.contains_key("x-forwarded-for") {
        return StatusCode::FORBIDDEN.into_response();
    }
    let seconds = headers.get(TTL).and_then(|ttl| ttl.to_str().ok()?.parse::<u64>().ok());
    let Some(seconds) = seconds.filter(|seconds| (1..=LONGEST).contains(seconds)) else { return StatusCode::BAD_REQUEST.into_response() };
    let IpAddr::V4(address) = peer.ip() else { return StatusCode::NOT_FOUND.into_response() };
    if service.cloud.by_address(address).is_none() {
        return StatusCode::NOT_FOUND.into_response();
    }
    let token = format!("{:032x}{:032x}", fastrand::u128(..), fastrand::u128(..));
    let mut sessions = service.sessions.lock().unwrap_or_else(PoisonError::into_inner);
    sessions.retain(|_, (_, end)| Instant::now() < *end);
    sessions.insert(token.clone(), (address, Instant::now() + Duration::from_secs(seconds)));
    ([(TTL, seconds.to_string())], token).into_response()
}

async fn user_data(State(service): State<Service>, ConnectInfo(Peer(peer)): ConnectInfo<Peer>, headers: HeaderMap) -> Response {
    match service.asked_by(peer, &headers) {
        Ok(instance) if instance.launch.user_data.is_empty() => StatusCode::NOT_FOUND.into_response(),
        Ok(instance) => ([("content-type", "application/octet-stream")], instance.launch.user_data.clone()).into_response(),
        Err(status) => status.into_response(),
    }
}

async fn document(State(service): State<Service>, ConnectInfo(Peer(peer)): ConnectInfo<Peer>, headers: HeaderMap) -> Response {
    match service.asked_by(peer, &headers) {
        Ok(instance) => serde_json::json!({
            "instanceId": instance.id,
            "instanceType": instance.launch.instance_type.name,
            "imageId": instance.launch.image,
            "availabilityZone": instance.launch.subnet.zone,
            "region": REGION,
            "privateIp": instance.address,
            "architecture": instance.launch.instance_type.architecture,
        })
        .to_string()
        .into_response(),
        Err(status) => status.into_response(),
    }
}

async fn meta_data(
    State(service): State<Service>,
    ConnectInfo(Peer(peer)): ConnectInfo<Peer>,
    Path(path): Path<String>,
    headers: HeaderMap,
) -> Response {
    let instance = match service.asked_by(peer, &headers) {
        Ok(instance) => instance,
        Err(status) => return status.into_response(),
    };
    match path.as_str() {
        "instance-id" => instance.id.into_response(),
        "instance-type" => instance.launch.instance_type.name.into_response(),
        "ami-id" => instance.launch.image.clone().into_response(),
        "local-ipv4" => instance.address.to_string().into_response(),
        "placement/availability-zone" => instance.launch.subnet.zone.into_response(),
        "placement/region" => REGION.into_response(),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}
