//! Encrypted layers: what opens them, and that nothing of a wrong one is ever unpacked.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::broker::{KEK, KID, encrypted, encrypted_with};
use common::image::{Blob, GZIP, digest, zstd_of};
use common::registry::Body;
use common::{Broker, Image, Layer, Registry, chain, eventually, limits, nameless, names, policy, settled, store, store_with};
use peerpods_image::encrypt::KEY_PACKETS_ANNOTATION;
use peerpods_image::{DecryptError, Limits, PullError, PullPolicy, PulledImage, Store};
use serde_json::{Value, json};
use tar::EntryType;

/// A layer that would be refused at its first entry, if it ever came to that.
fn hostile() -> Blob {
    Layer::new().entry("sda", EntryType::Block, "", b"", |_| ()).file("f", &[7; 5000]).plain()
}

fn broker() -> Arc<Broker> {
    Broker::of([(KID, KEK.to_vec())])
}

async fn pull(store: &Store, registry: &Registry, image: &Image, broker: &Arc<Broker>) -> Result<PulledImage, PullError> {
    registry.push("app", "1", image);
    let policy = PullPolicy { resources: broker.resources(), ..policy(registry) };
    store.pull(&format!("{}/app:1", registry.host()), &policy, None).await
}

/// Pulls what has to be refused, and sees that nothing is left of it.
async fn refused(folder: &Path, registry: &Registry, image: &Image, broker: &Arc<Broker>) -> DecryptError {
    let error = pull(&store(folder), registry, image, broker).await.unwrap_err();
    settled(folder).await;
    assert!(names(&folder.join("store/layers")).is_empty());
    match error {
        PullError::Decrypt { source, .. } => *source,
        other => panic!("{}", chain(&other)),
    }
}

/// Encrypted, with this as the sealed digest.
fn sealing(clear: &Blob, named: &str) -> Blob {
    let mut blob = encrypted(clear);
    let mut packet = packet_of(&blob);
    let key = || LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &KEK).unwrap());
    let nonce = |packet: &Value| Nonce::try_assume_unique_for_key(&STANDARD.decode(packet["iv"].as_str().unwrap()).unwrap()).unwrap();
    let mut options = STANDARD.decode(packet["wrapped_data"].as_str().unwrap()).unwrap();
    let options = String::from_utf8(key().open_in_place(nonce(&packet), Aad::empty(), &mut options).unwrap().to_vec()).unwrap();
    assert!(options.contains(&digest(&clear.bytes)));
    let mut changed = options.replace(&digest(&clear.bytes), named).into_bytes();
    key().seal_in_place_append_tag(nonce(&packet), Aad::empty(), &mut changed).unwrap();
    packet["wrapped_data"] = json!(STANDARD.encode(changed));
    blob.annotations[KEY_PACKETS_ANNOTATION] = json!(STANDARD.encode(packet.to_string()));
    blob
}

fn packet_of(blob: &Blob) -> Value {
    serde_json::from_slice(&STANDARD.decode(blob.annotations[KEY_PACKETS_ANNOTATION].as_str().unwrap()).unwrap()).unwrap()
}

#[tokio::test]
async fn encrypted_layers_of_all_formats_are_unpacked() {
    let (folder, registry, broker) = (tempfile::tempdir().unwrap(), Registry::start(), broker());
    let large: Vec<u8> = (0..400_000_u32).flat_map(u32::to_le_bytes).collect();
    let image = Image::of([
        encrypted(&Layer::new().file("gzip", &large).gzip()),
        encrypted(&Layer::new().file("plain", &large).plain()),
        encrypted(&zstd_of(&Layer::new().file("zstd", b"3").tar(), 3)),
        Layer::new().file("clear", b"4").gzip(),
    ]);
    let store = store(folder.path());
    let pulled = pull(&store, &registry, &image, &broker).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    let content = |layer: usize, name: &str| {
        std::fs::read(folder.path().join("store/layers").join(pulled.layers[layer].as_str().trim_start_matches("sha256:")).join(name))
    };
    assert_eq!(content(0, "gzip").unwrap(), large);
    assert_eq!(content(1, "plain").unwrap(), large);
    assert_eq!(content(2, "zstd").unwrap(), b"3");
    assert_eq!(content(3, "clear").unwrap(), b"4");
    assert!(names(&folder.path().join("store/tmp")).is_empty());
    assert_eq!(broker.asked(), [KID], "one key opens three layers and is asked for once");
}

#[tokio::test]
async fn warm_store_does_not_stand_in_for_the_key() {
    let (folder, registry, broker) = (tempfile::tempdir().unwrap(), Registry::start(), broker());
    let image = Image::of([encrypted(&Layer::new().file("f", b"x").gzip())]);
    let store = store(folder.path());
    pull(&store, &registry, &image, &broker).await.unwrap();
    pull(&store, &registry, &image, &broker).await.unwrap();
    assert_eq!(registry.fetches(&image.layers[0].bytes), 1);
    assert_eq!(broker.asked().len(), 2);

    let error = pull(&store, &registry, &image, &Broker::of([])).await.unwrap_err();
    assert!(chain(&error).contains("its key is not to be had: cannot get resource kbs:///default/key/1"), "{}", chain(&error));
    let error = pull(&store, &registry, &image, &Broker::of([(KID, vec![8; 32])])).await.unwrap_err();
    assert!(chain(&error).contains("does not open its key packet"), "{}", chain(&error));
}

/// Configurations say in clear what the digests of decrypted layers are, and whoever writes a manifest may name them.
#[tokio::test]
async fn warm_store_gives_no_decrypted_layer_to_a_manifest_without_its_key() {
    const OTHER_KID: &str = "kbs:///default/key/2";
    const OTHER_KEK: [u8; 32] = [8; 32];
    let (folder, registry) = (tempfile::tempdir().unwrap(), Registry::start());
    let broker = Broker::of([(KID, KEK.to_vec()), (OTHER_KID, OTHER_KEK.to_vec())]);
    let below = Layer::new().file("below", b"0").gzip();
    let secret = encrypted(&Layer::new().file("secret", b"x").gzip());
    let above = Layer::new().file("above", b"2").gzip();
    let store = store(folder.path());
    let owners = Image::of([below.clone(), secret.clone(), above.clone()]);
    let pulled = pull(&store, &registry, &owners, &broker).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    let before = names(&folder.path().join("store/layers"));

    let clear = |bytes: &[u8]| Blob { bytes: bytes.to_vec(), media_type: GZIP.to_owned(), annotations: Value::Null, ..secret.clone() };
    // The attacker's own content, encrypted under a key that this guest may have.
    let own = encrypted_with(&Layer::new().file("own", b"y").gzip(), &OTHER_KEK, OTHER_KID);
    for (how, attempt) in [
        ("said to be in clear", clear(&secret.bytes)),
        ("said to be in clear, of a digest that is not to be had", clear(b"nothing")),
        ("own content", Blob { diff_id: secret.diff_id.clone(), ..own.clone() }),
        ("own key and its packet, the owner's ciphertext", Blob { annotations: own.annotations.clone(), ..secret.clone() }),
        ("the owner's key and its packet, own ciphertext", Blob { bytes: own.bytes.clone(), ..secret.clone() }),
    ] {
        for image in [Image::of([below.clone(), attempt.clone()]), Image::of([below.clone(), attempt, above.clone()])] {
            let error = pull(&store, &registry, &image, &broker).await;
            assert!(error.is_err(), "{how}");
            settled(folder.path()).await;
        }
    }
    assert_eq!(names(&folder.path().join("store/layers")), before);
    // The owner's other image, and the same one again, share what is there.
    let fetches = registry.fetches(&above.bytes);
    let again = pull(&store, &registry, &Image::of([below.clone(), secret.clone()]), &broker).await.unwrap();
    assert_eq!(again.layers, pulled.layers[..2]);
    assert_eq!(pull(&store, &registry, &owners, &broker).await.unwrap().layers, pulled.layers);
    assert_eq!((registry.fetches(&above.bytes), registry.fetches(&below.bytes)), (fetches, 1));
}

#[tokio::test]
async fn keys_are_asked_for_once_whatever_the_answer_and_not_without_end() {
    let (folder, registry) = (tempfile::tempdir().unwrap(), Registry::start());
    let layer = |number: usize| Layer::new().file("f", &[u8::try_from(number).unwrap()]).gzip();
    let kid = |number: usize| format!("kbs:///default/key/{number}");
    // Every layer has the packet that does not open first.
    let both = |number: usize| {
        let mut blob = encrypted_with(&layer(number), &KEK, KID);
        let packet = packet_of(&blob);
        let refused = |kid: &str| {
            STANDARD
                .encode(json!({"kid": kid, "wrapped_data": packet["wrapped_data"], "iv": packet["iv"], "wrap_type": "A256GCM"}).to_string())
        };
        let packets = blob.annotations[KEY_PACKETS_ANNOTATION].as_str().unwrap().to_owned();
        blob.annotations[KEY_PACKETS_ANNOTATION] =
            json!(format!("{},{},{packets}", refused("kbs:///a/b/refused"), refused("kbs:///a/b/short")));
        blob
    };
    let broker = Broker::of([(KID, KEK.to_vec()), ("kbs:///a/b/short", vec![1; 16])]);
    let image = Image::of((0..3).map(both));
    pull(&store(folder.path()), &registry, &image, &broker).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(broker.asked(), ["kbs:///a/b/refused", "kbs:///a/b/short", KID]);

    let kids: Vec<String> = (0..4).map(kid).collect();
    let broker = Broker::of(kids.iter().map(|kid| (kid.as_str(), KEK.to_vec())));
    let image = Image::of(kids.iter().enumerate().map(|(number, kid)| encrypted_with(&layer(10 + number), &KEK, kid)));
    registry.push("app", "1", &image);
    let pulling = PullPolicy { resources: broker.resources(), ..policy(&registry) };
    let name = format!("{}/app:1", registry.host());
    let within = |keys: usize| store_with(folder.path(), Limits { keys, ..limits() });
    let error = within(3).pull(&name, &pulling, None).await.unwrap_err();
    assert!(chain(&error).ends_with("the image needs more than 3 different keys"), "{}", chain(&error));
    assert_eq!(broker.asked(), kids[..3]);
    assert_eq!(registry.fetches(&image.layers[0].bytes), 0, "without a key nothing is downloaded");
    within(4).pull(&name, &pulling, None).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
}

#[tokio::test]
async fn flipped_last_byte_is_refused_before_anything_is_unpacked() {
    let (folder, registry, broker) = (tempfile::tempdir().unwrap(), Registry::start(), broker());
    let good = encrypted(&hostile());
    let mut flipped = good.bytes.clone();
    *flipped.last_mut().unwrap() ^= 1;

    // By the registry alone: the descriptor's digest tells.
    let image = Image::of([good.clone()]);
    registry.push("app", "1", &image);
    registry.set_blob("app", &good.bytes, Body::Bytes(flipped.clone()));
    let pulling = PullPolicy { resources: broker.resources(), ..policy(&registry) };
    let error = store(folder.path()).pull(&format!("{}/app:1", registry.host()), &pulling, None).await.unwrap_err();
    assert!(matches!(error, PullError::WrongDigest { .. }), "{}", chain(&error));
    settled(folder.path()).await;
    assert!(names(&folder.path().join("store/layers")).is_empty());

    // By one who changes the manifest too: the HMAC tells.
    let image = Image::of([Blob { bytes: flipped, ..good.clone() }]);
    assert!(matches!(refused(folder.path(), &registry, &image, &broker).await, DecryptError::Hmac));
    // By one who cuts something off.
    let image = Image::of([Blob { bytes: good.bytes[..good.bytes.len() - 512].to_vec(), ..good.clone() }]);
    assert!(matches!(refused(folder.path(), &registry, &image, &broker).await, DecryptError::Hmac));

    // The unchanged one is unpacked, and only then refused for what is in it.
    let error = pull(&store(folder.path()), &registry, &Image::of([good]), &broker).await.unwrap_err();
    assert!(chain(&error).contains("entry sda is a device"), "{}", chain(&error));
    settled(folder.path()).await;
}

#[tokio::test]
async fn wrong_missing_and_odd_keys_are_told_apart() {
    let (folder, registry) = (tempfile::tempdir().unwrap(), Registry::start());
    let image = Image::of([encrypted(&hostile())]);
    let error = refused(folder.path(), &registry, &image, &Broker::of([(KID, vec![8; 32])])).await;
    assert_eq!(error.to_string(), format!("key {KID} does not open its key packet"));
    let error = refused(folder.path(), &registry, &image, &Broker::of([])).await;
    assert_eq!(chain(&error), format!("its key is not to be had: cannot get resource {KID}: the broker refuses"));
    let error = refused(folder.path(), &registry, &image, &Broker::of([(KID, vec![7; 16])])).await;
    assert_eq!(error.to_string(), format!("resource {KID} is not a key of 32 bytes"));
    assert_eq!(registry.fetches(&image.layers[0].bytes), 0, "without a key nothing is downloaded");

    let error = store(folder.path()).pull(&format!("{}/app:1", registry.host()), &policy(&registry), None).await.unwrap_err();
    assert!(chain(&error).ends_with("it is encrypted and there is no key broker to ask"), "{}", chain(&error));
}

#[tokio::test]
async fn packets_of_version_2_and_of_other_providers_are_tried() {
    let (folder, registry, broker) = (tempfile::tempdir().unwrap(), Registry::start(), broker());
    let mut blob = encrypted(&Layer::new().file("f", b"x").gzip());
    let mut second = packet_of(&blob);
    second["version"] = json!("0.1.0");
    second["provider"] = json!("kbs");
    second["provider_settings"] = json!({});
    second["annotations"] = json!({});
    let mut elsewhere = second.clone();
    elsewhere["provider"] = json!("aliyun");
    let mut unknown = second.clone();
    unknown["kid"] = json!("kbs:///default/key/unknown");
    let encode = |packet: &Value| STANDARD.encode(packet.to_string());
    blob.annotations[KEY_PACKETS_ANNOTATION] = json!(format!("{},{}", encode(&elsewhere), encode(&unknown)));
    blob.annotations["org.opencontainers.image.enc.keys.jwe"] = json!("YQ==");
    let error = refused(folder.path(), &registry, &Image::of([blob.clone()]), &broker).await;
    assert!(matches!(error, DecryptError::Key(_)), "{}", chain(&error));

    blob.annotations["org.opencontainers.image.enc.keys.provider.other"] = json!(encode(&second));
    let store = store(folder.path());
    pull(&store, &registry, &Image::of([blob]), &broker).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
}

#[tokio::test]
async fn options_of_another_layer_do_not_open_it() {
    let (folder, registry, broker) = (tempfile::tempdir().unwrap(), Registry::start(), broker());
    let (one, other) = (encrypted(&hostile()), encrypted(&hostile()));
    let swapped = Image::of([Blob { annotations: other.annotations.clone(), ..one.clone() }]);
    assert!(matches!(refused(folder.path(), &registry, &swapped, &broker).await, DecryptError::Hmac));
    // Sealed inside the packet is also which layer it was.
    let renamed = Image::of([Blob { diff_id: digest(b"another"), ..one.clone() }]);
    assert!(matches!(refused(folder.path(), &registry, &renamed, &broker).await, DecryptError::Plaintext { .. }));
    let bare = Image::of([Blob { annotations: Value::Null, ..one }]);
    let error = pull(&store(folder.path()), &registry, &bare, &broker).await.unwrap_err();
    assert!(chain(&error).contains("has no annotation org.opencontainers.image.enc.pubopts"), "{}", chain(&error));
}

/// By one who has the key, and seals the digest of another layer in the packet.
#[tokio::test]
async fn plaintext_has_to_be_the_one_that_was_sealed() {
    let (folder, registry, broker) = (tempfile::tempdir().unwrap(), Registry::start(), broker());
    let clear = Layer::new().file("f", b"x").gzip();
    let blob = sealing(&clear, &digest(b"another"));
    let error = refused(folder.path(), &registry, &Image::of([blob]), &broker).await;
    assert!(matches!(error, DecryptError::Plaintext { .. }), "{}", chain(&error));
}

/// skopeo seals the digest of the layer that it read, though it compresses before it encrypts.
#[tokio::test]
async fn sealed_digest_may_be_that_of_the_archive() {
    let (folder, registry, broker) = (tempfile::tempdir().unwrap(), Registry::start(), broker());
    let clear = Layer::new().file("f", b"x").gzip();
    let image = Image::of([sealing(&clear, &clear.diff_id)]);
    pull(&store(folder.path()), &registry, &image, &broker).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    // It is then the archive that has to have it.
    let other = Blob { diff_id: digest(b"another"), ..sealing(&clear, &digest(b"another")) };
    let error = pull(&store(folder.path()), &registry, &Image::of([other]), &broker).await.unwrap_err();
    assert!(matches!(error, PullError::Layer { .. }), "{}", chain(&error));
}

#[tokio::test(flavor = "multi_thread")]
async fn ciphertext_has_no_name_and_goes_with_a_dropped_pull() {
    let (folder, registry, broker) = (tempfile::tempdir().unwrap(), Registry::start(), broker());
    let image = Image::of([encrypted(&Layer::new().file("f", &[7; 50_000]).plain())]);
    let blob = image.layers[0].bytes.clone();
    registry.push("app", "1", &image);
    registry.set_blob("app", &blob, Body::Held(blob.clone()));
    let (store, name) = (store(folder.path()), format!("{}/app:1", registry.host()));
    let pulling = PullPolicy { resources: broker.resources(), ..policy(&registry) };
    let first = tokio::spawn(async move { store.pull(&name, &pulling, None).await });
    // Half of the ciphertext is there.
    let spooled = |open: &Vec<(String, u64)>| open.iter().any(|(name, length)| name.ends_with(".spool") && *length > 0);
    eventually("the ciphertext is in a file without a name", || nameless(folder.path()), spooled).await;
    let files = |name: &String| !folder.path().join("store/tmp").join(name).is_dir();
    assert_eq!(names(&folder.path().join("store/tmp")).iter().filter(|name| files(name)).count(), 0);
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    eventually("the ciphertext goes with the pull", || nameless(folder.path()), Vec::is_empty).await;
    registry.release();
    settled(folder.path()).await;
    assert!(names(&folder.path().join("store/layers")).is_empty());
}

#[tokio::test]
async fn broken_download_of_a_layer_goes_on() {
    let (folder, registry, broker) = (tempfile::tempdir().unwrap(), Registry::start(), broker());
    let image = Image::of([encrypted(&Layer::new().file("f", &[7; 50_000]).plain())]);
    registry.push("app", "1", &image);
    let blob = &image.layers[0].bytes;
    registry.set_blob("app", blob, Body::Breaking(blob.clone(), 20_000));
    let pulling = PullPolicy { resources: broker.resources(), ..policy(&registry) };
    let pulled = store(folder.path()).pull(&format!("{}/app:1", registry.host()), &pulling, None).await;
    pulled.unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert!(registry.fetches(blob) > 1);
}
