//! Client and service over a real unix socket.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use peerpods_claims::{Claim, ClaimError, ClaimRequest, ClaimState, Claims, Client, Mib, PodRef, StateStream, bind_socket, serve};
use tokio::sync::{oneshot, watch};
use tokio_stream::wrappers::WatchStream;

/// A service that remembers claims and lets the test set their state.
#[derive(Default)]
struct Fake {
    claims: Mutex<BTreeMap<String, watch::Sender<ClaimState>>>,
    last: Mutex<Option<ClaimRequest>>,
}

impl Fake {
    fn set(&self, key: &str, state: ClaimState) {
        self.claims
            .lock()
            .expect("not poisoned")
            .entry(key.to_owned())
            .or_insert_with(|| watch::channel(ClaimState::Gone).0)
            .send_replace(state);
    }

    fn state(&self, key: &str) -> ClaimState {
        self.claims.lock().expect("not poisoned").get(key).map_or(ClaimState::Gone, |sender| sender.borrow().clone())
    }
}

#[async_trait]
impl Claims for Fake {
    async fn claim(&self, request: ClaimRequest) -> Result<Claim, ClaimError> {
        match request.key.as_str() {
            "taken" => return Err(ClaimError::InUse { detail: "another memory".to_owned() }),
            "down" => return Err(ClaimError::Unavailable { detail: "disk full".to_owned() }),
            "slow" => std::future::pending().await,
            _ => {}
        }
        *self.last.lock().expect("not poisoned") = Some(request.clone());
        self.set(&request.key, ClaimState::Pending { phase: "intended".to_owned() });
        Ok(Claim { state: self.state(&request.key), key: request.key })
    }

    async fn get(&self, key: &str) -> Result<Claim, ClaimError> {
        Ok(Claim { key: key.to_owned(), state: self.state(key) })
    }

    async fn watch(&self, key: &str) -> Result<StateStream, ClaimError> {
        self.set(key, self.state(key));
        let states = self.claims.lock().expect("not poisoned")[key].subscribe();
        let key = key.to_owned();
        Ok(Box::pin(WatchStream::new(states).map(move |state| Ok(Claim { key: key.clone(), state }))))
    }

    async fn release(&self, key: &str) -> Result<(), ClaimError> {
        self.set(key, ClaimState::Gone);
        Ok(())
    }
}

struct Served {
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

fn start(socket: &Path, service: &Arc<Fake>) -> Served {
    let listener = bind_socket(socket).expect("binds");
    let (stop, stopped) = oneshot::channel();
    let service: Arc<dyn Claims> = Arc::clone(service) as _;
    let task = tokio::spawn(async move { serve(listener, service, async { drop(stopped.await) }).await.expect("serves") });
    Served { stop, task }
}

impl Served {
    async fn stop(self) {
        self.stop.send(()).expect("still serves");
        self.task.await.expect("no panic");
    }
}

fn request(key: &str) -> ClaimRequest {
    ClaimRequest {
        key: key.to_owned(),
        pod: PodRef::new("default", "web", Some("uid-1".to_owned())).expect("valid"),
        class: Some("default".to_owned()),
        vcpus: 0.5,
        memory: Mib(512),
        image: None,
        instance_type: Some("small".to_owned()),
        node: "node-1".to_owned(),
        node_spki: vec![1, 2, 3],
    }
}

fn socket() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("run/claims.sock");
    (folder, socket)
}

#[tokio::test]
async fn calls_arrive_whole_and_errors_keep_their_kind() {
    let (_folder, socket) = socket();
    let service = Arc::new(Fake::default());
    let served = start(&socket, &service);
    assert_eq!(std::fs::metadata(&socket).expect("is there").permissions().mode() & 0o777, 0o600);
    let client = Client::connect(&socket);
    let claim = client.claim(request("web")).await.expect("claimed");
    assert_eq!(claim.state, ClaimState::Pending { phase: "intended".to_owned() });
    assert_eq!(service.last.lock().expect("not poisoned").as_ref(), Some(&request("web")));
    assert_eq!(client.get("never").await.expect("answers").state, ClaimState::Gone);
    client.release("web").await.expect("released");
    assert_eq!(client.get("web").await.expect("answers").state, ClaimState::Gone);

    assert_eq!(client.claim(request("taken")).await, Err(ClaimError::InUse { detail: "another memory".to_owned() }));
    let down = client.claim(request("down")).await.expect_err("is down");
    assert!(down.is_retryable() && down.to_string().contains("disk full"), "{down}");
    let invalid = client.claim(ClaimRequest { vcpus: f32::NAN, ..request("web") }).await.expect_err("no number");
    assert!(matches!(&invalid, ClaimError::Invalid { detail } if detail.contains("vcpus")), "{invalid}");
    let invalid = client.claim(ClaimRequest { node_spki: vec![0; 2000], ..request("web") }).await.expect_err("too long");
    assert!(matches!(&invalid, ClaimError::Invalid { detail } if detail.contains("node_spki")), "{invalid}");
    client.claim(ClaimRequest { image: Some("x".repeat(100_000)), ..request("web") }).await.expect_err("larger than any message");
    served.stop().await;
}

#[tokio::test]
async fn watch_gives_the_state_now_and_each_change() {
    let (_folder, socket) = socket();
    let service = Arc::new(Fake::default());
    let served = start(&socket, &service);
    let client = Client::connect(&socket);
    client.claim(request("web")).await.expect("claimed");
    let mut states = client.watch("web").await.expect("watches");
    let failed = ClaimState::Failed { during: "launching".to_owned(), cause: "quota".to_owned() };
    assert!(matches!(states.next().await, Some(Ok(Claim { state: ClaimState::Pending { .. }, .. }))));
    service.set("web", failed.clone());
    assert_eq!(states.next().await.and_then(Result::ok).map(|claim| claim.state), Some(failed));
    // A service that stops ends its watches within the drain limit.
    served.stop().await;
    let end = tokio::time::timeout(Duration::from_secs(30), states.next()).await.expect("the stream ends");
    assert!(!matches!(end, Some(Ok(_))), "{end:?}");
}

#[tokio::test]
async fn client_dials_lazily_and_again_after_a_restart() {
    let (_folder, socket) = socket();
    let client = Client::connect(&socket);
    let early = client.get("web").await.expect_err("nobody listens");
    assert!(early.is_retryable(), "{early}");
    let service = Arc::new(Fake::default());
    let served = start(&socket, &service);
    client.get("web").await.expect("dials with the next call");
    served.stop().await;
    let between = client.get("web").await.expect_err("nobody listens");
    assert!(between.is_retryable(), "{between}");
    let served = start(&socket, &service);
    client.get("web").await.expect("dials again over the socket that was left");
    served.stop().await;
}

#[tokio::test]
async fn calls_have_a_deadline() {
    let (_folder, socket) = socket();
    let service = Arc::new(Fake::default());
    let served = start(&socket, &service);
    let client = Client::connect(&socket);
    client.get("web").await.expect("is connected");
    tokio::time::pause();
    assert_eq!(client.claim(request("slow")).await, Err(ClaimError::DeadlineExceeded));
    served.task.abort();
}
