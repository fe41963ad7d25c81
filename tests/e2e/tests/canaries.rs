//! What a confidential pod has to itself: the node is searched for it after a whole run.
//!
//! Canaries lie in an encrypted layer, in the relying party and behind a sealed secret. The pod reads all of them, and then memory of every
//! program of the node, its files, logs and what crossed its links are searched. What must be there is searched for as well, so that a
//! search which sees nothing fails.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt};
use nix::sys::time::TimeVal;
use peerpods_e2e::{Container, Handler, Image, Level, Netns, RelyingParty, Rig, RigOptions, Story, TeeUnderTest, Version, WorldOptions};
use sha2::{Digest as _, Sha256};

const IN_LAYER: &str = "CANARY-in-an-encrypted-layer";
const IN_BROKER: &str = "CANARY-in-the-relying-party";
const SEALED: &str = "CANARY-behind-a-sealed-secret";
const FOR_EXEC: &str = "CANARY-that-exec-would-print";
const KEY: &[u8; 32] = b"CANARY-which-is-a-wrapping-key-1";
/// The cookie of a session with the broker: whoever has it may go on as the guest.
const SESSION: &str = "kbs-session-id";
/// Every node knows it.
const POD_NAME: &str = "known-to-the-node";

const POLICY: &str = include_str!("../../../pod-vm-image/agent/src/policy/strict_default.rego");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_a_confidential_pod_is_on_the_node() {
    let mut options = WorldOptions::new(Level::Qemu);
    options.provider_extra = "scratch_mib = 256".to_owned();
    let rig = Arc::new(Rig::start(&RigOptions::new(Version::V2, options)).unwrap());
    let world = rig.world();
    let wire = Wire::tap(world.netns());
    let party = RelyingParty::start(world, TeeUnderTest::Sample).unwrap();
    let files: &[(&str, &[u8])] = &[("www/layer", IN_LAYER.as_bytes()), ("www/exec", FOR_EXEC.as_bytes())];
    let image = Image::busybox(files).unwrap().encrypted(KEY, "kbs:///default/key/canary").unwrap();
    world.registry().push(world.netns(), "canary", "1", &image).unwrap();
    let sealing = sealing_key(world.folder());
    let sealing = sealing.to_str().unwrap();
    let public = world.peerpodctl(&["secret", "public-key", "--signing-key", sealing]).unwrap();
    let kid = "kbs:///default/sealing-key/1";
    let seal = ["secret", "seal", "--signing-key", sealing, "--key-uri", kid, "kbs:///default/app/sealed"];
    let sealed = world.peerpodctl(&seal).unwrap().trim().to_owned();
    let anything = serde_json::json!({"default": [{"type": "insecureAcceptAnything"}]}).to_string();
    for (name, content) in [
        ("default/security-policy/images", anything.as_bytes()),
        ("default/key/canary", KEY),
        ("default/sealing-key/1", public.as_bytes()),
        ("default/app/sealed", SEALED.as_bytes()),
        ("default/app/token", IN_BROKER.as_bytes()),
    ] {
        party.set_resource(world, name, content).unwrap();
    }
    let initdata = party.initdata(world, POLICY).unwrap();
    party.release_to(world, &initdata).unwrap();

    let story = Story::begin(Arc::clone(&rig), Handler::PeerPods, "canaries").await.unwrap();
    let pod = story.pod(POD_NAME).initdata(&initdata).run().await.unwrap();
    // Compared by digests: neither command nor output holds a canary.
    let same = |value: &str, canary: &str| format!("[ \"$({value} | sha256sum)\" = \"{}  -\" ]", hex::encode(Sha256::digest(canary)));
    let script = format!(
        "{} && {} && {} && echo all three || echo something else; trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done",
        same("cat /www/layer", IN_LAYER),
        same("wget -q -O - http://127.0.0.1:8006/cdh/resource/default/app/token", IN_BROKER),
        same("printf %s \"$SEALED\"", SEALED),
    );
    let container = Container::of_image("reader", "canary").env("SEALED", &sealed);
    let running = pod.start(container.with(|c| c.command = ["/bin/sh", "-c", &script].map(str::to_owned).to_vec())).await.unwrap();
    running.logs("all three\n").await.unwrap();
    let refused = running.exec(&["cat", "/www/exec"], 20).await.unwrap_err();
    assert!(refused.message().contains("ExecProcessRequest"), "{refused}");

    let mut found = search(&rig, &party);
    story.clean_up().await.unwrap();
    let after = Places::search("files after the pod", |search| search.folder(world.folder(), &[party.state(), Path::new(sealing)]));
    found.push(after);
    found.push(wire.stop());
    let mut seen: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for place in &found {
        println!("{}: {} MiB in {} parts; found: {:?}", place.name, place.bytes >> 20, place.parts, place.found);
        for word in place.found.keys() {
            seen.entry(word).or_default().push(&place.name);
        }
    }
    let allowed: Vec<&str> = seen.keys().copied().filter(|word| *word != POD_NAME && *word != REGISTRY_WORD).collect();
    assert!(allowed.is_empty(), "the node has {allowed:?}: {found:#?}");
    assert!(seen.get(REGISTRY_WORD).is_some_and(|places| places.contains(&"traffic")), "the wire was not seen: {seen:?}");
    for daemon in ["memory of peerpods-node", "memory of containerd-shim"] {
        assert!(seen[POD_NAME].iter().any(|place| place.starts_with(daemon)), "{daemon} was not searched: {seen:?}");
    }
}

/// Crosses every node's links: guests ask registries without TLS here.
const REGISTRY_WORD: &str = "docker-content-digest";

fn search(rig: &Rig, party: &RelyingParty) -> Vec<Places> {
    let world = rig.world();
    let sealing = world.folder().join("sealing.pem");
    let files = Places::search("files", |search| search.folder(world.folder(), &[party.state(), &sealing]));
    let logs = Places::search("logs", |search| search.bytes(format!("{}{}", world.logs(), rig.logs()).as_bytes(), "logs"));
    let netns = std::fs::metadata(world.netns().path()).unwrap().ino();
    let mut all = vec![files, logs];
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let folder = entry.path();
        let is_ours = std::fs::metadata(folder.join("ns/net")).is_ok_and(|meta| meta.ino() == netns);
        let Ok(name) = std::fs::read_link(folder.join("exe")) else { continue };
        let name = name.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // The VM itself, which is what hardware encrypts, and the owner's own program.
        let is_guest = name.starts_with("qemu-system") || name == "swtpm" || name == "peerpods-relying-party";
        if is_ours && !is_guest {
            all.push(Places::search(&format!("memory of {name}"), |search| search.memory(&folder)));
        }
    }
    all
}

/// An ECDSA key as `openssl genpkey` writes it.
fn sealing_key(folder: &Path) -> PathBuf {
    let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).unwrap();
    let path = folder.join("sealing.pem");
    let text = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(der.as_ref()));
    std::fs::write(&path, text).unwrap();
    path
}

/// What was searched, and what was found where.
#[derive(Debug, Default)]
struct Places {
    name: String,
    bytes: usize,
    parts: usize,
    found: BTreeMap<&'static str, String>,
}

impl Places {
    fn search(name: &str, work: impl FnOnce(&mut Self)) -> Self {
        let mut this = Self { name: name.to_owned(), ..Self::default() };
        work(&mut this);
        this
    }

    fn bytes(&mut self, bytes: &[u8], part: &str) {
        self.bytes += bytes.len();
        for word in [IN_LAYER, IN_BROKER, SEALED, FOR_EXEC, std::str::from_utf8(KEY).unwrap(), SESSION, POD_NAME, REGISTRY_WORD] {
            if memchr::memmem::find(bytes, word.as_bytes()).is_some() {
                self.found.entry(word).or_insert_with(|| part.to_owned());
            }
        }
    }

    fn folder(&mut self, folder: &Path, but: &[&Path]) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            if but.contains(&path.as_path()) {
                continue;
            }
            if kind.is_dir() {
                self.folder(&path, but);
            } else if kind.is_file() {
                self.parts += 1;
                if let Ok(file) = File::open(&path) {
                    self.reader(file, &path.display().to_string());
                }
            }
        }
    }

    fn reader(&mut self, mut file: File, part: &str) {
        let mut buffer = Vec::new();
        loop {
            // The end of the last piece stays: words may lie across.
            buffer.drain(..buffer.len().saturating_sub(64));
            let kept = buffer.len();
            if (&mut file).take(1 << 20).read_to_end(&mut buffer).unwrap_or(0) == 0 {
                return;
            }
            self.bytes(&buffer, part);
            debug_assert!(buffer.len() > kept);
        }
    }

    /// All of a process's memory that can be read.
    fn memory(&mut self, process: &Path) {
        let (Ok(maps), Ok(memory)) = (std::fs::read_to_string(process.join("maps")), File::open(process.join("mem"))) else { return };
        for line in maps.lines() {
            let (range, rest) = line.split_once(' ').unwrap();
            let (from, to) = range.split_once('-').unwrap();
            let (mut at, to) = (u64::from_str_radix(from, 16).unwrap(), u64::from_str_radix(to, 16).unwrap());
            if !rest.starts_with('r') {
                continue;
            }
            self.parts += 1;
            let mut buffer = vec![0; 1 << 20];
            while at < to {
                let length = buffer.len().min(usize::try_from(to - at).unwrap());
                let Ok(read @ 1..) = memory.read_at(&mut buffer[..length], at) else { break };
                self.bytes(&buffer[..read], line);
                at += if read > 64 && at + (read as u64) < to { read as u64 - 64 } else { read as u64 };
            }
        }
    }
}

/// Everything that crosses the links of a namespace.
struct Wire {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<Places>,
}

impl Wire {
    fn tap(netns: &Netns) -> Self {
        let open = || -> nix::Result<OwnedFd> {
            let wire = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
            setsockopt(&wire, sockopt::ReceiveTimeout, &TimeVal::new(0, 100_000))?;
            setsockopt(&wire, sockopt::RcvBufForce, &(64 << 20))?;
            Ok(wire)
        };
        let wire = netns.run(open).unwrap().unwrap();
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let thread = std::thread::spawn(move || {
            Places::search("traffic", |search| {
                let mut frame = vec![0; 1 << 17];
                while !over.load(Ordering::Relaxed) {
                    if let Ok(length) = recv(wire.as_raw_fd(), &mut frame, nix::sys::socket::MsgFlags::empty()) {
                        search.parts += 1;
                        search.bytes(&frame[..length].to_ascii_lowercase(), "a frame");
                        search.bytes(&frame[..length], "a frame");
                    }
                }
            })
        });
        Self { is_over, thread }
    }

    fn stop(self) -> Places {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}
