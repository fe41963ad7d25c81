//! What the driver acts through: the controller, pod VMs, the kernel's network, links. Traits, so that tests can stand in for each and
//! fail each at will. Every method may be called again after it was cancelled, failed, or the daemon was killed during it.

mod controller;
mod images;
mod kernel;
mod link_process;
mod pod_vm;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use peerpods_claims::{Claim, ClaimError, ClaimRequest, ClaimStream};
use peerpods_evidence::{ReferenceValues, RootOfTrust};
use peerpods_tunnel::BindRequest;
use peerpods_tunnel::node::Pin;

use crate::id::SandboxId;

pub use images::{ImageResolver, ResolveFailure, Resolved};
pub use kernel::Kernel;
pub use link_process::LinkProcesses;
pub use pod_vm::TunnelBinder;

/// The controller.
#[async_trait]
pub trait Claims: Send + Sync + 'static {
    /// Wants a pod VM; durable at the controller when this returns. The same key and wish again gives the claim as it stands.
    async fn claim(&self, request: ClaimRequest) -> Result<Claim, ClaimError>;
    /// The claim as it stands, then each change; must be watched again after an error or the end.
    async fn watch(&self, key: &str) -> Result<ClaimStream, ClaimError>;
    /// Wants the pod VM no longer; durable when this returns. Unknown keys are no error.
    async fn release(&self, key: &str) -> Result<(), ClaimError>;
}

/// Pod VMs, before they have a pod.
#[async_trait]
pub trait PodVms: Send + Sync + 'static {
    /// Dials until `deadline`, verifies the evidence, gives the pod VM its pod. The same request again gives the same answer.
    ///
    /// `observer` is told of every try's evidence, and again before Bind is sent; if it refuses then, Bind is not sent.
    async fn bind(&self, target: BindTarget<'_>, observer: &mut (dyn BindObserver + Send)) -> Result<Bound, BindFailure>;
}

/// Whom to bind and to what.
#[derive(Debug, Clone, Copy)]
pub struct BindTarget<'a> {
    /// The cloud's name of the pod VM.
    pub instance_id: &'a str,
    /// Where it answers.
    pub address: IpAddr,
    /// The TEE whose evidence is wanted, whatever the pod VM says of itself.
    pub tee: &'a str,
    /// The certificates that let this node bind it, leaf first, DER.
    pub chain: &'a [Vec<u8>],
    /// The least that must stand behind its evidence.
    pub root_of_trust: RootOfTrust,
    /// What its image must be.
    pub reference_values: &'a ReferenceValues,
    /// What it is given.
    pub request: &'a BindRequest,
    /// The key of the pod VM that this request may have reached before: it alone may show that it is bound already, by this request.
    pub attested_key: Option<Pin>,
    /// For all tries together.
    pub deadline: Duration,
}

/// Who writes down how far a Bind is.
pub trait BindObserver {
    /// Evidence has arrived.
    fn evidence_arrived(&mut self) -> Result<(), String>;
    /// It is accepted, of a pod VM with this key; Bind will be sent once this has returned.
    fn attested(&mut self, key: Pin) -> Result<(), String>;
}

/// A pod VM that has its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// Its key.
    pub pin: Pin,
    /// From the connection to accepted evidence.
    pub attest_ms: u64,
}

/// Why a pod VM was not bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindFailure {
    /// What was being done, as in "attest the pod VM".
    pub during: &'static str,
    /// The chain of causes.
    pub cause: String,
    /// What a person may do next.
    pub advice: &'static str,
    /// Whether a new certificate may help: the controller is asked for one and the Bind is tried again.
    pub is_stale_credential: bool,
}

/// The kernel's network.
#[async_trait]
pub trait PodNetworks: Send + Sync + 'static {
    /// Fails, naming the namespace, if there is none at this path or it holds no pod interface.
    async fn inspect(&self, netns: &Path) -> Result<(), NetworkTrouble>;
    /// What Bind says of the pod's network, for a pod VM at that address.
    async fn describe(&self, netns: &Path, vm: IpAddr, vni: u32) -> Result<serde_json::Value, NetworkTrouble>;
    /// Makes packets flow between the namespace and the pod VM.
    async fn ensure(&self, netns: &Path, vm: IpAddr, vni: u32) -> Result<(), NetworkTrouble>;
    /// Undoes [`PodNetworks::ensure`]; a namespace that is gone is no error.
    async fn remove(&self, netns: &Path, vni: u32) -> Result<(), NetworkTrouble>;
    /// Whether a network namespace is still there.
    fn exists(&self, netns: &Path) -> bool;
}

/// What the network says, with its causes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NetworkTrouble(pub String);

/// Links of pods.
#[async_trait]
pub trait Links: Send + Sync + 'static {
    /// One link runs for the sandbox and listens.
    async fn ensure(&self, spec: &LinkSpec) -> Result<(), LinkTrouble>;
    /// None does; its shim's connections are closed.
    async fn stop(&self, id: &SandboxId) -> Result<(), LinkTrouble>;
    /// How it is.
    async fn report(&self, id: &SandboxId) -> LinkReport;
    /// Removes the sandbox's folder, once no link runs.
    async fn remove_folder(&self, id: &SandboxId) -> Result<(), LinkTrouble>;
    /// Where shims find the agent.
    fn socket(&self, id: &SandboxId) -> PathBuf;
}

/// What a link is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkSpec {
    /// The sandbox.
    pub sandbox_id: SandboxId,
    /// The pod VM.
    pub instance_id: String,
    /// Where it answers.
    pub address: IpAddr,
    /// Its key.
    pub pin: Pin,
    /// The pod's network namespace on the node; `None` for pods in the node's own.
    pub netns: Option<PathBuf>,
}

/// How a link is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkReport {
    /// It runs.
    Running {
        /// Connections of shims that are open now.
        connections: u32,
        /// Connections of shims so far.
        accepted: u64,
    },
    /// It ended because the session with the pod VM was lost; holds the reason.
    Lost(String),
    /// None runs.
    Absent,
}

/// Why a link cannot be started or stopped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LinkTrouble(pub String);

/// All four.
#[derive(Clone)]
pub struct Ports {
    /// The controller.
    pub claims: Arc<dyn Claims>,
    /// Pod VMs.
    pub pod_vms: Arc<dyn PodVms>,
    /// The kernel's network.
    pub networks: Arc<dyn PodNetworks>,
    /// Links.
    pub links: Arc<dyn Links>,
}

/// An error with all its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        // Some libraries repeat the cause in the message.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}
