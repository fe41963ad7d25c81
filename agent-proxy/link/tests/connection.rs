//! A link between a shim and an agent that are both in this process: what passes, what is refused, what happens when the tunnel breaks.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use peerpods_link::dialer::{DialFailure, Dialer, Dialled};
use peerpods_link::frame::{BODY_LIMIT, Frame, FrameKind, FrameReader};
use peerpods_link::{Counts, serve};
use peerpods_protos::health::CheckRequest;
use peerpods_tunnel::{SessionLost, StreamState};
use protobuf::Message as _;
use tokio::io::{AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf, duplex, split};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use ttrpc::proto::{Code, Request, Response};

/// The agent's end of one connection.
struct AgentEnd {
    frames: FrameReader<ReadHalf<DuplexStream>>,
    writer: WriteHalf<DuplexStream>,
    state: watch::Sender<StreamState>,
}

/// Gives out the ends of in-memory pipes.
struct FakeDialer {
    ends: mpsc::Sender<AgentEnd>,
    dials: Arc<AtomicUsize>,
    refusal: Option<DialFailure>,
}

#[async_trait]
impl Dialer for FakeDialer {
    type Stream = DuplexStream;

    async fn dial(&self) -> Result<Dialled<DuplexStream>, DialFailure> {
        self.dials.fetch_add(1, Ordering::Relaxed);
        if let Some(refusal) = &self.refusal {
            return Err(refusal.clone());
        }
        let (ours, theirs) = duplex(64 << 10);
        let (reader, writer) = split(theirs);
        let (state, receiver) = watch::channel(StreamState::Connected);
        self.ends.send(AgentEnd { frames: FrameReader::new(reader), writer, state }).await.expect("the test waits");
        Ok(Dialled { stream: ours, state: receiver })
    }
}

/// A served link.
struct World {
    socket: PathBuf,
    ends: mpsc::Receiver<AgentEnd>,
    dials: Arc<AtomicUsize>,
    counts: Arc<Mutex<Counts>>,
    serving: JoinHandle<String>,
    _folder: tempfile::TempDir,
}

impl World {
    fn start(refusal: Option<DialFailure>) -> Self {
        let folder = tempfile::tempdir().expect("tempdir");
        let socket = folder.path().join("agent.ttrpc");
        let listener = tokio::net::UnixListener::bind(&socket).expect("bind");
        let (sender, ends) = mpsc::channel(4);
        let dials = Arc::new(AtomicUsize::new(0));
        let dialer = FakeDialer { ends: sender, dials: Arc::clone(&dials), refusal };
        let counts = Arc::new(Mutex::new(Counts::default()));
        let told = Arc::clone(&counts);
        let serving = tokio::spawn(serve(listener, Arc::new(dialer), move |new| *told.lock().expect("not poisoned") = new));
        Self { socket, ends, dials, counts, serving, _folder: folder }
    }

    async fn shim(&self) -> Shim {
        let (reader, writer) = UnixStream::connect(&self.socket).await.expect("the link listens").into_split();
        Shim { frames: FrameReader::new(reader), writer }
    }

    async fn agent(&mut self) -> AgentEnd {
        within(self.ends.recv()).await.expect("dialled")
    }

    async fn wait_for(&self, what: &str, holds: impl Fn(Counts) -> bool) {
        let limit = Instant::now() + Duration::from_secs(10);
        loop {
            let counts = *self.counts.lock().expect("not poisoned");
            if holds(counts) {
                return;
            }
            assert!(Instant::now() < limit, "{what}: {counts:?}");
            tokio::task::yield_now().await;
        }
    }
}

struct Shim {
    frames: FrameReader<tokio::net::unix::OwnedReadHalf>,
    writer: tokio::net::unix::OwnedWriteHalf,
}

impl Shim {
    async fn send(&mut self, bytes: &[u8]) {
        self.writer.write_all(bytes).await.expect("the link reads");
    }

    async fn receive(&mut self) -> Frame {
        within(self.frames.next()).await.expect("valid").expect("a frame")
    }

    async fn receive_end(&mut self) {
        assert!(within(self.frames.next()).await.expect("closed between frames").is_none());
    }
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(20), work).await.expect("in time")
}

fn header(stream_id: u32, kind: u8, len: usize) -> Vec<u8> {
    let mut bytes = u32::try_from(len).expect("fits").to_be_bytes().to_vec();
    bytes.extend(stream_id.to_be_bytes());
    bytes.extend([kind, 0]);
    bytes
}

fn frame(stream_id: u32, kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = header(stream_id, kind, body.len());
    bytes.extend(body);
    bytes
}

fn call(stream_id: u32, service: &str, method: &str, payload: Vec<u8>) -> Vec<u8> {
    let mut request = Request::new();
    request.service = service.to_owned();
    request.method = method.to_owned();
    request.payload = payload;
    frame(stream_id, 1, &request.write_to_bytes().expect("encodes"))
}

fn health_check(stream_id: u32) -> Vec<u8> {
    call(stream_id, "grpc.Health", "Check", CheckRequest::new().write_to_bytes().expect("encodes"))
}

fn status(frame: &Frame) -> (u32, Code, String) {
    assert_eq!(frame.header.kind, Ok(FrameKind::Response));
    let response = Response::parse_from_bytes(frame.body()).expect("a response");
    let status = response.status.unwrap_or_default();
    (frame.header.stream_id, status.code.enum_value_or_default(), status.message)
}

fn resuming() -> StreamState {
    StreamState::Resuming { since: Instant::now() }
}

#[tokio::test]
async fn frames_of_4_mib_pass_both_ways_unchanged() {
    let mut world = World::start(None);
    let mut shim = world.shim().await;
    let body: Vec<u8> = (0..BODY_LIMIT).map(|i| u8::try_from(i % 251).expect("small")).collect();
    let there = frame(1, 1, &body);
    let sent = tokio::spawn(async move {
        shim.send(&there).await;
        (shim, there)
    });
    let mut agent = world.agent().await;
    let got = within(agent.frames.next()).await.expect("valid").expect("a frame");
    let (mut shim, there) = sent.await.expect("sent");
    assert!(got.bytes == there, "changed on the way to the agent");
    let back = frame(1, 2, &body);
    let expected = back.clone();
    let sent = tokio::spawn(async move { agent.writer.write_all(&back).await.map(|()| agent) });
    assert!(shim.receive().await.bytes == expected, "changed on the way to the shim");
    let _agent = within(sent).await.expect("joined").expect("written");
}

#[tokio::test]
async fn frame_above_4_mib_is_answered_with_an_error_and_the_next_one_passes() {
    let mut world = World::start(None);
    let mut shim = world.shim().await;
    shim.send(&call(1, "grpc.AgentService", "CreateSandbox", vec![])).await;
    let mut agent = world.agent().await;
    within(agent.frames.next()).await.expect("valid").expect("a frame");
    let mut too_long = header(3, 1, BODY_LIMIT + 1);
    too_long.resize(too_long.len() + BODY_LIMIT + 1, 7);
    shim.send(&too_long).await;
    let (stream_id, code, message) = status(&shim.receive().await);
    assert_eq!((stream_id, code), (3, Code::INVALID_ARGUMENT));
    assert!(message.contains("4194305"), "{message}");
    let next = call(5, "grpc.AgentService", "GetGuestDetails", vec![]);
    shim.send(&next).await;
    assert_eq!(within(agent.frames.next()).await.expect("valid").expect("a frame").bytes, next);
    // From the other side: the shim's call ends with an error, the connection lives.
    agent.writer.write_all(&header(5, 2, BODY_LIMIT + 1)).await.expect("written");
    for _ in 0..=BODY_LIMIT / 4096 {
        agent.writer.write_all(&[7; 4096]).await.expect("written");
    }
    let (stream_id, code, _) = status(&shim.receive().await);
    assert_eq!((stream_id, code), (5, Code::INTERNAL));
}

#[tokio::test]
async fn half_a_frame_never_reaches_the_agent_and_is_answered_with_an_error() {
    let mut world = World::start(None);
    let mut shim = world.shim().await;
    shim.send(&call(1, "grpc.AgentService", "CreateSandbox", vec![])).await;
    let mut agent = world.agent().await;
    within(agent.frames.next()).await.expect("valid").expect("a frame");
    let whole = frame(3, 1, &[1; 1000]);
    shim.send(&whole[..600]).await;
    shim.writer.shutdown().await.expect("half closed");
    let (stream_id, code, message) = status(&shim.receive().await);
    assert_eq!((stream_id, code), (3, Code::INVALID_ARGUMENT));
    assert!(message.contains("600 of 1010"), "{message}");
    shim.receive_end().await;
    assert!(within(agent.frames.next()).await.expect("closed between frames").is_none());
}

#[tokio::test]
async fn unknown_frame_type_closes_the_connection_with_an_error() {
    let world = World::start(None);
    let mut shim = world.shim().await;
    shim.send(&frame(1, 9, b"?")).await;
    let (stream_id, code, message) = status(&shim.receive().await);
    assert_eq!((stream_id, code), (1, Code::INVALID_ARGUMENT));
    assert!(message.contains("0x09"), "{message}");
    shim.receive_end().await;
    assert_eq!(world.dials.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn health_check_is_answered_while_resuming_and_nothing_else_is() {
    let mut world = World::start(None);
    let mut shim = world.shim().await;
    // This one is on its way when the loss is noticed.
    shim.send(&health_check(1)).await;
    let mut agent = world.agent().await;
    within(agent.frames.next()).await.expect("valid").expect("a frame");
    agent.state.send_replace(resuming());
    assert_eq!(status(&shim.receive().await).0, 1);
    // This one comes during it.
    shim.send(&health_check(3)).await;
    let answered = shim.receive().await;
    assert_eq!((status(&answered).0, status(&answered).1), (3, Code::OK));
    world.wait_for("resuming is shown", |counts| counts.resuming == 1).await;
    // Another call waits in the tunnel.
    let other = call(5, "grpc.AgentService", "GetMetrics", vec![]);
    shim.send(&other).await;
    assert_eq!(within(agent.frames.next()).await.expect("valid").expect("a frame").bytes, other, "3 was not sent on");
    agent.state.send_replace(StreamState::Connected);
    world.wait_for("resuming is over", |counts| counts.resuming == 0).await;
    // The agent's late answer to 1 is dropped; the one to 5 comes through.
    agent.writer.write_all(&frame(1, 2, b"late")).await.expect("written");
    let answer = frame(5, 2, b"answer");
    agent.writer.write_all(&answer).await.expect("written");
    assert_eq!(shim.receive().await.bytes, answer);
    // And once more the agent answers for itself.
    shim.send(&health_check(7)).await;
    assert_eq!(within(agent.frames.next()).await.expect("valid").expect("a frame").header.stream_id, 7);
    let own = frame(7, 2, b"own");
    agent.writer.write_all(&own).await.expect("written");
    assert_eq!(shim.receive().await.bytes, own);
}

#[tokio::test]
async fn silent_second_connection_costs_no_session_and_its_end_harms_nobody() {
    let mut world = World::start(None);
    let mut first = world.shim().await;
    let second = world.shim().await;
    first.send(&health_check(1)).await;
    let mut agent = world.agent().await;
    world.wait_for("both are counted", |counts| counts.connections == 2 && counts.accepted == 2).await;
    assert_eq!(world.dials.load(Ordering::Relaxed), 1);
    drop(second);
    world.wait_for("one is left", |counts| counts.connections == 1).await;
    within(agent.frames.next()).await.expect("valid").expect("a frame");
    agent.writer.write_all(&frame(1, 2, b"ok")).await.expect("written");
    assert_eq!(first.receive().await.body(), b"ok");
}

#[tokio::test]
async fn lost_session_closes_every_connection_and_ends_the_link_with_its_reason() {
    let mut world = World::start(None);
    let mut first = world.shim().await;
    let mut second = world.shim().await;
    first.send(&health_check(1)).await;
    let agent = world.agent().await;
    agent.state.send_replace(StreamState::Lost(SessionLost::Unknown));
    let reason = within(&mut world.serving).await.expect("ended");
    assert!(reason.contains("does not know the session"), "{reason}");
    first.receive_end().await;
    second.receive_end().await;
}

#[tokio::test]
async fn pod_vm_that_refuses_is_told_to_the_shim_at_once() {
    let world = World::start(Some(DialFailure { reason: "wrong key".to_owned(), is_final: true }));
    let mut shim = world.shim().await;
    shim.send(&health_check(1)).await;
    let (_, code, message) = status(&shim.receive().await);
    assert_eq!(code, Code::UNAVAILABLE);
    assert!(message.contains("wrong key"), "{message}");
    shim.receive_end().await;
    assert!(!world.serving.is_finished(), "the next connection may succeed");
}

#[tokio::test(start_paused = true)]
async fn pod_vm_that_does_not_answer_is_dialled_again_and_then_given_up() {
    let world = World::start(Some(DialFailure { reason: "no route".to_owned(), is_final: false }));
    let mut shim = world.shim().await;
    shim.send(&health_check(1)).await;
    let began = Instant::now();
    let frame = shim.frames.next().await.expect("valid").expect("a frame");
    assert_eq!(status(&frame).1, Code::UNAVAILABLE);
    assert!(began.elapsed() < Duration::from_secs(30), "the Go shim waits 30 s");
    assert!(world.dials.load(Ordering::Relaxed) > 10);
}

#[tokio::test]
async fn shim_that_hangs_up_ends_the_agents_stream() {
    let mut world = World::start(None);
    let mut shim = world.shim().await;
    shim.send(&health_check(1)).await;
    let mut agent = world.agent().await;
    within(agent.frames.next()).await.expect("valid").expect("a frame");
    drop(shim);
    assert!(within(agent.frames.next()).await.expect("closed between frames").is_none());
    world.wait_for("none is left", |counts| counts.connections == 0).await;
}
