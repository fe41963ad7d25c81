//! The agent's state: the sandbox and the table of containers; and a connection to it.
//!
//! Creation of a container runs in a task of its own, since a ttrpc server drops a handler whose deadline has passed: the
//! container is then undone, whatever step it was at. A removal that meets a creation has it undone as well and waits for that.

mod create;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use peerpods_protos::agent::{CreateContainerRequest, CreateSandboxRequest};
use peerpods_protos::{agent_ttrpc, health_ttrpc};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{oneshot, watch};
use ttrpc::Code;
use ttrpc::r#async::transport::Listener;

use crate::cgroup::Hierarchies;
use crate::confine::Grants;
use crate::container::Container;
use crate::copy_file::FileCopier;
use crate::failure::Failure;
use crate::oom::OomEvents;
use crate::sandbox::Sandbox;
use crate::service::Service;
use crate::storage::Volumes;
use crate::{AgentConfig, AgentError, RootfsSource, SecretSource};

/// The agent of one pod VM.
pub struct Agent {
    pub(crate) config: AgentConfig,
    pub(crate) rootfs: Arc<dyn RootfsSource>,
    pub(crate) secrets: Arc<dyn SecretSource>,
    pub(crate) grants: Grants,
    pub(crate) hierarchies: Hierarchies,
    pub(crate) copier: FileCopier,
    pub(crate) volumes: Volumes,
    pub(crate) oom_events: Arc<OomEvents>,
    sandbox: Mutex<Option<Arc<Sandbox>>>,
    containers: Mutex<HashMap<String, Slot>>,
}

/// A container's place in the table.
enum Slot {
    /// Set to true, the creation is undone; closed once it has ended either way.
    Creating(watch::Sender<bool>),
    Created(Arc<Container>),
}

/// A container's id, taken; free again when dropped before its creation began.
pub(crate) struct Reserved {
    agent: Arc<Agent>,
    id: String,
    cancel: watch::Sender<bool>,
    /// Until the creation, which frees the id itself.
    cancelled: Option<watch::Receiver<bool>>,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if self.cancelled.is_some() {
            self.agent.containers().remove(&self.id);
        }
    }
}

/// Undoes a creation whose client has gone.
struct CancelOnDrop(watch::Sender<bool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.send_replace(true);
    }
}

const MAX_CONTAINERS: usize = 512;
const MAX_ID_BYTES: usize = 128;

impl Agent {
    /// Prepares the folders. Needs a tokio runtime only once it serves.
    pub fn new(config: AgentConfig, rootfs: Arc<dyn RootfsSource>, secrets: Arc<dyn SecretSource>) -> Result<Arc<Self>, AgentError> {
        if config.runner.is_empty() {
            return Err(AgentError::NoRunner);
        }
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| AgentError::PrepareFolder { path, source }
        };
        match fs::remove_dir_all(&config.run_dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&config.run_dir)(error)),
            _ => {}
        }
        for folder in ["bundles", "containers"] {
            let folder = config.run_dir.join(folder);
            fs::create_dir_all(&folder).map_err(failed(&folder))?;
        }
        fs::create_dir_all(&config.share_dir).map_err(failed(&config.share_dir))?;
        let hierarchies = Hierarchies::find().map_err(failed(Path::new("/proc/self/mountinfo")))?;
        Ok(Arc::new(Self {
            grants: Grants::of_this_process(),
            hierarchies,
            copier: FileCopier::new(&config.share_dir),
            volumes: Volumes::new(&config.share_dir),
            oom_events: Arc::default(),
            sandbox: Mutex::default(),
            containers: Mutex::default(),
            config,
            rootfs,
            secrets,
        }))
    }

    /// `grpc.AgentService` and `grpc.Health`, for a ttrpc server of the caller's.
    pub fn services(self: &Arc<Self>) -> HashMap<String, ttrpc::r#async::Service> {
        let service = Arc::new(Service::new(self.clone()));
        let mut services = agent_ttrpc::create_agent_service(service.clone());
        services.extend(health_ttrpc::create_health(service));
        services
    }

    /// Kills and removes everything of the pod. Afterwards a new sandbox may be created.
    pub async fn shutdown(&self) {
        let ids: Vec<String> = self.containers().keys().cloned().collect();
        for id in ids {
            if let Err(failure) = self.remove_container(&id).await {
                tracing::warn!(container_id = id, error = failure.message(), "removing a container");
            }
        }
        self.volumes.remove_all();
        self.sandbox().take();
        for folder in ["shared", "sandbox"] {
            let folder = self.config.share_dir.join(folder);
            if let Err(error) = remove_if_present(&folder) {
                tracing::warn!(folder = %folder.display(), %error, "removing a folder");
            }
        }
        let parent = self.hierarchies.cgroup(Path::new(&self.config.cgroup_parent));
        if let Err(error) = parent.remove() {
            tracing::warn!(%error, "removing the parent of the cgroups");
        }
    }

    fn sandbox(&self) -> std::sync::MutexGuard<'_, Option<Arc<Sandbox>>> {
        self.sandbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn containers(&self) -> std::sync::MutexGuard<'_, HashMap<String, Slot>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a sandbox may be created.
    pub(crate) fn check_no_sandbox(&self) -> Result<(), Failure> {
        none(self.sandbox().as_ref())
    }

    /// Creates the sandbox; there is one at a time.
    pub(crate) fn create_sandbox(&self, request: &CreateSandboxRequest) -> Result<(), Failure> {
        let mut sandbox = self.sandbox();
        none(sandbox.as_ref())?;
        check_id(&request.sandbox_id)?;
        let failed = |operation: &'static str| move |error: io::Error| Failure::because(operation, &error);
        let folder = self.config.share_dir.join("sandbox");
        for stale in [&folder, &self.config.share_dir.join("shared")] {
            remove_if_present(stale).map_err(failed("emptying the share"))?;
        }
        fs::create_dir_all(&folder).map_err(failed("preparing the share"))?;
        self.copier.prepare().map_err(failed("preparing the share"))?;
        let made =
            Sandbox::create(&request.sandbox_id, &request.hostname, &request.dns, &folder).map_err(failed("creating the sandbox"))?;
        for storage in &request.storages {
            if let Err(error) = self.volumes.ensure(storage) {
                self.volumes.remove_all();
                return Err(error.into());
            }
        }
        *sandbox = Some(Arc::new(made));
        Ok(())
    }

    /// The sandbox, once there is one.
    pub(crate) fn current_sandbox(&self) -> Result<Arc<Sandbox>, Failure> {
        self.sandbox().clone().ok_or_else(|| Failure::new(Code::FAILED_PRECONDITION, "there is no sandbox"))
    }

    /// A created container.
    pub(crate) fn container(&self, id: &str) -> Option<Arc<Container>> {
        match self.containers().get(id) {
            Some(Slot::Created(container)) => Some(container.clone()),
            _ => None,
        }
    }

    /// All created containers.
    pub(crate) fn all_containers(&self) -> Vec<Arc<Container>> {
        let containers = self.containers();
        containers.values().filter_map(|slot| if let Slot::Created(container) = slot { Some(container.clone()) } else { None }).collect()
    }

    /// Takes a container's id for a creation to come.
    pub(crate) fn reserve(self: &Arc<Self>, id: &str) -> Result<Reserved, Failure> {
        check_id(id)?;
        self.current_sandbox()?;
        let mut containers = self.containers();
        if containers.contains_key(id) {
            return Err(Failure::new(Code::ALREADY_EXISTS, format!("container {id} exists")));
        }
        if containers.len() >= MAX_CONTAINERS {
            return Err(Failure::new(Code::RESOURCE_EXHAUSTED, "too many containers"));
        }
        let (cancel, cancelled) = watch::channel(false);
        containers.insert(id.to_owned(), Slot::Creating(cancel.clone()));
        Ok(Reserved { agent: self.clone(), id: id.to_owned(), cancel, cancelled: Some(cancelled) })
    }

    /// Creates a container, or leaves nothing of it.
    pub(crate) async fn create_container(self: &Arc<Self>, request: CreateContainerRequest, mut reserved: Reserved) -> Result<(), Failure> {
        let sandbox = self.current_sandbox()?;
        let cancelled = reserved.cancelled.take().ok_or_else(Failure::cancelled)?;
        let client = CancelOnDrop(reserved.cancel.clone());
        let agent = self.clone();
        let created = tokio::spawn(async move {
            let id = request.container_id.clone();
            let result = create::create(&agent, &sandbox, &request, cancelled.clone()).await;
            let unwanted = {
                let mut containers = agent.containers();
                match result {
                    Ok(container) if !*cancelled.borrow() => {
                        containers.insert(id, Slot::Created(Arc::new(container)));
                        return Ok(());
                    }
                    Ok(container) => container,
                    Err(failure) => {
                        containers.remove(&id);
                        return Err(failure);
                    }
                }
            };
            let removed = unwanted.remove(agent.rootfs.as_ref()).await;
            agent.containers().remove(&id);
            removed.and(Err(Failure::cancelled()))
        })
        .await
        .map_err(|error| Failure::because("creating the container", &error))?;
        // From here on the client knows the outcome; a late cancellation has nothing left to undo.
        drop(client);
        created
    }

    /// Removes a container with all its processes.
    pub(crate) async fn remove_container(&self, id: &str) -> Result<(), Failure> {
        let (container, creating) = {
            let mut containers = self.containers();
            match containers.remove(id) {
                None => return Err(Failure::no_container()),
                Some(Slot::Created(container)) => (Some(container), None),
                Some(Slot::Creating(cancel)) => {
                    containers.insert(id.to_owned(), Slot::Creating(cancel.clone()));
                    (None, Some(cancel))
                }
            }
        };
        if let Some(cancel) = creating {
            cancel.send_replace(true);
            cancel.closed().await;
            return Ok(());
        }
        match container {
            Some(container) => container.remove(self.rootfs.as_ref()).await,
            None => Ok(()),
        }
    }
}

/// Serves one ttrpc connection until the peer closes it. Dropped, it closes the connection; the containers go on.
pub async fn serve<S>(agent: &Arc<Agent>, stream: S)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (open, closed) = oneshot::channel();
    let connection = Connection { stream: Mutex::new(stream), _open: open };
    let listener = Listener::new(futures::stream::iter([Ok::<_, io::Error>(connection)]));
    let mut server = ttrpc::r#async::Server::new().register_service(agent.services()).add_listener(listener);
    if let Err(error) = server.start().await {
        tracing::warn!(%error, "serving an agent connection");
        return;
    }
    // Ends when the server drops its last half of the stream.
    let _: Result<std::convert::Infallible, _> = closed.await;
}

/// A stream as ttrpc wants it: `Sync`, and noticed when dropped.
struct Connection<S> {
    /// Never locked: all access is through `&mut`.
    stream: Mutex<S>,
    _open: oneshot::Sender<std::convert::Infallible>,
}

impl<S: Unpin> Connection<S> {
    fn stream(self: Pin<&mut Self>) -> Pin<&mut S> {
        Pin::new(self.get_mut().stream.get_mut().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.stream().poll_write(context, data)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(context)
    }
}

fn none(sandbox: Option<&Arc<Sandbox>>) -> Result<(), Failure> {
    let exists = |sandbox: &Arc<Sandbox>| Failure::new(Code::ALREADY_EXISTS, format!("sandbox {} exists", sandbox.id()));
    sandbox.map_or(Ok(()), |sandbox| Err(exists(sandbox)))
}

/// Ids become names of folders and cgroups.
fn check_id(id: &str) -> Result<(), Failure> {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'+');
    if id.is_empty() || id.len() > MAX_ID_BYTES || !id.bytes().all(is_name) || id.starts_with('.') {
        return Err(Failure::invalid(format!("{id:?} is not an id")));
    }
    Ok(())
}

fn remove_if_present(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_names() {
        for id in ["a", "0346faf65876906b252c79117eec201aa05c2334073fd9541f754be65dad61d7", "ctr-1_x.y"] {
            assert!(check_id(id).is_ok(), "{id}");
        }
        for id in ["", ".", "..", ".x", "a/b", "a b", "é", &"x".repeat(129)] {
            assert!(check_id(id).is_err(), "{id}");
        }
    }
}
