//! The node's side of Bind: dial while the VM boots, check the evidence, give the VM its pod.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::{AlertDescription, ClientConfig};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use super::{BindError, Bound, EvidenceMessage, Pin, Verdict};
use crate::bind::{
    Activate, ActivateReply, Answer, BIND_VERSION, EXPORTER_LABEL, Hello, MAX_ACTIVATE, MAX_ANSWER, MAX_BIND, MAX_EVIDENCE, MAX_HELLO,
    Reply, WireError, decode, encode, receive, report_data, send,
};
use crate::credential::Credential;
use crate::tls::{TlsStream, bind_client, dial, exporter, spki_of};
use crate::{BindRequest, Refusal, RefusalCode};

/// For one TCP handshake. Short, because a SYN that was lost while the VM's network came up is only sent again after a second.
const CONNECT: Duration = Duration::from_millis(400);
/// For the TLS handshake and evidence, which a hardware TEE takes some seconds to make.
const ATTEST: Duration = Duration::from_secs(40);
/// For the answer: the guest measures and sets up the pod network before it gives one.
const ANSWER: Duration = Duration::from_secs(70);
/// Between attempts.
const PAUSE: Duration = Duration::from_millis(20);
/// After a VM said that it was busy.
const BUSY_PAUSE: Duration = Duration::from_millis(500);
/// A Bind connection is as impatient with a silent peer as an agent stream.
const USER_TIMEOUT: Duration = Duration::from_secs(15);

/// Why one attempt ended without an answer.
enum Attempt {
    /// Worth another one.
    Again(String),
    /// The VM asked for time.
    Busy(String),
    /// Another one would end in the same way.
    Final(BindError),
}

/// Attests the VM at `addr` and gives it its pod.
///
/// Dials until `deadline` has passed while the VM boots: each attempt is bounded, and one that ends before the VM's answer is
/// made again, `verify` included. The same request may be sent any number of times; the VM gives the same answer.
/// A VM that took this request before shows in its evidence that it was bound; `verify` should know both states.
pub async fn bind(
    addr: SocketAddr,
    instance_id: &str,
    credential: &Credential,
    request: &BindRequest,
    mut verify: impl FnMut(&EvidenceMessage) -> Result<Verdict, String> + Send,
    deadline: Duration,
) -> Result<Bound, BindError> {
    let end = Instant::now() + deadline;
    let config = bind_client(credential).map_err(|error| BindError::Credential(error.to_string()))?;
    let request = encode(request);
    if request.len() > MAX_BIND {
        let message = format!("the request has {} bytes; at most {MAX_BIND} are allowed", request.len());
        return Err(BindError::Refused(Refusal::new(RefusalCode::BadRequest, message)));
    }
    let mut last = "not dialled".to_owned();
    while Instant::now() < end {
        let pause = match attempt(addr, &config, &request, &mut verify, end).await {
            Ok(bound) => return Ok(bound),
            Err(Attempt::Final(error)) => return Err(error),
            Err(Attempt::Again(why)) => {
                last = why;
                PAUSE
            }
            Err(Attempt::Busy(why)) => {
                last = why;
                BUSY_PAUSE
            }
        };
        tracing::trace!(instance_id, why = last, "pod VM does not answer yet");
        tokio::time::sleep(pause).await;
    }
    Err(BindError::NeverAnswered { addr, within: deadline, last })
}

async fn attempt(
    addr: SocketAddr,
    config: &Arc<ClientConfig>,
    request: &[u8],
    verify: &mut (impl FnMut(&EvidenceMessage) -> Result<Verdict, String> + Send),
    end: Instant,
) -> Result<Bound, Attempt> {
    let again = |what: &str, error: io::Error| Attempt::Again(format!("{what}: {error}"));
    let until = |limit: Duration| end.min(Instant::now() + limit);
    let late = |what: &'static str| move |_| Attempt::Again(format!("{what}: no answer in time"));

    let tcp = timeout_at(until(CONNECT), dial(addr, USER_TIMEOUT, None)).await.map_err(late("connect"))?;
    let tcp = tcp.map_err(|error| again("connect", error))?;
    let begin = Instant::now();
    let (mut stream, mut evidence, pin) = timeout_at(until(ATTEST), attest(tcp, config)).await.map_err(late("attest"))??;
    let unverified = |why| Attempt::Final(BindError::Unverified(why));
    if let Verdict::Challenge(challenge) = verify(&evidence).map_err(unverified)? {
        let asked = timeout_at(until(ATTEST), activate(&mut stream, challenge));
        evidence.activated = Some(asked.await.map_err(late("challenge"))??);
        if verify(&evidence).map_err(unverified)? != Verdict::Trusted {
            return Err(unverified("a second challenge on one connection".to_owned()));
        }
    }
    let attest_ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);

    let ask = async {
        send(&mut stream, request, MAX_BIND).await.map_err(failed)?;
        receive(&mut stream, MAX_ANSWER).await.map_err(failed)
    };
    let answer = timeout_at(until(ANSWER), ask).await.map_err(late("Bind"))??;
    match decode(&answer).map_err(malformed)? {
        Answer::Bound => Ok(Bound { pin, attest_ms }),
        Answer::Refused(refusal) => Err(refused(refusal)),
    }
}

async fn attest(tcp: TcpStream, config: &Arc<ClientConfig>) -> Result<(TlsStream, EvidenceMessage, Pin), Attempt> {
    let protocol = |text: String| Attempt::Final(BindError::Protocol(text));
    let name = ServerName::IpAddress(tcp.peer_addr().map_err(|error| failed(error.into()))?.ip().into());
    let connector = TlsConnector::from(Arc::clone(config));
    let mut stream: TlsStream = connector.connect(name, tcp).await.map_err(|error| failed(error.into()))?.into();

    let mut nonce = [0; 32];
    aws_lc_rs::rand::fill(&mut nonce).map_err(|_| protocol("no randomness on this node".to_owned()))?;
    send(&mut stream, &encode(&Hello { version: BIND_VERSION, nonce }), MAX_HELLO).await.map_err(failed)?;
    let reply = receive(&mut stream, MAX_EVIDENCE).await.map_err(failed)?;
    let evidence = match decode(&reply).map_err(malformed)? {
        Reply::Evidence(evidence) => evidence,
        Reply::Answer(Answer::Refused(refusal)) => return Err(refused(refusal)),
        Reply::Answer(Answer::Bound) => return Err(protocol("an answer before the request".to_owned())),
    };

    let exporter = exporter(&stream, EXPORTER_LABEL, None).map_err(|error| protocol(error.to_string()))?;
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let [certificate, ..] = certificates else { return Err(protocol("no certificate".to_owned())) };
    let spki = spki_of(certificate).map_err(|error| protocol(error.to_string()))?;
    let (pin, report_data) = (Pin::of_spki(&spki), report_data(&exporter, &nonce, &spki));
    Ok((stream, EvidenceMessage { tee: evidence.tee, evidence: evidence.evidence, report_data, pin, activated: None }, pin))
}

async fn activate(stream: &mut TlsStream, challenge: Vec<u8>) -> Result<Vec<u8>, Attempt> {
    send(stream, &encode(&Activate { version: BIND_VERSION, challenge }), MAX_ACTIVATE).await.map_err(failed)?;
    let reply = receive(stream, MAX_ANSWER).await.map_err(failed)?;
    match decode(&reply).map_err(malformed)? {
        ActivateReply::Activated(answer) => Ok(answer.activated),
        ActivateReply::Answer(Answer::Refused(refusal)) if refusal.code == RefusalCode::BadRequest => {
            let text = format!("the pod VM does not answer a challenge: {refusal}; next: use a pod VM image of this node's release");
            Err(Attempt::Final(BindError::Unverified(text)))
        }
        ActivateReply::Answer(Answer::Refused(refusal)) => Err(refused(refusal)),
        ActivateReply::Answer(Answer::Bound) => Err(Attempt::Final(BindError::Protocol("an answer before the request".to_owned()))),
    }
}

/// A cut connection is worth another attempt; an alert, or bytes that are not TLS, is an answer.
fn failed(error: WireError) -> Attempt {
    let error = match error {
        WireError::TooLong { .. } => return Attempt::Final(BindError::Protocol(error.to_string())),
        WireError::Io(error) => error,
    };
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        None => Attempt::Again(error.to_string()),
        Some(rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)) => {
            Attempt::Final(BindError::Protocol("it does not offer peerpods-bind/1: image and node are of different releases".to_owned()))
        }
        Some(rustls::Error::AlertReceived(alert)) => Attempt::Final(BindError::Credential(format!("TLS alert {alert:?}"))),
        Some(error) => Attempt::Final(BindError::Protocol(error.to_string())),
    }
}

fn refused(refusal: Refusal) -> Attempt {
    match refusal.code {
        RefusalCode::Busy => Attempt::Busy(refusal.to_string()),
        _ => Attempt::Final(BindError::Refused(refusal)),
    }
}

#[allow(clippy::needless_pass_by_value, reason = "used as map_err's function")]
fn malformed(refusal: Refusal) -> Attempt {
    Attempt::Final(BindError::Protocol(refusal.message))
}
