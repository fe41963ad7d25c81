//! Opening agent streams, and dialling again for a session whose connection broke.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use super::{DialError, Pin};
use crate::credential::NodeKey;
use crate::forward::{self, ForwardError};
use crate::resume::{
    Candidate, Claim, Driver, Line, Preamble, RESUME_LABEL, Reply, ResumeRefusal, SECRET_LABEL, SessionId, SessionKey, Speaker,
};
use crate::tls::{ALPN_AGENT, ALPN_FORWARD, TlsStream, agent_client, dial, exporter};
use crate::{AgentStream, ResumeOptions, SessionLost};

/// Between the first attempts; doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Opens agent streams to one bound VM.
#[derive(Debug, Clone)]
pub struct AgentDialer {
    addr: SocketAddr,
    key: NodeKey,
    pin: Pin,
    options: ResumeOptions,
}

/// Why one attempt got no connection.
#[derive(Debug)]
enum Attempt {
    /// Worth another one.
    Again(String),
    WrongKey,
    Refused(String),
    /// The guest's answer to a preamble.
    Answered(ResumeRefusal),
    Protocol(&'static str),
}

impl AgentDialer {
    /// `key` is one of [`crate::BindRequest::agent_keys`], `pin` is from [`super::bind`].
    pub fn new(addr: SocketAddr, key: NodeKey, pin: Pin, options: ResumeOptions) -> Self {
        Self { addr, key, pin, options }
    }

    /// Opens a new stream. A VM that does not answer is dialled again until [`ResumeOptions::open_budget`] has passed.
    /// The stream's own task ends with the session, at the latest the linger time after the stream was dropped.
    pub async fn connect(&self) -> Result<AgentStream, DialError> {
        self.open(ALPN_AGENT).await
    }

    /// Opens a stream to a TCP port on the loopback of the pod's network namespace.
    pub async fn forward(&self, port: u16) -> Result<AgentStream, ForwardError> {
        let mut stream = self.open(ALPN_FORWARD).await?;
        forward::ask(&mut stream, port).await?;
        Ok(stream)
    }

    async fn open(&self, alpn: &[u8]) -> Result<AgentStream, DialError> {
        let config = agent_client(&self.key, self.pin, alpn).map_err(|error| DialError::Refused(error.to_string()))?;
        let mut wire = Wire { addr: self.addr, config, options: self.options.clone(), last_port: None };
        let end = Instant::now() + self.options.open_budget;
        let mut pause = Pause::default();
        loop {
            let until = end.min(Instant::now() + self.options.dial_timeout);
            let last = match timeout_at(until, open(&mut wire)).await {
                Ok(Ok((io, session))) => {
                    let (driver, stream) = Driver::new(Redial { wire, session, epoch: 0 }, self.options.clone());
                    tokio::spawn(driver.run(io, Vec::new()));
                    return Ok(stream);
                }
                Err(_) => "no answer in time".to_owned(),
                Ok(Err(Attempt::Again(why))) => why,
                Ok(Err(Attempt::Answered(ResumeRefusal::Busy))) => ResumeRefusal::Busy.to_string(),
                Ok(Err(Attempt::WrongKey)) => return Err(DialError::WrongKey { addr: self.addr }),
                Ok(Err(Attempt::Refused(why))) => return Err(DialError::Refused(why)),
                Ok(Err(Attempt::Answered(refusal))) => return Err(DialError::Refused(refusal.to_string())),
                Ok(Err(Attempt::Protocol(why))) => return Err(DialError::Protocol(why.to_owned())),
            };
            if Instant::now() >= end {
                return Err(DialError::NeverAnswered { addr: self.addr, within: self.options.open_budget, last });
            }
            pause.sleep(end).await;
        }
    }
}

/// What stays the same over all connections of a session.
struct Session {
    id: SessionId,
    key: SessionKey,
}

/// How to reach the VM.
struct Wire {
    addr: SocketAddr,
    config: Arc<ClientConfig>,
    options: ResumeOptions,
    last_port: Option<u16>,
}

impl Wire {
    async fn connect(&mut self) -> Result<TlsStream, Attempt> {
        let tcp = dial(self.addr, self.options.user_timeout, self.last_port).await.map_err(again)?;
        self.last_port = Some(tcp.local_addr().map_err(again)?.port());
        let name = ServerName::IpAddress(self.addr.ip().into());
        Ok(TlsConnector::from(Arc::clone(&self.config)).connect(name, tcp).await.map_err(again)?.into())
    }
}

async fn open(wire: &mut Wire) -> Result<(TlsStream, Session), Attempt> {
    let mut id = SessionId::default();
    aws_lc_rs::rand::fill(&mut id).map_err(|_| Attempt::Protocol("no randomness on this node"))?;
    let mut io = wire.connect().await?;
    let secret = exporter(&io, SECRET_LABEL, Some(&id)).map_err(|_| Attempt::Protocol("no keying material from TLS"))?;
    match ask(&mut io, &Preamble::Open { session_id: id }).await? {
        Reply::Opened => Ok((io, Session { id, key: SessionKey::new(&secret) })),
        Reply::Refused(refusal) => Err(Attempt::Answered(refusal)),
        Reply::Resumed { .. } => Err(Attempt::Protocol("resumed where a session was to be opened")),
    }
}

async fn ask(io: &mut TlsStream, preamble: &Preamble) -> Result<Reply, Attempt> {
    io.write_all(&preamble.encode()).await.map_err(again)?;
    io.flush().await.map_err(again)?;
    let mut head = [0; 2];
    io.read_exact(&mut head).await.map_err(again)?;
    if let Some(reply) = Reply::decode_head(head).map_err(Attempt::Protocol)? {
        return Ok(reply);
    }
    let mut rest = [0; 40];
    io.read_exact(&mut rest).await.map_err(again)?;
    Ok(Reply::decode_resumed(&rest))
}

/// A cut connection, or one that was tampered with, is worth another attempt; an alert is an answer.
#[allow(clippy::needless_pass_by_value, reason = "used as map_err's function")]
fn again(error: io::Error) -> Attempt {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(_)) => Attempt::WrongKey,
        Some(rustls::Error::AlertReceived(alert)) => Attempt::Refused(format!("TLS alert {alert:?}")),
        _ => Attempt::Again(error.to_string()),
    }
}

/// The node's end of a session dials.
struct Redial {
    wire: Wire,
    session: Session,
    epoch: u64,
}

impl Redial {
    async fn resume(&mut self, received: u64) -> Result<Candidate, Attempt> {
        self.epoch += 1;
        let epoch = self.epoch;
        let Session { id, key } = &self.session;
        let mut io = self.wire.connect().await?;
        let exporter = exporter(&io, RESUME_LABEL, None).map_err(|_| Attempt::Protocol("no keying material from TLS"))?;
        let claim = Claim { epoch, received, mac: key.mac(Speaker::Node, &exporter, id, epoch, received) };
        match ask(&mut io, &Preamble::Resume { session_id: *id, claim }).await? {
            Reply::Resumed { received, mac } => {
                let theirs = Claim { epoch, received, mac };
                if !key.verify(Speaker::Guest, &exporter, id, &theirs) {
                    return Err(Attempt::Protocol("the guest's MAC is wrong"));
                }
                Ok(Candidate { io, epoch, received, exporter })
            }
            Reply::Refused(refusal) => Err(Attempt::Answered(refusal)),
            Reply::Opened => Err(Attempt::Protocol("opened where a session was to be resumed")),
        }
    }
}

impl Line for Redial {
    async fn replaced(&mut self) -> Candidate {
        std::future::pending().await
    }

    async fn reconnect(&mut self, received: u64, since: Instant, why: String) -> Result<Candidate, SessionLost> {
        let end = since + self.wire.options.budget;
        tracing::debug!(why, "dialling again");
        let mut pause = Pause::default();
        loop {
            let until = end.min(Instant::now() + self.wire.options.dial_timeout);
            let last = match timeout_at(until, self.resume(received)).await {
                Ok(Ok(candidate)) => return Ok(candidate),
                Err(_) => "no answer in time".to_owned(),
                Ok(Err(Attempt::Again(why))) => why,
                // Another attempt of ours arrived in between; the next one has a higher epoch.
                Ok(Err(Attempt::Answered(refusal @ (ResumeRefusal::StaleEpoch | ResumeRefusal::Busy)))) => refusal.to_string(),
                // Keys are made at boot: another one means that the VM, or its process, is not the one of the session.
                Ok(Err(Attempt::WrongKey | Attempt::Answered(ResumeRefusal::UnknownSession))) => return Err(SessionLost::Unknown),
                Ok(Err(Attempt::Refused(why))) => return Err(SessionLost::Refused(why)),
                Ok(Err(Attempt::Answered(refusal))) => return Err(SessionLost::Refused(refusal.to_string())),
                Ok(Err(Attempt::Protocol(why))) => return Err(SessionLost::Protocol(why)),
            };
            if Instant::now() >= end {
                return Err(SessionLost::GaveUp { after: self.wire.options.budget, last });
            }
            pause.sleep(end).await;
        }
    }

    fn greeting(&self, _candidate: &Candidate, _received: u64) -> Vec<u8> {
        Vec::new()
    }
}

/// Waits longer each time, with jitter: after a network fault every stream of a node dials at once.
struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Self(FIRST_PAUSE)
    }
}

impl Pause {
    async fn sleep(&mut self, end: Instant) {
        let mut random = [0];
        // Without randomness there is no jitter; nothing else depends on it.
        let _ = aws_lc_rs::rand::fill(&mut random);
        let wait = self.0 / 2 + self.0 * u32::from(random[0]) / 512;
        tokio::time::sleep_until(end.min(Instant::now() + wait)).await;
        self.0 = (self.0 * 2).min(LONGEST_PAUSE);
    }
}
