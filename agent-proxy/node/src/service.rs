//! `hypervisor.Hypervisor` as Kata's shims call it, over ttrpc.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use peerpods_protos::hypervisor::{
    CreateVMRequest, CreateVMResponse, StartVMRequest, StartVMResponse, StopVMRequest, StopVMResponse, VersionRequest, VersionResponse,
};
use peerpods_protos::hypervisor_ttrpc::Hypervisor;
use ttrpc::r#async::TtrpcContext;
use ttrpc::proto::Code;

use crate::call::{CallError, NewSandbox};
use crate::id::SandboxId;
use crate::ports::chain;
use crate::record::StopReason;
use crate::registry::Registry;
use crate::request;

/// Answers shims.
pub struct HypervisorService {
    registry: Arc<Registry>,
    start_timeout: Duration,
}

/// How much of the shim's own deadline is left for the answer to reach it.
const ANSWER_MARGIN: Duration = Duration::from_secs(1);

impl HypervisorService {
    /// StartVM waits at most `start_timeout`.
    pub fn new(registry: Arc<Registry>, start_timeout: Duration) -> Self {
        Self { registry, start_timeout }
    }

    async fn create(&self, request: CreateVMRequest) -> ttrpc::Result<PathBuf> {
        let id = sandbox_id(&request.id)?;
        let (pod, wish) = request::parse(&request.annotations).map_err(|error| refuse(Code::INVALID_ARGUMENT, chain(&error)))?;
        let netns = Some(request.networkNamespacePath).filter(|path| !path.is_empty()).map(PathBuf::from);
        let new = NewSandbox { id: id.clone(), pod, request: wish, netns, shim: None };
        self.registry.create(new).await.map_err(|error| answer("CreateVM", &id, &error))
    }

    /// Shorter than the shim's deadline, so that it gets our reason and not its own "timeout".
    fn start_limit(&self, timeout_nano: i64) -> Duration {
        match u64::try_from(timeout_nano) {
            Ok(nanos) if nanos > 0 => self.start_timeout.min(Duration::from_nanos(nanos).saturating_sub(ANSWER_MARGIN)),
            _ => self.start_timeout,
        }
    }
}

#[async_trait]
impl Hypervisor for HypervisorService {
    async fn create_vm(&self, _: &TtrpcContext, request: CreateVMRequest) -> ttrpc::Result<CreateVMResponse> {
        let socket = self.create(request).await?;
        let mut response = CreateVMResponse::new();
        response.agentSocketPath = socket.display().to_string();
        Ok(response)
    }

    async fn start_vm(&self, context: &TtrpcContext, request: StartVMRequest) -> ttrpc::Result<StartVMResponse> {
        let id = sandbox_id(&request.id)?;
        let limit = self.start_limit(context.timeout_nano);
        self.registry.start_vm(&id, limit).await.map_err(|error| answer("StartVM", &id, &error))?;
        Ok(StartVMResponse::new())
    }

    async fn stop_vm(&self, _: &TtrpcContext, request: StopVMRequest) -> ttrpc::Result<StopVMResponse> {
        // An id that cannot be one was never accepted by CreateVM; the shim that sends it is cleaning up.
        if let Ok(id) = sandbox_id(&request.id) {
            self.registry.stop(&id, StopReason::StopVm).await.map_err(|error| answer("StopVM", &id, &error))?;
        }
        Ok(StopVMResponse::new())
    }

    async fn version(&self, _: &TtrpcContext, _: VersionRequest) -> ttrpc::Result<VersionResponse> {
        let mut response = VersionResponse::new();
        response.version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(response)
    }
}

pub(crate) fn sandbox_id(text: &str) -> ttrpc::Result<SandboxId> {
    SandboxId::new(text).map_err(|error| refuse(Code::INVALID_ARGUMENT, error.to_string()))
}

pub(crate) fn answer(call: &'static str, id: &SandboxId, error: &CallError) -> ttrpc::Error {
    tracing::warn!(sandbox_id = %id, call, %error, "refused");
    let code = match error {
        CallError::Unknown(_) => Code::NOT_FOUND,
        CallError::Stopped(_) => Code::ABORTED,
        CallError::Netns(_) => Code::FAILED_PRECONDITION,
        CallError::Record(_) | CallError::Failed { .. } => Code::INTERNAL,
        CallError::Timeout { .. } => Code::DEADLINE_EXCEEDED,
        CallError::ShuttingDown => Code::UNAVAILABLE,
    };
    refuse(code, error.to_string())
}

pub(crate) fn refuse(code: Code, message: String) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, message))
}
