//! A client of the CRI, as the kubelet is one: calls over containerd's socket, streams as the kubelet forwards them.

mod spdy;
mod stream;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

pub use k8s_cri::v1;
pub use stream::{Outcome, PortStream, Session};

use v1::image_service_client::ImageServiceClient;
use v1::runtime_service_client::RuntimeServiceClient;

/// The kubelet's own limit; ExecSync alone may answer 16 MiB twice.
const MAX_MESSAGE: usize = 64 << 20;

/// One connection to containerd.
#[derive(Clone)]
pub struct Cri {
    /// Pods and containers.
    pub runtime: RuntimeServiceClient<Channel>,
    /// Images.
    pub images: ImageServiceClient<Channel>,
    netns: PathBuf,
}

impl Cri {
    /// Connects to a socket; streams are dialled in the network namespace `netns`.
    pub async fn connect(socket: &Path, netns: &Path) -> Result<Self> {
        let path = socket.to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
        });
        let endpoint = Endpoint::try_from("http://containerd")?.connect_timeout(Duration::from_secs(5)).timeout(Duration::from_secs(330));
        let channel = endpoint.connect_with_connector(connector).await.with_context(|| socket.display().to_string())?;
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE),
            images: ImageServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE),
            netns: netns.to_owned(),
        })
    }

    /// containerd's version; an error until it serves the CRI.
    pub async fn version(&self) -> Result<String> {
        let version = self.runtime.clone().version(v1::VersionRequest::default()).await?.into_inner();
        Ok(version.runtime_version)
    }

    /// A stream for `kubectl exec`.
    pub async fn exec(&self, request: v1::ExecRequest) -> Result<Session> {
        let wanted = stream::Wanted { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, tty: request.tty };
        let url = self.runtime.clone().exec(request).await?.into_inner().url;
        Session::open(&self.netns, &url, wanted).await
    }

    /// A stream for `kubectl attach`.
    pub async fn attach(&self, request: v1::AttachRequest) -> Result<Session> {
        let wanted = stream::Wanted { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, tty: request.tty };
        let url = self.runtime.clone().attach(request).await?.into_inner().url;
        Session::open(&self.netns, &url, wanted).await
    }

    /// A stream for one connection of `kubectl port-forward`.
    pub async fn port_forward(&self, sandbox: &str, port: u16) -> Result<PortStream> {
        let request = v1::PortForwardRequest { pod_sandbox_id: sandbox.to_owned(), port: vec![i32::from(port)] };
        let url = self.runtime.clone().port_forward(request).await?.into_inner().url;
        PortStream::open(&self.netns, &url, port).await
    }
}
