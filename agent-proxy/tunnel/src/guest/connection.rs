//! One TCP connection, from its first byte: which service does it ask for, and is its peer welcome?

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::Acceptor;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::LazyConfigAcceptor;

use super::binding::Binding;
use super::sessions::Sessions;
use crate::tls::{ALPN_AGENT, ALPN_BIND, ALPN_FORWARD, TlsStream, prepare};

/// What all connections of an endpoint share.
pub(super) struct Services {
    pub(super) binding: Binding,
    pub(super) agents: Sessions,
    pub(super) forwards: Sessions,
    pub(super) bind_tls: Arc<ServerConfig>,
    /// Of both services that a bound VM offers.
    pub(super) agent_tls: Arc<ServerConfig>,
    pub(super) refusing_tls: Arc<ServerConfig>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Service {
    Bind,
    Agent,
    Forward,
}

impl Services {
    /// Serves one connection. `slot` is given back once the peer is known and its request is answered; a stream keeps none.
    pub(super) async fn serve(self: Arc<Self>, tcp: TcpStream, slot: OwnedSemaphorePermit) {
        let until = Instant::now() + self.binding.limits.handshake_timeout;
        let (service, mut stream) = match timeout_at(until, self.handshake(tcp)).await {
            Ok(Ok(accepted)) => accepted,
            Ok(Err(error)) => return tracing::warn!(error = %error, "connection refused in the handshake"),
            Err(_) => return tracing::warn!("connection dropped: handshake too slow"),
        };
        match service {
            Service::Bind => match self.binding.serve(&mut stream).await {
                Ok(()) => tracing::info!("bound"),
                Err(end) => tracing::warn!(cause = %end, "Bind refused"),
            },
            Service::Agent => self.agents.serve(stream, until, slot).await,
            Service::Forward => self.forwards.serve(stream, until, slot).await,
        }
    }

    async fn handshake(&self, tcp: TcpStream) -> std::io::Result<(Service, TlsStream)> {
        prepare(&tcp, self.agents.options().user_timeout)?;
        let start = LazyConfigAcceptor::new(Acceptor::default(), tcp).await?;
        let offered: Vec<Vec<u8>> = start.client_hello().alpn().into_iter().flatten().map(<[u8]>::to_vec).collect();
        let offers = |name: &[u8]| offered.iter().any(|offered| offered == name);
        let (service, config) = match () {
            () if offers(ALPN_BIND) => (Some(Service::Bind), &self.bind_tls),
            () if offers(ALPN_AGENT) => (Some(Service::Agent), &self.agent_tls),
            () if offers(ALPN_FORWARD) => (Some(Service::Forward), &self.agent_tls),
            () if offered.is_empty() => (None, &self.refusing_tls),
            // Shares no protocol with the client, which ends the handshake with `no_application_protocol`.
            () => (None, &self.bind_tls),
        };
        if service.is_none() {
            let names: Vec<_> = offered.iter().map(|name| String::from_utf8_lossy(name)).collect();
            tracing::warn!(?names, "no such service");
        }
        let stream = start.into_stream(Arc::clone(config)).await?;
        let refused = || std::io::Error::other("the peer asks for no service of ours");
        Ok((service.ok_or_else(refused)?, stream.into()))
    }
}
