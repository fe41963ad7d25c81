//! The node daemon as the shim sees it: each call is repeated while the daemon is being restarted, until its deadline.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use peerpods_protos::node::{
    CreateSandboxRequest, Pod, Process, ResolveImageRequest, StartSandboxRequest, StartSandboxResponse, StopSandboxRequest,
    WatchSandboxRequest,
};
use peerpods_protos::node_ttrpc::NodeClient;
use tokio::time::{Instant, sleep};
use ttrpc::Code;
use ttrpc::context::with_duration;

use crate::failure::Failure;
use crate::plan::ResolvedImage;

/// Between tries while the daemon does not answer.
const PAUSE: Duration = Duration::from_millis(100);
/// For calls that the daemon answers at once.
const SHORT: Duration = Duration::from_secs(30);
/// A long poll's length; the daemon is asked again after it.
const POLL: Duration = Duration::from_secs(60);
/// Between polls that fail at once.
const POLL_PAUSE: Duration = Duration::from_millis(500);

/// Who makes pod VMs for this node.
#[derive(Debug, Clone)]
pub struct Daemon {
    socket: PathBuf,
}

/// Who wants a pod VM.
#[derive(Debug, Clone)]
pub struct SandboxWish {
    /// The CRI sandbox id.
    pub sandbox_id: String,
    /// Namespace, name and UID of the pod.
    pub pod: (String, String, String),
    /// The sandbox's annotations.
    pub annotations: HashMap<String, String>,
    /// The pod's network namespace on this node.
    pub netns: String,
}

impl Daemon {
    /// The daemon that listens there.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Records the sandbox.
    pub async fn create(&self, wish: &SandboxWish) -> Result<(), Failure> {
        let (namespace, name, uid) = wish.pod.clone();
        let mut request = CreateSandboxRequest::new();
        request.sandbox_id.clone_from(&wish.sandbox_id);
        request.pod = Some(Pod { namespace, name, uid, ..Default::default() }).into();
        request.annotations.clone_from(&wish.annotations);
        request.netns.clone_from(&wish.netns);
        let own =
            peerpods_link::folder::ProcessIdentity::own().map_err(|error| Failure::because("read the shim's own start time", &error))?;
        request.shim = Some(Process { pid: own.pid, start_time: own.start_time, ..Default::default() }).into();
        self.call("CreateSandbox", SHORT, move |client: NodeClient, left| {
            let request = request.clone();
            async move { client.create_sandbox(with_duration(left), &request).await }
        })
        .await?;
        Ok(())
    }

    /// Waits for the pod VM.
    pub async fn start(&self, sandbox_id: &str, limit: Duration) -> Result<StartSandboxResponse, Failure> {
        let mut request = StartSandboxRequest::new();
        sandbox_id.clone_into(&mut request.sandbox_id);
        self.call("StartSandbox", limit, move |client: NodeClient, left| {
            let request = request.clone();
            async move { client.start_sandbox(with_duration(left), &request).await }
        })
        .await
    }

    /// Gives the pod VM back.
    pub async fn stop(&self, sandbox_id: &str, limit: Duration) -> Result<(), Failure> {
        let mut request = StopSandboxRequest::new();
        sandbox_id.clone_into(&mut request.sandbox_id);
        self.call("StopSandbox", limit, move |client: NodeClient, left| {
            let request = request.clone();
            async move { client.stop_sandbox(with_duration(left), &request).await }
        })
        .await?;
        Ok(())
    }

    /// What the guest is to pull.
    pub async fn resolve(&self, namespace: &str, container_id: &str, image_name: &str) -> Result<ResolvedImage, Failure> {
        let mut request = ResolveImageRequest::new();
        namespace.clone_into(&mut request.namespace);
        container_id.clone_into(&mut request.container_id);
        image_name.clone_into(&mut request.image_name);
        let response = self
            .call("ResolveImage", SHORT, move |client: NodeClient, left| {
                let request = request.clone();
                async move { client.resolve_image(with_duration(left), &request).await }
            })
            .await?;
        Ok(ResolvedImage { reference: response.reference, config_digest: response.config_digest })
    }

    /// Comes back when the sandbox is over, with the reason. An unreachable daemon is no reason.
    pub async fn watch(&self, sandbox_id: &str) -> String {
        let mut request = WatchSandboxRequest::new();
        sandbox_id.clone_into(&mut request.sandbox_id);
        loop {
            let began = Instant::now();
            if let Ok(client) = self.connect().await {
                match client.watch_sandbox(with_duration(POLL), &request).await {
                    Ok(response) => return response.reason,
                    Err(ttrpc::Error::RpcStatus(status)) if status.code() == Code::NOT_FOUND => return status.message,
                    Err(_) => {}
                }
            }
            if began.elapsed() < POLL_PAUSE {
                sleep(POLL_PAUSE).await;
            }
        }
    }

    async fn call<T, F>(&self, name: &str, limit: Duration, act: impl Fn(NodeClient, Duration) -> F) -> Result<T, Failure>
    where
        F: Future<Output = ttrpc::Result<T>>,
    {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let last = match self.connect().await {
                Ok(client) => match act(client, left).await {
                    Ok(answer) => return Ok(answer),
                    Err(error @ ttrpc::Error::RpcStatus(_)) if !is_passing(&error) => return Err(error.into()),
                    Err(error) => error,
                },
                Err(error) => error,
            };
            if Instant::now() + PAUSE > end {
                return Err(Failure::new(
                    containerd_shim_protos::ttrpc::Code::UNAVAILABLE,
                    format!(
                        "{name}: the node daemon at {} did not answer within {limit:?} ({last}); next: look whether peerpods-node runs",
                        self.socket.display()
                    ),
                ));
            }
            sleep(PAUSE).await;
        }
    }

    async fn connect(&self) -> ttrpc::Result<NodeClient> {
        let address = format!("unix://{}", self.socket.display());
        Ok(NodeClient::new(ttrpc::asynchronous::Client::connect(&address).await?))
    }
}

/// The daemon is going down or has only just come up.
fn is_passing(error: &ttrpc::Error) -> bool {
    matches!(error, ttrpc::Error::RpcStatus(status) if status.code() == Code::UNAVAILABLE)
}
