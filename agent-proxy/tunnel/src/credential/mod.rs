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
