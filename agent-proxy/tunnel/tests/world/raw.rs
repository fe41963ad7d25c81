//! A TLS client without manners: it checks nothing, not even its own credential.

use std::net::SocketAddr;
use std::sync::Arc;

use peerpods_tunnel::credential::Credential;
use peerpods_tunnel::node::Pin;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, ResolvesClientCert};
use rustls::crypto::aws_lc_rs;
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Connects and waits until the server has judged the certificate.
pub(crate) async fn connect(addr: SocketAddr, alpn: &str, credential: Option<&Credential>) -> std::io::Result<TlsStream<TcpStream>> {
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]).unwrap().dangerous();
    let builder = builder.with_custom_certificate_verifier(Arc::new(Anybody));
    let mut config = match credential {
        None => builder.with_no_client_auth(),
        Some(credential) => builder.with_client_cert_resolver(Arc::new(Always(certified(credential)))),
    };
    if !alpn.is_empty() {
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    }
    let tcp = TcpStream::connect(addr).await?;
    let name = ServerName::IpAddress(addr.ip().into());
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
    // In TLS 1.3 the client is done first; an alert comes at its first read. Nothing else comes unasked.
    let mut byte = [0];
    match tokio::time::timeout(std::time::Duration::from_millis(300), stream.read(&mut byte)).await {
        Err(_) => Ok(stream),
        Ok(Ok(_)) => Err(std::io::ErrorKind::UnexpectedEof.into()),
        Ok(Err(error)) => Err(error),
    }
}

pub(crate) async fn pin_of(addr: SocketAddr, credential: &Credential) -> Pin {
    let stream = connect(addr, "peerpods-bind/1", Some(credential)).await.unwrap();
    let certificate = &stream.get_ref().1.peer_certificates().unwrap()[0];
    Pin(Sha256::digest(webpki::EndEntityCert::try_from(certificate).unwrap().subject_public_key_info()).into())
}

pub(crate) async fn read_answer(stream: &mut TlsStream<TcpStream>) -> String {
    stream.flush().await.unwrap();
    let length = stream.read_u32().await.unwrap();
    let mut body = vec![0; length.try_into().unwrap()];
    stream.read_exact(&mut body).await.unwrap();
    String::from_utf8(body).unwrap()
}

fn certified(credential: &Credential) -> Arc<CertifiedKey> {
    let key = PrivateKeyDer::from_pem_slice(credential.key.to_pem().as_bytes()).unwrap();
    let key = aws_lc_rs::sign::any_supported_type(&key).unwrap();
    Arc::new(CertifiedKey::new(credential.chain.iter().map(|der| CertificateDer::from(der.clone())).collect(), key))
}

#[derive(Debug)]
struct Always(Arc<CertifiedKey>);

impl ResolvesClientCert for Always {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}
