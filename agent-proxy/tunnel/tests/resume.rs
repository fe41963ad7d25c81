//! Agent streams over a network that cuts, stalls and lies: no byte is lost or doubled, and a lost session says so.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use std::time::Duration;

use peerpods_tunnel::guest::GuestLimits;
use peerpods_tunnel::node::AgentDialer;
use peerpods_tunnel::{AgentStream, ResumeOptions, SessionLost, StreamState};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use world::link::{Proxy, Side, Weather};
use world::{PodVm, World};

const PATIENCE: Duration = Duration::from_secs(30);

/// Short waits; nothing but time differs from the defaults.
fn quick() -> ResumeOptions {
    ResumeOptions {
        budget: Duration::from_secs(20),
        user_timeout: Duration::from_millis(400),
        ping_interval: Duration::from_millis(100),
        silence: Duration::from_millis(300),
        dial_timeout: Duration::from_millis(1000),
        ..ResumeOptions::default()
    }
}

fn no_limits() -> GuestLimits {
    GuestLimits { handshakes_per_sec: 10_000, handshake_burst: 10_000, ..GuestLimits::default() }
}

/// A bound VM behind a proxy.
struct Scene {
    vm: PodVm,
    proxy: Proxy,
    dialer: AgentDialer,
}

impl Scene {
    async fn set_up(options: ResumeOptions) -> Self {
        Self::set_up_with(options.clone(), options).await
    }

    async fn set_up_with(node: ResumeOptions, guest: ResumeOptions) -> Self {
        let world = World::new();
        let vm = PodVm::boot_with(&world.ca, no_limits(), guest).await;
        let pin = world.bind(&vm).await.unwrap().pin;
        let proxy = Proxy::start(vm.addr).await;
        let dialer = AgentDialer::new(proxy.addr, world.key.clone(), pin, node);
        Self { vm, proxy, dialer }
    }

    async fn open(&mut self) -> (AgentStream, AgentStream) {
        let node = self.dialer.connect().await.unwrap();
        (node, timeout(PATIENCE, self.vm.streams.recv()).await.unwrap().unwrap())
    }
}

/// Bytes that differ at every position of a period longer than any buffer.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&(state >> 16).to_be_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Sends in pieces and, at the same time, receives to the end.
async fn exchange(stream: AgentStream, send: Vec<u8>, piece: usize, pause: Duration) -> Vec<u8> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let write = async {
        for part in send.chunks(piece) {
            writer.write_all(part).await.unwrap();
            if !pause.is_zero() {
                sleep(pause).await;
            }
        }
        writer.shutdown().await.unwrap();
    };
    let mut received = Vec::new();
    let (_, read) = tokio::join!(write, reader.read_to_end(&mut received));
    read.unwrap();
    received
}

async fn until(stream: &AgentStream, what: impl Fn(&StreamState) -> bool) -> StreamState {
    timeout(PATIENCE, stream.state().wait_for(|state| what(state))).await.unwrap().unwrap().clone()
}

#[tokio::test]
async fn bytes_and_end_pass_in_both_directions() {
    let mut scene = Scene::set_up(quick()).await;
    let (node, guest) = scene.open().await;
    let (up, down) = (pattern(1, 3 << 20), pattern(2, 5 << 20));
    let states = (node.state(), guest.state());
    let (at_node, at_guest) =
        tokio::join!(exchange(node, up.clone(), 100_000, Duration::ZERO), exchange(guest, down.clone(), 7_777, Duration::ZERO));
    assert!(at_guest == up && at_node == down);
    for mut state in [states.0, states.1] {
        let last = timeout(PATIENCE, state.wait_for(|state| !matches!(state, StreamState::Connected))).await.unwrap();
        assert_eq!(*last.unwrap(), StreamState::Closed);
    }
    assert_eq!(scene.proxy.dials(), 1);
}

#[tokio::test]
async fn black_hole_longer_than_the_limits_is_survived_from_another_port() {
    let mut scene = Scene::set_up(quick()).await;
    let (node, guest) = scene.open().await;
    let state = node.state();
    let (up, down) = (pattern(3, 1 << 20), pattern(4, 1 << 20));
    let mut both = JoinSet::new();
    both.spawn(exchange(node, up.clone(), 16_384, Duration::from_millis(5)));
    both.spawn(exchange(guest, down.clone(), 16_384, Duration::from_millis(5)));
    sleep(Duration::from_millis(50)).await;
    scene.proxy.set(Weather::BlackHole);
    let mut seen = state.clone();
    timeout(PATIENCE, seen.wait_for(|state| matches!(state, StreamState::Resuming { .. }))).await.unwrap().unwrap();
    sleep(Duration::from_millis(500)).await;
    scene.proxy.set(Weather::Fair);
    let received = both.join_all().await;
    assert!(received.contains(&up) && received.contains(&down));
    let ports = scene.proxy.ports.lock().await.clone();
    assert!(ports.len() >= 2 && ports.windows(2).all(|pair| pair[0] != pair[1]), "{ports:?}");
}

#[tokio::test]
async fn idle_stream_is_kept_alive_by_pings_alone() {
    let mut scene = Scene::set_up(quick()).await;
    let (mut node, mut guest) = scene.open().await;
    // Longer than the silence limit, with nothing to say.
    sleep(Duration::from_secs(1)).await;
    assert_eq!(scene.proxy.dials(), 1);
    node.write_all(b"still there?").await.unwrap();
    let mut read = [0; 12];
    guest.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"still there?");
}

#[tokio::test]
async fn reader_that_does_not_read_blocks_its_writer_and_nothing_else() {
    let mut scene = Scene::set_up(quick()).await;
    let (mut node, mut guest) = scene.open().await;
    let data = pattern(5, 24 << 20);
    let mut written = 0;
    while let Ok(result) = timeout(Duration::from_millis(700), node.write(&data[written..])).await {
        written += result.unwrap();
    }
    assert!((7 << 20..=8 << 20).contains(&written), "{written}");
    // The other direction flows, and nobody takes the silence of this one for a fault.
    let mut back = vec![0; data.len()];
    let (sent, read) = tokio::join!(guest.write_all(&data), node.read_exact(&mut back));
    sent.unwrap();
    read.unwrap();
    assert!(back == data);
    assert_eq!(scene.proxy.dials(), 1);
    // The writer goes on when the reader does.
    let mut all = vec![0; data.len()];
    let (sent, read) = tokio::join!(node.write_all(&data[written..]), guest.read_exact(&mut all));
    sent.unwrap();
    read.unwrap();
    assert!(all == data);
}

#[tokio::test]
async fn writes_during_an_outage_arrive_after_it() {
    let mut scene = Scene::set_up(quick()).await;
    let (mut node, mut guest) = scene.open().await;
    scene.proxy.set(Weather::Down);
    scene.proxy.cut(Side::Both);
    until(&node, |state| matches!(state, StreamState::Resuming { .. })).await;
    let data = pattern(6, 4 << 20);
    node.write_all(&data).await.unwrap();
    scene.proxy.set(Weather::Fair);
    let mut received = vec![0; data.len()];
    timeout(PATIENCE, guest.read_exact(&mut received)).await.unwrap().unwrap();
    assert!(received == data);
    until(&node, |state| *state == StreamState::Connected).await;
}

#[tokio::test]
async fn session_is_lost_after_the_budget_at_both_ends() {
    let options = ResumeOptions { budget: Duration::from_millis(600), ..quick() };
    let mut scene = Scene::set_up(options).await;
    let (mut node, mut guest) = scene.open().await;
    guest.write_all(b"last words").await.unwrap();
    let mut read = [0; 4];
    node.read_exact(&mut read).await.unwrap();
    scene.proxy.set(Weather::Down);
    scene.proxy.cut(Side::Both);
    for stream in [&mut node, &mut guest] {
        let state = until(stream, |state| matches!(state, StreamState::Lost(_))).await;
        assert!(matches!(state, StreamState::Lost(SessionLost::GaveUp { .. })), "{state:?}");
    }
    // What had arrived can be read; then the loss shows, typed.
    let mut rest = Vec::new();
    let error = node.read_to_end(&mut rest).await.unwrap_err();
    assert_eq!(rest, b" words");
    assert!(matches!(SessionLost::find(&error), Some(SessionLost::GaveUp { .. })), "{error}");
    let error = guest.write_all(b"x").await.unwrap_err();
    assert!(matches!(SessionLost::find(&error), Some(SessionLost::GaveUp { .. })), "{error}");
}

#[tokio::test]
async fn end_that_gave_up_first_is_unknown_to_the_other() {
    let patient = ResumeOptions { budget: PATIENCE, ..quick() };
    let mut scene = Scene::set_up_with(patient, ResumeOptions { budget: Duration::from_millis(100), ..quick() }).await;
    let (mut node, guest) = scene.open().await;
    scene.proxy.set(Weather::Down);
    scene.proxy.cut(Side::Both);
    until(&guest, |state| matches!(state, StreamState::Lost(_))).await;
    scene.proxy.set(Weather::Fair);
    let error = timeout(PATIENCE, node.read_u8()).await.unwrap().unwrap_err();
    assert_eq!(SessionLost::find(&error), Some(&SessionLost::Unknown));
}

#[tokio::test]
async fn vm_that_restarted_is_a_lost_session_and_never_a_new_one() {
    let world = World::new();
    let mut vm = PodVm::boot_with(&world.ca, no_limits(), quick()).await;
    let addr = vm.addr;
    let pin = world.bind(&vm).await.unwrap().pin;
    let mut node = AgentDialer::new(addr, world.key.clone(), pin, quick()).connect().await.unwrap();
    // Held, so that nothing is closed in order.
    let mut guest = vm.streams.recv().await.unwrap();
    drop(vm);
    let error = timeout(PATIENCE, guest.read_u8()).await.unwrap().unwrap_err();
    assert_eq!(SessionLost::find(&error), Some(&SessionLost::ShutDown));
    let listener = world::link::listen_on(addr).await;
    let mut reborn = PodVm::boot_on(listener, &world.ca, no_limits(), quick());
    let error = timeout(PATIENCE, node.read_u8()).await.unwrap().unwrap_err();
    assert_eq!(SessionLost::find(&error), Some(&SessionLost::Unknown));
    assert!(reborn.streams.try_recv().is_err());
}

#[tokio::test]
async fn dropped_stream_delivers_what_was_written_and_ends_the_session() {
    let mut scene = Scene::set_up(quick()).await;
    let (mut node, mut guest) = scene.open().await;
    let data = pattern(7, 2 << 20);
    node.write_all(&data).await.unwrap();
    drop(node);
    scene.proxy.cut(Side::Both);
    let mut received = Vec::new();
    timeout(PATIENCE, guest.read_to_end(&mut received)).await.unwrap().unwrap();
    assert!(received == data);
    until(&guest, |state| *state == StreamState::Closed).await;
    let error = guest.write_all(b"x").await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn many_streams_share_a_vm_and_each_survives_cuts() {
    let mut scene = Scene::set_up(quick()).await;
    let mut work = JoinSet::new();
    for index in 0..8 {
        let (node, guest) = scene.open().await;
        work.spawn(async move {
            let (up, down) = (pattern(index, 300_000), pattern(index + 100, 500_000));
            let (at_node, at_guest) = tokio::join!(
                exchange(node, up.clone(), 5_000, Duration::from_millis(1)),
                exchange(guest, down.clone(), 9_000, Duration::from_millis(1))
            );
            assert!(at_guest == up && at_node == down, "stream {index}");
        });
    }
    for side in [Side::Node, Side::Guest, Side::Both] {
        sleep(Duration::from_millis(30)).await;
        scene.proxy.cut(side);
    }
    timeout(PATIENCE, work.join_all()).await.unwrap();
}

/// One way to disturb a transfer.
#[derive(Debug, Clone, Copy)]
enum Trouble {
    Cut(Side),
    BlackHole(Duration),
    Down(Duration),
}

fn trouble() -> impl Strategy<Value = Trouble> {
    let side = prop_oneof![Just(Side::Node), Just(Side::Guest), Just(Side::Both)];
    let millis = |range: std::ops::Range<u64>| range.prop_map(Duration::from_millis);
    prop_oneof![
        6 => side.prop_map(Trouble::Cut),
        1 => millis(1..700).prop_map(Trouble::BlackHole),
        1 => millis(1..200).prop_map(Trouble::Down),
    ]
}

proptest! {
    // Cases take real time, failing ones up to the patience: shrinking would take minutes and rarely hit the same moment.
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 0, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_byte_is_lost_or_doubled(
        sizes in (0usize..3_000_000, 0usize..3_000_000),
        pieces in (1usize..150_000, 1usize..150_000),
        window in prop_oneof![Just(8usize << 20), 1_000usize..300_000],
        troubles in proptest::collection::vec((0u64..60, trouble()), 0..8),
        threads in 1usize..3,
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build().unwrap();
        runtime.block_on(async {
            let mut scene = Scene::set_up(ResumeOptions { window, ..quick() }).await;
            let (node, guest) = scene.open().await;
            // A small window passes once for each delayed acknowledgement, some 40 times a second.
            let sizes = (sizes.0.min(window * 100), sizes.1.min(window * 100));
            let (up, down) = (pattern(11, sizes.0), pattern(12, sizes.1));
            // Tiny pieces of a large transfer would only take long.
            let piece = (pieces.0.max(sizes.0 / 200), pieces.1.max(sizes.1 / 200));
            let pause = Duration::from_millis(1);
            let mut transfer = JoinSet::new();
            let (to_guest, to_node) = (up.clone(), down.clone());
            transfer.spawn(async move { ("node", exchange(node, to_guest, piece.0, pause).await) });
            transfer.spawn(async move { ("guest", exchange(guest, to_node, piece.1, pause).await) });
            for (wait, trouble) in troubles {
                sleep(Duration::from_millis(wait)).await;
                match trouble {
                    Trouble::Cut(side) => scene.proxy.cut(side),
                    Trouble::BlackHole(time) => {
                        scene.proxy.set(Weather::BlackHole);
                        sleep(time).await;
                        scene.proxy.set(Weather::Fair);
                    }
                    Trouble::Down(time) => {
                        scene.proxy.set(Weather::Down);
                        scene.proxy.cut(Side::Both);
                        sleep(time).await;
                        scene.proxy.set(Weather::Fair);
                    }
                }
            }
            while let Some(done) = timeout(PATIENCE, transfer.join_next()).await.expect("the transfer ends") {
                let (end, received) = done.unwrap();
                let expected = if end == "node" { &down } else { &up };
                assert_eq!(received.len(), expected.len(), "at the {end}");
                assert!(received == *expected, "at the {end}");
            }
        });
    }
}
