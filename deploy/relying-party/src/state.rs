//! What `init` puts into a state folder, and where it is.

use std::path::Path;

use crate::error::StartError;
use crate::jose::SigningKey;
use crate::store::{Folder, Store};

/// Private key of the admin, Ed25519. The broker does not need it: it may be taken elsewhere.
pub const ADMIN_KEY: &str = "admin-key.pem";
/// Public key of the admin, Ed25519 or P-256.
pub const ADMIN_PUBLIC_KEY: &str = "admin-public-key.pem";
/// Key that signs tokens, P-256.
pub const TOKEN_KEY: &str = "token-key.pem";
/// Key of the TLS certificate.
pub const TLS_KEY: &str = "tls-key.pem";
/// The TLS certificate, signed by itself: what clients pin.
pub const TLS_CERTIFICATE: &str = "tls-certificate.pem";
/// The resource policy, once one is set.
pub const RESOURCE_POLICY: &str = "resource-policy.rego";

/// Makes a state folder with new keys. `names` are DNS names and addresses for the certificate.
pub fn init(root: &Path, names: &[String]) -> Result<Store, StartError> {
    Store::create(root, |store| {
        let failed = |file: &str, reason: String| StartError::File { file: file.to_owned(), reason };
        let admin = SigningKey::generate_ed25519().map_err(|reason| failed(ADMIN_KEY, reason.to_owned()))?;
        let token = SigningKey::generate_es256().map_err(|reason| failed(TOKEN_KEY, reason.to_owned()))?;
        for (file, key) in [(ADMIN_KEY, &admin), (TOKEN_KEY, &token)] {
            let pem = key.to_pem().map_err(|reason| failed(file, reason.to_owned()))?;
            store.write(Folder::Top, file, pem.as_bytes())?;
        }
        store.write(Folder::Top, ADMIN_PUBLIC_KEY, admin.verifying().to_pem().as_bytes())?;
        let tls = certificate(names).map_err(|error| failed(TLS_CERTIFICATE, error.to_string()))?;
        store.write(Folder::Top, TLS_KEY, tls.signing_key.serialize_pem().as_bytes())?;
        store.write(Folder::Top, TLS_CERTIFICATE, tls.cert.pem().as_bytes())?;
        Ok(())
    })
}

fn certificate(names: &[String]) -> Result<rcgen::CertifiedKey<rcgen::KeyPair>, rcgen::Error> {
    let mut params = rcgen::CertificateParams::new(names)?;
    params.distinguished_name.push(rcgen::DnType::CommonName, "peerpods-relying-party");
    let signing_key = rcgen::KeyPair::generate()?;
    Ok(rcgen::CertifiedKey { cert: params.self_signed(&signing_key)?, signing_key })
}
