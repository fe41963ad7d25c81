//! Client and broker together, over sockets: what is released to whom, and what is refused.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bytes;
#[path = "../common/mod.rs"]
mod common;
mod world;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use peerpods_key_broker::wire::{Attestation, Challenge, InitData, Request, TeeEvidence};
use peerpods_key_broker::{KeyBroker, KeyBrokerConfig, KeyBrokerError, TeeKey, TeeKeyAlgorithm};
use peerpods_relying_party::{MAX_BODY_BYTES, state};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use common::Sample;
use world::{World, attestation, clock, denied, digest, key, refused, uri};

const SECRET: &[u8] = b"a secret of the workload";
const INITDATA: &str = "version = \"0.1.0\"\nalgorithm = \"sha384\"\n[data]\n\"policy.rego\" = '''\npackage agent_policy\n'''\n";
const ALLOW_ALL: &str = "package policy\nallow := true\n";

#[tokio::test]
async fn nothing_is_released_by_default() {
    let world = World::new().await;
    world.admin().set_resource(&uri(), SECRET.to_vec()).await.unwrap();
    denied(world.client().resource(&uri()).await, "PolicyDeny");
    denied(world.client_with(INITDATA).resource(&uri()).await, "PolicyDeny");
    // Nor is it said whether there is such a resource.
    denied(world.client().resource(&"kbs:///default/key/2".parse().unwrap()).await, "PolicyDeny");
}

#[tokio::test]
async fn resource_is_released_where_the_policy_allows() {
    let world = World::new().await;
    let admin = world.admin();
    admin.set_resource(&uri(), SECRET.to_vec()).await.unwrap();
    admin.set_resource_policy(ALLOW_ALL).await.unwrap();
    for tee_key_algorithm in [TeeKeyAlgorithm::EcdhEsP256, TeeKeyAlgorithm::EcdhEsP521, TeeKeyAlgorithm::RsaOaep256] {
        let client = KeyBroker::new(KeyBrokerConfig { tee_key_algorithm, ..world.config() }, Arc::new(Sample)).unwrap();
        assert_eq!(client.resource(&uri()).await.unwrap().as_slice(), SECRET, "{tee_key_algorithm:?}");
    }
    let client = world.client();
    denied(client.resource(&"kbs:///default/key/2".parse().unwrap()).await, "PluginInternalError");
    admin.set_resource(&uri(), b"another".to_vec()).await.unwrap();
    assert_eq!(client.resource(&uri()).await.unwrap().as_slice(), b"another");
    admin.delete_resource(&uri()).await.unwrap();
    denied(client.resource(&uri()).await, "PluginInternalError");
    assert!(admin.delete_resource(&uri()).await.is_err());
}

#[tokio::test]
async fn policy_that_pins_initdata_releases_to_it_alone() {
    let world = World::new().await;
    let admin = world.admin();
    admin.set_resource(&uri(), SECRET.to_vec()).await.unwrap();
    let policy = format!(
        "package policy\nimport rego.v1\ndefault allow := false\nallow if {{\n\tdata.plugin == \"resource\"\n\
         \tdata[\"resource-path\"] == [\"default\", \"key\", \"1\"]\n\
         \tinput.submods.cpu0[\"ear.veraison.annotated-evidence\"].init_data == \"{}\"\n}}\n",
        digest(INITDATA)
    );
    admin.set_resource_policy(&policy).await.unwrap();
    assert_eq!(world.client_with(INITDATA).resource(&uri()).await.unwrap().as_slice(), SECRET);
    denied(world.client_with(&format!("{INITDATA}\n")).resource(&uri()).await, "PolicyDeny");
    denied(world.client().resource(&uri()).await, "PolicyDeny");
    denied(world.client_with("version = \"0.2.0\"").resource(&uri()).await, "AttestationError");
}

#[tokio::test]
async fn tls_is_pinned_to_one_certificate() {
    let world = World::with("https").await;
    let admin = world.admin();
    admin.set_resource(&uri(), SECRET.to_vec()).await.unwrap();
    admin.set_resource_policy(ALLOW_ALL).await.unwrap();
    let pinned = |pem: &Path| KeyBrokerConfig { certificate_pem: Some(std::fs::read_to_string(pem).unwrap()), ..world.config() };
    let client = KeyBroker::new(pinned(&world.state().join(state::TLS_CERTIFICATE)), Arc::new(Sample)).unwrap();
    assert_eq!(client.resource(&uri()).await.unwrap().as_slice(), SECRET);
    let other = World::with("https").await;
    let client = KeyBroker::new(pinned(&other.state().join(state::TLS_CERTIFICATE)), Arc::new(Sample)).unwrap();
    assert!(matches!(client.resource(&uri()).await, Err(KeyBrokerError::Unreachable { .. })));
    let unpinned = KeyBroker::new(KeyBrokerConfig { trust_bundle: "/nonexistent".into(), ..world.config() }, Arc::new(Sample)).unwrap();
    assert!(matches!(unpinned.resource(&uri()).await, Err(KeyBrokerError::Unreachable { .. })));
}

#[tokio::test]
async fn certificate_that_is_an_authority_can_be_pinned() {
    let world = World::with("https").await;
    let mut params = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap().pem();
    std::fs::write(world.state().join(state::TLS_CERTIFICATE), &certificate).unwrap();
    std::fs::write(world.state().join(state::TLS_KEY), key.serialize_pem()).unwrap();
    let world = world.restart().await;
    let config = KeyBrokerConfig { certificate_pem: Some(certificate), ..world.config() };
    KeyBroker::new(config, Arc::new(Sample)).unwrap().token().await.unwrap();
}

#[tokio::test]
async fn token_says_what_was_verified() {
    let world = World::new().await;
    world.admin().set_reference_value("svn", &json!(["1"])).await.unwrap();
    let token = world.client_with(INITDATA).token().await.unwrap();
    let part = |index: usize| -> Value {
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.jwt.split('.').nth(index).unwrap()).unwrap()).unwrap()
    };
    let (header, claims) = (part(0), part(1));
    assert_eq!((&header["alg"], &header["typ"], &header["jwk"]["crv"]), (&json!("ES256"), &json!("JWT"), &json!("P-256")));
    let now = world.now.load(Ordering::SeqCst);
    assert_eq!((&claims["iat"], &claims["exp"]), (&json!(now), &json!(now + 300)));
    let cpu = &claims["submods"]["cpu0"];
    assert_eq!((&cpu["ear.status"], &cpu["ear.appraisal-policy-id"]), (&json!("warning"), &json!("default")));
    let annotated = &cpu["ear.veraison.annotated-evidence"];
    assert_eq!(annotated["init_data"], digest(INITDATA));
    assert_eq!(annotated["init_data_claims"], json!({ "policy.rego": "package agent_policy\n" }));
    assert_eq!(annotated["sample"]["svn"], "1");
    let key = TeeKey::from_pem(&token.tee_keypair_pem).unwrap();
    assert_eq!(annotated["runtime_data_claims"]["tee-pubkey"], serde_json::to_value(key.public().unwrap()).unwrap());
}

#[tokio::test]
async fn attestation_policy_and_reference_values_decide_on_the_status() {
    let world = World::new().await;
    let admin = world.admin();
    admin.set_resource(&uri(), SECRET.to_vec()).await.unwrap();
    admin.set_resource_policy("package policy\nallow if input.submods.cpu0[\"ear.status\"] == \"affirming\"").await.unwrap();
    let policy = "package policy\ndefault hardware := 97\nhardware := 2 if input.sample.svn in query_reference_value(\"svn\")\n\
                  trust_claims := {\"hardware\": hardware}";
    admin.set_attestation_policy("default_cpu", policy).await.unwrap();
    denied(world.client().resource(&uri()).await, "PolicyDeny");
    admin.set_reference_value("svn", &json!(["1"])).await.unwrap();
    assert_eq!(admin.reference_value("svn").await.unwrap(), json!(["1"]));
    assert_eq!(admin.reference_value("other").await.unwrap(), Value::Null);
    assert_eq!(world.client().resource(&uri()).await.unwrap().as_slice(), SECRET);
    // After twelve months the reference value is none any more.
    world.turn(366 * 24 * 3600);
    denied(world.client().resource(&uri()).await, "PolicyDeny");
    assert_eq!(world.admin().reference_value("svn").await.unwrap(), Value::Null);
}

#[tokio::test]
async fn client_attests_again_after_a_restart() {
    let world = World::new().await;
    let admin = world.admin();
    admin.set_resource(&uri(), SECRET.to_vec()).await.unwrap();
    admin.set_resource_policy(ALLOW_ALL).await.unwrap();
    let token = world.client().token().await.unwrap();
    let left = world.state().join("resources/.tmp-0123456789abcdef");
    std::fs::write(&left, b"hal").unwrap();
    let world = world.restart().await;
    assert!(!left.exists());
    let response =
        world.call(Method::GET, "/kbs/v0/resource/default/key/1", &[("authorization", format!("Bearer {}", *token.jwt))], "").await;
    assert_eq!(response.status(), StatusCode::OK, "the key that signs tokens is kept");
    assert_eq!(world.client().resource(&uri()).await.unwrap().as_slice(), SECRET);
}

#[tokio::test]
async fn expired_token_is_renewed() {
    let world = World::new().await;
    let admin = world.admin();
    admin.set_resource(&uri(), SECRET.to_vec()).await.unwrap();
    admin.set_resource_policy(ALLOW_ALL).await.unwrap();
    // A client whose clock stands still learns of the end from the 401 only.
    let standing = Arc::new(AtomicU64::new(world.now.load(Ordering::SeqCst)));
    let client = KeyBroker::new(KeyBrokerConfig { clock: clock(&standing), ..world.config() }, Arc::new(Sample)).unwrap();
    let old = client.token().await.unwrap();
    world.turn(301);
    let response =
        world.call(Method::GET, "/kbs/v0/resource/default/key/1", &[("authorization", format!("Bearer {}", *old.jwt))], "").await;
    refused(response, 401, "TokenVerifierError", "Token Verifier error").await;
    assert_eq!(client.resource(&uri()).await.unwrap().as_slice(), SECRET);
    assert_ne!(client.token().await.unwrap().jwt, old.jwt);
}

#[tokio::test]
async fn session_serves_without_a_bearer_until_it_ends() {
    let world = World::new().await;
    let admin = world.admin();
    admin.set_resource(&uri(), SECRET.to_vec()).await.unwrap();
    admin.set_resource_policy(ALLOW_ALL).await.unwrap();
    let (nonce, cookie) = world.auth().await;
    let path = "/kbs/v0/resource/default/key/1";
    refused(world.call(Method::GET, path, std::slice::from_ref(&cookie), "").await, 401, "TokenNotFound", "").await;
    let key = key();
    let first = world.attest(&cookie, &attestation(&key, &nonce)).await;
    assert_eq!(first.status(), StatusCode::OK);
    let first = first.bytes().await.unwrap();
    // A client whose answer was lost gets the same one.
    assert_eq!(world.attest(&cookie, &attestation(&key, &nonce)).await.bytes().await.unwrap(), first);
    let response = world.call(Method::GET, path, std::slice::from_ref(&cookie), "").await;
    let response = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    assert_eq!(peerpods_key_broker::jwe::decrypt(&key, &response).unwrap().as_slice(), SECRET);
    world.turn(300);
    refused(world.call(Method::GET, path, std::slice::from_ref(&cookie), "").await, 401, "TokenNotFound", "").await;
    refused(world.attest(&cookie, &attestation(&key, &nonce)).await, 401, "AttestationError", "expired").await;
}

#[tokio::test]
async fn nonce_counts_once_and_in_its_session_only() {
    let world = World::new().await;
    let (nonce, cookie) = world.auth().await;
    let (other_nonce, other_cookie) = world.auth().await;
    assert_ne!((&nonce, &cookie.1), (&other_nonce, &other_cookie.1));
    // Evidence recorded for one session, replayed in another.
    let recorded = attestation(&key(), &nonce);
    refused(world.attest(&other_cookie, &recorded).await, 401, "AttestationError", "nonce").await;
    // The same under the other session's nonce: it is not what the evidence is bound to.
    let mut renamed = recorded.clone();
    renamed.runtime_data.nonce = other_nonce.clone();
    refused(world.attest(&other_cookie, &renamed).await, 401, "AttestationError", "of another request").await;
    // Nor another key.
    let mut swapped = recorded.clone();
    swapped.runtime_data.tee_pubkey = key().public().unwrap();
    refused(world.attest(&cookie, &swapped).await, 401, "AttestationError", "of another request").await;
    refused(world.attest(&("cookie", format!("kbs-session-id={}", "0".repeat(32))), &recorded).await, 401, "AttestationError", "").await;
    refused(world.attest(&("x-none", String::new()), &recorded).await, 401, "AttestationError", "cookie not found").await;
    assert_eq!(world.attest(&cookie, &recorded).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn stale_session_is_refused() {
    let world = World::new().await;
    let (nonce, cookie) = world.auth().await;
    world.turn(300);
    refused(world.attest(&cookie, &attestation(&key(), &nonce)).await, 401, "AttestationError", "expired").await;
}

#[tokio::test]
async fn attestations_that_cannot_be_verified_are_refused() {
    let world = World::new().await;
    let (nonce, cookie) = world.auth().await;
    let good = attestation(&key(), &nonce);
    let devices =
        Attestation { tee_evidence: TeeEvidence { additional_evidence: "{}".to_owned(), ..good.tee_evidence.clone() }, ..good.clone() };
    refused(world.attest(&cookie, &devices).await, 401, "AttestationError", "additional evidence").await;
    let initdata = Attestation { init_data: Some(InitData { format: "json".to_owned(), body: "{}".to_owned() }), ..good.clone() };
    refused(world.attest(&cookie, &initdata).await, 401, "AttestationError", "format toml").await;
    // Evidence of another format than the session's, and a format without verifier.
    let body = serde_json::to_vec(&Request::new("snp")).unwrap();
    let response = world.call(Method::POST, "/kbs/v0/auth", &[], body).await;
    let pair = response.headers()["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
    let challenge: Challenge = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    let response = world.attest(&("cookie", pair), &attestation(&key(), &challenge.nonce)).await;
    refused(response, 401, "AttestationError", "malformed SNP evidence").await;
}

#[tokio::test]
async fn other_versions_and_paths_are_refused_as_by_trustee() {
    let world = World::new().await;
    let body = r#"{"version":"0.1.1","tee":"sample","extra-params":""}"#;
    let response = world.call(Method::POST, "/kbs/v0/auth", &[], body).await;
    let text =
        "Attestation error: RCAR handshake Auth failed: KBS Client Protocol Version Mismatch: expect =0.4.0 while the request is 0.1.1";
    refused(response, 401, "AttestationError", text).await;
    refused(world.call(Method::POST, "/kbs/v0/auth", &[], "{}").await, 401, "AttestationError", "Request").await;
    refused(world.call(Method::GET, "/kbs/v0/pkcs11/a/b", &[], "").await, 404, "PluginNotFound", "Plugin pkcs11 not found").await;
    refused(world.call(Method::GET, "/kbs/v0/auth", &[], "").await, 404, "PluginNotFound", "auth").await;
    refused(world.call(Method::PUT, "/kbs/v0/resource/a/b/c", &[], "").await, 404, "PluginNotFound", "resource").await;
    refused(world.call(Method::GET, "/kbs/v0/", &[], "").await, 404, "InvalidRequestPath", "").await;
    refused(world.call(Method::GET, "/other", &[], "").await, 404, "InvalidRequestPath", "/other").await;
    assert_eq!(world.call(Method::GET, "/healthz", &[], "").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn administration_needs_its_token() {
    let world = World::new().await;
    let calls = [
        (Method::POST, "resource/default/key/1"),
        (Method::DELETE, "resource/default/key/1"),
        (Method::POST, "resource-policy"),
        (Method::GET, "resource-policy"),
        (Method::POST, "attestation-policy"),
        (Method::GET, "reference-value/svn"),
        (Method::GET, "reference-value"),
        (Method::POST, "reference-value"),
    ];
    let attested = format!("Bearer {}", *world.client().token().await.unwrap().jwt);
    let stale = format!("Bearer {}", world.token());
    world.turn(3600);
    for (method, path) in calls {
        for headers in [vec![], vec![("authorization", attested.clone())], vec![("authorization", stale.clone())]] {
            let response = world.call(method.clone(), &format!("/kbs/v0/{path}"), &headers, "{}").await;
            refused(response, 401, "AdminAuthAccess", &format!("admin access denied for endpoint /kbs/v0/{path}")).await;
        }
    }
}

#[tokio::test]
async fn bad_administration_changes_nothing() {
    let world = World::new().await;
    let admin = world.admin();
    let bearer = || ("authorization", format!("Bearer {}", world.token()));
    admin.set_resource(&uri(), SECRET.to_vec()).await.unwrap();
    admin.set_resource_policy(ALLOW_ALL).await.unwrap();
    for policy in ["package policy\nallow := {", "package other\nallow := true", ""] {
        assert!(admin.set_resource_policy(policy).await.is_err(), "{policy:?}");
        assert!(admin.set_attestation_policy("default_cpu", policy).await.is_err(), "{policy:?}");
    }
    assert!(admin.set_attestation_policy("../default_cpu", "package policy").await.is_err());
    assert!(admin.set_reference_value("../svn", &json!(1)).await.is_err());
    assert_eq!(world.client().resource(&uri()).await.unwrap().as_slice(), SECRET);
    let response = world.call(Method::GET, "/kbs/v0/resource-policy", &[bearer()], "").await;
    let policies: Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    assert_eq!(policies, json!({ "resource-policy": URL_SAFE_NO_PAD.encode(ALLOW_ALL) }));
    for path in ["default/key", "default/key/1/2", "default/key/..%2f", "default/key/a%2Fb", "default/key/", ".hidden/key/1"] {
        let response = world.call(Method::POST, &format!("/kbs/v0/resource/{path}"), &[bearer()], "x").await;
        refused(response, 401, "PluginInternalError", "Plugin internal error").await;
    }
    for message in [
        r#"{"version":"0.2.0","type":"sample","payload":"e30="}"#,
        r#"{"version":"0.1.0","type":"swid","payload":"e30="}"#,
        r#"{"version":"0.1.0","type":"sample","payload":"!"}"#,
    ] {
        let response = world.call(Method::POST, "/kbs/v0/reference-value", &[bearer()], message).await;
        refused(response, 401, "RvpsError", "Failed to register reference value").await;
    }
    let payload = STANDARD.encode(r#"{"aa":1,"x/y":2}"#);
    let message = json!({"version": "0.1.0", "type": "sample", "payload": payload}).to_string();
    let response = world.call(Method::POST, "/kbs/v0/reference-value", &[bearer()], message).await;
    refused(response, 401, "RvpsError", "Failed to register reference value").await;
    assert_eq!(std::fs::read_dir(world.directory.path().join("state/reference-values")).unwrap().count(), 0, "all or none");
}

#[tokio::test]
async fn oversize_bodies_and_heads_are_refused() {
    let world = World::new().await;
    let bearer = ("authorization", format!("Bearer {}", world.token()));
    let response = world.call(Method::POST, "/kbs/v0/resource/default/key/1", &[bearer], vec![0; MAX_BODY_BYTES]).await;
    assert_eq!(response.status(), StatusCode::OK);
    let response = world.call(Method::POST, "/kbs/v0/auth", &[], vec![b' '; MAX_BODY_BYTES + 1]).await;
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    let response = world.call(Method::GET, "/healthz", &[("x-long", "x".repeat(1 << 20))], "").await;
    assert_eq!(response.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
}
