//! Bind: the pod's network, the measurement of its initdata, its agent.
//!
//! Everything that can be wrong with a request is found before the initdata register is extended, because that cannot be undone: a
//! machine that refused after it is spent, which the channel remembers.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use peerpods_agent::{Agent, AgentConfig};
use peerpods_attester::Attester;
use peerpods_evidence::{Initdata, initdata};
use peerpods_network::{POD_NETNS, PodNetwork};
use peerpods_tunnel::guest::BindHandler;
use peerpods_tunnel::{BindRequest, Refusal, RefusalCode};
use serde::Deserialize as _;
use tokio::sync::Mutex;

use super::rootfs::ImageRootfs;
use super::{cdh_config, isolation, logs};
use crate::{console, scratch};

/// The agent, once there is one.
pub(super) type BoundAgent = Arc<OnceLock<Arc<Agent>>>;

/// Sets a machine up for the pod that Bind names.
pub(super) struct PodSetup {
    attester: Mutex<Attester>,
    underlay: &'static str,
    bound: BoundAgent,
}

/// A request in which nothing is left to find fault with.
struct Checked {
    network: Option<PodNetwork>,
    initdata_digest: Vec<u8>,
    rootfs: ImageRootfs,
}

impl PodSetup {
    /// Serves the Bind of this machine; the agent that it makes appears in `bound`.
    pub(super) fn new(attester: Attester, underlay: &'static str, bound: BoundAgent) -> Self {
        Self { attester: Mutex::new(attester), underlay, bound }
    }
}

#[async_trait]
impl BindHandler for PodSetup {
    async fn evidence(&self, report_data: [u8; 48]) -> Result<Vec<u8>, Refusal> {
        self.attester.lock().await.evidence(&report_data).map_err(|e| refusal(RefusalCode::EvidenceFailed, &e))
    }

    async fn bind(&self, request: &BindRequest) -> Result<(), Refusal> {
        logs::hush();
        console::event("bind");
        let checked = check(request)?;
        let mut attester = self.attester.lock().await;
        attester.extend_initdata(&checked.initdata_digest).map_err(|e| refusal(RefusalCode::MeasurementFailed, &e))?;
        drop(attester);
        match &checked.network {
            Some(network) => peerpods_network::guest::ensure(network, self.underlay, peerpods_tunnel::PORT)
                .await
                .map_err(|e| refusal(RefusalCode::NetworkFailed, &e))?,
            None => isolation::ensure().await.map_err(|e| refusal(RefusalCode::NetworkFailed, e.as_ref()))?,
        }
        let agent = start_agent(checked.rootfs).map_err(|e| refusal(RefusalCode::Internal, &e))?;
        // The channel calls this once; were it twice, the first agent would stay.
        let _ = self.bound.set(agent);
        console::event("bound");
        Ok(())
    }
}

fn check(request: &BindRequest) -> Result<Checked, Refusal> {
    let bad = |e: &dyn std::error::Error| refusal(RefusalCode::BadRequest, e);
    let network = match &request.network {
        serde_json::Value::Null => None,
        value => Some(PodNetwork::deserialize(value).map_err(|e| bad(&e))?),
    };
    let initdata_digest = initdata::digest(request.initdata.as_deref()).map_err(|e| bad(&e))?;
    let initdata = request.initdata.as_deref().map(Initdata::parse).transpose().map_err(|e| bad(&e))?;
    let file = |name: &str| initdata.as_ref()?.data.get(name).map(String::as_str);
    let policy = cdh_config::pull_policy(file).map_err(|e| bad(&e))?;
    let rootfs = ImageRootfs::open(Path::new(scratch::FOLDER), policy).map_err(|e| refusal(RefusalCode::Internal, &e))?;
    Ok(Checked { network, initdata_digest, rootfs })
}

fn start_agent(rootfs: ImageRootfs) -> Result<Arc<Agent>, peerpods_agent::AgentError> {
    let config = AgentConfig {
        share_dir: PathBuf::from("/run/kata-containers"),
        run_dir: PathBuf::from("/run/peerpods/agent"),
        pod_netns: Some(PathBuf::from(POD_NETNS)),
        runner: vec![OsString::from("/proc/self/exe"), OsString::from("runner")],
        cgroup_parent: "peerpods".to_owned(),
    };
    Agent::new(config, Arc::new(rootfs))
}

/// The whole chain of causes: it travels in the attested channel to the node, and the node to an operator.
fn refusal(code: RefusalCode, error: &dyn std::error::Error) -> Refusal {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    Refusal::new(code, text)
}
