//! The tunnel's cost: an agent call and a byte stream, through the tunnel over loopback and on a socket of their own.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use peerpods_protos::agent::{ReadStreamRequest, ReadStreamResponse};
use peerpods_protos::agent_ttrpc::{AgentService, AgentServiceClient, create_agent_service};
use peerpods_tunnel::credential::{BinderCa, Credential, NodeKey};
use peerpods_tunnel::guest::{BindHandler, GuestConfig, GuestEndpoint};
use peerpods_tunnel::node::{AgentDialer, Verdict, bind};
use peerpods_tunnel::user_data::UserData;
use peerpods_tunnel::{AgentStream, BindRequest, Pod, Refusal, ResumeOptions};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use ttrpc::asynchronous::transport::{Listener, Socket};
use ttrpc::asynchronous::{Client, Server, TtrpcContext};
use ttrpc::context::Context;

use crate::figure::{Budget, Figure, percentile};

const CALLS: usize = 5_000;
const STREAM_BYTES: usize = 1 << 30;
/// What Kata's Rust shim asks for in one ReadStdout.
const READ: usize = 8 << 10;
const READS: usize = 20_000;

/// Measures everything about the tunnel.
pub(crate) async fn run() -> Result<Vec<Figure>> {
    let mut ends = Ends::open().await?;
    let mut figures = Vec::new();

    let (near, far) = ends.stream().await?;
    let (own_near, own_far) = UnixStream::pair()?;
    let through = Agent::new(near, far);
    let own = Agent::new(own_near, own_far);
    let (mut own_micros, mut through_micros) = (own.call_micros(0, CALLS).await?, through.call_micros(0, CALLS).await?);
    for (name, share, limit) in
        [("agent call through the tunnel, added, p50", 0.5, 50.0), ("agent call through the tunnel, added, p99", 0.99, 200.0)]
    {
        let (own, through) = (percentile(&mut own_micros, share), percentile(&mut through_micros, share));
        figures.push(Figure {
            name: name.to_owned(),
            value: through - own,
            unit: "us",
            baseline: "the same call on a unix socket".to_owned(),
            baseline_value: own,
            budget: Budget::AtMost(limit),
        });
    }
    let (own_rate, through_rate) = (own.read_rate().await?, through.read_rate().await?);
    figures.push(Figure {
        name: "ReadStdout of 8 KiB, 4 callers".to_owned(),
        value: through_rate,
        unit: "MB/s",
        baseline: "the same calls on a unix socket".to_owned(),
        baseline_value: own_rate,
        budget: Budget::RatioAtLeast(0.8),
    });

    let (near, far) = ends.stream().await?;
    let raw = stream_rate(near, far).await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let (near, far) = tokio::try_join!(TcpStream::connect(listener.local_addr()?), async { Ok(listener.accept().await?.0) })?;
    figures.push(Figure {
        name: "raw tunnel, one direction, one stream".to_owned(),
        value: raw,
        unit: "MB/s",
        baseline: "plain TCP on loopback".to_owned(),
        baseline_value: stream_rate(near, far).await?,
        budget: Budget::AtLeast(500.0),
    });
    Ok(figures)
}

/// A guest endpoint in this process, bound, and a dialer for it.
struct Ends {
    dialer: AgentDialer,
    streams: mpsc::Receiver<AgentStream>,
}

struct Anyone;

#[async_trait]
impl BindHandler for Anyone {
    async fn evidence(&self, report_data: [u8; 48]) -> Result<Vec<u8>, Refusal> {
        Ok(report_data.to_vec())
    }

    async fn activate(&self, challenge: Vec<u8>) -> Result<Vec<u8>, Refusal> {
        Ok(challenge)
    }

    async fn bind(&self, _request: &BindRequest) -> Result<(), Refusal> {
        Ok(())
    }
}

impl Ends {
    async fn open() -> Result<Self> {
        let ca = BinderCa::generate()?;
        let (key, agent_key) = (NodeKey::generate()?, NodeKey::generate()?);
        let chain = ca.issue(key.spki_der(), "i-bench", "node", SystemTime::now(), Duration::from_secs(600))?;
        let user_data = UserData { version: 1, binder_ca_sha256: ca.spki_sha256_hex(), tee: "sample".to_owned() };
        let (endpoint, streams) = GuestEndpoint::new(GuestConfig { user_data, instance_id: "i-bench".to_owned() }, Anyone)?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        tokio::spawn(endpoint.serve(listener));
        let request = BindRequest {
            version: 1,
            sandbox_id: "bench".to_owned(),
            pod: Pod { namespace: "default".to_owned(), name: "bench".to_owned(), uid: None },
            network: serde_json::Value::Null,
            initdata: None,
            agent_keys: vec![agent_key.spki_sha256_hex()],
        };
        let bound =
            bind(address, "i-bench", &Credential { chain, key }, &request, |_| Ok(Verdict::Trusted), Duration::from_secs(20)).await?;
        Ok(Self { dialer: AgentDialer::new(address, agent_key, bound.pin, ResumeOptions::default()), streams: streams.agents })
    }

    async fn stream(&mut self) -> Result<(AgentStream, AgentStream)> {
        let near = self.dialer.connect().await?;
        let far = self.streams.recv().await.context("the guest endpoint has ended")?;
        Ok((near, far))
    }
}

/// An agent that answers ReadStdout with 8 KiB, or with nothing when 0 bytes are asked for.
struct Echo;

#[async_trait]
impl AgentService for Echo {
    async fn read_stdout(&self, _: &TtrpcContext, request: ReadStreamRequest) -> ttrpc::Result<ReadStreamResponse> {
        let mut response = ReadStreamResponse::new();
        response.data = vec![b'x'; request.len as usize];
        Ok(response)
    }
}

struct Agent {
    client: AgentServiceClient,
    _server: tokio::task::JoinHandle<()>,
}

impl Agent {
    fn new<N, F>(near: N, far: F) -> Self
    where
        N: AsyncRead + AsyncWrite + Send + Sync + Unpin + 'static,
        F: AsyncRead + AsyncWrite + Send + Sync + Unpin + 'static,
    {
        let server = tokio::spawn(async move {
            // A listener that gives this one connection.
            let once = tokio_stream::once(Ok::<F, std::io::Error>(far)).chain(tokio_stream::pending());
            let mut server = Server::new().add_listener(Listener::new(once)).register_service(create_agent_service(Arc::new(Echo)));
            let _ = server.start().await;
            std::future::pending::<()>().await;
        });
        Self { client: AgentServiceClient::new(Client::new(Socket::new(near))), _server: server }
    }

    async fn call_micros(&self, len: u32, calls: usize) -> Result<Vec<f64>> {
        let mut request = ReadStreamRequest::new();
        request.len = len;
        let mut micros = Vec::with_capacity(calls);
        for _ in 0..calls {
            let begin = Instant::now();
            self.client.read_stdout(Context::default(), &request).await?;
            micros.push(begin.elapsed().as_secs_f64() * 1e6);
        }
        Ok(micros)
    }

    async fn read_rate(&self) -> Result<f64> {
        let begin = Instant::now();
        let reader = || self.call_micros(u32::try_from(READ).unwrap_or(u32::MAX), READS / 4);
        tokio::try_join!(reader(), reader(), reader(), reader())?;
        Ok(megabytes(READS * READ) / begin.elapsed().as_secs_f64())
    }
}

async fn stream_rate<N, F>(mut near: N, mut far: F) -> Result<f64>
where
    N: AsyncWrite + Send + Sync + Unpin + 'static,
    F: AsyncRead + Send + Sync + Unpin + 'static,
{
    let begin = Instant::now();
    let writer = tokio::spawn(async move {
        let block = vec![7u8; 256 << 10];
        for _ in 0..STREAM_BYTES / block.len() {
            near.write_all(&block).await?;
        }
        near.flush().await?;
        Ok::<_, std::io::Error>(near)
    });
    let mut block = vec![0u8; 256 << 10];
    let mut left = STREAM_BYTES;
    while left > 0 {
        let count = far.read(&mut block).await?;
        anyhow::ensure!(count > 0, "the stream ended {left} bytes early");
        left -= count;
    }
    let rate = megabytes(STREAM_BYTES) / begin.elapsed().as_secs_f64();
    drop(writer.await??);
    Ok(rate)
}

#[allow(clippy::cast_precision_loss)]
fn megabytes(bytes: usize) -> f64 {
    bytes as f64 / 1e6
}
