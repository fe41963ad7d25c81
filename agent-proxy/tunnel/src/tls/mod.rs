//! TLS 1.3 on aws-lc-rs, without tickets or session resumption: every connection proves its keys anew.

mod config;
mod peer;
mod socket;

pub(crate) use config::{agent_client, agent_server, bind_client, bind_server, refusing_server};
pub(crate) use peer::{AgentKeys, spki_of};
pub(crate) use socket::{dial, prepare};

/// ALPN of Bind.
pub(crate) const ALPN_BIND: &[u8] = b"peerpods-bind/1";
/// ALPN of agent streams.
pub(crate) const ALPN_AGENT: &[u8] = b"peerpods-agent/1";
/// ALPN of forwarded connections.
pub(crate) const ALPN_FORWARD: &[u8] = b"peerpods-forward/1";

/// A finished handshake, either side.
pub(crate) type TlsStream = tokio_rustls::TlsStream<tokio::net::TcpStream>;

/// Keying material of this connection (RFC 8446 section 7.5): the same at both ends, and different for every connection.
pub(crate) fn exporter(stream: &TlsStream, label: &[u8], context: Option<&[u8]>) -> Result<[u8; 32], rustls::Error> {
    let material = [0; 32];
    match stream {
        tokio_rustls::TlsStream::Client(stream) => stream.get_ref().1.export_keying_material(material, label, context),
        tokio_rustls::TlsStream::Server(stream) => stream.get_ref().1.export_keying_material(material, label, context),
    }
}
