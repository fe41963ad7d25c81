//! How a task comes into being: the sandbox with its pod VM, or a container in it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::api::CreateTaskRequest;
use oci_spec::runtime::Spec;
use peerpods_protos::agent::{CreateContainerRequest, CreateSandboxRequest, RemoveContainerRequest};
use ttrpc::context::with_duration;

use crate::container::Container;
use crate::failure::{Failure, chain};
use crate::files::{self, Watcher};
use crate::plan::{self, ContainerPlan, Facts, ResolvedImage, Role};
use crate::pod::Pod;
use crate::process::Process;
use crate::stand_in::StandIn;
use crate::stdio::{self, Address, Stdio};

/// For calls that the agent answers at once.
pub const SHORT: Duration = Duration::from_secs(60);
/// The image is pulled while CreateContainer is answered.
const PULL: Duration = Duration::from_secs(1200);

const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";
const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
const IMAGE_NAME: &str = "io.kubernetes.cri.image-name";

/// The specification in a bundle.
pub fn read_spec(bundle: &Path) -> Result<Spec, Failure> {
    Spec::load(bundle.join("config.json")).map_err(|error| Failure::because("read the bundle's config.json", &error))
}

/// The sandbox of a container that is no sandbox itself.
pub fn sandbox_of(spec: &Spec) -> Option<String> {
    let annotations = spec.annotations().as_ref()?;
    (annotations.get(CONTAINER_TYPE).map(String::as_str) == Some("container")).then(|| annotations.get(SANDBOX_ID).cloned()).flatten()
}

/// Makes the sandbox in the guest, then the pause container.
pub async fn sandbox(pod: &Pod, request: &CreateTaskRequest, spec: &Spec) -> Result<Arc<Container>, Failure> {
    let resolv_conf = plan::resolv_conf(spec).and_then(|path| std::fs::read_to_string(path).ok());
    let planned = plan::sandbox(spec, resolv_conf.as_deref()).map_err(refused)?;
    let mut create = CreateSandboxRequest::new();
    create.hostname = planned.hostname;
    create.dns = planned.dns;
    create.storages = planned.storages;
    create.sandbox_id.clone_from(&pod.sandbox_id);
    pod.agent.create_sandbox(with_duration(SHORT), &create).await?;
    container(pod, request, spec, Role::Pause, None).await
}

/// Makes a container of the pod.
pub async fn workload(pod: &Pod, namespace: &str, request: &CreateTaskRequest, spec: &Spec) -> Result<Arc<Container>, Failure> {
    let name = spec.annotations().as_ref().and_then(|annotations| annotations.get(IMAGE_NAME)).cloned().unwrap_or_default();
    let image = pod.daemon.resolve(namespace, &request.id, &name).await?;
    container(pod, request, spec, Role::Container, Some(image)).await
}

async fn container(
    pod: &Pod,
    request: &CreateTaskRequest,
    spec: &Spec,
    role: Role,
    image: Option<ResolvedImage>,
) -> Result<Arc<Container>, Failure> {
    let sources = files::look(spec, &pod.config.kubelet_dir).map_err(|error| Failure::because("look at the container's mounts", &error))?;
    let facts = Facts {
        role,
        sandbox_id: pod.sandbox_id.clone(),
        container_id: request.id.clone(),
        image,
        host_access: pod.host_access,
        sources,
        pids: pod.pids(),
    };
    let planned = plan::container(spec, &facts).map_err(refused)?;
    let address = Address { container_id: request.id.clone(), exec_id: String::new() };
    let stdio = stdio_of(request.terminal, &request.stdin, &request.stdout, &request.stderr);
    let stand_in = StandIn::start().map_err(|error| Failure::because("start a thread that stands in for the container", &error))?;
    let opened = stdio::open(&stdio).await?;
    files::copy(&pod.agent, &planned.copies).await.map_err(|error| Failure::because("copy the container's files", &error))?;
    let termination_log = planned.termination_log.clone();
    let watched: Vec<plan::Copy> = planned.copies.iter().filter(|copy| copy.watch).cloned().collect();
    if let Err(failure) = ask(pod, &request.id, planned).await {
        let mut remove = RemoveContainerRequest::new();
        remove.container_id.clone_from(&request.id);
        if let Err(error) = pod.agent.remove_container(with_duration(SHORT), &remove).await {
            tracing::debug!(%error, container_id = request.id, "nothing was left of the container");
        }
        return Err(failure);
    }
    let watcher = (!watched.is_empty()).then(|| Watcher::start(pod.agent.clone(), watched));
    let init = Arc::new(Process::new(address, stdio, None, opened));
    Ok(Arc::new(Container::new(request.id.clone(), request.bundle.clone().into(), init, termination_log, watcher, stand_in)))
}

async fn ask(pod: &Pod, id: &str, planned: ContainerPlan) -> Result<(), Failure> {
    let mut create = CreateContainerRequest::new();
    id.clone_into(&mut create.container_id);
    id.clone_into(&mut create.exec_id);
    create.storages = planned.storages;
    create.OCI = Some(planned.spec).into();
    create.sandbox_pidns = planned.shares_pid_namespace;
    pod.agent.create_container(with_duration(PULL), &create).await?;
    Ok(())
}

/// The streams of a request.
pub fn stdio_of(terminal: bool, stdin: &str, stdout: &str, stderr: &str) -> Stdio {
    Stdio { terminal, stdin: stdin.to_owned(), stdout: stdout.to_owned(), stderr: stderr.to_owned() }
}

#[allow(clippy::needless_pass_by_value, reason = "used as map_err's function")]
fn refused(refusal: plan::Refusal) -> Failure {
    // As from runc: the code says no more than that the container cannot be.
    Failure::new(containerd_shim_protos::ttrpc::Code::UNKNOWN, chain(&refusal))
}
