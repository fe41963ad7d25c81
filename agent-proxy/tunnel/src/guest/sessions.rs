//! Sessions of the guest, those of one service: opened, resumed, fenced.
//!
//! A session belongs to the key that opened it. Its entry in the table lives as long as its driver; what is not in the table is
//! refused as unknown, whether it ended, was given up or never was.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{Instant, timeout, timeout_at};

use crate::resume::{
    Candidate, Claim, Driver, Line, Preamble, RESUME_LABEL, Reply, ResumeRefusal, SECRET_LABEL, SessionId, SessionKey, Speaker,
};
use crate::tls::{TlsStream, exporter, spki_of};
use crate::{AgentStream, ResumeOptions, SessionLost};

/// For a refusal to leave.
const GOODBYE: Duration = Duration::from_secs(2);

/// The sessions of one service.
pub(super) struct Sessions {
    options: ResumeOptions,
    most: usize,
    streams: mpsc::Sender<AgentStream>,
    table: Table,
}

type Table = Arc<Mutex<HashMap<SessionId, Entry>>>;

struct Entry {
    key: Arc<SessionKey>,
    /// SHA-256 of the SubjectPublicKeyInfo of the node's key.
    client: [u8; 32],
    /// The highest epoch that was accepted.
    epoch: u64,
    line: mpsc::Sender<Candidate>,
}

impl Sessions {
    pub(super) fn new(options: ResumeOptions, most: usize, streams: mpsc::Sender<AgentStream>) -> Self {
        Self { options, most, streams, table: Table::default() }
    }

    pub(super) fn options(&self) -> &ResumeOptions {
        &self.options
    }

    /// Serves one connection: a new session to its end, or another connection for a session that exists.
    pub(super) async fn serve(&self, mut io: TlsStream, until: Instant, slot: OwnedSemaphorePermit) {
        let refusal = match timeout_at(until, receive(&mut io)).await {
            Err(_) => return tracing::warn!("connection dropped: no preamble in time"),
            Ok(Err(error)) => return tracing::debug!(%error, "connection ended before its preamble"),
            Ok(Ok(Err(refusal))) => refusal,
            Ok(Ok(Ok(Preamble::Open { session_id }))) => match self.open(&io, session_id) {
                Ok((driver, entry)) => {
                    drop(slot);
                    driver.run(io, Reply::Opened.encode()).await;
                    return drop(entry);
                }
                Err(refusal) => refusal,
            },
            Ok(Ok(Ok(Preamble::Resume { session_id, claim }))) => match self.resume(&io, &session_id, &claim) {
                Ok((line, exporter)) => {
                    let candidate = Candidate { io, epoch: claim.epoch, received: claim.received, exporter };
                    if timeout_at(until, line.send(candidate)).await.is_err() {
                        tracing::warn!("resume dropped: the session does not take it");
                    }
                    return;
                }
                Err(refusal) => refusal,
            },
        };
        tracing::warn!(%refusal, "connection refused");
        let goodbye = async {
            io.write_all(&Reply::Refused(refusal).encode()).await?;
            io.shutdown().await
        };
        // A peer that does not listen learns it from the closed connection.
        let _ = timeout(GOODBYE, goodbye).await;
    }

    fn open(&self, io: &TlsStream, id: SessionId) -> Result<(Driver<Takeover>, RemoveOnDrop), ResumeRefusal> {
        let client = client_of(io)?;
        let secret = exporter(io, SECRET_LABEL, Some(&id)).map_err(|_| ResumeRefusal::Malformed)?;
        let key = Arc::new(SessionKey::new(&secret));
        let place = self.streams.try_reserve().map_err(|_| ResumeRefusal::Busy)?;
        let (line, candidates) = mpsc::channel(1);
        {
            let mut sessions = lock(&self.table);
            if sessions.contains_key(&id) {
                return Err(ResumeRefusal::Exists);
            }
            if sessions.len() >= self.most {
                return Err(ResumeRefusal::Busy);
            }
            sessions.insert(id, Entry { key: Arc::clone(&key), client, epoch: 0, line });
        }
        let entry = RemoveOnDrop { table: Arc::clone(&self.table), id };
        let (driver, stream) = Driver::new(Takeover { id, key, epoch: 0, candidates, budget: self.options.budget }, self.options.clone());
        place.send(stream);
        Ok((driver, entry))
    }

    /// The order matters: only the holder of the secret may move the epoch.
    fn resume(&self, io: &TlsStream, id: &SessionId, claim: &Claim) -> Result<(mpsc::Sender<Candidate>, [u8; 32]), ResumeRefusal> {
        let client = client_of(io)?;
        let exporter = exporter(io, RESUME_LABEL, None).map_err(|_| ResumeRefusal::Malformed)?;
        let mut sessions = lock(&self.table);
        let entry = sessions.get_mut(id).filter(|entry| entry.client == client).ok_or(ResumeRefusal::UnknownSession)?;
        if !entry.key.verify(Speaker::Node, &exporter, id, claim) {
            return Err(ResumeRefusal::BadMac);
        }
        if claim.epoch <= entry.epoch {
            return Err(ResumeRefusal::StaleEpoch);
        }
        entry.epoch = claim.epoch;
        Ok((entry.line.clone(), exporter))
    }
}

async fn receive(io: &mut TlsStream) -> std::io::Result<Result<Preamble, ResumeRefusal>> {
    let mut head = [0; 2];
    io.read_exact(&mut head).await?;
    let length = match Preamble::rest(head) {
        Ok(length) => length,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let mut rest = vec![0; length];
    io.read_exact(&mut rest).await?;
    Ok(Preamble::decode(&rest))
}

fn client_of(io: &TlsStream) -> Result<[u8; 32], ResumeRefusal> {
    let [certificate, ..] = io.get_ref().1.peer_certificates().unwrap_or_default() else { return Err(ResumeRefusal::Malformed) };
    Ok(Sha256::digest(spki_of(certificate).map_err(|_| ResumeRefusal::Malformed)?).into())
}

fn lock(table: &Table) -> MutexGuard<'_, HashMap<SessionId, Entry>> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Forgets a session when its driver ends.
struct RemoveOnDrop {
    table: Table,
    id: SessionId,
}

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        lock(&self.table).remove(&self.id);
    }
}

/// The guest's end of a session waits for the node to dial.
struct Takeover {
    id: SessionId,
    key: Arc<SessionKey>,
    /// Of the current connection.
    epoch: u64,
    candidates: mpsc::Receiver<Candidate>,
    budget: Duration,
}

impl Line for Takeover {
    async fn replaced(&mut self) -> Candidate {
        loop {
            match self.candidates.recv().await {
                // Two that were accepted in order may arrive here in any order.
                Some(candidate) if candidate.epoch > self.epoch => {
                    self.epoch = candidate.epoch;
                    return candidate;
                }
                Some(_) => {}
                // Not while the driver runs: the table holds a sender.
                None => std::future::pending().await,
            }
        }
    }

    async fn reconnect(&mut self, _received: u64, since: Instant, why: String) -> Result<Candidate, SessionLost> {
        let after = self.budget;
        timeout_at(since + after, self.replaced()).await.map_err(|_| SessionLost::GaveUp { after, last: why })
    }

    fn greeting(&self, candidate: &Candidate, received: u64) -> Vec<u8> {
        let mac = self.key.mac(Speaker::Guest, &candidate.exporter, &self.id, candidate.epoch, received);
        Reply::Resumed { received, mac }.encode()
    }
}
