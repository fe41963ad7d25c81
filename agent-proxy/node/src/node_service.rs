//! `peerpods.node.v1` as our own shim calls it, over ttrpc, on the socket of the hypervisor service.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use peerpods_controller_api::PodRef;
use peerpods_link::folder::ProcessIdentity;
use peerpods_protos::node::{
    CreateSandboxRequest, CreateSandboxResponse, ResolveImageRequest, ResolveImageResponse, StartSandboxRequest, StartSandboxResponse,
    StopSandboxRequest, StopSandboxResponse, WatchSandboxRequest, WatchSandboxResponse,
};
use peerpods_protos::node_ttrpc::Node;
use secrecy::{ExposeSecret as _, SecretString};
use ttrpc::r#async::TtrpcContext;
use ttrpc::proto::Code;

use crate::call::NewSandbox;
use crate::ports::{ImageResolver, ResolveFailure, chain};
use crate::record::StopReason;
use crate::registry::Registry;
use crate::service::{answer, refuse, sandbox_id};
use crate::shim_request;

/// The service.
pub struct NodeService {
    registry: Arc<Registry>,
    node_key_pem: SecretString,
    images: Arc<dyn ImageResolver>,
    start_timeout: Duration,
}

/// An answer must leave before the caller's deadline.
const MARGIN: Duration = Duration::from_secs(1);
/// How long a poll is held when the caller names no deadline.
const POLL: Duration = Duration::from_secs(30);

impl NodeService {
    /// Serves that registry. The key is given to shims, which are root on this node.
    pub fn new(registry: Arc<Registry>, node_key_pem: String, images: Arc<dyn ImageResolver>, start_timeout: Duration) -> Self {
        Self { registry, node_key_pem: node_key_pem.into(), images, start_timeout }
    }

    async fn create(&self, request: CreateSandboxRequest) -> ttrpc::Result<()> {
        let id = sandbox_id(&request.sandbox_id)?;
        let invalid = |text: String| refuse(Code::INVALID_ARGUMENT, text);
        let shim =
            request.shim.as_ref().filter(|shim| shim.pid != 0).ok_or_else(|| invalid("the request names no shim process".to_owned()))?;
        let pod = request.pod.as_ref().ok_or_else(|| invalid("the request names no pod".to_owned()))?;
        let pod = PodRef::new(&pod.namespace, &pod.name, Some(pod.uid.clone())).map_err(|error| invalid(chain(&error)))?;
        if request.netns.is_empty() {
            return Err(refuse(
                Code::FAILED_PRECONDITION,
                "the pod wants the node's own network (hostNetwork), which a pod VM does not have; next: remove hostNetwork from the pod"
                    .to_owned(),
            ));
        }
        let wish = shim_request::parse(&request.annotations, &pod).map_err(|error| invalid(chain(&error)))?;
        let shim = ProcessIdentity { pid: shim.pid, start_time: shim.start_time };
        let new = NewSandbox { id: id.clone(), pod, request: wish, netns: Some(PathBuf::from(&request.netns)), shim: Some(shim) };
        self.registry.create(new).await.map(drop).map_err(|error| answer("CreateSandbox", &id, &error))
    }

    async fn start(&self, request: &StartSandboxRequest, limit: Duration) -> ttrpc::Result<StartSandboxResponse> {
        let id = sandbox_id(&request.sandbox_id)?;
        self.registry.start_vm(&id, self.start_timeout.min(limit)).await.map_err(|error| answer("StartSandbox", &id, &error))?;
        let vm = self.registry.bound(&id).ok_or_else(|| refuse(Code::ABORTED, format!("sandbox {id} was stopped")))?;
        let mut response = StartSandboxResponse::new();
        response.address = std::net::SocketAddr::new(vm.address, peerpods_tunnel::PORT).to_string();
        response.pin = vm.pin.to_string();
        self.node_key_pem.expose_secret().clone_into(&mut response.node_key_pem);
        response.instance_id = vm.instance_id;
        response.host_access = vm.host_access;
        Ok(response)
    }
}

#[async_trait]
impl Node for NodeService {
    async fn create_sandbox(&self, _: &TtrpcContext, request: CreateSandboxRequest) -> ttrpc::Result<CreateSandboxResponse> {
        self.create(request).await.map(|()| CreateSandboxResponse::new())
    }

    async fn start_sandbox(&self, context: &TtrpcContext, request: StartSandboxRequest) -> ttrpc::Result<StartSandboxResponse> {
        self.start(&request, left(context).unwrap_or(self.start_timeout)).await
    }

    async fn watch_sandbox(&self, context: &TtrpcContext, request: WatchSandboxRequest) -> ttrpc::Result<WatchSandboxResponse> {
        let id = sandbox_id(&request.sandbox_id)?;
        let over = self.registry.over(&id, left(context).unwrap_or(POLL)).await;
        match over.map_err(|error| answer("WatchSandbox", &id, &error))? {
            Some(reason) => Ok(WatchSandboxResponse { reason, ..Default::default() }),
            None => Err(refuse(Code::DEADLINE_EXCEEDED, format!("sandbox {id} goes on; ask again"))),
        }
    }

    async fn stop_sandbox(&self, _: &TtrpcContext, request: StopSandboxRequest) -> ttrpc::Result<StopSandboxResponse> {
        // An id that cannot be one was never accepted; the shim that sends it is cleaning up.
        if let Ok(id) = sandbox_id(&request.sandbox_id) {
            self.registry.stop(&id, StopReason::StopVm).await.map_err(|error| answer("StopSandbox", &id, &error))?;
        }
        Ok(StopSandboxResponse::new())
    }

    async fn resolve_image(&self, _: &TtrpcContext, request: ResolveImageRequest) -> ttrpc::Result<ResolveImageResponse> {
        let resolved = self.images.resolve(&request.namespace, &request.container_id, &request.image_name).await;
        let resolved = resolved.map_err(|failure| {
            let code = match failure {
                ResolveFailure::Unavailable(_) => Code::UNAVAILABLE,
                ResolveFailure::NotFound(_) => Code::NOT_FOUND,
                ResolveFailure::Unusable(_) | ResolveFailure::NotConfigured(_) => Code::FAILED_PRECONDITION,
            };
            tracing::warn!(container_id = request.container_id, image = request.image_name, %failure, "refused");
            refuse(code, failure.to_string())
        })?;
        Ok(ResolveImageResponse { reference: resolved.reference, config_digest: resolved.config_digest, ..Default::default() })
    }
}

/// What a caller's deadline leaves for an answer.
fn left(context: &TtrpcContext) -> Option<Duration> {
    u64::try_from(context.timeout_nano).ok().filter(|nanos| *nanos > 0).map(|nanos| Duration::from_nanos(nanos).saturating_sub(MARGIN))
}
