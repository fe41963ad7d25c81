//! Bind: the pod's network, the measurement of its initdata, its agent and its workload API.
//!
//! Everything that can be wrong with a request is found before the initdata register is extended, because that cannot be undone: a
//! machine that refused after it is spent, which the channel remembers.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use peerpods_agent::{Agent, AgentConfig, AgentPolicy};
use peerpods_evidence::tpm::credential::Challenge;
use peerpods_network::{POD_NETNS, PodNetwork};
use peerpods_tunnel::guest::BindHandler;
use peerpods_tunnel::{BindRequest, Refusal, RefusalCode};
use serde::Deserialize as _;
use tokio::net::TcpListener;

use super::attestation::Attestation;
use super::initdata::PodConfig;
use super::rootfs::ImageRootfs;
use super::secrets::BrokerSecrets;
use super::workload_api::{self, WorkloadApi};
use super::{isolation, logs};
use crate::upstream::{Components, Upstream};
use crate::{console, scratch};

/// What a pod has, once there is one.
pub(super) type BoundPod = Arc<OnceLock<Pod>>;

/// A pod that is served.
pub(super) struct Pod {
    /// For agent streams.
    pub(super) agent: PodAgent,
    /// The agent's, for what is asked of the guest beside it.
    pub(super) policy: AgentPolicy,
    /// To be done, by whoever takes it.
    pub(super) work: std::sync::Mutex<Option<PodWork>>,
}

/// Who serves agent streams.
pub(super) enum PodAgent {
    /// We.
    Ours(Arc<Agent>),
    /// The upstream profile.
    Katas,
}

/// What goes on beside agent streams for as long as there is the pod.
pub(super) enum PodWork {
    /// Serving the workload.
    Api(WorkloadApi, TcpListener),
    /// Noticing the end of one of upstream's programs.
    Upstream(Components),
}

/// Sets a machine up for the pod that Bind names.
pub(super) struct PodSetup {
    attestation: Attestation,
    underlay: &'static str,
    upstream: Option<Upstream>,
    bound: BoundPod,
    is_bound: Arc<tokio::sync::Notify>,
}

impl PodSetup {
    /// Serves the Bind of this machine; the pod that it makes appears in `bound`, and `is_bound` tells of it.
    pub(super) fn new(
        attestation: Attestation,
        underlay: &'static str,
        upstream: Option<Upstream>,
        bound: BoundPod,
        is_bound: Arc<tokio::sync::Notify>,
    ) -> Self {
        Self { attestation, underlay, upstream, bound, is_bound }
    }

    /// Extends the initdata register, which happens once, and joins the pod's network.
    pub(super) async fn measure(&self, digest: Vec<u8>, network: Option<&PodNetwork>) -> Result<(), Refusal> {
        let checked = self.attestation.check_initdata(digest.clone()).await;
        checked.map_err(|e| refusal(RefusalCode::BadRequest, &e))?;
        self.attestation.extend_initdata(digest).await.map_err(|e| refusal(RefusalCode::MeasurementFailed, &e))?;
        match network {
            Some(network) => peerpods_network::guest::ensure(network, self.underlay, peerpods_tunnel::PORT)
                .await
                .map_err(|e| refusal(RefusalCode::NetworkFailed, &e)),
            None => isolation::ensure().await.map_err(|e| refusal(RefusalCode::NetworkFailed, e.as_ref())),
        }
    }

    async fn bind_ours(&self, request: &BindRequest, network: Option<&PodNetwork>) -> Result<Pod, Refusal> {
        let PodConfig { digest, broker, pull, secrets, policy } =
            PodConfig::read(request.initdata.as_deref(), self.attestation.clone()).map_err(|e| refusal(RefusalCode::BadRequest, &e))?;
        let rootfs = ImageRootfs::open(Path::new(scratch::FOLDER), pull, broker.clone());
        let rootfs = rootfs.map_err(|e| refusal(RefusalCode::Internal, &e))?;

        self.measure(digest, network).await?;
        let listener = peerpods_network::forward::listen(Path::new(POD_NETNS), workload_api::PORT).await;
        let listener = listener.map_err(|e| refusal(RefusalCode::NetworkFailed, &e))?;
        let is_tee_keypair_allowed = policy.check("AllowTeeKeypair", &serde_json::json!({})).is_ok();
        let api = WorkloadApi { attestation: self.attestation.clone(), broker, is_tee_keypair_allowed };
        let agent = start_agent(rootfs, secrets, policy.clone()).map_err(|e| refusal(RefusalCode::Internal, &e))?;
        Ok(Pod { agent: PodAgent::Ours(agent), policy, work: std::sync::Mutex::new(Some(PodWork::Api(api, listener))) })
    }
}

#[async_trait]
impl BindHandler for PodSetup {
    async fn evidence(&self, report_data: [u8; 48]) -> Result<Vec<u8>, Refusal> {
        self.attestation.evidence(report_data).await.map_err(|e| refusal(RefusalCode::EvidenceFailed, &e))
    }

    async fn activate(&self, challenge: Vec<u8>) -> Result<Vec<u8>, Refusal> {
        let challenge = Challenge::decode(&challenge).map_err(|e| refusal(RefusalCode::BadRequest, &e))?;
        self.attestation.activate(challenge).await.map_err(|e| refusal(RefusalCode::EvidenceFailed, &e))
    }

    async fn bind(&self, request: &BindRequest) -> Result<(), Refusal> {
        logs::hush();
        console::event("bind");
        let network = match &request.network {
            serde_json::Value::Null => None,
            value => Some(PodNetwork::deserialize(value).map_err(|e| refusal(RefusalCode::BadRequest, &e))?),
        };
        let pod = match self.upstream {
            Some(_) => self.bind_upstream(request, network.as_ref()).await?,
            None => self.bind_ours(request, network.as_ref()).await?,
        };
        // The channel calls this once; were it twice, the first pod would stay.
        let _ = self.bound.set(pod);
        self.is_bound.notify_one();
        console::event("bound");
        Ok(())
    }
}

fn start_agent(rootfs: ImageRootfs, secrets: BrokerSecrets, policy: AgentPolicy) -> Result<Arc<Agent>, peerpods_agent::AgentError> {
    let config = AgentConfig {
        share_dir: PathBuf::from("/run/kata-containers"),
        run_dir: PathBuf::from("/run/peerpods/agent"),
        pod_netns: Some(PathBuf::from(POD_NETNS)),
        runner: vec![OsString::from("/proc/self/exe"), OsString::from("runner")],
        cgroup_parent: "peerpods".to_owned(),
        policy,
    };
    Agent::new(config, Arc::new(rootfs), Arc::new(secrets))
}

/// The whole chain of causes: it travels in the attested channel to the node, and the node to an operator.
pub(super) fn refusal(code: RefusalCode, error: &dyn std::error::Error) -> Refusal {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    Refusal::new(code, text)
}
