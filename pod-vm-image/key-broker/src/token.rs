//! Tokens: what an attestation gives.

use std::fmt;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use zeroize::Zeroizing;

/// A token and the key that it speaks of. Whoever has both can read every resource that the broker releases to this VM.
#[derive(Clone)]
pub struct Token {
    /// The attestation result, a JWT signed by the broker. It is not verified here: only the broker and third parties rely on it.
    pub jwt: Zeroizing<String>,
    /// The TEE key pair as PEM: PKCS#8 for curves, PKCS#1 for RSA.
    pub tee_keypair_pem: Zeroizing<String>,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").finish_non_exhaustive()
    }
}

/// When a JWT expires; `None` when it does not say.
pub(crate) fn expiry(jwt: &str) -> Option<SystemTime> {
    #[derive(Deserialize)]
    struct Claims {
        exp: u64,
    }
    let payload = URL_SAFE_NO_PAD.decode(jwt.split('.').nth(1)?).ok()?;
    let claims: Claims = serde_json::from_slice(&payload).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(claims.exp))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expiry_is_that_of_the_payload() {
        let jwt = |payload: &str| format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(payload));
        assert_eq!(expiry(&jwt(r#"{"iat":1,"exp":300}"#)), Some(SystemTime::UNIX_EPOCH + Duration::from_secs(300)));
        for text in [jwt("{}"), jwt(r#"{"exp":-1}"#), jwt(r#"{"exp":"300"}"#), "e30".to_owned(), "a.!.b".to_owned(), String::new()] {
            assert_eq!(expiry(&text), None, "{text}");
        }
    }

    #[test]
    fn token_is_not_printed() {
        let token = Token { jwt: Zeroizing::new("secret".to_owned()), tee_keypair_pem: Zeroizing::new("secret".to_owned()) };
        assert_eq!(format!("{token:?}"), "Token { .. }");
    }
}
