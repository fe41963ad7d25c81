//! The pod VM's end: one TCP port that takes one Bind, then agent streams and forwarded connections.
//!
//! The endpoint owns every task that it starts; dropping [`GuestEndpoint::serve`] ends them all. It keeps no state on disk: the
//! VM's key and the Bind live and die with the process, and a node finds out by the key.

mod admission;
mod binding;
mod connection;
mod limits;
mod sessions;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;

use admission::Admission;
use binding::{Binding, State};
use connection::Services;
use sessions::Sessions;

pub use limits::GuestLimits;

use crate::credential::{CredentialError, NodeKey};
use crate::tls::{AgentKeys, agent_server, bind_server, refusing_server};
use crate::user_data::{UserData, UserDataError};
use crate::{AgentStream, BindRequest, Refusal, ResumeOptions};

/// What the VM learned at boot.
#[derive(Debug, Clone)]
pub struct GuestConfig {
    /// From the cloud's user data.
    pub user_data: UserData,
    /// The VM's own id, from the cloud's metadata.
    pub instance_id: String,
}

/// The guest's work for a Bind.
#[async_trait]
pub trait BindHandler: Send + Sync + 'static {
    /// Makes evidence with this report data. May be called many times before the VM is bound, never two at once.
    async fn evidence(&self, report_data: [u8; 48]) -> Result<Vec<u8>, Refusal>;

    /// Answers a challenge about the hardware behind the evidence. May be called many times before and after the VM is bound, never two at
    /// once and never together with `evidence`.
    async fn activate(&self, challenge: Vec<u8>) -> Result<Vec<u8>, Refusal>;

    /// Measures the initdata and sets the pod up. Called at most once: its answer, good or bad, is the answer to every later
    /// Bind with the same bytes, and all others are refused.
    async fn bind(&self, request: &BindRequest) -> Result<(), Refusal>;
}

/// Why an endpoint could not be made.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// User data that did not come from [`UserData::decode`].
    #[error(transparent)]
    UserData(#[from] UserDataError),
    /// The VM's key or certificate could not be made.
    #[error(transparent)]
    Credential(#[from] CredentialError),
    /// The TLS library refused the key.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
}

/// The listening end of the guest channel. The VM's key is made here and lives as long as the endpoint.
pub struct GuestEndpoint {
    config: GuestConfig,
    ca_sha256: [u8; 32],
    key: NodeKey,
    certificate: Vec<u8>,
    limits: GuestLimits,
    resume: ResumeOptions,
    handler: Arc<dyn BindHandler>,
    agents: mpsc::Sender<AgentStream>,
    forwards: mpsc::Sender<AgentStream>,
}

/// The streams of a bound VM by service; when nobody takes them, new ones are refused as busy.
#[derive(Debug)]
pub struct Streams {
    /// For the agent.
    pub agents: mpsc::Receiver<AgentStream>,
    /// Each for [`crate::forward::serve`].
    pub forwards: mpsc::Receiver<AgentStream>,
}

/// Streams of a service that wait to be taken from the receiver.
const WAITING_STREAMS: usize = 16;

/// After a failed accept: for the descriptors or memory that it lacked.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

impl GuestEndpoint {
    /// Makes the VM's key.
    pub fn new(config: GuestConfig, handler: impl BindHandler) -> Result<(Self, Streams), EndpointError> {
        let (agents, agents_receiver) = mpsc::channel(WAITING_STREAMS);
        let (forwards, forwards_receiver) = mpsc::channel(WAITING_STREAMS);
        let key = NodeKey::generate()?;
        let endpoint = Self {
            ca_sha256: config.user_data.binder_ca_fingerprint()?,
            certificate: key.self_signed()?,
            config,
            key,
            limits: GuestLimits::default(),
            resume: ResumeOptions::default(),
            handler: Arc::new(handler),
            agents,
            forwards,
        };
        Ok((endpoint, Streams { agents: agents_receiver, forwards: forwards_receiver }))
    }

    /// Replaces the default limits.
    pub fn with_limits(mut self, limits: GuestLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Replaces the default time limits of agent streams.
    pub fn with_resume_options(mut self, options: ResumeOptions) -> Self {
        self.resume = options;
        self
    }

    /// SHA-256 of the VM's SubjectPublicKeyInfo, as the node pins it.
    pub fn spki_sha256(&self) -> [u8; 32] {
        self.key.spki_sha256()
    }

    /// Serves until dropped; connections and streams end with it. Fails only when TLS cannot be set up.
    pub async fn serve(self, listener: TcpListener) -> Result<(), EndpointError> {
        let admission = Admission::new(&self.limits);
        let services = Arc::new(self.services()?);
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((tcp, _)) => match admission.try_admit() {
                        Ok(slot) => { connections.spawn(Arc::clone(&services).serve(tcp, slot)); }
                        Err(why) => tracing::debug!(?why, "connection dropped"),
                    },
                    Err(error) => pause_after(&error).await,
                },
                Some(ended) = connections.join_next() => if let Err(error) = ended {
                    tracing::error!(%error, "connection task failed");
                },
            }
        }
    }

    fn services(self) -> Result<Services, EndpointError> {
        let tls = |error: rustls::Error| EndpointError::Tls(error.to_string());
        let keys = Arc::new(AgentKeys::default());
        Ok(Services {
            bind_tls: bind_server(&self.key, &self.certificate, self.ca_sha256).map_err(tls)?,
            agent_tls: agent_server(&self.key, &self.certificate, Arc::clone(&keys)).map_err(tls)?,
            refusing_tls: refusing_server().map_err(tls)?,
            agents: Sessions::new(self.resume.clone(), self.limits.sessions, self.agents),
            forwards: Sessions::new(self.resume, self.limits.sessions, self.forwards),
            binding: Binding {
                tee: self.config.user_data.tee,
                instance_id: self.config.instance_id,
                ca_sha256: self.ca_sha256,
                spki_der: self.key.spki_der().to_vec(),
                handler: self.handler,
                keys,
                limits: self.limits,
                state: Mutex::new(State::Unbound),
                attesting: Mutex::new(()),
            },
        })
    }
}

async fn pause_after(error: &io::Error) {
    tracing::warn!(%error, "cannot accept a connection");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}
