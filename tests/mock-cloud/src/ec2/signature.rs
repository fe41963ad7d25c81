//! Signature Version 4 of a request ("AWS Signature Version 4 for API requests" of the IAM user guide).

use std::collections::BTreeMap;
use std::time::SystemTime;

use aws_sigv4::sign::v4::{calculate_signature, generate_signing_key};
use axum::http::HeaderMap;
use sha2::{Digest as _, Sha256};
use time::macros::format_description;
use time::{Duration, OffsetDateTime, PrimitiveDateTime};

use super::error::Ec2Error;

/// How old a request may be.
const PATIENCE: Duration = Duration::minutes(5);

/// Checks who signed; without known keys any signature of the right shape will do.
pub(super) fn check(headers: &HeaderMap, body: &[u8], keys: &BTreeMap<String, String>) -> Result<(), Ec2Error> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let missing = || Ec2Error::new("MissingAuthenticationToken", 403, "Request is missing Authentication Token");
    let authorization = header("authorization").and_then(|text| text.strip_prefix("AWS4-HMAC-SHA256 ")).ok_or_else(missing)?;
    let part = |name: &str| authorization.split(',').find_map(|part| part.trim().strip_prefix(name)?.strip_prefix('='));
    let incomplete = || Ec2Error::new("IncompleteSignature", 400, "The authorization header is incomplete");
    let (credential, signed, signature) = match (part("Credential"), part("SignedHeaders"), part("Signature")) {
        (Some(credential), Some(signed), Some(signature)) => (credential, signed, signature),
        _ => return Err(incomplete()),
    };
    let scope: Vec<&str> = credential.split('/').collect();
    let [id, date, region, service, "aws4_request"] = scope[..] else { return Err(incomplete()) };
    let moment = header("x-amz-date").ok_or_else(missing)?;
    let time = PrimitiveDateTime::parse(moment, format_description!("[year][month][day]T[hour][minute][second]Z"));
    let time = time.map_err(|_| incomplete())?.assume_utc();
    if (OffsetDateTime::now_utc() - time).abs() > PATIENCE {
        return Err(Ec2Error::new("RequestExpired", 400, "Request has expired."));
    }
    if keys.is_empty() {
        return Ok(());
    }
    let failure = || Ec2Error::new("AuthFailure", 401, "AWS was not able to validate the provided access credentials");
    let secret = keys.get(id).ok_or_else(failure)?;
    let canonical_headers: String = signed
        .split(';')
        .map(|name| format!("{name}:{}\n", header(name).unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")))
        .collect();
    let request = format!("POST\n/\n\n{canonical_headers}\n{signed}\n{}", hex::encode(Sha256::digest(body)));
    let scope = format!("{date}/{region}/{service}/aws4_request");
    let to_sign = format!("AWS4-HMAC-SHA256\n{moment}\n{scope}\n{}", hex::encode(Sha256::digest(request)));
    let key = generate_signing_key(secret, SystemTime::from(time), region, service);
    if calculate_signature(key, to_sign.as_bytes()) == signature {
        return Ok(());
    }
    let said = "The request signature we calculated does not match the signature you provided.";
    Err(Ec2Error::new("SignatureDoesNotMatch", 403, said))
}
