//! Tokens: EAT attestation results as JWT, signed and verified with the same key.

use std::time::{Duration, SystemTime};

use peerpods_key_broker::wire::TeePubKey;
use serde_json::{Value, json};

use crate::admin::seconds;
use crate::jose::{MAX_JWT, SigningKey, VerifyingKey};

/// How long a token lasts, as Trustee's does by default.
const LIFETIME: Duration = Duration::from_secs(300);
/// Longest token in characters: it must fit the head of a request, for which Trustee allows 128 KiB.
const MAX_TOKEN: usize = MAX_JWT - (8 << 10);

const PROFILE: &str = "tag:github.com,2024:confidential-containers/Trustee";
const ISSUER: &str = "CoCo-Attestation-Service";
const BUILD: &str = concat!("peerpods-relying-party ", env!("CARGO_PKG_VERSION"));
const TEE_PUBKEY: &str = "/submods/cpu0/ear.veraison.annotated-evidence/runtime_data_claims/tee-pubkey";

/// Issues and verifies tokens.
pub(crate) struct Tokens {
    key: SigningKey,
    verifying: VerifyingKey,
}

impl Tokens {
    /// Reads the signing key, which must be of P-256: other relying parties take no other.
    pub(crate) fn from_pem(pem: &[u8]) -> Result<Self, &'static str> {
        let key = SigningKey::from_pem(pem)?;
        match key.verifying() {
            verifying @ VerifyingKey::Es256(_) => Ok(Self { key, verifying }),
            VerifyingKey::Ed25519(_) => Err("it is no P-256 key"),
        }
    }

    /// A token about one CPU.
    pub(crate) fn issue(&self, cpu: &Value, now: SystemTime) -> Result<String, String> {
        let claims = json!({
            "eat_profile": PROFILE,
            "iat": seconds(now),
            "exp": seconds(now + LIFETIME),
            "iss": ISSUER,
            "ear.verifier-id": { "build": BUILD, "developer": "peerpods" },
            "submods": { "cpu0": cpu },
        });
        let token = self.key.sign(&claims, self.verifying.jwk())?;
        if token.len() > MAX_TOKEN {
            return Err(format!("the token would have {} bytes, more than {MAX_TOKEN}: make initdata shorter", token.len()));
        }
        Ok(token)
    }

    /// The claims of a token of ours that has not expired.
    pub(crate) fn verify(&self, token: &str, now: SystemTime) -> Result<Value, &'static str> {
        let claims = self.verifying.verify(token)?;
        match claims["exp"].as_u64() {
            Some(exp) if exp > seconds(now) => Ok(claims),
            _ => Err("it has expired"),
        }
    }
}

/// The key that resources are encrypted to.
pub(crate) fn tee_pubkey(claims: &Value) -> Option<TeePubKey> {
    serde_json::from_value(claims.pointer(TEE_PUBKEY)?.clone()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> Tokens {
        Tokens::from_pem(SigningKey::generate_es256().unwrap().to_pem().unwrap().as_bytes()).unwrap()
    }

    #[test]
    fn token_has_trustees_members_and_ends() {
        let (tokens, now) = (tokens(), SystemTime::UNIX_EPOCH + Duration::from_secs(1000));
        let key = json!({ "kty": "RSA", "alg": "RSA-OAEP-256", "n": "n", "e": "e" });
        let cpu = json!({ "ear.veraison.annotated-evidence": { "runtime_data_claims": { "tee-pubkey": key } } });
        let token = tokens.issue(&cpu, now).unwrap();
        let claims = tokens.verify(&token, now + Duration::from_secs(299)).unwrap();
        assert_eq!((&claims["iat"], &claims["exp"]), (&json!(1000), &json!(1300)));
        assert_eq!(claims["eat_profile"], PROFILE);
        assert!(matches!(tee_pubkey(&claims), Some(TeePubKey::Rsa { .. })));
        assert_eq!(tokens.verify(&token, now + LIFETIME), Err("it has expired"));
        assert!(self::tokens().verify(&token, now).is_err(), "another broker's");
    }

    #[test]
    fn token_that_fits_no_header_is_not_issued() {
        assert!(tokens().issue(&json!("x".repeat(MAX_TOKEN)), SystemTime::UNIX_EPOCH).is_err());
    }

    #[test]
    fn only_p256_signs_tokens() {
        assert!(Tokens::from_pem(SigningKey::generate_ed25519().unwrap().to_pem().unwrap().as_bytes()).is_err());
    }
}
