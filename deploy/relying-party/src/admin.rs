//! Administration: bearer JWTs of one key, with `role` = `admin` and an end.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::jose::{SigningKey, VerifyingKey};

/// The role that may do everything.
const ROLE: &str = "admin";
const ISSUER: &str = "peerpods-relying-party";

/// Who may administer.
pub(crate) struct Admins(VerifyingKey);

impl Admins {
    /// Reads the public key.
    pub(crate) fn from_pem(pem: &[u8]) -> Result<Self, &'static str> {
        VerifyingKey::from_pem(pem).map(Self)
    }

    /// Whether the bearer may.
    pub(crate) fn check(&self, bearer: Option<&str>, now: SystemTime) -> Result<(), &'static str> {
        let claims = self.0.verify(bearer.ok_or("there is no bearer token")?)?;
        let now = seconds(now);
        if claims["role"] != ROLE {
            return Err("its role is not admin");
        }
        if claims["exp"].as_u64().is_none_or(|exp| exp <= now) {
            return Err("it has expired, or does not say when it does");
        }
        match claims.get("nbf") {
            Some(nbf) if nbf.as_u64().is_none_or(|nbf| nbf > now) => Err("it is not valid yet"),
            _ => Ok(()),
        }
    }
}

/// A token for administration, signed with a private key in PEM, Ed25519 or P-256.
pub fn issue_admin_token(private_key_pem: &[u8], lifetime: Duration, now: SystemTime) -> Result<String, &'static str> {
    let key = SigningKey::from_pem(private_key_pem)?;
    let claims: Value = json!({ "iss": ISSUER, "role": ROLE, "iat": seconds(now), "exp": seconds(now + lifetime) });
    key.sign(&claims, None)
}

/// Seconds since the epoch, as JWTs count.
pub(crate) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map(|since| since.as_secs()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn token_admits_until_it_ends() {
        for key in [SigningKey::generate_ed25519().unwrap(), SigningKey::generate_es256().unwrap()] {
            let admins = Admins::from_pem(key.verifying().to_pem().as_bytes()).unwrap();
            let token = issue_admin_token(key.to_pem().unwrap().as_bytes(), Duration::from_secs(60), at(1000)).unwrap();
            assert_eq!(admins.check(Some(&token), at(1059)), Ok(()));
            assert!(admins.check(Some(&token), at(1060)).is_err());
            assert!(admins.check(None, at(1000)).is_err());
        }
    }

    #[test]
    fn other_claims_do_not_admit() {
        let key = SigningKey::generate_ed25519().unwrap();
        let admins = Admins::from_pem(key.verifying().to_pem().as_bytes()).unwrap();
        for claims in [
            json!({ "role": "admin" }),
            json!({ "exp": 2000 }),
            json!({ "role": "user", "exp": 2000 }),
            json!({ "role": ["admin"], "exp": 2000 }),
            json!({ "role": "admin", "exp": "2000" }),
            json!({ "role": "admin", "exp": 2000, "nbf": 1001 }),
        ] {
            assert!(admins.check(Some(&key.sign(&claims, None).unwrap()), at(1000)).is_err(), "{claims}");
        }
        assert_eq!(admins.check(Some(&key.sign(&json!({ "role": "admin", "exp": 2000, "nbf": 1000 }), None).unwrap()), at(1000)), Ok(()));
    }
}
