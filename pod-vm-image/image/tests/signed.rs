//! The image policy: which images it lets through, by which signatures, whatever is in the store.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::image::digest;
use common::registry::Body;
use common::signing::{Cosign, Gpg, attach, payload};
use common::{Broker, Image, Layer, Registry, chain, names, policy, store};
use peerpods_image::{ImagePolicy, Lookaside, PullError, PullPolicy, PulledImage, Registries, SignatureError, Store};
use serde_json::{Value, json};

/// A registry with `app:1` and `app:2`, which share their layer.
struct Scene {
    folder: tempfile::TempDir,
    registry: Registry,
    store: Store,
    /// Digests of the manifests.
    one: String,
    two: String,
}

impl Scene {
    fn new() -> Self {
        let (folder, registry) = (tempfile::tempdir().unwrap(), Registry::start());
        let image = Image::of([Layer::new().file("f", b"x").gzip()]);
        registry.push("team/app", "1", &image);
        let mut other = image.manifest_json();
        other["annotations"] = json!({"is": "another manifest of the same layers and configuration"});
        let other = other.to_string().into_bytes();
        registry.push_manifest("team/app", "2", other.clone());
        let store = store(folder.path());
        Self { folder, registry, store, one: digest(&image.manifest()), two: digest(&other) }
    }

    fn repository(&self) -> String {
        format!("{}/team/app", self.registry.host())
    }

    async fn pull(&self, tag: &str, policy: &PullPolicy) -> Result<PulledImage, PullError> {
        self.store.pull(&format!("{}:{tag}", self.repository()), policy, None).await
    }

    async fn refused(&self, tag: &str, policy: &PullPolicy) -> SignatureError {
        match self.pull(tag, policy).await.unwrap_err() {
            PullError::NotAllowed { source, .. } => *source,
            other => panic!("{}", chain(&other)),
        }
    }

    fn policy(&self, json: &Value) -> PullPolicy {
        PullPolicy { image_policy: ImagePolicy::parse(json.to_string().as_bytes()).unwrap(), ..policy(&self.registry) }
    }

    /// Everything needs these.
    fn requiring(&self, requirements: &Value) -> PullPolicy {
        self.policy(&json!({"default": requirements}))
    }

    fn attach(&self, manifest: &str, layers: &[Value]) {
        attach(&self.registry, "team/app", manifest, layers);
    }

    fn signed_by(&self, signer: &Cosign, manifest: &str, reference: &str) -> Value {
        signer.sign(&self.registry, "team/app", manifest, reference)
    }
}

fn by(signer: &Cosign) -> Value {
    json!({"type": "sigstoreSigned", "keyData": signer.pem(), "signedIdentity": {"type": "matchRepository"}})
}

#[tokio::test]
async fn unsigned_image_is_refused_and_signed_one_is_not() {
    let (scene, signer) = (Scene::new(), Cosign::new());
    let policy = scene.requiring(&json!([by(&signer)]));
    let error = scene.refused("1", &policy).await;
    assert_eq!(error.to_string(), format!("the image policy wants a signature for default and there is none at {}", scene.repository()));
    assert!(names(&scene.folder.path().join("store/layers")).is_empty());
    assert!(!scene.registry.requests().iter().any(|request| request.path.contains("/blobs/")), "not even the configuration is fetched");

    scene.attach(&scene.one, &[scene.signed_by(&signer, &scene.one, &scene.repository())]);
    scene.pull("1", &policy).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
}

#[tokio::test]
async fn warm_store_does_not_stand_in_for_a_signature() {
    let (scene, signer) = (Scene::new(), Cosign::new());
    scene.attach(&scene.one, &[scene.signed_by(&signer, &scene.one, &scene.repository())]);
    let policy = scene.requiring(&json!([by(&signer)]));
    scene.pull("1", &policy).await.unwrap();
    // The same layers and the same configuration under an unsigned manifest.
    assert!(matches!(scene.refused("2", &policy).await, SignatureError::Unsigned { .. }));
    // The other one's signatures under its tag.
    scene.attach(&scene.two, &[scene.signed_by(&signer, &scene.one, &scene.repository())]);
    let error = scene.refused("2", &policy).await;
    assert!(error.to_string().ends_with(&format!("the last one: it is of manifest {}", scene.one)), "{error}");
    // And a policy that has changed holds at once.
    assert!(matches!(scene.refused("1", &scene.requiring(&json!([{"type": "reject"}]))).await, SignatureError::Rejected { .. }));
}

#[tokio::test]
async fn signatures_by_other_keys_and_for_other_names_are_refused() {
    let (scene, signer, other) = (Scene::new(), Cosign::new(), Cosign::new());
    let policy = scene.requiring(&json!([by(&signer)]));
    let by_other = scene.signed_by(&other, &scene.one, &scene.repository());
    scene.attach(&scene.one, std::slice::from_ref(&by_other));
    let error = scene.refused("1", &policy).await;
    assert!(error.to_string().contains("none of the 1") && error.to_string().contains("not made with the policy's key"), "{error}");
    scene.attach(&scene.one, &[scene.signed_by(&signer, &scene.one, "elsewhere.example/app")]);
    let error = scene.refused("1", &policy).await;
    assert!(error.to_string().contains("it is of elsewhere.example/app"), "{error}");
    let mut changed = scene.signed_by(&signer, &scene.one, &scene.repository());
    changed["annotations"]["dev.cosignproject.cosign/signature"] = by_other["annotations"]["dev.cosignproject.cosign/signature"].clone();
    scene.attach(&scene.one, &[changed]);
    assert!(matches!(scene.refused("1", &policy).await, SignatureError::NotSatisfied { .. }));
    // One good signature among others is enough.
    scene.attach(&scene.one, &[by_other, scene.signed_by(&signer, &scene.one, &scene.repository())]);
    scene.pull("1", &policy).await.unwrap();
}

#[tokio::test]
async fn every_requirement_has_to_hold() {
    let (scene, signer, other) = (Scene::new(), Cosign::new(), Cosign::new());
    let policy = scene.requiring(&json!([by(&signer), by(&other), {"type": "insecureAcceptAnything"}]));
    let first = scene.signed_by(&signer, &scene.one, &scene.repository());
    scene.attach(&scene.one, std::slice::from_ref(&first));
    assert!(matches!(scene.refused("1", &policy).await, SignatureError::NotSatisfied { .. }));
    scene.attach(&scene.one, &[first, scene.signed_by(&other, &scene.one, &scene.repository())]);
    scene.pull("1", &policy).await.unwrap();
}

#[tokio::test]
async fn signature_of_the_index_counts_for_the_image_in_it() {
    let (scene, signer) = (Scene::new(), Cosign::new());
    let index = json!({"schemaVersion": 2, "manifests": [
        {"digest": scene.one, "size": 1, "platform": {"os": "linux", "architecture": "amd64"}}]});
    let index = index.to_string().into_bytes();
    scene.registry.push_manifest("team/app", "many", index.clone());
    let policy = scene.requiring(&json!([by(&signer)]));
    assert!(matches!(scene.refused("many", &policy).await, SignatureError::Unsigned { .. }));
    scene.attach(&digest(&index), &[scene.signed_by(&signer, &digest(&index), &scene.repository())]);
    scene.pull("many", &policy).await.unwrap();
    assert!(matches!(scene.refused("1", &policy).await, SignatureError::Unsigned { .. }), "but only when the index led to it");
    let by_digest = format!("{}@{}", scene.repository(), digest(&index));
    scene.store.pull(&by_digest, &policy, None).await.unwrap();
}

#[tokio::test]
async fn scopes_and_the_default_decide() {
    let scene = Scene::new();
    let (accept, reject) = (json!([{"type": "insecureAcceptAnything"}]), json!([{"type": "reject"}]));
    let host = scene.registry.host();
    let within =
        |scope: &str, inner: &Value, default: &Value| scene.policy(&json!({"default": default, "transports": {"docker": {scope: inner}}}));
    for scope in [format!("{host}/team/app:1"), format!("{host}/team/app"), format!("{host}/team"), host.clone(), String::new()] {
        let error = scene.refused("1", &within(&scope, &reject, &accept)).await;
        assert_eq!(error.to_string(), format!("the image policy rejects scope {scope:?}"));
        scene.pull("1", &within(&scope, &accept, &reject)).await.unwrap();
    }
    for scope in [format!("{host}/team/app:2"), format!("{host}/tea"), "r.example".to_owned()] {
        let error = scene.refused("1", &within(&scope, &accept, &reject)).await;
        assert_eq!(error.to_string(), "the image policy rejects default");
        scene.pull("1", &within(&scope, &reject, &accept)).await.unwrap();
    }
    scene.pull("1", &policy(&scene.registry)).await.unwrap();
}

#[tokio::test]
async fn policy_and_keys_come_from_the_broker() {
    let (scene, signer) = (Scene::new(), Cosign::new());
    scene.attach(&scene.one, &[scene.signed_by(&signer, &scene.one, &scene.repository())]);
    let text = json!({"default": [{"type": "sigstoreSigned", "keyPath": "kbs:///default/cosign/key"}]}).to_string();
    let broker = Broker::of([
        ("kbs:///default/security-policy/test", text.clone().into_bytes()),
        ("kbs:///default/cosign/key", signer.pem().into_bytes()),
    ]);
    let cdh = "[image]\nimage_security_policy_uri = \"kbs:///default/security-policy/test\"\n";
    let mut policy = PullPolicy { registries: Registries::insecure(&scene.registry.host()), ..PullPolicy::from_cdh_toml(cdh).unwrap() };
    let error = scene.pull("1", &policy).await.unwrap_err();
    assert!(matches!(error, PullError::Unread { .. }), "a policy that was not read accepts nothing");
    policy.resolve(broker).await.unwrap();
    scene.pull("1", &policy).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert!(matches!(scene.refused("2", &policy).await, SignatureError::Unsigned { .. }));

    let bad = Broker::of([("kbs:///default/cosign/key", b"no key".to_vec())]);
    let requiring = scene.requiring(&json!([{"type": "sigstoreSigned", "keyPath": "kbs:///default/cosign/key"}]));
    assert!(matches!(scene.refused("1", &requiring).await, SignatureError::NoSource { .. }));
    let with = |broker: &std::sync::Arc<Broker>| PullPolicy { resources: broker.resources(), ..requiring.clone() };
    assert!(matches!(scene.refused("1", &with(&bad)).await, SignatureError::BadKey { .. }));
    assert!(matches!(scene.refused("1", &with(&Broker::of([]))).await, SignatureError::Key { .. }));
}

#[tokio::test]
async fn mirror_serves_signatures_and_the_name_that_was_asked_for_decides() {
    let (scene, signer) = (Scene::new(), Cosign::new());
    let config = format!(
        "[[registry]]\nlocation = \"r.example\"\n[[registry.mirror]]\nlocation = \"{}/team\"\ninsecure = true\n",
        scene.registry.host()
    );
    let policy = json!({"default": [{"type": "reject"}], "transports": {"docker": {"r.example": [by(&signer)]}}});
    let policy = PullPolicy { registries: Registries::parse(&config).unwrap(), ..scene.policy(&policy) };
    let pull = || scene.store.pull("r.example/app:1", &policy, None);
    pull().await.unwrap_err();
    scene.attach(&scene.one, &[scene.signed_by(&signer, &scene.one, &scene.repository())]);
    pull().await.unwrap_err();
    scene.attach(&scene.one, &[scene.signed_by(&signer, &scene.one, "r.example/app")]);
    pull().await.unwrap_or_else(|error| panic!("{}", chain(&error)));
}

#[tokio::test]
async fn gpg_signatures_are_taken_from_the_lookaside() {
    let (scene, signer, other, server) = (Scene::new(), Gpg::new(), Gpg::new(), Registry::start());
    let requirement = |key: &Gpg| json!([{"type": "signedBy", "keyType": "GPGKeys", "keyData": STANDARD.encode(key.key())}]);
    let lookaside =
        Lookaside::parse(&format!("docker:\n  {}:\n    lookaside: http://{}/sig/\n", scene.registry.host(), server.host())).unwrap();
    let policy = PullPolicy { lookaside, ..scene.requiring(&requirement(&signer)) };
    let put = |number: usize, manifest: &str, signature: Vec<u8>| {
        server.set(&format!("/sig/team/app@{}/signature-{number}", manifest.replace(':', "=")), Body::Bytes(signature));
    };
    let kind = "atomic container signature";
    let tagged = format!("{}:1", scene.repository());

    assert!(matches!(scene.refused("1", &scene.requiring(&requirement(&signer))).await, SignatureError::NoLookaside { .. }));
    let error = scene.refused("1", &policy).await;
    assert!(error.to_string().ends_with(&format!("there is none at http://{}/sig", server.host())), "{error}");
    put(1, &scene.one, other.sign(&payload(kind, &scene.one, &tagged)));
    let error = scene.refused("1", &policy).await;
    assert!(error.to_string().contains("not made with one of the policy's keys"), "{error}");
    put(2, &scene.one, signer.sign(&payload(kind, &scene.one, &tagged)));
    scene.pull("1", &policy).await.unwrap_or_else(|error| panic!("{}", chain(&error)));

    // By default the tag has to be the one that was asked for.
    put(1, &scene.two, signer.sign(&payload(kind, &scene.two, &tagged)));
    let error = scene.refused("2", &policy).await;
    assert!(error.to_string().contains("signedIdentity"), "{error}");
    put(1, &scene.two, signer.sign(&payload("cosign container image signature", &scene.two, &format!("{}:2", scene.repository()))));
    assert!(scene.refused("2", &policy).await.to_string().contains("its type is"));

    // A signature that names the repository alone is one for a rule that says so.
    put(1, &scene.two, signer.sign(&payload(kind, &scene.two, &scene.repository())));
    assert!(scene.refused("2", &policy).await.to_string().contains("signedIdentity"));
    let by_digest = format!("{}@{}", scene.repository(), scene.two);
    let error = scene.store.pull(&by_digest, &policy, None).await.unwrap_err();
    assert!(chain(&error).contains("signedIdentity"), "{}", chain(&error));
    let mut stated = requirement(&signer);
    stated[0]["signedIdentity"] = json!({"type": "matchRepository"});
    let stated = PullPolicy { lookaside: policy.lookaside.clone(), ..scene.requiring(&stated) };
    scene.pull("2", &stated).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
}
