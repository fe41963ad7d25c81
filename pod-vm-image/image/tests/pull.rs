//! Pulls from a registry in this process: what is fetched, what is verified, and what a person is told.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use base64::Engine as _;
use common::registry::Body;
use common::{Image, Layer, Registry, chain, limits, names, policy, pull, settled, store, store_with};
use peerpods_image::{Limits, PullError, PullPolicy, Registries, RegistryAuths, Store, StoreConfig};
use serde_json::json;
use tokio::sync::watch;

fn one_file(content: &[u8]) -> Image {
    Image::of([Layer::new().file("f", content).gzip()])
}

#[tokio::test]
async fn pull_gives_digests_config_and_progress() {
    let (folder, registry) = (tempfile::tempdir().unwrap(), Registry::start());
    let image = Image::of([Layer::new().file("a", b"1").gzip(), Layer::new().file("b", b"2").plain()]);
    registry.push("team/app", "1", &image);
    let store = store(folder.path());
    let (sender, receiver) = watch::channel(Default::default());
    let pulled = store.pull(&format!("{}/team/app:1", registry.host()), &policy(&registry), Some(&sender)).await.unwrap();
    assert_eq!(pulled.manifest.as_str(), common::image::digest(&image.manifest()));
    assert_eq!(pulled.resolved, pulled.manifest);
    assert_eq!(pulled.config_digest.as_str(), common::image::digest(&image.config()));
    assert_eq!(pulled.config.config().as_ref().unwrap().cmd().as_deref(), Some(&["/bin/sh".to_owned()][..]));
    assert_eq!(pulled.layers.len(), 2);
    let progress = receiver.borrow().clone();
    for (layer, blob) in progress.layers.iter().zip(&image.layers) {
        assert!(layer.done && layer.received == layer.size && layer.size == blob.bytes.len() as u64, "{layer:?}");
    }
    assert!(names(&folder.path().join("store/tmp")).is_empty());
}

#[tokio::test]
async fn second_pull_fetches_no_layer() {
    let (folder, registry) = (tempfile::tempdir().unwrap(), Registry::start());
    let image = one_file(b"x");
    let store = store(folder.path());
    pull(&store, &registry, &image).await.unwrap();
    drop(store);
    pull(&common::store(folder.path()), &registry, &image).await.unwrap();
    assert_eq!(registry.fetches(&image.layers[0].bytes), 1);
}

#[tokio::test]
async fn index_leads_to_amd64_and_either_digest_may_be_pinned() {
    let (folder, registry) = (tempfile::tempdir().unwrap(), Registry::start());
    let image = one_file(b"x");
    registry.push("app", "amd64", &image);
    let manifest = image.manifest();
    let index = json!({"schemaVersion": 2, "manifests": [
        {"digest": common::image::digest(b"arm"), "size": 1, "platform": {"os": "linux", "architecture": "arm64"}},
        {"digest": common::image::digest(&manifest), "size": manifest.len(), "platform": {"os": "linux", "architecture": "amd64"}}]});
    let index = index.to_string().into_bytes();
    registry.push_manifest("app", "1", index.clone());
    let store = store(folder.path());
    let name = format!("{}/app:1", registry.host());
    let pulled = store.pull(&name, &policy(&registry), None).await.unwrap();
    assert_eq!(pulled.manifest.as_str(), common::image::digest(&manifest));
    assert_eq!(pulled.resolved.as_str(), common::image::digest(&index));
    for pin in [&pulled.manifest, &pulled.resolved] {
        let pinned =
            PullPolicy { expected_manifest: Some(pin.clone()), expected_config: Some(pulled.config_digest.clone()), ..policy(&registry) };
        store.pull(&name, &pinned, None).await.unwrap();
    }
    let by_digest = format!("{}/app@{}", registry.host(), pulled.resolved);
    assert_eq!(store.pull(&by_digest, &policy(&registry), None).await.unwrap().layers, pulled.layers);

    let other = peerpods_image::Digest::of(b"other");
    let wrong = PullPolicy { expected_manifest: Some(other.clone()), ..policy(&registry) };
    assert!(matches!(store.pull(&name, &wrong, None).await, Err(PullError::NotThePinned { what: "manifest", .. })));
    let wrong = PullPolicy { expected_config: Some(other), ..policy(&registry) };
    assert!(matches!(store.pull(&name, &wrong, None).await, Err(PullError::NotThePinned { what: "configuration", .. })));
}

#[tokio::test]
async fn wrong_digests_are_named_and_leave_nothing() {
    let (folder, registry) = (tempfile::tempdir().unwrap(), Registry::start());
    let image = one_file(&[7; 5000]);
    let store = store(folder.path());
    let layer = &image.layers[0];
    let name = format!("{}/app:1", registry.host());

    // A flipped byte, a whole other layer, an archive cut inside its gzip stream.
    let mut flipped = layer.bytes.clone();
    flipped[20] ^= 1;
    let mut other = one_file(&[8; 5000]).layers[0].bytes.clone();
    other.resize(layer.bytes.len(), 0);
    for bytes in [flipped, other] {
        registry.push("app", "1", &image);
        registry.set_blob("app", &layer.bytes, Body::Bytes(bytes));
        let error = store.pull(&name, &policy(&registry), None).await.unwrap_err();
        let PullError::WrongDigest { what, expected, .. } = &error else { panic!("{}", chain(&error)) };
        assert_eq!(
            (what.as_str(), expected.as_str()),
            (format!("layer {}", common::image::digest(&layer.bytes)).as_str(), common::image::digest(&layer.bytes).as_str())
        );
    }

    registry.push("app", "1", &image);
    registry.set_blob("app", &image.config(), Body::Bytes(image.config().into_iter().rev().collect()));
    assert!(
        matches!(store.pull(&name, &policy(&registry), None).await, Err(PullError::WrongDigest { what, .. }) if what == "the configuration")
    );

    registry.push("app", "1", &image);
    let by_digest = format!("/v2/app/manifests/{}", common::image::digest(&image.manifest()));
    registry.set(&by_digest, Body::Bytes(one_file(b"y").manifest()));
    let error =
        store.pull(&format!("{}/app@{}", registry.host(), common::image::digest(&image.manifest())), &policy(&registry), None).await;
    assert!(matches!(error, Err(PullError::WrongDigest { what, .. }) if what == "the manifest"));

    settled(folder.path()).await;
    assert!(names(&folder.path().join("store/layers")).is_empty());
}

#[tokio::test]
async fn wrong_diff_id_is_refused_although_the_blob_is_right() {
    let (folder, registry) = (tempfile::tempdir().unwrap(), Registry::start());
    let mut image = one_file(b"x");
    image.layers[0].diff_id = common::image::digest(b"another archive");
    let error = pull(&store(folder.path()), &registry, &image).await.unwrap_err();
    assert!(chain(&error).contains("the content's digest is sha256:"), "{}", chain(&error));
    settled(folder.path()).await;
}

#[tokio::test]
async fn truncated_and_overlong_layers_are_named() {
    let (folder, registry) = (tempfile::tempdir().unwrap(), Registry::start());
    let image = one_file(&[7; 5000]);
    let store = store(folder.path());
    let blob = &image.layers[0].bytes;
    let name = format!("{}/app:1", registry.host());
    for body in [Body::Short(blob[..40].to_vec(), blob.len()), Body::Bytes(blob[..40].to_vec())] {
        registry.push("app", "1", &image);
        registry.set_blob("app", blob, body);
        let error = store.pull(&name, &policy(&registry), None).await.unwrap_err();
        assert!(matches!(error, PullError::Truncated { expected, got: 40, .. } if expected == blob.len() as u64), "{}", chain(&error));
    }
    registry.set_blob("app", blob, Body::Bytes([blob.as_slice(), b"more"].concat()));
    let error = store.pull(&name, &policy(&registry), None).await.unwrap_err();
    assert!(chain(&error).contains("is longer than the"), "{}", chain(&error));
    settled(folder.path()).await;
}

#[tokio::test]
async fn endless_answers_are_cut_off() {
    let (folder, registry) = (tempfile::tempdir().unwrap(), Registry::start());
    let store = store(folder.path());
    let name = format!("{}/app:1", registry.host());
    registry.set("/v2/app/manifests/1", Body::Endless);
    let error = store.pull(&name, &policy(&registry), None).await.unwrap_err();
    assert!(chain(&error).contains("longer than 4194304 bytes"), "{}", chain(&error));
    let image = one_file(b"x");
    registry.push("app", "1", &image);
    registry.set_blob("app", &image.layers[0].bytes, Body::Endless);
    assert!(matches!(store.pull(&name, &policy(&registry), None).await, Err(PullError::Unusable { .. })));
    let challenge = format!("Bearer realm=\"http://{}/token\"", registry.host());
    registry.set("/v2/app/manifests/1", Body::Guarded { authorization: "x".to_owned(), challenge, bytes: Vec::new() });
    registry.set("/token", Body::Endless);
    assert!(matches!(store.pull(&name, &policy(&registry), None).await, Err(PullError::Unusable { what: "token", .. })));
}

#[tokio::test]
async fn silent_registry_fails_after_the_read_timeout() {
    let (folder, registry) = (tempfile::tempdir().unwrap(), Registry::start());
    let store = store_with(folder.path(), Limits { read_timeout: Duration::from_millis(200), ..limits() });
    let image = one_file(&[7; 5000]);
    registry.push("app", "1", &image);
    registry.set_blob("app", &image.layers[0].bytes, Body::Held(image.layers[0].bytes.clone()));
    let error = store.pull(&format!("{}/app:1", registry.host()), &policy(&registry), None).await.unwrap_err();
    assert!(matches!(error, PullError::Truncated { .. }), "{}", chain(&error));
    registry.release();
}

#[tokio::test]
async fn missing_images_and_dead_registries_are_told_apart() {
    let (folder, registry) = (tempfile::tempdir().unwrap(), Registry::start());
    let store = store(folder.path());
    let host = registry.host();
    let error = store.pull(&format!("{host}/nothing:1"), &policy(&registry), None).await.unwrap_err();
    assert_eq!(error.to_string(), format!("registry {host} has no image {host}/nothing:1"));

    let port = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
    let dead = PullPolicy { registries: Registries::insecure(&port.to_string()), ..PullPolicy::default() };
    let error = store.pull(&format!("{port}/app:1"), &dead, None).await.unwrap_err();
    assert!(chain(&error).starts_with(&format!("cannot reach registry {port} to pull {port}/app:1: ")), "{}", chain(&error));

    // Plain HTTP is never tried for a registry that is not configured for it.
    let error = store.pull(&format!("{host}/app:1"), &PullPolicy::default(), None).await.unwrap_err();
    assert!(matches!(error, PullError::Unreachable { .. }), "{}", chain(&error));

    let image = one_file(b"x");
    registry.push("app", "1", &image);
    registry.set_blob("app", &image.layers[0].bytes, Body::Refusal("503 Service Unavailable", Vec::new()));
    let error = store.pull(&format!("{host}/app:1"), &policy(&registry), None).await.unwrap_err();
    assert!(error.to_string().contains("answered 503 for layer sha256:"), "{error}");
    assert!(matches!(store.pull("not a name", &policy(&registry), None).await, Err(PullError::Reference { .. })));
}

#[tokio::test]
async fn basic_credentials_are_sent_only_when_asked_for() {
    let (folder, registry) = (tempfile::tempdir().unwrap(), Registry::start());
    let store = store(folder.path());
    let image = one_file(b"x");
    registry.push("app", "1", &image);
    let pair = base64::engine::general_purpose::STANDARD.encode("me:hunter2");
    let guard = |bytes: Vec<u8>| Body::Guarded { authorization: format!("Basic {pair}"), challenge: "Basic realm=\"r\"".to_owned(), bytes };
    registry.set("/v2/app/manifests/1", guard(image.manifest()));
    registry.set_blob("app", &image.layers[0].bytes, guard(image.layers[0].bytes.clone()));
    let name = format!("{}/app:1", registry.host());

    let error = store.pull(&name, &policy(&registry), None).await.unwrap_err();
    assert_eq!(error.to_string(), format!("registry {} needs credentials for {name} and none are configured", registry.host()));

    let with = |password: &str| {
        let auth = base64::engine::general_purpose::STANDARD.encode(format!("me:{password}"));
        let auths = json!({"auths": {registry.host(): {"auth": auth}}}).to_string();
        PullPolicy { auth: RegistryAuths::from_docker_config(auths.as_bytes()).unwrap(), ..policy(&registry) }
    };
    let error = store.pull(&name, &with("wrong"), None).await.unwrap_err();
    assert_eq!(error.to_string(), format!("registry {} refused the configured credentials for {name}", registry.host()));
    store.pull(&name, &with("hunter2"), None).await.unwrap();
    assert!(registry.requests().iter().filter(|request| request.path.contains("manifests")).any(|request| request.authorization.is_none()));
}

#[tokio::test]
async fn token_is_fetched_for_the_repository_and_used() {
    let (folder, registry) = (tempfile::tempdir().unwrap(), Registry::start());
    let store = store(folder.path());
    let image = one_file(b"x");
    registry.push("app", "1", &image);
    let challenge = format!("Bearer realm=\"http://{}/token\",service=\"the registry\"", registry.host());
    let guard = |bytes: Vec<u8>| Body::Guarded { authorization: "Bearer abc".to_owned(), challenge: challenge.clone(), bytes };
    registry.set("/v2/app/manifests/1", guard(image.manifest()));
    registry.set_blob("app", &image.config(), guard(image.config()));
    registry.set_blob("app", &image.layers[0].bytes, guard(image.layers[0].bytes.clone()));
    registry.set("/token", Body::Bytes(br#"{"access_token": "abc"}"#.to_vec()));
    store.pull(&format!("{}/app:1", registry.host()), &policy(&registry), None).await.unwrap();
    let tokens: Vec<_> = registry.requests().into_iter().filter(|request| request.path == "/token").collect();
    assert_eq!(tokens.len(), 1, "{tokens:?}");
    assert_eq!(tokens[0].query, "service=the+registry&scope=repository%3Aapp%3Apull");

    registry.set("/token", Body::Bytes(br#"{"token": "other"}"#.to_vec()));
    let error = store.pull(&format!("{}/app:1", registry.host()), &policy(&registry), None).await.unwrap_err();
    assert!(matches!(error, PullError::NeedsAuth { .. }), "{}", chain(&error));
}

#[tokio::test]
async fn redirects_are_followed_without_credentials_and_not_for_ever() {
    let (folder, registry, storage) = (tempfile::tempdir().unwrap(), Registry::start(), Registry::start());
    let store = store(folder.path());
    let image = one_file(b"x");
    let blob = &image.layers[0].bytes;
    registry.push("app", "1", &image);
    storage.set("/blob", Body::Bytes(blob.clone()));
    let to = |url: String| Body::Refusal("307 Temporary Redirect", vec![("Location", url)]);
    registry.set_blob("app", blob, to(format!("http://{}/blob?signature=s3cret", storage.host())));
    // The registry gets credentials, its storage does not.
    let challenge = "Basic realm=\"r\"".to_owned();
    registry.set("/v2/app/manifests/1", Body::Guarded { authorization: "Basic YTpi".to_owned(), challenge, bytes: image.manifest() });
    let auths = json!({"auths": {registry.host(): {"auth": "YTpi"}}}).to_string();
    let policy_with = PullPolicy { auth: RegistryAuths::from_docker_config(auths.as_bytes()).unwrap(), ..policy(&registry) };
    store.pull(&format!("{}/app:1", registry.host()), &policy_with, None).await.unwrap();
    assert!(registry.requests().iter().any(|request| request.path.contains("blobs") && request.authorization.is_some()));
    assert_eq!(storage.requests().len(), 1);
    assert!(storage.requests().iter().all(|request| request.authorization.is_none()));

    let other = one_file(b"y");
    registry.push("app", "2", &other);
    registry.set_blob("app", &other.layers[0].bytes, to("/loop?signature=s3cret".to_owned()));
    registry.set("/loop", to("/loop?signature=s3cret".to_owned()));
    let error = store.pull(&format!("{}/app:2", registry.host()), &policy(&registry), None).await.unwrap_err();
    assert!(
        chain(&error).contains("too many redirects") && !format!("{} {error:?}", chain(&error)).contains("s3cret"),
        "{} {error:?}",
        chain(&error)
    );
}

#[tokio::test]
async fn dead_mirror_is_passed_over() {
    let (folder, registry) = (tempfile::tempdir().unwrap(), Registry::start());
    let image = one_file(b"x");
    registry.push("team/app", "1", &image);
    let config = format!(
        "[[registry]]\nprefix = \"r.example/x\"\nlocation = \"{}/team\"\ninsecure = true\n[[registry.mirror]]\nlocation = \"127.0.0.1:1/y\"\ninsecure = true\n",
        registry.host()
    );
    let policy = PullPolicy { registries: Registries::parse(&config).unwrap(), ..PullPolicy::default() };
    store(folder.path()).pull("r.example/x/app:1", &policy, None).await.unwrap();
    let blocked = PullPolicy {
        registries: Registries::parse("[[registry]]\nlocation = \"r.example\"\nblocked = true\n").unwrap(),
        ..PullPolicy::default()
    };
    let error =
        Store::open(StoreConfig::new(folder.path().join("other"))).unwrap().pull("r.example/a:1", &blocked, None).await.unwrap_err();
    assert!(matches!(error, PullError::Blocked { .. }));
}

#[tokio::test]
async fn unsupported_layers_and_platforms_are_named() {
    let (folder, registry) = (tempfile::tempdir().unwrap(), Registry::start());
    let store = store(folder.path());
    let mut image = one_file(b"x");
    image.layers[0].media_type = "application/vnd.oci.image.layer.v1.tar+lzma+encrypted".to_owned();
    let error = pull(&store, &registry, &image).await.unwrap_err();
    assert!(error.to_string().contains("tar+lzma+encrypted: this version reads plain, gzip and zstd tar layers only"), "{error}");
    registry.push_manifest("app", "1", json!({"schemaVersion": 2, "manifests": []}).to_string().into_bytes());
    let error = store.pull(&format!("{}/app:1", registry.host()), &policy(&registry), None).await.unwrap_err();
    assert!(matches!(error, PullError::NoPlatform { .. }));
    let policy = PullPolicy { extra_root_certificates: vec!["not PEM".to_owned()], ..policy(&registry) };
    let error = store.pull(&format!("{}/app:1", registry.host()), &policy, None).await.unwrap_err();
    assert!(matches!(error, PullError::Client { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_pulls_share_one_download() {
    let (folder, registry) = (tempfile::tempdir().unwrap(), Registry::start());
    let store = store(folder.path());
    let base = Layer::new().file("base", &[7; 5000]).gzip();
    let first = Image::of([base.clone(), Layer::new().file("one", b"1").gzip()]);
    let second = Image::of([base.clone(), Layer::new().file("two", b"2").gzip()]);
    registry.push("app", "1", &first);
    registry.push("app", "2", &second);
    registry.set_blob("app", &base.bytes, Body::Held(base.bytes.clone()));
    let pulls: Vec<_> = [1, 2, 1, 2]
        .into_iter()
        .map(|tag| {
            let (store, name, policy) = (store.clone(), format!("{}/app:{tag}", registry.host()), policy(&registry));
            tokio::spawn(async move { store.pull(&name, &policy, None).await })
        })
        .collect();
    tokio::task::block_in_place(|| registry.wait_for_fetch(&base.bytes));
    registry.release();
    for pull in pulls {
        pull.await.unwrap().unwrap();
    }
    assert_eq!(registry.fetches(&base.bytes), 1);
    assert_eq!(registry.fetches(&first.layers[1].bytes), 1);
    assert_eq!(names(&folder.path().join("store/layers")).len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_pull_cleans_up_and_the_waiting_one_goes_on() {
    let (folder, registry) = (tempfile::tempdir().unwrap(), Registry::start());
    let store = store(folder.path());
    let image = one_file(&[7; 5000]);
    let blob = image.layers[0].bytes.clone();
    registry.push("app", "1", &image);
    registry.set_blob("app", &blob, Body::Held(blob.clone()));
    let start = || {
        let (store, name, policy) = (store.clone(), format!("{}/app:1", registry.host()), policy(&registry));
        tokio::spawn(async move { store.pull(&name, &policy, None).await })
    };
    let first = start();
    tokio::task::block_in_place(|| registry.wait_for_fetch(&blob));
    let second = start();
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    registry.release();
    second.await.unwrap().unwrap();
    assert_eq!(registry.fetches(&blob), 2);
    settled(folder.path()).await;
    assert_eq!(names(&folder.path().join("store/layers")).len(), 1);
}

#[tokio::test]
async fn tls_needs_a_root_from_the_policy_or_the_bundle() {
    let (folder, (registry, certificate)) = (tempfile::tempdir().unwrap(), Registry::start_tls());
    let store = store(folder.path());
    let image = one_file(b"x");
    registry.push("app", "1", &image);
    let name = format!("{}/app:1", registry.host());
    let error = store.pull(&name, &PullPolicy::default(), None).await.unwrap_err();
    assert!(matches!(error, PullError::Unreachable { .. }) && chain(&error).contains("certificate"), "{}", chain(&error));
    let trusting = PullPolicy { extra_root_certificates: vec![certificate.clone()], ..PullPolicy::default() };
    store.pull(&name, &trusting, None).await.unwrap_or_else(|error| panic!("{}", chain(&error)));

    let bundle = folder.path().join("bundle.crt");
    std::fs::write(&bundle, certificate).unwrap();
    let config = StoreConfig { limits: limits(), root_certificates: bundle, ..StoreConfig::new(folder.path().join("other")) };
    Store::open(config).unwrap().pull(&name, &PullPolicy::default(), None).await.unwrap();

    // From TLS neither a token service nor a blob may be reached without it.
    let plain = Registry::start();
    let challenge = format!("Bearer realm=\"http://{}/token\"", plain.host());
    registry.set("/v2/app/manifests/1", Body::Guarded { authorization: "x".to_owned(), challenge, bytes: Vec::new() });
    let error = store.pull(&name, &trusting, None).await.unwrap_err();
    assert!(chain(&error).contains("a token service without TLS"), "{}", chain(&error));
    let location = format!("http://{}/manifest", plain.host());
    registry.set("/v2/app/manifests/1", Body::Refusal("307 Temporary Redirect", vec![("Location", location)]));
    let error = store.pull(&name, &trusting, None).await.unwrap_err();
    assert!(chain(&error).contains("a redirect from HTTPS to plain HTTP"), "{}", chain(&error));
    assert!(plain.requests().is_empty());
}
