//! A guest of Trustee's, byte for byte: requests written out as its client sends them, answers taken apart member by member.
//!
//! Nothing of our wire types is used but to decrypt. Source: kbs_protocol and kbs-types 0.18 of guest-components, and the answers of
//! Trustee's KBS.

use aws_lc_rs::digest::{SHA384, digest};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use peerpods_key_broker::jwe;
use reqwest::{Method, Response, StatusCode};
use serde_json::{Map, Value, json};

use super::world::{World, key, uri};
use super::{ALLOW_ALL, SECRET};

const AUTH: &str = r#"{"version":"0.4.0","tee":"sample","extra-params":{"supported-hash-algorithms":["sha256","sha384","sha512"]}}"#;

async fn object(response: Response) -> Map<String, Value> {
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["content-type"], "application/json");
    serde_json::from_slice(&response.bytes().await.unwrap()).unwrap()
}

fn members(object: &Map<String, Value>) -> Vec<&str> {
    let mut names: Vec<&str> = object.keys().map(String::as_str).collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn a_run_of_trustees_client_is_answered_as_by_trustee() {
    let world = World::new().await;
    world.admin().set_resource(&uri(), SECRET.to_vec()).await.unwrap();
    world.admin().set_resource_policy(ALLOW_ALL).await.unwrap();

    let response = world.call(Method::POST, "/kbs/v0/auth", &[], AUTH).await;
    let cookie = response.headers()["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
    let challenge = object(response).await;
    assert_eq!((members(&challenge), &challenge["extra-params"]), (vec!["extra-params", "nonce"], &json!("")));
    let nonce = challenge["nonce"].as_str().unwrap();

    let key = key();
    let public = serde_json::to_value(key.public().unwrap()).unwrap();
    let (x, y) = (public["x"].as_str().unwrap(), public["y"].as_str().unwrap());
    // RFC 8785: members in the order of their names.
    let jwk = format!(r#"{{"alg":"ECDH-ES+A256KW","crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
    let bound = format!(r#"{{"additional-evidence":"","nonce":"{nonce}","tee-pubkey":{jwk}}}"#);
    let report_data = STANDARD.encode(digest(&SHA384, bound.as_bytes()));
    let attestation = format!(
        r#"{{"init-data":null,"runtime-data":{{"nonce":"{nonce}","tee-pubkey":{{"kty":"EC","crv":"P-256","alg":"ECDH-ES+A256KW","x":"{x}","y":"{y}"}}}},"tee-evidence":{{"primary_evidence":{{"svn":"1","report_data":"{report_data}"}},"additional_evidence":""}}}}"#
    );
    let attested = object(world.call(Method::POST, "/kbs/v0/attest", &[("cookie", cookie)], attestation).await).await;
    assert_eq!(members(&attested), ["token"]);
    let token = attested["token"].as_str().unwrap();
    let parts: Vec<Value> =
        token.split('.').take(2).map(|part| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()).collect();
    assert_eq!((&parts[0]["alg"], &parts[0]["jwk"]["crv"]), (&json!("ES256"), &json!("P-256")));
    assert_eq!(parts[1]["eat_profile"], "tag:github.com,2024:confidential-containers/Trustee");
    assert_eq!(parts[1]["submods"]["cpu0"]["ear.veraison.annotated-evidence"]["runtime_data_claims"]["tee-pubkey"], public);

    let bearer = [("authorization", format!("Bearer {token}"))];
    let answer = object(world.call(Method::GET, "/kbs/v0/resource/default/key/1", &bearer, "").await).await;
    let with_aad = ["aad", "ciphertext", "encrypted_key", "iv", "protected", "tag"];
    let names = members(&answer);
    assert!(names == with_aad || names == with_aad[1..], "{names:?}");
    let protected: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(answer["protected"].as_str().unwrap()).unwrap()).unwrap();
    assert_eq!(
        (&protected["alg"], &protected["enc"], &protected["epk"]["crv"]),
        (&json!("ECDH-ES+A256KW"), &json!("A256GCM"), &json!("P-256"))
    );
    let answer = serde_json::from_value(Value::Object(answer)).unwrap();
    assert_eq!(jwe::decrypt(&key, &answer).unwrap().as_slice(), SECRET);
}
