//! One configuration for each service and side.

use std::sync::Arc;

use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig, version::TLS13};
use rustls_pki_types::CertificateDer;

use super::peer::{AgentKeys, AnyServer, BinderCredential, ListedClient, PinnedServer};
use super::{ALPN_AGENT, ALPN_BIND, ALPN_FORWARD};
use crate::credential::{Credential, CredentialError, NodeKey};
use crate::node::Pin;

pub(crate) fn bind_client(credential: &Credential) -> Result<Arc<ClientConfig>, rustls::Error> {
    let chain = credential.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    client(Arc::new(AnyServer::new(provider())), chain, &credential.key, ALPN_BIND)
}

/// `alpn` is [`ALPN_AGENT`] or [`ALPN_FORWARD`].
pub(crate) fn agent_client(key: &NodeKey, pin: Pin, alpn: &[u8]) -> Result<Arc<ClientConfig>, rustls::Error> {
    let certificate = key.self_signed().map_err(general)?.into();
    client(Arc::new(PinnedServer::new(provider(), pin)), vec![certificate], key, alpn)
}

pub(crate) fn bind_server(key: &NodeKey, certificate: &[u8], ca_sha256: [u8; 32]) -> Result<Arc<ServerConfig>, rustls::Error> {
    server(Arc::new(BinderCredential::new(provider(), ca_sha256)), certificate, key, &[ALPN_BIND])
}

pub(crate) fn agent_server(key: &NodeKey, certificate: &[u8], keys: Arc<AgentKeys>) -> Result<Arc<ServerConfig>, rustls::Error> {
    server(Arc::new(ListedClient::new(provider(), keys)), certificate, key, &[ALPN_AGENT, ALPN_FORWARD])
}

/// Ends every handshake with the alert `access_denied`: for clients that name no service.
pub(crate) fn refusing_server() -> Result<Arc<ServerConfig>, rustls::Error> {
    let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13])?;
    Ok(Arc::new(builder.with_no_client_auth().with_cert_resolver(Arc::new(NoCertificate))))
}

fn client(
    verifier: Arc<dyn ServerCertVerifier>,
    chain: Vec<CertificateDer<'static>>,
    key: &NodeKey,
    alpn: &[u8],
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13])?;
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    let mut config = builder.with_client_auth_cert(chain, key.private_key_der())?;
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_sni = false;
    Ok(Arc::new(config))
}

fn server(
    verifier: Arc<dyn ClientCertVerifier>,
    certificate: &[u8],
    key: &NodeKey,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13])?;
    let chain = vec![CertificateDer::from(certificate.to_vec())];
    let mut config = builder.with_client_cert_verifier(verifier).with_single_cert(chain, key.private_key_der())?;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

#[allow(clippy::needless_pass_by_value, reason = "used as map_err's function")]
fn general(error: CredentialError) -> rustls::Error {
    rustls::Error::General(error.to_string())
}

#[derive(Debug)]
struct NoCertificate;

impl ResolvesServerCert for NoCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}
