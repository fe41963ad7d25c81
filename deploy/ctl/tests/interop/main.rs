//! Images that skopeo and cosign of Debian trixie encrypt, decrypt, sign and verify: theirs in our guest, ours in theirs.
//!
//! Here and not beside the image crate, since half of it is `peerpodctl`.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test fails by panicking, and nothing here is for other crates")]

#[path = "../../../../pod-vm-image/image/tests/common/mod.rs"]
mod common;
mod world;

use std::path::{Path, PathBuf};

use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::{Broker, chain};
use peerpods_image::{PullError, PullPolicy, SignatureError};
use serde_json::{Value, json};
use world::{World, contents, layout, lookaside, serve, signed_by, sigstore};

const KID: &str = "kbs:///default/key/1";
const KEK: [u8; 32] = [7; 32];

/// A world with an image in the layout `clear` and a folder of keys; none where it has to be skipped.
fn world() -> Option<(World, PathBuf)> {
    let world = World::new()?;
    layout(&world.path("clear"), "as it is");
    let key = world.file("keys/default/key/1", KEK);
    let keys = key.ancestors().nth(3).unwrap().to_owned();
    Some((world, keys))
}

fn holding(world: &World, kek: [u8; 32]) -> PullPolicy {
    PullPolicy { resources: Broker::of([(KID, kek.to_vec())]).resources(), ..world.policy() }
}

async fn pulls(world: &World, tag: &str, policy: &PullPolicy) {
    match world.pull(tag, policy).await {
        Ok(found) => assert!(found == contents(), "{tag} has other content"),
        Err(error) => panic!("{tag}: {}", chain(&error)),
    }
}

/// That it is encrypted, and how it is opened and how not.
async fn is_for_guests_with_the_key(world: &World, tag: &str) {
    let layers = world.manifest(tag)["layers"].clone();
    for layer in layers.as_array().unwrap() {
        assert!(layer["mediaType"].as_str().unwrap().ends_with("+encrypted"), "{layers}");
    }
    pulls(world, tag, &holding(world, KEK)).await;
    let error = world.pull(tag, &holding(world, [8; 32])).await.unwrap_err();
    assert!(chain(&error).contains("does not open its key packet"), "{}", chain(&error));
    let error = world.pull(tag, &world.policy()).await.unwrap_err();
    assert!(chain(&error).contains("no key broker to ask"), "{}", chain(&error));
}

async fn refused(world: &World, tag: &str, policy: &PullPolicy) -> SignatureError {
    match world.pull(tag, policy).await {
        Err(PullError::NotAllowed { source, .. }) => *source,
        Err(other) => panic!("{}", chain(&other)),
        Ok(_) => panic!("{tag} is accepted"),
    }
}

// ---------------------------------------------------------------------------------------------------------------- encryption

fn encrypt_with_skopeo(world: &World, key: &Path, tag: &str) {
    let recipient = format!("provider:attestation-agent:keyid={KID}::keypath={}::algorithm=A256GCM", key.display());
    let to = format!("docker://{}", world.reference(tag));
    world.skopeo(&["copy", "--dest-tls-verify=false", "--encryption-key", &recipient, "oci:clear:1", &to]).succeeds();
}

#[tokio::test]
async fn guest_opens_what_skopeo_encrypts_with_our_key_provider() {
    let Some((world, keys)) = world() else { return };
    let key = keys.join("default/key/1");
    world.provide_by_command(Path::new("/nonexistent"));
    encrypt_with_skopeo(&world, &key, "by-command");
    is_for_guests_with_the_key(&world, "by-command").await;
    let _provider = world.provide_by_grpc(Path::new("/nonexistent"));
    encrypt_with_skopeo(&world, &key, "by-grpc");
    is_for_guests_with_the_key(&world, "by-grpc").await;
}

#[tokio::test]
async fn skopeo_opens_what_we_encrypt() {
    let Some((world, keys)) = world() else { return };
    let key = keys.join("default/key/1").display().to_string();
    world.peerpodctl(&["image", "encrypt", "clear", "sealed", "--key-id", KID, "--key", &key]).succeeds();
    world.push("sealed", "sealed");
    is_for_guests_with_the_key(&world, "sealed").await;

    let from = format!("docker://{}", world.reference("sealed"));
    let open = |provider: &str, to: &str| {
        world.skopeo(&[
            "copy",
            "--src-tls-verify=false",
            "--decryption-key",
            &format!("provider:{provider}"),
            &from,
            &format!("oci:{to}:1"),
        ])
    };
    world.provide_by_command(&keys);
    open("attestation-agent", "by-command").succeeds();
    {
        let _provider = world.provide_by_grpc(&keys);
        open("attestation-agent", "by-grpc").succeeds();
    }
    for opened in ["by-command", "by-grpc"] {
        world.push(opened, opened);
        pulls(&world, opened, &world.policy()).await;
    }
    // The key's file by its name, as for encryption.
    world.provide_by_command(Path::new("/nonexistent"));
    open(&format!("attestation-agent:keyid={KID}::keypath={key}"), "by-path").succeeds();

    let other = world.file("other/default/key/1", [8_u8; 32]);
    world.provide_by_command(other.ancestors().nth(3).unwrap());
    open("attestation-agent", "never").fails_with("decrypt");
    let _provider = world.provide_by_grpc(other.ancestors().nth(3).unwrap());
    open("attestation-agent", "never").fails_with("does not open the packet");
}

#[tokio::test]
async fn guest_and_skopeo_open_each_others_again() {
    let Some((world, keys)) = world() else { return };
    world.provide_by_command(&keys);
    encrypt_with_skopeo(&world, &keys.join("default/key/1"), "theirs");
    let from = format!("docker://{}", world.reference("theirs"));
    world.skopeo(&["copy", "--src-tls-verify=false", "--decryption-key", "provider:attestation-agent", &from, "oci:opened:1"]).succeeds();
    world.push("opened", "opened");
    pulls(&world, "opened", &world.policy()).await;
}

// ---------------------------------------------------------------------------------------------------------------- signatures

fn digest_of(world: &World, tag: &str) -> String {
    let reference = format!("docker://{}", world.reference(tag));
    let out = world.skopeo(&["inspect", "--format", "{{.Digest}}", "--tls-verify=false", &reference]).succeeds();
    format!("{}@{}", world.repository(), out.stdout.trim())
}

/// Another manifest of the same layers, which no signature is of.
fn push_unsigned(world: &World) {
    layout(&world.path("unsigned"), "nobody signed this");
    world.push("unsigned", "unsigned");
}

#[tokio::test]
async fn guest_accepts_what_cosign_signs() {
    let Some((world, _)) = world() else { return };
    world.push("clear", "1");
    push_unsigned(&world);
    world.cosign(&["generate-key-pair"]).succeeds();
    let pem = std::fs::read(world.path("cosign.pub")).unwrap();
    let policy = world.requiring(&sigstore(&pem));
    assert!(matches!(refused(&world, "1", &policy).await, SignatureError::Unsigned { .. }));
    let image = digest_of(&world, "1");
    world.cosign(&["sign", "--yes", "--tlog-upload=false", "--allow-insecure-registry", "--key", "cosign.key", &image]).succeeds();
    pulls(&world, "1", &policy).await;
    // Without a signedIdentity, too, and with the key as the Confidential Data Hub wants it.
    let pem = String::from_utf8(pem).unwrap();
    pulls(&world, "1", &world.requiring(&json!({"type": "sigstoreSigned", "keyData": pem}))).await;
    assert!(matches!(refused(&world, "unsigned", &policy).await, SignatureError::Unsigned { .. }));

    std::fs::rename(world.path("cosign.pub"), world.path("first.pub")).unwrap();
    std::fs::remove_file(world.path("cosign.key")).unwrap();
    world.cosign(&["generate-key-pair"]).succeeds();
    let other = world.requiring(&sigstore(std::fs::read(world.path("cosign.pub")).unwrap()));
    assert!(matches!(refused(&world, "1", &other).await, SignatureError::NotSatisfied { .. }));
}

/// A key pair as OpenSSL writes it: `signing.pem` and `signing.pub`.
fn signing_key(world: &World) -> PathBuf {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
    let public: PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
    let pem = |label: &str, der: &[u8]| format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der));
    world.file("signing.pem", pem("PRIVATE KEY", pair.to_pkcs8v1().unwrap().as_ref()));
    world.file("signing.pub", pem("PUBLIC KEY", public.as_ref()))
}

#[tokio::test]
async fn cosign_skopeo_and_guest_accept_what_we_sign() {
    let Some((world, _)) = world() else { return };
    let public = signing_key(&world);
    let said = world.peerpodctl(&["image", "sign", "clear", "--key", "signing.pem", "--reference", &world.reference("1")]).succeeds();
    world.push("clear", "1");
    // As it is told.
    let copies: Vec<&str> = said.stdout.lines().filter_map(|line| line.trim().strip_prefix("skopeo ")).collect();
    assert!(!copies.is_empty(), "{}", said.stdout);
    for copy in copies {
        let words: Vec<&str> = copy.split(' ').chain(["--dest-tls-verify=false"]).collect();
        world.skopeo(&words).succeeds();
    }
    let verify = |tag: &str, key: &str| {
        let reference = world.reference(tag);
        world.cosign(&["verify", "--key", key, "--insecure-ignore-tlog=true", "--allow-insecure-registry", &reference])
    };
    verify("1", "signing.pub").succeeds();
    push_unsigned(&world);
    verify("unsigned", "signing.pub").fails_with("no signatures found");
    world.cosign(&["generate-key-pair"]).succeeds();
    verify("1", "cosign.pub").fails_with("invalid signature");

    let policy = world.requiring(&sigstore(std::fs::read(&public).unwrap()));
    pulls(&world, "1", &policy).await;
    assert!(matches!(refused(&world, "unsigned", &policy).await, SignatureError::Unsigned { .. }));

    world.file("registries.d/default.yaml", "default-docker:\n  use-sigstore-attachments: true\n");
    let requirement = json!({"type": "sigstoreSigned", "keyPath": public, "signedIdentity": {"type": "matchRepository"}});
    let policy =
        world.file("policy.json", json!({"default": [{"type": "reject"}], "transports": {"docker": {"": [requirement]}}}).to_string());
    let copy = |tag: &str| {
        let (from, to) = (format!("docker://{}", world.reference(tag)), format!("oci:copy-{tag}:1"));
        world.skopeo_under(&policy, &["copy", "--remove-signatures", "--src-tls-verify=false", &from, &to])
    };
    copy("1").succeeds();
    copy("unsigned").fails_with("signature was required");
}

#[tokio::test]
async fn guest_accepts_sigstore_signatures_of_skopeo() {
    let Some((world, _)) = world() else { return };
    world.cosign(&["generate-key-pair"]).succeeds();
    let policy = world.requiring(&sigstore(std::fs::read(world.path("cosign.pub")).unwrap()));
    world.file("registries.d/default.yaml", "default-docker:\n  use-sigstore-attachments: true\n");
    world.file("password", "\n");
    let sign = ["--sign-by-sigstore-private-key", "cosign.key", "--sign-passphrase-file", "password"];
    let to = format!("docker://{}", world.reference("1"));
    let copy = [&["copy", "--preserve-digests", "--dest-tls-verify=false"][..], &sign, &["oci:clear:1", &to]].concat();
    world.skopeo(&copy).succeeds();
    push_unsigned(&world);
    pulls(&world, "1", &policy).await;
    // skopeo names the tag, so that it is also right where the tag has to be.
    let exact = |identity: Value| {
        let mut requirement = sigstore(std::fs::read(world.path("cosign.pub")).unwrap());
        requirement["signedIdentity"] = identity;
        world.requiring(&requirement)
    };
    pulls(&world, "1", &exact(json!({"type": "matchExact"}))).await;
    let elsewhere = exact(json!({"type": "exactReference", "dockerReference": world.reference("2")}));
    assert!(matches!(refused(&world, "1", &elsewhere).await, SignatureError::NotSatisfied { .. }));
    assert!(matches!(refused(&world, "unsigned", &policy).await, SignatureError::Unsigned { .. }));
}

#[tokio::test]
async fn guest_accepts_gpg_signatures_of_skopeo() {
    let Some((world, _)) = world() else { return };
    let server = serve(world.path("lookaside"));
    let staging = world.path("lookaside").display().to_string();
    world.file(
        "registries.d/default.yaml",
        format!("default-docker:\n  lookaside: http://{server}\n  lookaside-staging: file://{staging}\n"),
    );
    let export = |user: &str| {
        let path = world.path(&format!("{user}.gpg"));
        world.gpg(&["--output", &path.display().to_string(), "--export", user]).succeeds();
        std::fs::read(path).unwrap()
    };
    push_unsigned(&world);
    for (user, algorithm) in [("rsa@example.org", "rsa3072"), ("ed25519@example.org", "ed25519")] {
        world.gpg(&["--quick-generate-key", user, algorithm, "sign", "never"]).succeeds();
        let to = format!("docker://{}", world.reference(algorithm));
        world.skopeo(&["copy", "--preserve-digests", "--dest-tls-verify=false", "--sign-by", user, "oci:clear:1", &to]).succeeds();
        let policy = PullPolicy { lookaside: lookaside(server), ..world.requiring(&signed_by(export(user))) };
        pulls(&world, algorithm, &policy).await;
        assert!(matches!(refused(&world, "unsigned", &policy).await, SignatureError::Unsigned { .. }));
        // Nothing was signed for this tag, though the manifest is the same.
        world.push("clear", "retagged");
        assert!(matches!(refused(&world, "retagged", &policy).await, SignatureError::NotSatisfied { .. }));
    }
    world.gpg(&["--quick-generate-key", "other@example.org", "ed25519", "sign", "never"]).succeeds();
    let other = PullPolicy { lookaside: lookaside(server), ..world.requiring(&signed_by(export("other@example.org"))) };
    assert!(matches!(refused(&world, "rsa3072", &other).await, SignatureError::NotSatisfied { .. }));
}
