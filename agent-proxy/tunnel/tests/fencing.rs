//! The resume protocol against a node that is written here byte by byte: who may resume, what is fenced, what breaks a session.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use std::net::SocketAddr;
use std::time::Duration;

use aws_lc_rs::hmac;
use peerpods_tunnel::credential::{Credential, NodeKey};
use peerpods_tunnel::guest::GuestLimits;
use peerpods_tunnel::{AgentStream, ResumeOptions, SessionLost, StreamState};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use world::{PodVm, World};

const ID: [u8; 16] = [9; 16];
const PATIENCE: Duration = Duration::from_secs(10);

const DATA: u8 = 1;
const ACK: u8 = 2;

/// A connection that has sent nothing yet.
struct Connection(TlsStream<TcpStream>);

impl Connection {
    async fn new(addr: SocketAddr, key: &NodeKey) -> Self {
        let pair = rcgen::KeyPair::from_pem(&key.to_pem()).unwrap();
        let certificate = rcgen::CertificateParams::default().self_signed(&pair).unwrap();
        let credential = Credential { chain: vec![certificate.der().to_vec()], key: key.clone() };
        Self(world::raw::connect(addr, "peerpods-agent/1", Some(&credential)).await.unwrap())
    }

    async fn say(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
        self.0.flush().await.unwrap();
    }

    async fn frame(&mut self, kind: u8, number: u64, len: u32, data: &[u8]) {
        self.say(&[&[kind][..], &number.to_be_bytes(), &len.to_be_bytes(), data].concat()).await;
    }

    async fn hear<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        timeout(PATIENCE, self.0.read_exact(&mut bytes)).await.unwrap().unwrap();
        bytes
    }

    async fn is_over(&mut self) {
        let mut rest = Vec::new();
        // A reset is as good an end as a close.
        let _ = timeout(PATIENCE, self.0.read_to_end(&mut rest)).await.unwrap();
    }

    fn export(&self, label: &[u8], context: Option<&[u8]>) -> [u8; 32] {
        self.0.get_ref().1.export_keying_material([0; 32], label, context).unwrap()
    }

    /// Opens a session and returns its secret.
    async fn open(&mut self) -> [u8; 32] {
        self.say(&[&[1, 1][..], &ID].concat()).await;
        assert_eq!(self.hear().await, [1, 1]);
        self.export(b"EXPORTER-peerpods-session", Some(&ID))
    }

    async fn resume(&mut self, secret: &[u8; 32], epoch: u64, received: u64) {
        let mac = self.mac(secret, "node", epoch, received);
        self.say(&[&[1, 2][..], &ID, &epoch.to_be_bytes(), &received.to_be_bytes(), &mac].concat()).await;
    }

    /// Expects that the resume was accepted, and returns what the guest has received.
    async fn resumed(&mut self, secret: &[u8; 32], epoch: u64) -> u64 {
        assert_eq!(self.hear().await, [1, 2]);
        let received = u64::from_be_bytes(self.hear().await);
        assert_eq!(self.hear().await, self.mac(secret, "guest", epoch, received));
        received
    }

    fn mac(&self, secret: &[u8; 32], speaker: &str, epoch: u64, received: u64) -> [u8; 32] {
        let exporter = self.export(b"EXPORTER-peerpods-resume", None);
        let prefix = format!("peerpods-resume/1 {speaker}\0");
        let message = [prefix.as_bytes(), &exporter, &ID, &epoch.to_be_bytes(), &received.to_be_bytes()].concat();
        hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), &message).as_ref().try_into().unwrap()
    }
}

struct Scene {
    world: World,
    vm: PodVm,
}

impl Scene {
    async fn set_up() -> Self {
        let world = World::new();
        let vm = PodVm::boot_with(&world.ca, GuestLimits::default(), ResumeOptions::default()).await;
        world.bind(&vm).await.unwrap();
        Self { world, vm }
    }

    async fn connect(&self) -> Connection {
        Connection::new(self.vm.addr, &self.world.key).await
    }

    async fn open(&mut self) -> (Connection, [u8; 32], AgentStream) {
        let mut connection = self.connect().await;
        let secret = connection.open().await;
        let guest = timeout(PATIENCE, self.vm.streams.recv()).await.unwrap().unwrap();
        (connection, secret, guest)
    }
}

#[tokio::test]
async fn resume_fences_the_connection_before_it() {
    let mut scene = Scene::set_up().await;
    let (mut old, secret, mut guest) = scene.open().await;
    // The frame announces six bytes; three arrive.
    old.frame(DATA, 0, 6, b"abc").await;
    let mut read = [0; 3];
    guest.read_exact(&mut read).await.unwrap();
    let mut new = scene.connect().await;
    new.resume(&secret, 1, 0).await;
    assert_eq!(new.resumed(&secret, 1).await, 3);
    // What the old connection still says is not heard.
    let _ = old.0.write_all(b"XYZ").await;
    let _ = old.0.flush().await;
    old.is_over().await;
    new.frame(DATA, 3, 3, b"def").await;
    guest.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"def");
    // And the guest answers on the new one, from where the node said it was.
    guest.write_all(b"!").await.unwrap();
    let header: [u8; 14] = loop {
        let header: [u8; 13] = new.hear().await;
        if header[0] == DATA {
            let [byte] = new.hear().await;
            break [&header[..], &[byte]].concat().try_into().unwrap();
        }
    };
    assert_eq!(header, *b"\x01\0\0\0\0\0\0\0\0\0\0\0\x01!");
}

#[tokio::test]
async fn resume_is_refused_by_kind_and_leaves_the_session_alone() {
    let mut scene = Scene::set_up().await;
    let (mut first, secret, mut guest) = scene.open().await;
    let mut current = scene.connect().await;
    current.resume(&secret, 5, 0).await;
    current.resumed(&secret, 5).await;
    first.is_over().await;

    let mut stale = scene.connect().await;
    stale.resume(&secret, 5, 0).await;
    assert_eq!(stale.hear().await, [1, 17]);
    let mut forged = scene.connect().await;
    forged.resume(&[0; 32], 6, 0).await;
    assert_eq!(forged.hear().await, [1, 18]);
    // A MAC that is right for one connection is carried over to another one.
    let (donor, mut carried) = (scene.connect().await, scene.connect().await);
    let mac = donor.mac(&secret, "node", 6, 0);
    carried.say(&[&[1, 2][..], &ID, &6u64.to_be_bytes(), &0u64.to_be_bytes(), &mac].concat()).await;
    assert_eq!(carried.hear().await, [1, 18]);
    let mut twice = scene.connect().await;
    twice.say(&[&[1, 1][..], &ID].concat()).await;
    assert_eq!(twice.hear().await, [1, 20]);
    let mut unknown = scene.connect().await;
    unknown.say(&[&[1, 2][..], &[0; 64]].concat()).await;
    assert_eq!(unknown.hear().await, [1, 16]);
    let mut later = scene.connect().await;
    later.say(&[2, 1]).await;
    assert_eq!(later.hear().await, [1, 21]);

    current.frame(DATA, 0, 2, b"ok").await;
    let mut read = [0; 2];
    guest.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"ok");
}

#[tokio::test]
async fn session_belongs_to_the_key_that_opened_it() {
    let world = World::new();
    let other = NodeKey::generate().unwrap();
    let mut vm = PodVm::boot(&world.ca).await;
    let mut request = world.request();
    request.agent_keys.push(other.spki_sha256_hex());
    let check = world::check;
    peerpods_tunnel::node::bind(vm.addr, world::INSTANCE, &world.credential(), &request, check, PATIENCE).await.unwrap();
    let mut connection = Connection::new(vm.addr, &world.key).await;
    let secret = connection.open().await;
    let _guest = vm.streams.recv().await.unwrap();
    let mut thief = Connection::new(vm.addr, &other).await;
    thief.resume(&secret, 1, 0).await;
    assert_eq!(thief.hear().await, [1, 16]);
}

#[tokio::test]
async fn peer_that_breaks_the_protocol_loses_the_session() {
    let mut scene = Scene::set_up().await;
    let violations: [(u8, u64, u32, &str); 6] = [
        (DATA, 1, 4, "data out of order"),
        (DATA, 0, 65_537, "unknown frame"),
        (DATA, 0, 0, "unknown frame"),
        (ACK, 1, 0, "acknowledgement of bytes that were not sent"),
        (5, 1, 0, "end out of order"),
        (77, 0, 0, "unknown frame"),
    ];
    for (kind, number, len, why) in violations {
        let (mut connection, _, guest) = scene.open().await;
        connection.frame(kind, number, len, b"").await;
        let mut state = guest.state();
        let state = timeout(PATIENCE, state.wait_for(|state| *state != StreamState::Connected)).await.unwrap().unwrap().clone();
        assert_eq!(state, StreamState::Lost(SessionLost::Protocol(why)));
        connection.is_over().await;
    }
}

#[tokio::test]
async fn resume_at_a_byte_that_was_never_sent_loses_the_session() {
    let mut scene = Scene::set_up().await;
    let (_connection, secret, mut guest) = scene.open().await;
    let mut new = scene.connect().await;
    new.resume(&secret, 1, 1000).await;
    let error = timeout(PATIENCE, guest.read_u8()).await.unwrap().unwrap_err();
    assert!(matches!(SessionLost::find(&error), Some(SessionLost::Protocol(_))), "{error}");
}

#[tokio::test]
async fn sender_that_ignores_the_window_loses_the_session() {
    let mut scene = Scene::set_up().await;
    let (mut connection, _, mut guest) = scene.open().await;
    let block = vec![0; 64 << 10];
    let mut seq = 0u64;
    // Nobody reads: 128 blocks are the window.
    while seq <= 128 * 65_536 {
        let header = [&[DATA][..], &seq.to_be_bytes(), &65_536u32.to_be_bytes()].concat();
        if connection.0.write_all(&[&header[..], &block].concat()).await.is_err() {
            break;
        }
        seq += 65_536;
    }
    let _ = connection.0.flush().await;
    let mut state = guest.state();
    let state = timeout(PATIENCE, state.wait_for(|state| *state != StreamState::Connected)).await.unwrap().unwrap().clone();
    assert_eq!(state, StreamState::Lost(SessionLost::Protocol("more data than the window allows")));
    let mut arrived = Vec::new();
    guest.read_to_end(&mut arrived).await.unwrap_err();
    assert!(arrived.len() <= 8 << 20);
}

#[tokio::test]
async fn streams_over_the_limit_or_that_nobody_takes_are_refused_as_busy() {
    let world = World::new();
    let limits = GuestLimits { sessions: 2, ..GuestLimits::default() };
    let mut vm = PodVm::boot_with(&world.ca, limits, ResumeOptions::default()).await;
    world.bind(&vm).await.unwrap();
    let mut held = Vec::new();
    for number in 0..3u8 {
        let mut connection = Connection::new(vm.addr, &world.key).await;
        connection.say(&[&[1, 1][..], &[number; 16]].concat()).await;
        let expected = if number < 2 { [1, 1] } else { [1, 19] };
        assert_eq!(connection.hear().await, expected);
        held.push(connection);
    }
    assert!(vm.streams.recv().await.is_some());
}
