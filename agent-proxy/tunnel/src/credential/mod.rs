//! Who may bind a pod VM: the binder CA, a node's key, and the short-lived credential that ties them to one instance.
//!
//! All keys are ECDSA P-256 on aws-lc-rs. Key material does not print.

mod ca;
mod key;
mod verify;

pub use ca::BinderCa;
pub use key::NodeKey;
pub(crate) use verify::{Assignment, verify_chain};

/// Prefix of the subject alternative name that names the instance.
const INSTANCE_URI: &str = "peerpods://instance/";
/// Prefix of the subject alternative name that names the node.
const NODE_URI: &str = "peerpods://node/";

/// What a node presents when it binds: a certificate chain from the controller, and the node's own key.
#[derive(Debug, Clone)]
pub struct Credential {
    /// DER certificates: the leaf, then the binder CA.
    pub chain: Vec<Vec<u8>>,
    /// The key that the leaf is for.
    pub key: NodeKey,
}

/// Why a key, CA or certificate could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The text is not the PEM that `to_pem` writes.
    #[error("malformed PEM: {0}")]
    Pem(String),
    /// The key is not ECDSA P-256.
    #[error("not an ECDSA P-256 public key")]
    NotP256,
    /// Key and certificate in one PEM text do not belong together.
    #[error("binder CA certificate and key do not belong together")]
    Mismatch,
    /// An instance or node name that does not fit into a certificate.
    #[error("{0:?} is not a name: use letters, digits, '.', '_' and '-'")]
    BadName(String),
    /// The cryptographic library refused.
    #[error("cannot make {what}: {cause}")]
    Make {
        /// What was to be made.
        what: &'static str,
        /// The library's words.
        cause: String,
    },
}

/// Names go into URIs; the controller's and clouds' ids need no more than this.
fn check_name(name: &str) -> Result<(), CredentialError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let fits = (1..=253).contains(&name.len()) && name.bytes().all(plain);
    if fits { Ok(()) } else { Err(CredentialError::BadName(name.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls_pki_types::{CertificateDer, UnixTime};
    use sha2::{Digest as _, Sha256};
    use std::time::{Duration, SystemTime};

    const TTL: Duration = Duration::from_secs(600);

    fn verify(ca: &BinderCa, chain: &[Vec<u8>], at: SystemTime) -> Result<Assignment, verify::ChainError> {
        let chain: Vec<_> = chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
        let fingerprint = crate::bind::decode_hex32(&ca.spki_sha256_hex()).unwrap();
        let now = UnixTime::since_unix_epoch(at.duration_since(SystemTime::UNIX_EPOCH).unwrap());
        verify_chain(&chain[0], &chain[1..], &fingerprint, now)
    }

    #[test]
    fn issued_credential_names_instance_and_node_within_its_time() {
        let (ca, key, now) = (BinderCa::generate().unwrap(), NodeKey::generate().unwrap(), SystemTime::now());
        let chain = ca.issue(key.spki_der(), "i-0a_1.b", "node-1.example", now, TTL).unwrap();
        let expected = Assignment { instance_id: "i-0a_1.b".to_owned(), node: "node-1.example".to_owned() };
        assert_eq!(verify(&ca, &chain, now).unwrap(), expected);
        assert!(verify(&ca, &chain, now + TTL + Duration::from_secs(2)).is_err());
        assert!(verify(&ca, &chain, now - Duration::from_secs(600)).is_err());
        assert!(verify(&ca, &chain[..1], now).is_err());
        assert!(verify(&BinderCa::generate().unwrap(), &chain, now).is_err());
    }

    #[test]
    fn keys_and_ca_survive_pem() {
        let (ca, key) = (BinderCa::generate().unwrap(), NodeKey::generate().unwrap());
        let read = NodeKey::from_pem(&key.to_pem()).unwrap();
        assert_eq!(read.spki_der(), key.spki_der());
        assert_eq!(read.spki_sha256().as_slice(), Sha256::digest(key.spki_der()).as_slice());
        let again = BinderCa::from_pem(&ca.to_pem()).unwrap();
        assert_eq!((again.spki_sha256_hex(), again.cert_der()), (ca.spki_sha256_hex(), ca.cert_der()));
        let now = SystemTime::now();
        let chain = again.issue(key.spki_der(), "i-1", "n", now, TTL).unwrap();
        assert!(verify(&ca, &chain, now).is_ok());
    }

    #[test]
    fn ca_of_two_halves_is_refused() {
        let (one, other) = (BinderCa::generate().unwrap().to_pem(), BinderCa::generate().unwrap().to_pem());
        let cut = |pem: &str| pem.find("-----BEGIN CERTIFICATE").unwrap();
        let mixed = format!("{}{}", &one[..cut(&one)], &other[cut(&other)..]);
        assert!(matches!(BinderCa::from_pem(&mixed), Err(CredentialError::Mismatch)));
        assert!(matches!(BinderCa::from_pem("nothing"), Err(CredentialError::Pem(_))));
    }

    #[test]
    fn foreign_key_kinds_and_names_that_break_a_uri_are_refused() {
        let (ca, key, now) = (BinderCa::generate().unwrap(), NodeKey::generate().unwrap(), SystemTime::now());
        for name in ["", "a/b", "a b", "a%2f", "n\u{e9}"] {
            assert!(matches!(ca.issue(key.spki_der(), name, "n", now, TTL), Err(CredentialError::BadName(_))), "{name:?}");
            assert!(matches!(ca.issue(key.spki_der(), "i", name, now, TTL), Err(CredentialError::BadName(_))), "{name:?}");
        }
        let mut p384 = key.spki_der().to_vec();
        p384[22] ^= 1;
        assert!(matches!(ca.issue(&p384, "i", "n", now, TTL), Err(CredentialError::NotP256)));
        assert!(matches!(ca.issue(&key.spki_der()[..90], "i", "n", now, TTL), Err(CredentialError::NotP256)));
    }

    #[test]
    fn keys_do_not_print() {
        let (ca, key) = (BinderCa::generate().unwrap(), NodeKey::generate().unwrap());
        assert_eq!(format!("{key:?}"), format!("NodeKey({})", key.spki_sha256_hex()));
        assert!(!format!("{ca:?}").contains("PRIVATE"));
    }
}
