//! A binder CA, a node and a pod VM over loopback, with evidence that anybody could write.
#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod link;
pub(crate) mod raw;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use peerpods_tunnel::credential::{BinderCa, Credential, NodeKey};
use peerpods_tunnel::guest::{BindHandler, GuestConfig, GuestEndpoint, GuestLimits, Streams};
use peerpods_tunnel::node::{BindError, Bound, EvidenceMessage, Verdict, bind};
use peerpods_tunnel::user_data::UserData;
use peerpods_tunnel::{AgentStream, BindRequest, Pod, Refusal, ResumeOptions};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

pub(crate) const INSTANCE: &str = "i-1";
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// The controller and one node.
pub(crate) struct World {
    pub(crate) ca: BinderCa,
    pub(crate) key: NodeKey,
}

impl World {
    pub(crate) fn new() -> Self {
        Self { ca: BinderCa::generate().unwrap(), key: NodeKey::generate().unwrap() }
    }

    pub(crate) fn credential(&self) -> Credential {
        self.issue(INSTANCE, "node-1", SystemTime::now())
    }

    pub(crate) fn issue(&self, instance: &str, node: &str, now: SystemTime) -> Credential {
        let chain = self.ca.issue(self.key.spki_der(), instance, node, now, Duration::from_secs(600)).unwrap();
        Credential { chain, key: self.key.clone() }
    }

    pub(crate) fn request(&self) -> BindRequest {
        BindRequest {
            version: 1,
            sandbox_id: "sandbox-1".to_owned(),
            pod: Pod { namespace: "default".to_owned(), name: "web".to_owned(), uid: None },
            network: serde_json::Value::Null,
            initdata: None,
            agent_keys: vec![self.key.spki_sha256_hex()],
        }
    }

    pub(crate) async fn bind(&self, vm: &PodVm) -> Result<Bound, BindError> {
        bind(vm.addr, INSTANCE, &self.credential(), &self.request(), check, DEADLINE).await
    }
}

/// Evidence of [`Counting`] is its report data.
pub(crate) fn check(message: &EvidenceMessage) -> Result<Verdict, String> {
    if message.evidence == message.report_data { Ok(Verdict::Trusted) } else { Err("report data differs".to_owned()) }
}

/// Counts calls, and gives the answers it is told to give.
#[derive(Default)]
pub(crate) struct Counting {
    pub(crate) evidence: AtomicUsize,
    pub(crate) binds: AtomicUsize,
    pub(crate) answer: Mutex<Option<Refusal>>,
    /// Replaces the evidence.
    pub(crate) lie: Mutex<Option<Vec<u8>>>,
    /// Given in place of the answer to a challenge, which is its bytes backwards.
    pub(crate) no_activation: Mutex<Option<Refusal>>,
}

#[derive(Clone, Default)]
pub(crate) struct Handler(pub(crate) Arc<Counting>);

#[async_trait]
impl BindHandler for Handler {
    async fn evidence(&self, report_data: [u8; 48]) -> Result<Vec<u8>, Refusal> {
        self.0.evidence.fetch_add(1, Ordering::SeqCst);
        Ok(self.0.lie.lock().unwrap().clone().unwrap_or_else(|| report_data.to_vec()))
    }

    async fn activate(&self, mut challenge: Vec<u8>) -> Result<Vec<u8>, Refusal> {
        challenge.reverse();
        self.0.no_activation.lock().unwrap().clone().map_or(Ok(challenge), Err)
    }

    async fn bind(&self, _request: &BindRequest) -> Result<(), Refusal> {
        self.0.binds.fetch_add(1, Ordering::SeqCst);
        match self.0.answer.lock().unwrap().clone() {
            Some(refusal) => Err(refusal),
            None => Ok(()),
        }
    }
}

/// A pod VM that serves until dropped.
pub(crate) struct PodVm {
    pub(crate) addr: SocketAddr,
    pub(crate) handler: Handler,
    pub(crate) streams: mpsc::Receiver<AgentStream>,
    pub(crate) forwards: mpsc::Receiver<AgentStream>,
    _task: JoinSet<()>,
}

impl PodVm {
    pub(crate) async fn boot(ca: &BinderCa) -> Self {
        Self::boot_with(ca, GuestLimits::default(), ResumeOptions::default()).await
    }

    pub(crate) async fn boot_with(ca: &BinderCa, limits: GuestLimits, resume: ResumeOptions) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::boot_on(listener, ca, limits, resume)
    }

    pub(crate) fn boot_on(listener: TcpListener, ca: &BinderCa, limits: GuestLimits, resume: ResumeOptions) -> Self {
        let handler = Handler::default();
        let config = GuestConfig { user_data: UserData::new(ca.spki_sha256_hex(), "sample"), instance_id: INSTANCE.to_owned() };
        let (endpoint, Streams { agents, forwards }) = GuestEndpoint::new(config, handler.clone()).unwrap();
        let endpoint = endpoint.with_limits(limits).with_resume_options(resume);
        let addr = listener.local_addr().unwrap();
        let mut task = JoinSet::new();
        task.spawn(async move { endpoint.serve(listener).await.unwrap() });
        Self { addr, handler, streams: agents, forwards, _task: task }
    }

    pub(crate) fn evidence_made(&self) -> usize {
        self.handler.0.evidence.load(Ordering::SeqCst)
    }

    pub(crate) fn binds_handled(&self) -> usize {
        self.handler.0.binds.load(Ordering::SeqCst)
    }
}
