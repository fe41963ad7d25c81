//! How the broker is recognized: by one pinned certificate, or by the roots of a bundle.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use crate::config::{Clock, KeyBrokerConfig};
use crate::error::{BoxError, KeyBrokerError};

/// TLS with the roots and the clock of these settings.
pub(crate) fn client_config(config: &KeyBrokerConfig) -> Result<ClientConfig, KeyBrokerError> {
    let key = if config.certificate_pem.is_some() { "certificate_pem" } else { "trust_bundle" };
    build(config).map_err(|source| KeyBrokerError::Config { key, source })
}

fn build(config: &KeyBrokerConfig) -> Result<ClientConfig, BoxError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let time = Arc::new(Time(config.clock.clone()));
    let builder = ClientConfig::builder_with_details(provider.clone(), time).with_safe_default_protocol_versions()?;
    Ok(match &config.certificate_pem {
        Some(pem) => {
            let verifier = Arc::new(Pinned::new(pem, provider)?);
            builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
        }
        None => builder.with_root_certificates(bundle(config)?).with_no_client_auth(),
    })
}

fn bundle(config: &KeyBrokerConfig) -> Result<RootCertStore, BoxError> {
    let mut roots = RootCertStore::empty();
    match std::fs::read(&config.trust_bundle) {
        // Bundles hold certificates that webpki does not take; those are left out, as everywhere.
        Ok(pem) => drop(roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    Ok(roots)
}

/// Takes a chain to one certificate, or that certificate itself.
///
/// The latter because `openssl req -x509`, with which brokers are often set up, makes certificates that are authorities, and webpki
/// takes no authority for a server. Nothing is left to verify but its names and, by its key, the handshake.
#[derive(Debug)]
struct Pinned {
    certificate: CertificateDer<'static>,
    chains: Arc<WebPkiServerVerifier>,
}

impl Pinned {
    fn new(pem: &str, provider: Arc<CryptoProvider>) -> Result<Self, BoxError> {
        let certificates = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>()?;
        let [certificate] = certificates.as_slice() else {
            return Err(format!("it holds {} certificates; exactly one is pinned", certificates.len()).into());
        };
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone())?;
        let chains = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
        Ok(Self { certificate: certificate.clone(), chains })
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if *end_entity == self.certificate {
            verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
            return Ok(ServerCertVerified::assertion());
        }
        self.chains.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

struct Time(Clock);

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Time")
    }
}

impl TimeProvider for Time {
    fn current_time(&self) -> Option<UnixTime> {
        (self.0)().duration_since(SystemTime::UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_one_certificate_is_pinned() {
        let pinned = |pem: &str| {
            client_config(&KeyBrokerConfig { certificate_pem: Some(pem.to_owned()), ..KeyBrokerConfig::new("https://kbs.example") })
        };
        for pem in ["", "no PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert!(matches!(pinned(pem), Err(KeyBrokerError::Config { key: "certificate_pem", .. })), "{pem}");
        }
        let one = rcgen::generate_simple_self_signed(["kbs.example".to_owned()]).unwrap().cert.pem();
        assert!(pinned(&one).is_ok());
        assert!(pinned(&one.repeat(2)).is_err());
    }

    #[test]
    fn pinned_certificate_is_taken_for_its_own_names_only() {
        let mut params = rcgen::CertificateParams::new(["kbs.example".to_owned()]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        let pinned = Pinned::new(&certificate.pem(), Arc::new(rustls::crypto::aws_lc_rs::default_provider())).unwrap();
        let verify = |certificate: &CertificateDer<'_>, name: &'static str| {
            let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_800_000_000));
            pinned.verify_server_cert(certificate, &[], &ServerName::try_from(name).unwrap(), &[], now).is_ok()
        };
        assert!(verify(certificate.der(), "kbs.example"));
        assert!(!verify(certificate.der(), "other.example"));
        let other = rcgen::generate_simple_self_signed(["kbs.example".to_owned()]).unwrap();
        assert!(!verify(other.cert.der(), "kbs.example"));
    }
}
