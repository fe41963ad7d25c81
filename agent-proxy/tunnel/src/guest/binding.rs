//! The guest's side of Bind: whose assignment is it, is it the first, and what was answered.
//!
//! The state goes from unbound to taken and never back. It is taken *before* the handler runs, so that whatever becomes of the
//! handler (an error, a panic, a timeout) no other request is ever measured into this VM.

use std::collections::HashSet;
use std::sync::Arc;

use rustls_pki_types::UnixTime;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::{BindHandler, GuestLimits};
use crate::bind::{
    Activate, Activated, Answer, EXPORTER_LABEL, Evidence, Hello, MAX_ACTIVATE, MAX_ANSWER, MAX_BIND, MAX_EVIDENCE, MAX_HELLO, WireError,
    decode_hex32, decode_versioned, encode, is_activate, receive, report_data, send,
};
use crate::credential::{Assignment, verify_chain};
use crate::tls::{AgentKeys, TlsStream, exporter};
use crate::{BindRequest, Refusal, RefusalCode};

/// Keys that one Bind may list: the link's, and room for a shim's and a debugger's.
const MAX_AGENT_KEYS: usize = 16;

/// Everything that Bind connections share.
pub(super) struct Binding {
    pub(super) tee: String,
    pub(super) instance_id: String,
    pub(super) ca_sha256: [u8; 32],
    pub(super) spki_der: Vec<u8>,
    pub(super) handler: Arc<dyn BindHandler>,
    pub(super) keys: Arc<AgentKeys>,
    pub(super) limits: GuestLimits,
    pub(super) state: Mutex<State>,
    /// Held while evidence is made: the hardware can only do one at a time.
    pub(super) attesting: Mutex<()>,
}

/// Whose VM it is.
pub(super) enum State {
    Unbound,
    Taken {
        /// SHA-256 over node name and request bytes.
        by: [u8; 32],
        /// `None` while the handler runs, and for ever if it never came back.
        answer: Option<Answer>,
    },
}

/// How one Bind connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum BindEnd {
    #[error("{0}")]
    Refused(Refusal),
    #[error("peer was too slow with {0}")]
    TooSlow(&'static str),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("no keying material from TLS: {0}")]
    Exporter(rustls::Error),
}

impl Binding {
    /// Runs one connection to its end. Must not be cancelled because of the peer: the handler may be at work.
    pub(super) async fn serve(&self, stream: &mut TlsStream) -> Result<(), BindEnd> {
        let outcome = self.converse(stream).await;
        let answer = match &outcome {
            Ok(answer) => answer.clone(),
            Err(BindEnd::Refused(refusal)) => Answer::Refused(refusal.clone()),
            // Told although the sender may not be reading: it is on the wire when it looks.
            Err(BindEnd::Wire(error @ WireError::TooLong { .. })) => {
                Answer::Refused(Refusal::new(RefusalCode::BadRequest, error.to_string()))
            }
            Err(_) => return outcome.map(|_| ()),
        };
        self.within("reading the answer", send(stream, &encode(&answer), MAX_ANSWER)).await?;
        // The answer is what counts; a peer that hangs up first has read it.
        let _ = timeout(self.limits.message_timeout, stream.shutdown()).await;
        match (outcome, answer) {
            (Err(end), _) => Err(end),
            (Ok(_), Answer::Refused(refusal)) => Err(BindEnd::Refused(refusal)),
            (Ok(_), Answer::Bound) => Ok(()),
        }
    }

    async fn converse(&self, stream: &mut TlsStream) -> Result<Answer, BindEnd> {
        let hello = self.within("Hello", receive(stream, MAX_HELLO)).await?;
        let hello: Hello = decode_versioned(&hello).map_err(BindEnd::Refused)?;
        let assignment = self.assignment(stream).map_err(BindEnd::Refused)?;
        let exporter = exporter(stream, EXPORTER_LABEL, None).map_err(BindEnd::Exporter)?;
        let report_data = report_data(&exporter, &hello.nonce, &self.spki_der);
        let evidence = self.turn("evidence", self.handler.evidence(report_data)).await.map_err(BindEnd::Refused)?;
        let evidence = encode(&Evidence { tee: self.tee.clone(), evidence });
        self.within("reading evidence", send(stream, &evidence, MAX_EVIDENCE)).await?;
        let mut bytes = self.within("Bind", receive(stream, MAX_BIND)).await?;
        if is_activate(&bytes) {
            let Activate { challenge, .. } = decode_versioned(&bytes).map_err(BindEnd::Refused)?;
            let activated = self.turn("answer to a challenge", self.handler.activate(challenge)).await.map_err(BindEnd::Refused)?;
            let activated = encode(&Activated { activated });
            self.within("reading an answer to a challenge", send(stream, &activated, MAX_ACTIVATE)).await?;
            bytes = self.within("Bind", receive(stream, MAX_BIND)).await?;
        }
        let request: BindRequest = decode_versioned(&bytes).map_err(BindEnd::Refused)?;
        Ok(self.take(&assignment.node, &bytes, &request).await)
    }

    async fn within<T>(&self, what: &'static str, wait: impl Future<Output = Result<T, WireError>>) -> Result<T, BindEnd> {
        Ok(timeout(self.limits.message_timeout, wait).await.map_err(|_| BindEnd::TooSlow(what))??)
    }

    /// The chain was verified in the handshake; here its names are read.
    fn assignment(&self, stream: &TlsStream) -> Result<Assignment, Refusal> {
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let [leaf, rest @ ..] = chain else {
            return Err(Refusal::new(RefusalCode::BadRequest, "no client certificate"));
        };
        let assignment = verify_chain(leaf, rest, &self.ca_sha256, UnixTime::now())
            .map_err(|error| Refusal::new(RefusalCode::BadRequest, error.to_string()))?;
        if assignment.instance_id != self.instance_id {
            let message = format!("the assignment is for instance {}; this is {}", assignment.instance_id, self.instance_id);
            return Err(Refusal::new(RefusalCode::WrongInstance, message));
        }
        Ok(assignment)
    }

    /// One connection's work for the hardware.
    async fn turn(&self, what: &str, work: impl Future<Output = Result<Vec<u8>, Refusal>>) -> Result<Vec<u8>, Refusal> {
        let limit = self.limits.evidence_timeout;
        let busy = |_| Refusal::new(RefusalCode::Busy, "evidence is being made for others");
        let _turn = timeout(limit, self.attesting.lock()).await.map_err(busy)?;
        let late = |_| Refusal::new(RefusalCode::EvidenceFailed, format!("no {what} within {limit:?}"));
        timeout(limit, work).await.map_err(late)?
    }

    /// The one decision: first, same again, or another one.
    async fn take(&self, node: &str, bytes: &[u8], request: &BindRequest) -> Answer {
        let by = fingerprint(node, bytes);
        let refused = |code, message: &str| Answer::Refused(Refusal::new(code, message));
        let Ok(mut state) = timeout(self.limits.bind_timeout, self.state.lock()).await else {
            return refused(RefusalCode::Busy, "another Bind is at work");
        };
        match &*state {
            State::Taken { by: before, answer: Some(answer) } if *before == by => return answer.clone(),
            State::Taken { by: before, answer: None } if *before == by => {
                return refused(RefusalCode::Internal, "this Bind was begun before and did not finish");
            }
            State::Taken { .. } => return refused(RefusalCode::AlreadyBound, "this pod VM has taken another Bind"),
            State::Unbound => {}
        }
        let keys = match agent_keys(request) {
            Ok(keys) => keys,
            Err(refusal) => return Answer::Refused(refusal),
        };
        *state = State::Taken { by, answer: None };
        let limit = self.limits.bind_timeout;
        let answer = match timeout(limit, self.handler.bind(request)).await {
            Ok(Ok(())) => Answer::Bound,
            Ok(Err(refusal)) => Answer::Refused(refusal),
            Err(_) => Answer::Refused(Refusal::new(RefusalCode::Internal, format!("the pod was not set up within {limit:?}"))),
        };
        if answer == Answer::Bound {
            self.keys.set(keys);
        }
        *state = State::Taken { by, answer: Some(answer.clone()) };
        answer
    }
}

fn agent_keys(request: &BindRequest) -> Result<HashSet<[u8; 32]>, Refusal> {
    let bad = |message: String| Refusal::new(RefusalCode::BadRequest, message);
    if !(1..=MAX_AGENT_KEYS).contains(&request.agent_keys.len()) {
        return Err(bad(format!("agent_keys lists {} keys; it must be 1 to {MAX_AGENT_KEYS}", request.agent_keys.len())));
    }
    let decode =
        |text: &String| decode_hex32(text).ok_or_else(|| bad("agent_keys holds something else than 64 lower-case hex digits".to_owned()));
    request.agent_keys.iter().map(decode).collect()
}

fn fingerprint(node: &str, bytes: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(Sha256::digest(node));
    hash.update(bytes);
    hash.finalize().into()
}
