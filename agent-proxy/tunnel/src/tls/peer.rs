//! Who the other side may be. All four checks verify the handshake signature; they differ in which key is welcome.

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::{Digest as _, Sha256};

use crate::credential::verify_chain;
use crate::node::Pin;

/// The keys that may open agent streams; empty until the VM is bound, then fixed.
#[derive(Debug, Default)]
pub(crate) struct AgentKeys(OnceLock<HashSet<[u8; 32]>>);

impl AgentKeys {
    /// Sets the keys; the first call wins.
    pub(crate) fn set(&self, keys: HashSet<[u8; 32]>) {
        if self.0.set(keys).is_err() {
            tracing::error!("agent keys were set twice; the first ones stay");
        }
    }

    fn allow(&self, spki_sha256: &[u8; 32]) -> bool {
        self.0.get().is_some_and(|keys| keys.contains(spki_sha256))
    }
}

/// The SubjectPublicKeyInfo of a certificate, in DER.
pub(crate) fn spki_of(certificate: &CertificateDer<'_>) -> Result<Vec<u8>, Error> {
    let parsed = webpki::EndEntityCert::try_from(certificate).map_err(|_| CertificateError::BadEncoding)?;
    Ok(parsed.subject_public_key_info().to_vec())
}

fn spki_sha256_of(certificate: &CertificateDer<'_>) -> Result<[u8; 32], Error> {
    Ok(Sha256::digest(spki_of(certificate)?).into())
}

fn refuse(why: &str) -> Error {
    tracing::warn!(why, "peer refused in the TLS handshake");
    CertificateError::ApplicationVerificationFailure.into()
}

macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _cert: &CertificateDer<'_>,
            _dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::General("TLS 1.2 is not spoken".to_owned()))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ECDSA_NISTP256_SHA256]
        }
    };
}

macro_rules! client_roots {
    () => {
        fn root_hint_subjects(&self) -> &[DistinguishedName] {
            &[]
        }
    };
}

/// Bind, node side: any VM; its evidence says which one it is.
#[derive(Debug)]
pub(super) struct AnyServer {
    provider: Arc<CryptoProvider>,
}

impl AnyServer {
    pub(super) fn new(provider: Arc<CryptoProvider>) -> Self {
        Self { provider }
    }
}

impl ServerCertVerifier for AnyServer {
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

    signatures!();
}

/// Agent streams, node side: the VM that was bound.
#[derive(Debug)]
pub(super) struct PinnedServer {
    provider: Arc<CryptoProvider>,
    pin: Pin,
}

impl PinnedServer {
    pub(super) fn new(provider: Arc<CryptoProvider>, pin: Pin) -> Self {
        Self { provider, pin }
    }
}

impl ServerCertVerifier for PinnedServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if spki_sha256_of(end_entity)? != self.pin.0 {
            return Err(refuse("it does not hold the pinned key"));
        }
        Ok(ServerCertVerified::assertion())
    }

    signatures!();
}

/// Bind, guest side: holders of a credential from the binder CA. Whether it is for this instance is answered in words, later.
#[derive(Debug)]
pub(super) struct BinderCredential {
    provider: Arc<CryptoProvider>,
    ca_sha256: [u8; 32],
}

impl BinderCredential {
    pub(super) fn new(provider: Arc<CryptoProvider>, ca_sha256: [u8; 32]) -> Self {
        Self { provider, ca_sha256 }
    }
}

impl ClientCertVerifier for BinderCredential {
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        verify_chain(end_entity, intermediates, &self.ca_sha256, now).map_err(|error| refuse(&error.to_string()))?;
        Ok(ClientCertVerified::assertion())
    }

    client_roots!();
    signatures!();
}

/// Agent streams, guest side: the keys that the Bind listed.
#[derive(Debug)]
pub(super) struct ListedClient {
    provider: Arc<CryptoProvider>,
    keys: Arc<AgentKeys>,
}

impl ListedClient {
    pub(super) fn new(provider: Arc<CryptoProvider>, keys: Arc<AgentKeys>) -> Self {
        Self { provider, keys }
    }
}

impl ClientCertVerifier for ListedClient {
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if !self.keys.allow(&spki_sha256_of(end_entity)?) {
            return Err(refuse("its key may not open agent streams"));
        }
        Ok(ClientCertVerified::assertion())
    }

    client_roots!();
    signatures!();
}
