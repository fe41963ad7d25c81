//! A client that asks for peer pods as Kata's Rust shim 4.1 does, over the same two sockets and in the same order.
//!
//! It is the other side of our daemon in tests and in the demo; what it sends follows reference recordings of the shim.

mod spec;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use peerpods_protos::agent::{
    CopyFileRequest, CreateContainerRequest, CreateSandboxRequest, ExecProcessRequest, GuestDetailsRequest, ReadStreamRequest,
    RemoveContainerRequest, SignalProcessRequest, StartContainerRequest, WaitProcessRequest, WriteStreamRequest,
};
use peerpods_protos::agent_ttrpc::AgentServiceClient;
use peerpods_protos::health::CheckRequest;
use peerpods_protos::health_ttrpc::HealthClient;
use peerpods_protos::hypervisor::{CreateVMRequest, StartVMRequest, StopVMRequest};
use peerpods_protos::hypervisor_ttrpc::HypervisorClient;
use ttrpc::context::{Context, with_duration};

pub use spec::ContainerRequest;

use crate::eventually_async;

const RPC: Duration = Duration::from_secs(30);
const CREATE_CONTAINER: Duration = Duration::from_secs(300);

/// One sandbox as the shim holds it.
pub struct KataShim {
    hypervisor_socket: PathBuf,
    sandbox_id: String,
    name: String,
    agent: Option<Agent>,
}

struct Agent {
    rpc: AgentServiceClient,
    health: HealthClient,
}

/// What a process printed and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerIo {
    /// All of standard output.
    pub stdout: Vec<u8>,
    /// All of standard error.
    pub stderr: Vec<u8>,
    /// Its exit status; 128 + signal when a signal ended it.
    pub status: i32,
}

impl KataShim {
    /// A shim for a sandbox of that pod; `seed` makes the 64-digit sandbox id.
    pub fn new(hypervisor_socket: &Path, name: &str, seed: u64) -> Self {
        let sandbox_id = format!("{seed:016x}").repeat(4);
        Self { hypervisor_socket: hypervisor_socket.to_owned(), sandbox_id, name: name.to_owned(), agent: None }
    }

    /// The sandbox's id.
    pub fn sandbox_id(&self) -> &str {
        &self.sandbox_id
    }

    /// CreateVM: the daemon answers with the path of the agent socket.
    pub async fn create_vm(&self, netns: &Path, annotations: &[(&str, &str)]) -> Result<PathBuf> {
        let prefix = "io.katacontainers.config.hypervisor.";
        let mut request = CreateVMRequest::new();
        request.id = self.sandbox_id.clone();
        request.networkNamespacePath = netns.display().to_string();
        for key in ["machine_type", "image", "cc_init_data", "default_gpu_model"] {
            request.annotations.insert(format!("{prefix}{key}"), String::new());
        }
        for (key, value) in [("default_vcpus", "1"), ("default_memory", "256"), ("default_gpus", "0")] {
            request.annotations.insert(format!("{prefix}{key}"), value.to_owned());
        }
        request.annotations.insert("io.kubernetes.cri.sandbox-name".to_owned(), self.name.clone());
        request.annotations.insert("io.kubernetes.cri.sandbox-namespace".to_owned(), "default".to_owned());
        for (key, value) in annotations {
            let key = if key.contains('/') || key.starts_with("io.") { (*key).to_owned() } else { format!("{prefix}{key}") };
            request.annotations.insert(key, (*value).to_owned());
        }
        let reply = self.hypervisor().await?.create_vm(Context::default(), &request).await.context("CreateVM")?;
        Ok(PathBuf::from(reply.agentSocketPath))
    }

    /// StartVM, then the agent connection.
    pub async fn start_vm(&mut self, agent_socket: &Path) -> Result<()> {
        let mut request = StartVMRequest::new();
        request.id = self.sandbox_id.clone();
        self.hypervisor().await?.start_vm(with_duration(Duration::from_secs(600)), &request).await.context("StartVM")?;
        self.connect(agent_socket).await
    }

    /// Dials the agent socket, with the shim's patience of 30 s.
    pub async fn connect(&mut self, agent_socket: &Path) -> Result<()> {
        let address = format!("unix://{}", agent_socket.display());
        let client = eventually_async("the agent socket accepts", Duration::from_secs(30), || async {
            Ok(ttrpc::asynchronous::Client::connect(&address).await?)
        })
        .await?;
        self.agent = Some(Agent { rpc: AgentServiceClient::new(client.clone()), health: HealthClient::new(client) });
        Ok(())
    }

    /// StopVM, three times as the shim does.
    pub async fn stop_vm(&self) -> Result<()> {
        let mut request = StopVMRequest::new();
        request.id = self.sandbox_id.clone();
        for _ in 0..3 {
            self.hypervisor().await?.stop_vm(with_duration(Duration::from_secs(1)), &request).await.context("StopVM")?;
        }
        Ok(())
    }

    /// Health.Check.
    pub async fn check(&self) -> Result<()> {
        self.agent()?.health.check(with_duration(RPC), &CheckRequest::new()).await.context("Health.Check")?;
        Ok(())
    }

    /// CreateSandbox, GetGuestDetails and the pause container.
    pub async fn create_sandbox(&self) -> Result<()> {
        let agent = self.agent()?;
        let mut request = CreateSandboxRequest::new();
        request.hostname = self.name.clone();
        request.dns = vec!["nameserver 10.96.0.10".to_owned()];
        request.storages = vec![spec::shm_storage()];
        request.sandbox_id = self.sandbox_id.clone();
        agent.rpc.create_sandbox(with_duration(RPC), &request).await.context("CreateSandbox")?;
        let mut details = GuestDetailsRequest::new();
        details.mem_block_size = true;
        details.mem_hotplug_probe = true;
        agent.rpc.get_guest_details(with_duration(RPC), &details).await.context("GetGuestDetails")?;
        self.create_container(&ContainerRequest::pause(&self.sandbox_id)).await?;
        self.start_container(&self.sandbox_id).await
    }

    /// Copies a file into the guest's share, as for /etc/hosts; gives its path there.
    pub async fn copy_file(&self, container_id: &str, name: &str, content: &[u8]) -> Result<String> {
        let mut request = CopyFileRequest::new();
        request.path = format!("/run/kata-containers/shared/containers/{container_id}-0123456789abcdef-{name}");
        request.file_size = i64::try_from(content.len())?;
        request.file_mode = 0o100_644;
        request.data = content.to_vec();
        self.agent()?.rpc.copy_file(with_duration(RPC), &request).await.with_context(|| format!("CopyFile {name}"))?;
        Ok(request.path)
    }

    /// CreateContainer.
    pub async fn create_container(&self, container: &ContainerRequest) -> Result<()> {
        let request: CreateContainerRequest = container.to_request(&self.sandbox_id, &self.name);
        let rpc = &self.agent()?.rpc;
        rpc.create_container(with_duration(CREATE_CONTAINER), &request)
            .await
            .with_context(|| format!("CreateContainer {}", container.id))?;
        Ok(())
    }

    /// StartContainer.
    pub async fn start_container(&self, id: &str) -> Result<()> {
        let mut request = StartContainerRequest::new();
        request.container_id = id.to_owned();
        self.agent()?.rpc.start_container(with_duration(RPC), &request).await.with_context(|| format!("StartContainer {id}"))?;
        Ok(())
    }

    /// One ReadStdout; empty means the end.
    pub async fn read_stdout(&self, container_id: &str, exec_id: &str) -> Result<Vec<u8>> {
        let reply = self.agent()?.rpc.read_stdout(Context::default(), &read_request(container_id, exec_id)).await.context("ReadStdout")?;
        Ok(reply.data)
    }

    /// Reads both streams to their ends, then waits, as the shim does.
    pub async fn finish(&self, container_id: &str, exec_id: &str) -> Result<ContainerIo> {
        let rpc = &self.agent()?.rpc;
        let stdout = async {
            let mut all = Vec::new();
            loop {
                let data = self.read_stdout(container_id, exec_id).await?;
                if data.is_empty() {
                    return Ok::<_, anyhow::Error>(all);
                }
                all.extend(data);
            }
        };
        let stderr = async {
            let mut all = Vec::new();
            loop {
                let reply = rpc.read_stderr(Context::default(), &read_request(container_id, exec_id)).await.context("ReadStderr")?;
                if reply.data.is_empty() {
                    return Ok::<_, anyhow::Error>(all);
                }
                all.extend(reply.data);
            }
        };
        let (stdout, stderr) = tokio::try_join!(stdout, stderr)?;
        let mut wait = WaitProcessRequest::new();
        wait.container_id = container_id.to_owned();
        wait.exec_id = exec_id.to_owned();
        let reply = rpc.wait_process(Context::default(), &wait).await.context("WaitProcess")?;
        Ok(ContainerIo { stdout, stderr, status: reply.status })
    }

    /// Runs a command in a container and gives what it printed.
    pub async fn exec(&self, container_id: &str, exec_id: &str, args: &[&str], stdin: Option<&[u8]>) -> Result<ContainerIo> {
        let mut request = ExecProcessRequest::new();
        request.container_id = container_id.to_owned();
        request.exec_id = exec_id.to_owned();
        request.process = Some(spec::process(args, &[])).into();
        let rpc = &self.agent()?.rpc;
        rpc.exec_process(with_duration(RPC), &request).await.with_context(|| format!("ExecProcess {args:?}"))?;
        if let Some(stdin) = stdin {
            for piece in stdin.chunks(8192).chain([&[][..]]) {
                let mut write = WriteStreamRequest::new();
                write.container_id = container_id.to_owned();
                write.exec_id = exec_id.to_owned();
                write.data = piece.to_vec();
                rpc.write_stdin(Context::default(), &write).await.context("WriteStdin")?;
            }
        }
        self.finish(container_id, exec_id).await
    }

    /// SignalProcess for a container's first process.
    pub async fn signal(&self, container_id: &str, signal: u32) -> Result<()> {
        let mut request = SignalProcessRequest::new();
        request.container_id = container_id.to_owned();
        request.signal = signal;
        self.agent()?.rpc.signal_process(with_duration(RPC), &request).await.context("SignalProcess")?;
        Ok(())
    }

    /// RemoveContainer.
    pub async fn remove_container(&self, container_id: &str) -> Result<()> {
        let mut request = RemoveContainerRequest::new();
        request.container_id = container_id.to_owned();
        request.timeout = 10;
        self.agent()?.rpc.remove_container(with_duration(RPC), &request).await.context("RemoveContainer")?;
        Ok(())
    }

    /// The agent service itself, for requests that have no method here.
    pub fn agent_rpc(&self) -> Result<&AgentServiceClient> {
        Ok(&self.agent()?.rpc)
    }

    fn agent(&self) -> Result<&Agent> {
        self.agent.as_ref().context("the agent is not connected yet")
    }

    async fn hypervisor(&self) -> Result<HypervisorClient> {
        let address = format!("unix://{}", self.hypervisor_socket.display());
        let client = ttrpc::asynchronous::Client::connect(&address).await.context("connecting to the hypervisor service")?;
        Ok(HypervisorClient::new(client))
    }
}

fn read_request(container_id: &str, exec_id: &str) -> ReadStreamRequest {
    let mut request = ReadStreamRequest::new();
    request.container_id = container_id.to_owned();
    request.exec_id = exec_id.to_owned();
    request.len = 8192;
    request
}
