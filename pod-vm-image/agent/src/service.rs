//! The two ttrpc services: from requests to the agent and back.
//!
//! Every request of the agent's service is put to the policy before anything is done, and one that it does not allow is answered
//! PERMISSION_DENIED. Only whether an id is taken is found out earlier: a policy remembers what it allowed, and must not remember a
//! sandbox, container or exec that was refused as the second of its name.
//! A method that does nothing for a peer pod and answers OK says why. Everything that is not served answers UNIMPLEMENTED with
//! its name.

use std::fs;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use peerpods_protos::agent::{
    AddARPNeighborsRequest, AddSwapRequest, AgentDetails, CloseStdinRequest, CopyFileRequest, CreateContainerRequest, CreateSandboxRequest,
    DestroySandboxRequest, ExecProcessRequest, GetDiagnosticDataRequest, GetDiagnosticDataResponse, GetIPTablesRequest,
    GetIPTablesResponse, GetMetricsRequest, GetOOMEventRequest, GuestDetailsRequest, GuestDetailsResponse, Interfaces,
    ListInterfacesRequest, ListRoutesRequest, MemAgentCompactConfig, MemAgentMemcgConfig, MemHotplugByProbeRequest, Metrics, OOMEvent,
    OnlineCPUMemRequest, PauseContainerRequest, ReadStreamRequest, ReadStreamResponse, RemoveContainerRequest,
    RemoveStaleVirtiofsShareMountsRequest, ReseedRandomDevRequest, ResizeVolumeRequest, ResumeContainerRequest, Routes,
    SetGuestDateTimeRequest, SetIPTablesRequest, SetIPTablesResponse, SetPolicyRequest, SignalProcessRequest, StartContainerRequest,
    StatsContainerRequest, StatsContainerResponse, TtyWinResizeRequest, UpdateContainerRequest, UpdateEphemeralMountsRequest,
    UpdateInterfaceRequest, UpdateRoutesRequest, VolumeStatsRequest, WaitProcessRequest, WaitProcessResponse, WriteStreamRequest,
    WriteStreamResponse,
};
use peerpods_protos::csi::VolumeStatsResponse;
use peerpods_protos::health::health_check_response::ServingStatus;
use peerpods_protos::health::{CheckRequest, HealthCheckResponse, VersionCheckResponse};
use peerpods_protos::types::Interface;
use peerpods_protos::{agent_ttrpc, health_ttrpc};
use protobuf::MessageDyn;
use protobuf::well_known_types::empty::Empty;
use ttrpc::Code;
use ttrpc::r#async::TtrpcContext;

use crate::agent::Agent;
use crate::container::Container;
use crate::failure::{Failure, chain};
use crate::network;
use crate::policy::Denied;
use crate::process::{Process, Stream};
use crate::translate;

/// Both services over one agent.
pub(crate) struct Service {
    agent: Arc<Agent>,
}

/// What a reader gets that names no limit.
const DEFAULT_READ_BYTES: u32 = 32 * 1024;
/// How often the counters of all containers are looked at while a client waits for an event.
const OOM_POLL: Duration = Duration::from_millis(500);
/// gRPC's version of the health service, as kata-agent has it.
const HEALTH_VERSION: &str = "0.0.1";
/// The only diagnostic data there is.
const TERMINATION_LOG: &str = "termination_log";
const STORAGE_HANDLERS: [&str; 4] = ["bind", "ephemeral", "image_guest_pull", "local"];

impl Service {
    /// Serves that agent.
    pub(crate) fn new(agent: Arc<Agent>) -> Self {
        Self { agent }
    }

    fn container(&self, id: &str) -> Result<Arc<Container>, Failure> {
        self.agent.container(id).ok_or_else(Failure::no_container)
    }

    fn process(&self, id: &str, exec_id: &str) -> Result<(Arc<Container>, Arc<Process>), Failure> {
        let container = self.container(id)?;
        let process = container.process(exec_id).ok_or_else(Failure::no_exec)?;
        Ok((container, process))
    }

    /// Whether the policy allows a request.
    async fn permit(&self, request: &dyn MessageDyn) -> Result<(), Failure> {
        Ok(self.decide(request).await?)
    }

    async fn decide(&self, request: &dyn MessageDyn) -> Result<(), Denied> {
        self.agent.config.policy.permit(request).await.inspect_err(|denied| tracing::info!(error = chain(denied), "request denied"))
    }

    /// Output that the policy does not give away is taken all the same, so that the process need not wait for a reader, and its end is
    /// told: a shim takes that for the process's own. A policy that cannot be asked is an error: logs must not be empty for no reason.
    async fn read(&self, request: &ReadStreamRequest, stream: Stream) -> ttrpc::Result<ReadStreamResponse> {
        let is_permitted = match self.decide(request).await {
            Ok(()) => true,
            Err(denied) if denied.is_clear() => false,
            Err(denied) => return Err(Failure::from(denied).into()),
        };
        let (container, process) = self.process(&request.container_id, &request.exec_id)?;
        let limit = if request.len == 0 { DEFAULT_READ_BYTES } else { request.len };
        let data = loop {
            let data = process.read(stream, usize::try_from(limit).unwrap_or(usize::MAX)).await;
            let data = data.map_err(|error| Failure::internal(error.to_string()))?;
            if is_permitted || data.is_empty() {
                break data;
            }
        };
        if data.is_empty() {
            container.forget_finished(&request.exec_id).await;
        }
        Ok(ReadStreamResponse { data, ..Default::default() })
    }
}

/// Writes down a failure where it is answered.
fn answer<T>(method: &str, subject: &str, result: Result<T, Failure>) -> ttrpc::Result<T> {
    result.map_err(|failure| {
        tracing::info!(method, subject, error = failure.message(), "request failed");
        failure.into()
    })
}

fn done<T>(_: T) -> Empty {
    Empty::new()
}

fn unimplemented<T>(method: &str) -> ttrpc::Result<T> {
    Err(Failure::new(Code::UNIMPLEMENTED, format!("grpc.AgentService/{method} is not implemented")).into())
}

/// Methods that this agent does not serve, in the form that `async_trait` gives to methods: it does not see into macros.
macro_rules! unimplemented_methods {
    ($($name:ident($request:ty) -> $response:ty = $wire:literal;)*) => {
        $(fn $name<'life0, 'life1, 'async_trait>(
            &'life0 self,
            _: &'life1 TtrpcContext,
            request: $request,
        ) -> Pin<Box<dyn Future<Output = ttrpc::Result<$response>> + Send + 'async_trait>>
        where
            'life0: 'async_trait,
            'life1: 'async_trait,
            Self: 'async_trait,
        {
            Box::pin(async move {
                self.permit(&request).await?;
                unimplemented($wire)
            })
        })*
    };
}

#[async_trait]
impl health_ttrpc::Health for Service {
    async fn check(&self, _: &TtrpcContext, _: CheckRequest) -> ttrpc::Result<HealthCheckResponse> {
        let mut response = HealthCheckResponse::new();
        response.status = ServingStatus::SERVING.into();
        Ok(response)
    }

    async fn version(&self, _: &TtrpcContext, _: CheckRequest) -> ttrpc::Result<VersionCheckResponse> {
        let mut response = VersionCheckResponse::new();
        HEALTH_VERSION.clone_into(&mut response.grpc_version);
        env!("CARGO_PKG_VERSION").clone_into(&mut response.agent_version);
        Ok(response)
    }
}

#[async_trait]
impl agent_ttrpc::AgentService for Service {
    async fn create_sandbox(&self, _: &TtrpcContext, request: CreateSandboxRequest) -> ttrpc::Result<Empty> {
        answer("CreateSandbox", &request.sandbox_id, self.agent.check_no_sandbox())?;
        self.permit(&request).await?;
        answer("CreateSandbox", &request.sandbox_id, self.agent.create_sandbox(&request)).map(done)
    }

    async fn destroy_sandbox(&self, _: &TtrpcContext, request: DestroySandboxRequest) -> ttrpc::Result<Empty> {
        self.permit(&request).await?;
        self.agent.shutdown().await;
        Ok(Empty::new())
    }

    async fn get_guest_details(&self, _: &TtrpcContext, request: GuestDetailsRequest) -> ttrpc::Result<GuestDetailsResponse> {
        self.permit(&request).await?;
        let mut details = AgentDetails::new();
        env!("CARGO_PKG_VERSION").clone_into(&mut details.version);
        details.storage_handlers = STORAGE_HANDLERS.map(str::to_owned).to_vec();
        let mut response = GuestDetailsResponse::new();
        if request.mem_block_size {
            let size = fs::read_to_string("/sys/devices/system/memory/block_size_bytes").unwrap_or_default();
            response.mem_block_size_bytes = u64::from_str_radix(size.trim(), 16).unwrap_or(0);
        }
        response.agent_details = Some(details).into();
        Ok(response)
    }

    async fn copy_file(&self, _: &TtrpcContext, request: CopyFileRequest) -> ttrpc::Result<Empty> {
        self.permit(&request).await?;
        answer("CopyFile", &request.path, self.agent.current_sandbox().map(drop))?;
        let agent = self.agent.clone();
        let path = request.path.clone();
        let copied = tokio::task::spawn_blocking(move || agent.copier.copy(&request)).await;
        let copied = copied.map_err(|error| Failure::because("copying", &error))?;
        answer("CopyFile", &path, copied.map_err(Failure::from)).map(done)
    }

    async fn create_container(&self, _: &TtrpcContext, request: CreateContainerRequest) -> ttrpc::Result<Empty> {
        let id = request.container_id.clone();
        let reserved = answer("CreateContainer", &id, self.agent.reserve(&id))?;
        self.permit(&request).await?;
        answer("CreateContainer", &id, self.agent.create_container(request, reserved).await).map(done)
    }

    async fn start_container(&self, _: &TtrpcContext, request: StartContainerRequest) -> ttrpc::Result<Empty> {
        self.permit(&request).await?;
        let container = self.container(&request.container_id)?;
        answer("StartContainer", &request.container_id, container.init.start().await.map_err(Failure::internal)).map(done)
    }

    async fn remove_container(&self, _: &TtrpcContext, request: RemoveContainerRequest) -> ttrpc::Result<Empty> {
        self.permit(&request).await?;
        answer("RemoveContainer", &request.container_id, self.agent.remove_container(&request.container_id).await).map(done)
    }

    async fn exec_process(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        // Of a container that is not there nothing can be taken, and the policy is asked all the same.
        let container = self.agent.container(&request.container_id);
        let reserved = container.map(|container| container.reserve(&request.exec_id)).transpose();
        let reserved = answer("ExecProcess", &request.container_id, reserved)?;
        self.permit(&request).await?;
        let reserved = reserved.ok_or_else(Failure::no_container)?;
        let process = request.process.as_ref().ok_or_else(|| Failure::invalid("the request has no process"))?;
        let result = reserved.exec(process, &self.agent.grants, &self.agent.config.runner).await;
        answer("ExecProcess", &request.container_id, result).map(done)
    }

    async fn signal_process(&self, _: &TtrpcContext, request: SignalProcessRequest) -> ttrpc::Result<Empty> {
        self.permit(&request).await?;
        let container = self.agent.container(&request.container_id).ok_or_else(Failure::nothing_to_signal)?;
        let signal = i32::try_from(request.signal).map_err(|_| Failure::invalid("no such signal"))?;
        Ok(container.signal(&request.exec_id, signal).await.map(done)?)
    }

    async fn wait_process(&self, _: &TtrpcContext, request: WaitProcessRequest) -> ttrpc::Result<WaitProcessResponse> {
        self.permit(&request).await?;
        let (container, process) = self.process(&request.container_id, &request.exec_id)?;
        let mut response = WaitProcessResponse::new();
        response.status = process.wait().await;
        process.mark_waited();
        container.forget_finished(&request.exec_id).await;
        Ok(response)
    }

    async fn read_stdout(&self, _: &TtrpcContext, request: ReadStreamRequest) -> ttrpc::Result<ReadStreamResponse> {
        self.read(&request, Stream::Stdout).await
    }

    async fn read_stderr(&self, _: &TtrpcContext, request: ReadStreamRequest) -> ttrpc::Result<ReadStreamResponse> {
        self.read(&request, Stream::Stderr).await
    }

    /// Nothing to write means the end of the input, as Kata's Rust shim says it.
    async fn write_stdin(&self, _: &TtrpcContext, request: WriteStreamRequest) -> ttrpc::Result<WriteStreamResponse> {
        self.permit(&request).await?;
        let (_, process) = self.process(&request.container_id, &request.exec_id)?;
        let written = if request.data.is_empty() { process.close_stdin().await } else { process.write(&request.data).await };
        written.map_err(|error| Failure::internal(error.to_string()))?;
        let mut response = WriteStreamResponse::new();
        response.len = u32::try_from(request.data.len()).unwrap_or(u32::MAX);
        Ok(response)
    }

    async fn close_stdin(&self, _: &TtrpcContext, request: CloseStdinRequest) -> ttrpc::Result<Empty> {
        self.permit(&request).await?;
        let (_, process) = self.process(&request.container_id, &request.exec_id)?;
        Ok(process.close_stdin().await.map(done).map_err(|error| Failure::internal(error.to_string()))?)
    }

    async fn tty_win_resize(&self, _: &TtrpcContext, request: TtyWinResizeRequest) -> ttrpc::Result<Empty> {
        self.permit(&request).await?;
        let (_, process) = self.process(&request.container_id, &request.exec_id)?;
        let short = |value: u32| u16::try_from(value).map_err(|_| Failure::invalid("no terminal is that large"));
        let resized = process.resize(short(request.row)?, short(request.column)?);
        Ok(resized.map(done).map_err(|error| Failure::internal(error.to_string()))?)
    }

    async fn stats_container(&self, _: &TtrpcContext, request: StatsContainerRequest) -> ttrpc::Result<StatsContainerResponse> {
        self.permit(&request).await?;
        let container = self.container(&request.container_id)?;
        let mut response = StatsContainerResponse::new();
        response.cgroup_stats = Some(container.parts.cgroup.stats()).into();
        response.network_stats = network::stats(container.init.pid());
        Ok(response)
    }

    async fn update_container(&self, _: &TtrpcContext, request: UpdateContainerRequest) -> ttrpc::Result<Empty> {
        self.permit(&request).await?;
        let container = self.container(&request.container_id)?;
        let from = request.resources.as_ref().ok_or_else(|| Failure::invalid("the request has no resources"))?;
        let mut resources = translate::resources(from).map_err(Failure::from)?;
        self.agent.grants.limit_resources(&mut resources);
        let applied = container.parts.cgroup.apply(&resources).map_err(|error| Failure::internal(chain(&error)));
        answer("UpdateContainer", &request.container_id, applied).map(done)
    }

    async fn pause_container(&self, _: &TtrpcContext, request: PauseContainerRequest) -> ttrpc::Result<Empty> {
        self.permit(&request).await?;
        let frozen = self.container(&request.container_id)?.parts.cgroup.set_frozen(true);
        answer("PauseContainer", &request.container_id, frozen.map_err(|error| Failure::internal(chain(&error)))).map(done)
    }

    async fn resume_container(&self, _: &TtrpcContext, request: ResumeContainerRequest) -> ttrpc::Result<Empty> {
        self.permit(&request).await?;
        let thawed = self.container(&request.container_id)?.parts.cgroup.set_frozen(false);
        answer("ResumeContainer", &request.container_id, thawed.map_err(|error| Failure::internal(chain(&error)))).map(done)
    }

    async fn get_oom_event(&self, _: &TtrpcContext, request: GetOOMEventRequest) -> ttrpc::Result<OOMEvent> {
        self.permit(&request).await?;
        loop {
            for container in self.agent.all_containers() {
                container.oom.check();
            }
            if let Some(container_id) = self.agent.oom_events.take() {
                let mut event = OOMEvent::new();
                event.container_id = container_id;
                return Ok(event);
            }
            // Either way the next turn finds out.
            let _ = tokio::time::timeout(OOM_POLL, self.agent.oom_events.added()).await;
        }
    }

    async fn get_diagnostic_data(&self, _: &TtrpcContext, request: GetDiagnosticDataRequest) -> ttrpc::Result<GetDiagnosticDataResponse> {
        self.permit(&request).await?;
        if request.log_type != TERMINATION_LOG {
            return Err(Failure::invalid(format!("there is no diagnostic data of type {:?}", request.log_type)).into());
        }
        let message = self.container(&request.container_id)?.termination_message();
        let data = message.map_err(|error| Failure::because("reading the termination log", &error))?;
        Ok(GetDiagnosticDataResponse { data, ..Default::default() })
    }

    /// Nothing to bring online: a pod VM has its size from the start.
    async fn online_cpu_mem(&self, _: &TtrpcContext, request: OnlineCPUMemRequest) -> ttrpc::Result<Empty> {
        self.permit(&request).await?;
        Ok(Empty::new())
    }

    /// Not mixed in: the node is outside of the trust line and the VM's own sources suffice.
    async fn reseed_random_dev(&self, _: &TtrpcContext, request: ReseedRandomDevRequest) -> ttrpc::Result<Empty> {
        self.permit(&request).await?;
        Ok(Empty::new())
    }

    /// Not set: the node is outside of the trust line, and certificates are judged by this clock.
    async fn set_guest_date_time(&self, _: &TtrpcContext, request: SetGuestDateTimeRequest) -> ttrpc::Result<Empty> {
        self.permit(&request).await?;
        Ok(Empty::new())
    }

    /// Nothing is shared by virtiofs.
    async fn remove_stale_virtiofs_share_mounts(
        &self,
        _: &TtrpcContext,
        request: RemoveStaleVirtiofsShareMountsRequest,
    ) -> ttrpc::Result<Empty> {
        self.permit(&request).await?;
        Ok(Empty::new())
    }

    /// The size of a tmpfs stays what it was.
    async fn update_ephemeral_mounts(&self, _: &TtrpcContext, request: UpdateEphemeralMountsRequest) -> ttrpc::Result<Empty> {
        self.permit(&request).await?;
        Ok(Empty::new())
    }

    /// None beside those of the containers.
    async fn get_metrics(&self, _: &TtrpcContext, request: GetMetricsRequest) -> ttrpc::Result<Metrics> {
        self.permit(&request).await?;
        Ok(Metrics::new())
    }

    async fn set_policy(&self, _: &TtrpcContext, request: SetPolicyRequest) -> ttrpc::Result<Empty> {
        let policy = self.agent.config.policy.clone();
        let replaced = tokio::task::spawn_blocking(move || policy.replace(&request.policy)).await;
        let replaced = replaced.map_err(|error| Failure::because("replacing the policy", &error))?;
        answer("SetPolicy", "", replaced.map_err(Failure::from)).map(done)
    }

    unimplemented_methods! {
        update_interface(UpdateInterfaceRequest) -> Interface = "UpdateInterface";
        update_routes(UpdateRoutesRequest) -> Routes = "UpdateRoutes";
        list_interfaces(ListInterfacesRequest) -> Interfaces = "ListInterfaces";
        list_routes(ListRoutesRequest) -> Routes = "ListRoutes";
        add_arp_neighbors(AddARPNeighborsRequest) -> Empty = "AddARPNeighbors";
        get_ip_tables(GetIPTablesRequest) -> GetIPTablesResponse = "GetIPTables";
        set_ip_tables(SetIPTablesRequest) -> SetIPTablesResponse = "SetIPTables";
        mem_agent_memcg_set(MemAgentMemcgConfig) -> Empty = "MemAgentMemcgSet";
        mem_agent_compact_set(MemAgentCompactConfig) -> Empty = "MemAgentCompactSet";
        mem_hotplug_by_probe(MemHotplugByProbeRequest) -> Empty = "MemHotplugByProbe";
        add_swap(AddSwapRequest) -> Empty = "AddSwap";
        get_volume_stats(VolumeStatsRequest) -> VolumeStatsResponse = "GetVolumeStats";
        resize_volume(ResizeVolumeRequest) -> Empty = "ResizeVolume";
    }
}
