//! The pod that this process serves: its pod VM, its containers, and how it comes to an end.
//!
//! The pod VM is asked for when the sandbox's task is created and given back when that task is deleted, when the shim shuts down, or when
//! the pod VM is lost. A loss ends every process with status 137 and its reason where people look: the container's output and its
//! termination message.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use containerd_shim::event::Event;
use containerd_shim_protos::events::task::{TaskExit, TaskOOM};
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use peerpods_protos::agent::{GetDiagnosticDataRequest, GetOOMEventRequest, WaitProcessRequest};
use peerpods_protos::agent_ttrpc::AgentServiceClient;
use peerpods_protos::node::StartSandboxResponse;
use peerpods_tunnel::credential::NodeKey;
use peerpods_tunnel::node::{AgentDialer, Pin};
use peerpods_tunnel::{ResumeOptions, StreamState};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use ttrpc::context::{Context, with_duration};

use crate::bundle::{SandboxFile, VERSION};
use crate::config::Config;
use crate::container::Container;
use crate::daemon::{Daemon, SandboxWish};
use crate::events::Events;
use crate::failure::{Failure, chain};
use crate::plan::HostAccess;
use crate::process::{Exit, LOST, Process, State};
use crate::{cgroup, clock};

/// One pod with its pod VM.
pub struct Pod {
    /// The CRI sandbox id.
    pub sandbox_id: String,
    /// The pod VM's agent.
    pub agent: AgentServiceClient,
    /// The node daemon.
    pub daemon: Daemon,
    /// The shim's configuration.
    pub config: Config,
    /// What the pod's class lets it use of the node.
    pub host_access: HostAccess,
    events: Events,
    containers: Mutex<BTreeMap<String, Arc<Container>>>,
    /// Why the pod is over, once it is.
    ended: watch::Sender<Option<String>>,
    /// The pod VM is no longer wanted: its end is no news.
    is_released: AtomicBool,
    tasks: Mutex<JoinSet<()>>,
    cgroup: Option<PathBuf>,
}

/// How long a pod VM is given back for.
const STOP: Duration = Duration::from_secs(5);
/// How long the reason for a lost session may take.
const REASON: Duration = Duration::from_secs(2);
const SHORT: Duration = Duration::from_secs(10);
/// Kata's word for it.
const TERMINATION_LOG: &str = "termination_log";
const MAX_TERMINATION_MESSAGE: usize = 4096;
const SANDBOX_NAME: &str = "io.kubernetes.cri.sandbox-name";
const SANDBOX_NAMESPACE: &str = "io.kubernetes.cri.sandbox-namespace";
const SANDBOX_UID: &str = "io.kubernetes.cri.sandbox-uid";

impl Pod {
    /// Asks for a pod VM and connects to its agent; gives it back when that fails.
    pub async fn open(sandbox_id: &str, bundle: &Path, spec: &Spec, config: Config, events: Events) -> Result<Arc<Self>, Failure> {
        let wish = wish(sandbox_id, spec)?;
        let daemon = Daemon::new(config.hypervisor_socket.clone());
        let cgroup = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().clone()).filter(|path| cgroup::usable(path));
        let file = SandboxFile {
            version: VERSION,
            sandbox_id: sandbox_id.to_owned(),
            hypervisor_socket: config.hypervisor_socket.clone(),
            cgroup: cgroup.clone(),
        };
        file.write(bundle).map_err(|error| Failure::because("write the sandbox's file", &error))?;
        if let Some(path) = &cgroup {
            for error in cgroup::join(path) {
                tracing::debug!(%error, path = %path.display(), "the shim's memory is not accounted to the pod");
            }
        }
        match connect(&daemon, &wish, &config).await {
            Ok(Connected { agent, dialer, state, endpoint }) => {
                let pod = Arc::new(Self {
                    sandbox_id: sandbox_id.to_owned(),
                    agent,
                    daemon,
                    config,
                    host_access: HostAccess::from_words(&endpoint.host_access),
                    events,
                    containers: Mutex::default(),
                    ended: watch::Sender::new(None),
                    is_released: AtomicBool::new(false),
                    tasks: Mutex::new(JoinSet::new()),
                    cgroup,
                });
                pod.watch(state);
                pod.spawn(peerpods_link::forward::serve(Some(wish.netns.into()), dialer));
                Ok(pod)
            }
            Err(failure) => {
                if let Err(error) = daemon.stop(sandbox_id, STOP).await {
                    tracing::warn!(%error, "the node daemon will notice by itself that the shim is gone");
                }
                if let Some(path) = &cgroup {
                    cgroup::leave(path);
                }
                Err(failure)
            }
        }
    }

    /// A container by its id.
    pub fn container(&self, id: &str) -> Result<Arc<Container>, Failure> {
        self.lock().get(id).cloned().ok_or_else(|| Failure::not_found(&format!("container {id}")))
    }

    /// Adds a container that the agent has made.
    pub fn add(&self, container: Arc<Container>) {
        self.lock().insert(container.id.clone(), container);
    }

    /// Forgets a container; tells whether none is left.
    pub fn remove(&self, id: &str) -> bool {
        let mut containers = self.lock();
        containers.remove(id);
        containers.is_empty()
    }

    /// The containers by the process ids that containerd knows them by.
    pub fn pids(&self) -> BTreeMap<u32, String> {
        self.lock().values().map(|container| (container.pid(), container.id.clone())).collect()
    }

    /// Whether there is a container of that id.
    pub fn has(&self, id: &str) -> bool {
        self.lock().contains_key(id)
    }

    /// Whether no container is left.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Why the pod is over.
    pub fn end_reason(&self) -> Option<String> {
        self.ended.borrow().clone()
    }

    /// Publishes an event.
    pub async fn publish<E: Event>(&self, event: E) {
        self.events.send(event).await;
    }

    /// Follows a started process to its end.
    pub fn supervise(self: &Arc<Self>, container: Arc<Container>, process: Arc<Process>) {
        let pod = Arc::clone(self);
        self.spawn(async move { pod.follow(&container, &process).await });
    }

    /// Gives the pod VM back. Durable at the daemon when it succeeds; the daemon notices a dead shim by itself.
    pub async fn release(&self) {
        self.is_released.store(true, Ordering::Relaxed);
        if let Err(error) = self.daemon.stop(&self.sandbox_id, STOP).await {
            tracing::warn!(%error, "the pod VM could not be given back; the node daemon will notice that the shim is gone");
        }
    }

    /// Stops everything that the pod has running in this process.
    pub fn close(&self) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
        if let Some(path) = &self.cgroup {
            cgroup::leave(path);
        }
    }

    /// Runs a task that ends with the pod.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    async fn follow(&self, container: &Container, process: &Process) {
        let mut request = WaitProcessRequest::new();
        request.container_id.clone_from(&process.address.container_id);
        request.exec_id.clone_from(&process.address.exec_id);
        let waited = async {
            let waited = self.agent.wait_process(Context::default(), &request).await;
            if waited.is_ok()
                && let Some(streams) = process.streams()
            {
                streams.drained().await;
            }
            waited
        };
        let waited = tokio::select! {
            waited = waited => waited,
            reason = self.over() => Err(ttrpc::Error::Others(reason)),
        };
        let status = match waited {
            Ok(response) => {
                self.fetch_termination_message(container, process).await;
                u32::try_from(response.status).unwrap_or(LOST)
            }
            Err(error) => {
                // A session that ends fails this call a moment before its reason is known.
                let reason = timeout(REASON, self.over()).await.unwrap_or_else(|_| error.to_string());
                self.tell_loss(container, process, &reason);
                // The tunnel may go on trying for a minute; containerd deletes nothing before it has seen the ends of the outputs.
                process.close();
                LOST
            }
        };
        self.exited(container, process, status).await;
    }

    /// Waits for the end of the pod; gives the reason.
    pub async fn over(&self) -> String {
        let mut ended = self.ended.subscribe();
        let reason = ended.wait_for(Option::is_some).await;
        reason.ok().and_then(|reason| reason.clone()).unwrap_or_default()
    }

    /// What the first process left for the kubelet, in the file that the kubelet reads.
    async fn fetch_termination_message(&self, container: &Container, process: &Process) {
        let Some(path) = container.termination_log.as_ref().filter(|_| process.is_init()) else { return };
        let mut request = GetDiagnosticDataRequest::new();
        TERMINATION_LOG.clone_into(&mut request.log_type);
        request.container_id.clone_from(&container.id);
        match self.agent.get_diagnostic_data(with_duration(SHORT), &request).await {
            Ok(response) if response.data.is_empty() => {}
            Ok(response) => write_termination_message(path, &response.data),
            Err(error) => tracing::warn!(%error, container_id = container.id, "the termination message is lost"),
        }
    }

    /// Publishes the end of a process.
    pub async fn exited(&self, container: &Container, process: &Process, status: u32) {
        let exit = Exit { status, at: clock::now() };
        let mut event = TaskExit::new();
        event.container_id.clone_from(&container.id);
        event.id.clone_from(if process.is_init() { &container.id } else { &process.address.exec_id });
        event.pid = container.pid();
        event.exit_status = status;
        event.exited_at = Some(exit.at.clone()).into();
        let _told = process.signals.write().await;
        process.state.send_replace(State::Exited(exit));
        self.publish(event).await;
    }

    /// The container's output and its termination message say why it is gone.
    fn tell_loss(&self, container: &Container, process: &Process, reason: &str) {
        if !process.is_init() || container.id == self.sandbox_id {
            return;
        }
        let text = format!("peerpods: the pod VM is lost: {reason}\n");
        crate::stdio::tell(&process.stdio, &text);
        if let Some(path) = &container.termination_log {
            write_termination_message(path, text.as_bytes());
        }
    }

    /// Follows the tunnel, the daemon's view and the agent's events.
    fn watch(self: &Arc<Self>, mut state: watch::Receiver<StreamState>) {
        let pod = Arc::clone(self);
        self.spawn(async move {
            let tunnel = async {
                let lost = state.wait_for(|state| matches!(state, StreamState::Lost(_) | StreamState::Closed)).await;
                match lost.as_deref() {
                    Ok(StreamState::Lost(lost)) => format!("its session ended: {}", chain(lost)),
                    _ => "its agent closed the session".to_owned(),
                }
            };
            let reason = tokio::select! {
                reason = tunnel => reason,
                reason = pod.daemon.watch(&pod.sandbox_id) => reason,
            };
            if !pod.is_released.load(Ordering::Relaxed) {
                tracing::error!(reason, "the pod is over");
            }
            pod.ended.send_replace(Some(reason));
            pod.release().await;
        });
        let pod = Arc::clone(self);
        self.spawn(async move {
            while let Ok(event) = pod.agent.get_oom_event(Context::default(), &GetOOMEventRequest::new()).await {
                let mut oom = TaskOOM::new();
                oom.container_id = event.container_id;
                pod.publish(oom).await;
            }
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Container>>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The kubelet made the file and reads at most its last 4 KiB; more than that is not the guest's to put on the node.
fn write_termination_message(path: &Path, message: &[u8]) {
    let message = &message[message.len().saturating_sub(MAX_TERMINATION_MESSAGE)..];
    let written = std::fs::OpenOptions::new().write(true).truncate(true).open(path).and_then(|mut file| file.write_all(message));
    if let Err(error) = written {
        tracing::warn!(%error, path = %path.display(), "writing the termination message");
    }
}

fn wish(sandbox_id: &str, spec: &Spec) -> Result<SandboxWish, Failure> {
    let annotations = spec.annotations().clone().unwrap_or_default();
    let required = |key: &str| {
        annotations.get(key).cloned().ok_or_else(|| {
            Failure::precondition(format!(
                "annotation {key} is missing: a peer pod is made by containerd's CRI, as from the kubelet or crictl"
            ))
        })
    };
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref()).into_iter().flatten();
    let netns =
        namespaces.filter(|namespace| namespace.typ() == LinuxNamespaceType::Network).find_map(|namespace| namespace.path().clone());
    let netns = netns.ok_or_else(|| {
        Failure::precondition(
            "the pod wants the node's own network (hostNetwork), which a pod VM does not have; next: remove hostNetwork from the pod",
        )
    })?;
    Ok(SandboxWish {
        sandbox_id: sandbox_id.to_owned(),
        pod: (required(SANDBOX_NAMESPACE)?, required(SANDBOX_NAME)?, required(SANDBOX_UID)?),
        netns: netns.display().to_string(),
        annotations,
    })
}

/// A pod VM and the way to it.
struct Connected {
    agent: AgentServiceClient,
    dialer: AgentDialer,
    state: watch::Receiver<StreamState>,
    endpoint: StartSandboxResponse,
}

async fn connect(daemon: &Daemon, wish: &SandboxWish, config: &Config) -> Result<Connected, Failure> {
    daemon.create(wish).await?;
    let endpoint = daemon.start(&wish.sandbox_id, config.start_timeout()).await?;
    let bad = |what: &str| Failure::internal(format!("the node daemon's {what} of the pod VM is not one"));
    let address: SocketAddr = endpoint.address.parse().map_err(|_| bad("address"))?;
    let pin = Pin::try_from(endpoint.pin.clone()).map_err(|_| bad("pin"))?;
    let key = NodeKey::from_pem(&endpoint.node_key_pem).map_err(|_| bad("key"))?;
    let dialer = AgentDialer::new(address, key, pin, ResumeOptions::default());
    let stream = dialer
        .connect()
        .await
        .map_err(|error| Failure::because(&format!("open a session with the agent of {}", endpoint.instance_id), &error))?;
    let state = stream.state();
    let client = ttrpc::asynchronous::Client::new(ttrpc::asynchronous::transport::Socket::new(stream));
    tracing::info!(instance_id = endpoint.instance_id, %address, "connected to the pod VM");
    Ok(Connected { agent: AgentServiceClient::new(client), dialer, state, endpoint })
}
