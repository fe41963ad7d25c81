//! Bind in the upstream profile: measured and connected as always, then served by Kata's agent and the guest components.

use std::path::Path;

use peerpods_network::PodNetwork;
use peerpods_tunnel::{BindRequest, Refusal, RefusalCode};

use super::pod::{Pod, PodAgent, PodSetup, PodWork, refusal};
use crate::scratch;
use crate::upstream::{Components, PodFiles};

impl PodSetup {
    /// Like a Bind with our own agent: what can be found wrong is found before the initdata register is extended.
    pub(super) async fn bind_upstream(&self, request: &BindRequest, network: Option<&PodNetwork>) -> Result<Pod, Refusal> {
        let files = PodFiles::read(request.initdata.as_deref()).map_err(|e| refusal(RefusalCode::BadRequest, &e))?;
        self.measure(files.digest.clone(), network).await?;
        files.put_in_place(Path::new(scratch::FOLDER)).map_err(|e| refusal(RefusalCode::Internal, &e))?;
        let components = Components::start(files.features).await.map_err(|e| refusal(RefusalCode::Internal, &e))?;
        Ok(Pod { agent: PodAgent::Katas, policy: files.policy, work: std::sync::Mutex::new(Some(PodWork::Upstream(components))) })
    }
}
