//! What the program writes, read by what runs in the guest: images are pulled from a registry with their key and held against a policy.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../../pod-vm-image/image/tests/common/mod.rs"]
mod common;

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::image::digest;
use common::registry::Body;
use common::signing::Cosign;
use common::{Broker, Image, Layer, Registry, chain, policy, store};
use peerpods_image::{ImagePolicy, PullError, PullPolicy};
use serde_json::{Value, json};

const KEY_ID: &str = "kbs:///default/key/1";

fn peerpodctl(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_peerpodctl")).args(arguments).current_dir(folder).output().unwrap()
}

fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// An OCI image layout as skopeo writes it.
fn write_layout(folder: &Path, image: &Image) {
    let blobs = folder.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| std::fs::write(blobs.join(digest(bytes).trim_start_matches("sha256:")), bytes).unwrap();
    image.layers.iter().for_each(|layer| put(&layer.bytes));
    put(&image.config());
    put(&image.manifest());
    std::fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let entry = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest(&image.manifest()), "size": image.manifest().len(),
        "annotations": {"org.opencontainers.image.ref.name": "1"}});
    std::fs::write(folder.join("index.json"), json!({"schemaVersion": 2, "manifests": [entry]}).to_string()).unwrap();
}

/// Copies everything to a registry, tags from index.json.
fn push_layout(folder: &Path, registry: &Registry, name: &str) {
    for entry in std::fs::read_dir(folder.join("blobs/sha256")).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        registry.set_blob(name, &bytes, Body::Bytes(bytes.clone()));
    }
    let index: Value = serde_json::from_slice(&std::fs::read(folder.join("index.json")).unwrap()).unwrap();
    for entry in index["manifests"].as_array().unwrap() {
        let path = folder.join("blobs/sha256").join(entry["digest"].as_str().unwrap().trim_start_matches("sha256:"));
        registry.push_manifest(
            name,
            entry["annotations"]["org.opencontainers.image.ref.name"].as_str().unwrap(),
            std::fs::read(path).unwrap(),
        );
    }
}

#[tokio::test]
async fn encrypted_and_signed_image_is_pulled_by_the_guest() {
    let folder = tempfile::tempdir().unwrap();
    let large: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    let image = Image::of([Layer::new().file("a", &large).gzip(), Layer::new().file("b", b"2").plain()]);
    write_layout(&folder.path().join("app"), &image);

    let text = succeeded(&peerpodctl(folder.path(), &["image", "encrypt", "app", "encrypted", "--key-id", KEY_ID]));
    assert!(text.contains("set-resource --path default/key/1 --resource-file encrypted.key"), "{text}");
    let key = std::fs::read(folder.path().join("encrypted.key")).unwrap();
    let text = succeeded(&peerpodctl(folder.path(), &["image", "inspect", "encrypted", "--json"]));
    let inspected: Value = serde_json::from_str(&text).unwrap();
    assert!(inspected[0]["layers"].as_array().unwrap().iter().all(|layer| layer["keys"] == json!([KEY_ID])), "{text}");

    let registry = Registry::start();
    let reference = format!("{}/team/app:1", registry.host());
    let signer = aws_lc_rs::signature::EcdsaKeyPair::generate(&aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(signer.to_pkcs8v1().unwrap()));
    std::fs::write(folder.path().join("signing.pem"), pem).unwrap();
    succeeded(&peerpodctl(folder.path(), &["image", "sign", "encrypted", "--key", "signing.pem", "--reference", &reference]));
    push_layout(&folder.path().join("encrypted"), &registry, "team/app");

    let pull = |broker: std::sync::Arc<Broker>, public: String| {
        let requirement = json!([{"type": "sigstoreSigned", "keyData": public, "signedIdentity": {"type": "matchRepository"}}]);
        let image_policy = ImagePolicy::parse(json!({"default": requirement}).to_string().as_bytes()).unwrap();
        let policy = PullPolicy { resources: broker.resources(), image_policy, ..policy(&registry) };
        let (store, reference) = (store(folder.path()), reference.clone());
        async move { store.pull(&reference, &policy, None).await }
    };
    let public = {
        use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
        use aws_lc_rs::signature::KeyPair as _;
        let der: PublicKeyX509Der<'_> = signer.public_key().as_der().unwrap();
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der.as_ref()))
    };
    let error = pull(Broker::of([(KEY_ID, key.clone())]), Cosign::new().pem()).await.unwrap_err();
    assert!(matches!(error, PullError::NotAllowed { .. }), "{}", chain(&error));
    let error = pull(Broker::of([(KEY_ID, vec![0; 32])]), public.clone()).await.unwrap_err();
    assert!(matches!(error, PullError::Decrypt { .. }), "{}", chain(&error));
    let pulled = pull(Broker::of([(KEY_ID, key)]), public).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    let content = |layer: usize, name: &str| {
        std::fs::read(folder.path().join("store/layers").join(pulled.layers[layer].as_str().trim_start_matches("sha256:")).join(name))
            .unwrap()
    };
    assert_eq!((content(0, "a"), content(1, "b")), (large, b"2".to_vec()));
}

#[test]
fn key_provider_answers_one_request_as_a_command() {
    let folder = tempfile::tempdir().unwrap();
    let parameters = STANDARD.encode(format!("keyid={KEY_ID}::keypath={}", folder.path().join("kek").display()));
    let request =
        json!({"op": "keywrap", "keywrapparams": {"ec": {"Parameters": {"attestation-agent": [parameters]}}, "optsdata": "eA=="}});
    let ask = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_peerpodctl"));
        let command =
            command.args(["keyprovider", "--once"]).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(request.to_string().as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    let refused = ask(&[]);
    assert!(!refused.status.success() && refused.stdout.is_empty());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--create"));
    let answer: Value = serde_json::from_str(&succeeded(&ask(&["--create"]))).unwrap();
    assert!(answer["keywrapresults"]["annotation"].is_array());
}

#[test]
fn initdata_of_a_command_line_keeps_every_byte() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("policy.rego"), "package agent_policy\r\n# '''\n").unwrap();
    let toml = succeeded(&peerpodctl(folder.path(), &["initdata", "new", "--policy", "policy.rego"]));
    let annotation = succeeded(&peerpodctl(folder.path(), &["initdata", "new", "--policy", "policy.rego", "--annotation"]));
    std::fs::write(folder.path().join("annotation"), annotation).unwrap();
    assert_eq!(succeeded(&peerpodctl(folder.path(), &["initdata", "show", "--toml", "annotation"])), toml);
    let shown: Value = serde_json::from_str(&succeeded(&peerpodctl(folder.path(), &["initdata", "show", "--json", "annotation"]))).unwrap();
    assert_eq!(shown["data"]["policy.rego"], "package agent_policy\r\n# '''\n");
    let failed = peerpodctl(folder.path(), &["initdata", "show", "policy.rego"]);
    assert!(!failed.status.success() && String::from_utf8_lossy(&failed.stderr).contains("malformed"));
}
