//! The memory of a pull does not grow with the image. Alone in its process, so that no other test's memory counts.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::registry::Body;
use common::{Broker, Registry, chain, limits, policy, store_with};
use flate2::Compression;
use flate2::write::GzEncoder;
use peerpods_image::encrypt::{
    KEY_PACKETS_ANNOTATION, PUBLIC_OPTIONS_ANNOTATION, WrappingKey, encrypt_layer, encrypted_media_type, wrap_key,
};
use peerpods_image::{Limits, PullPolicy};
use serde_json::json;
use sha2::{Digest as _, Sha256};

/// The budget of the guest: anonymous and shared memory above idle.
const BUDGET_KIB: u64 = 64 << 10;
const LAYER_BYTES: u64 = 96 << 20;
/// So many that gzip and zstd are unpacked at once, as many as may be, each with its window.
const LAYERS: u64 = 8;
const KID: &str = "kbs:///default/key/1";

/// Writes through and hashes.
struct Hashing<W>(W, Sha256, u64);

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.0.write(bytes)?;
        self.1.update(&bytes[..written]);
        self.2 += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

/// Bytes that do not compress.
struct Noise(u64);

impl Read for Noise {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        for chunk in buffer.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            chunk.copy_from_slice(&self.0.to_le_bytes()[..chunk.len()]);
        }
        Ok(buffer.len())
    }
}

type Sink = Hashing<BufWriter<File>>;

/// A layer of one large file: digest, size, diff_id.
fn layer<W: Write>(path: &Path, content: impl Read, begin: impl FnOnce(Sink) -> W, end: impl FnOnce(W) -> Sink) -> (String, u64, String) {
    let compressed = Hashing(BufWriter::new(File::create(path).unwrap()), Sha256::new(), 0);
    let mut tar = tar::Builder::new(Hashing(begin(compressed), Sha256::new(), 0));
    let mut header = tar::Header::new_gnu();
    header.set_size(LAYER_BYTES);
    header.set_mode(0o644);
    tar.append_data(&mut header, path.file_name().unwrap(), content.take(LAYER_BYTES)).unwrap();
    let Hashing(encoder, diff_id, _) = tar.into_inner().unwrap();
    let Hashing(mut file, digest, size) = end(encoder);
    file.flush().unwrap();
    (format!("sha256:{}", hex::encode(digest.finalize())), size, format!("sha256:{}", hex::encode(diff_id.finalize())))
}

fn gzip(path: &Path, content: impl Read) -> (String, u64, String) {
    layer(path, content, |sink| GzEncoder::new(sink, Compression::fast()), |encoder| encoder.finish().unwrap())
}

/// With the largest window that is taken.
fn zstd(path: &Path, content: impl Read) -> (String, u64, String) {
    let begin = |sink| {
        let mut encoder = zstd::Encoder::new(sink, 1).unwrap();
        encoder.window_log(23).unwrap();
        encoder
    };
    layer(path, content, begin, |encoder| encoder.finish().unwrap())
}

fn memory_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let of = |name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)).and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
    };
    of("RssAnon:").unwrap() + of("RssShmem:").unwrap()
}

/// The guest's allocator gives large buffers back at once; the one of this machine keeps them unless it is told not to, and it is told by
/// the environment that it is started with.
const THRESHOLD: (&str, &str) = ("MALLOC_MMAP_THRESHOLD_", "1048576");

#[test]
fn pull_of_a_large_image_stays_in_its_budget() {
    if std::env::var_os(THRESHOLD.0).is_some() {
        return pull();
    }
    let mut again = std::process::Command::new(std::env::current_exe().unwrap());
    assert!(again.args(["--nocapture"]).env(THRESHOLD.0, THRESHOLD.1).status().unwrap().success());
}

fn pull() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::start();
    let layers: Vec<_> = (0..LAYERS)
        .map(|number| {
            let path = folder.path().join(format!("layer{number}"));
            let (made, media_type) = match number % 4 {
                0 => (gzip(&path, Noise(number + 1)), common::image::GZIP),
                1 => (gzip(&path, std::io::repeat(7)), common::image::GZIP),
                _ => (zstd(&path, Noise(number + 1)), common::image::ZSTD),
            };
            // One of the largest windows is behind the cipher.
            if number % 4 == 3 {
                let sealed = path.with_extension("encrypted");
                let layer = encrypt_layer(File::open(&path).unwrap(), File::create(&sealed).unwrap()).unwrap();
                std::fs::remove_file(path).unwrap();
                let packet = wrap_key(&layer.options, &WrappingKey::new(&[7; 32]).unwrap(), KID).unwrap();
                let annotations = json!({PUBLIC_OPTIONS_ANNOTATION: layer.public_options, KEY_PACKETS_ANNOTATION: packet});
                registry.set(&format!("/v2/app/blobs/{}", layer.digest), Body::File(sealed));
                return (layer.digest.to_string(), layer.size, made.2, encrypted_media_type(media_type).unwrap(), annotations);
            }
            registry.set(&format!("/v2/app/blobs/{}", made.0), Body::File(path));
            (made.0, made.1, made.2, media_type.to_owned(), json!({}))
        })
        .collect();
    let diff_ids: Vec<_> = layers.iter().map(|layer| &layer.2).collect();
    let config =
        json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}}).to_string().into_bytes();
    registry.set_blob("app", &config, Body::Bytes(config.clone()));
    let descriptors: Vec<_> = layers
        .iter()
        .map(|(digest, size, _, media_type, annotations)| json!({"mediaType": media_type, "digest": digest, "size": size, "annotations": annotations}))
        .collect();
    let config = json!({"digest": common::image::digest(&config), "size": config.len()});
    registry.push_manifest("app", "1", json!({"schemaVersion": 2, "config": config, "layers": descriptors}).to_string().into_bytes());

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let store = store_with(folder.path(), Limits { ratio: 1000, ..limits() });
    let (stop, peak) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let idle = memory_kib();
    let watcher = {
        let (stop, peak) = (stop.clone(), peak.clone());
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                peak.fetch_max(memory_kib(), Ordering::Relaxed);
                std::thread::park_timeout(std::time::Duration::from_millis(2));
            }
        })
    };
    let policy = PullPolicy { resources: Broker::of([(KID, vec![7; 32])]).resources(), ..policy(&registry) };
    let pulled = runtime.block_on(store.pull(&format!("{}/app:1", registry.host()), &policy, None));
    stop.store(true, Ordering::Relaxed);
    watcher.join().unwrap();
    let pulled = pulled.unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(pulled.layers.len() as u64, LAYERS);
    let above = peak.load(Ordering::Relaxed).saturating_sub(idle);
    println!("{} MiB of layers: peak {above} KiB above idle ({idle} KiB)", LAYERS * (LAYER_BYTES >> 20));
    assert!(above <= BUDGET_KIB, "{above} KiB above idle, {BUDGET_KIB} KiB allowed");
}
