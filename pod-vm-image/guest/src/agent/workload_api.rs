//! The workload API: what a workload may ask of the machine that it runs in, over HTTP on 127.0.0.1:8006 in the pod's network.
//!
//! Paths, parameters and status codes are those of guest-components' api-server-rest, with all features on:
//!
//! | request | answer |
//! |---|---|
//! | `GET /cdh/resource/REPOSITORY/TYPE/TAG` | the resource's content |
//! | `GET /aa/token?token_type=kbs` | `{"token": "<JWT>", "tee_keypair": "<PEM>"}`; the key only if the agent policy has `AllowTeeKeypair := true` |
//! | `GET /aa/evidence?runtime_data=TEXT[&encoding=base64]` | evidence with that report data |
//! | `GET /info` | `{"version", "tee", "additional_tees"}` |
//!
//! `AllowTeeKeypair := true` gives away the pod's identity towards its key broker: whoever has the key and the token can, from any machine
//! and until the token expires, get and decrypt every resource that the broker would release to this pod. The agent policy is measured, so
//! a resource policy that names the initdata has been told. Without the rule, workloads still get resources, one by one, by `/cdh/resource`.
//!
//! Whoever is in the pod's network namespace may ask. Errors: 400 for a missing or bad parameter, 403 for what policy denies, 404 for an
//! unknown path and for a resource or token of a pod without a broker, 405 for another method, 500 with the reason. Event log entries (`POST /aa/aael`) are refused: no register is set aside
//! for them.
//!
//! Report data that a workload chooses can look like Bind's. It gains nothing: a node believes an extended register only of the key that
//! it attested before.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use peerpods_key_broker::ResourceUri;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::attestation::Attestation;
use super::broker::{Broker, BrokerError};

/// Upstream's port.
pub(super) const PORT: u16 = 8006;

/// Connections at once; a workload that opens more waits.
const CONNECTIONS: usize = 32;
/// For the head of a request, from its connection on.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// For a whole connection, whose requests may each wait for a broker.
const CONNECTION_WITHIN: Duration = Duration::from_secs(300);
/// Report data of hardware has at most as many bytes.
const MAX_RUNTIME_DATA: usize = 48;

/// What the API is made of.
#[derive(Clone)]
pub(super) struct WorkloadApi {
    /// For evidence.
    pub(super) attestation: Attestation,
    /// For resources and tokens.
    pub(super) broker: Broker,
    /// Rule `AllowTeeKeypair` of the agent policy: whether every process in the pod may have the key that the broker's token speaks of, and
    /// with both get and decrypt what the broker releases to this pod, outside of this machine.
    pub(super) is_tee_keypair_allowed: bool,
}

type Answer = Result<Vec<u8>, (StatusCode, String)>;

impl WorkloadApi {
    /// Serves until dropped; connections end with it.
    pub(super) async fn serve(self, listener: TcpListener) {
        let api = Arc::new(self);
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => {
                        let api = Arc::clone(&api);
                        connections.spawn(async move {
                            let _slot = slot;
                            let service = service_fn(move |request| answer(Arc::clone(&api), peer, request));
                            let mut server = hyper::server::conn::http1::Builder::new();
                            server.timer(hyper_util::rt::TokioTimer::new()).header_read_timeout(HEAD_WITHIN);
                            // What a workload's client does wrong is its own affair.
                            let _ = timeout(CONNECTION_WITHIN, server.serve_connection(TokioIo::new(stream), service)).await;
                        });
                    }
                    // For the descriptors or memory that it lacked.
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }

    async fn get(&self, path: &str, query: &[(String, String)]) -> Answer {
        match path {
            "/aa/token" => self.token(query).await,
            "/aa/evidence" => self.evidence(query).await,
            // Only machines with devices have any.
            "/aa/additional-evidence" => Ok(Vec::new()),
            "/info" => {
                let info = serde_json::json!({"version": env!("CARGO_PKG_VERSION"), "tee": self.attestation.tee(), "additional_tees": []});
                Ok(info.to_string().into_bytes())
            }
            _ => match path.strip_prefix("/cdh/resource/") {
                Some(name) => self.resource(name).await,
                None => Err((StatusCode::NOT_FOUND, "no such path".to_owned())),
            },
        }
    }

    async fn resource(&self, name: &str) -> Answer {
        let uri = ResourceUri::from_path(name).map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))?;
        let content = self.broker.resource(&uri).await.map_err(|error| no_answer(&error))?;
        Ok(content.to_vec())
    }

    async fn token(&self, query: &[(String, String)]) -> Answer {
        match parameter(query, "token_type")? {
            "kbs" => {}
            other => return Err((StatusCode::BAD_REQUEST, format!("token_type {other:?}: only \"kbs\" is served"))),
        }
        if !self.is_tee_keypair_allowed {
            let text = "the agent policy does not allow the TEE's key pair to leave the agent: rule AllowTeeKeypair";
            return Err((StatusCode::FORBIDDEN, text.to_owned()));
        }
        let token = self.broker.token().await.map_err(|error| no_answer(&error))?;
        let answer = serde_json::json!({"token": token.jwt.as_str(), "tee_keypair": token.tee_keypair_pem.as_str()});
        let text = Zeroizing::new(answer.to_string());
        Ok(text.as_bytes().to_vec())
    }

    async fn evidence(&self, query: &[(String, String)]) -> Answer {
        let text = parameter(query, "runtime_data")?;
        let encoding = query.iter().find(|(name, _)| name == "encoding").map(|(_, value)| value.as_str());
        let bad = |what: String| (StatusCode::BAD_REQUEST, what);
        let runtime_data = match encoding {
            None => text.as_bytes().to_vec(),
            Some("base64") => URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_err(|error| bad(format!("runtime_data: {error}")))?,
            Some(other) => return Err(bad(format!("encoding {other:?}: only \"base64\" is known"))),
        };
        if runtime_data.len() > MAX_RUNTIME_DATA {
            return Err(bad(format!("runtime_data has {} bytes; at most {MAX_RUNTIME_DATA} fit", runtime_data.len())));
        }
        let mut report_data = [0; MAX_RUNTIME_DATA];
        report_data[..runtime_data.len()].copy_from_slice(&runtime_data);
        self.attestation.evidence(report_data).await.map_err(|error| failed(&error))
    }
}

async fn answer(api: Arc<WorkloadApi>, peer: SocketAddr, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, body) = match respond(&api, peer, &request).await {
        Ok(body) => (StatusCode::OK, body),
        Err((status, text)) => (status, text.into_bytes()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let kind = if status == StatusCode::OK { "application/octet-stream" } else { "text/plain; charset=utf-8" };
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    Ok(response)
}

async fn respond(api: &WorkloadApi, peer: SocketAddr, request: &Request<Incoming>) -> Answer {
    if !peer.ip().is_loopback() {
        return Err((StatusCode::FORBIDDEN, "only the pod itself is answered".to_owned()));
    }
    let path = request.uri().path();
    if path == "/aa/aael" {
        return Err((StatusCode::NOT_FOUND, "this machine keeps no event log for workloads".to_owned()));
    }
    if request.method() != Method::GET {
        return Err((StatusCode::METHOD_NOT_ALLOWED, "only GET is answered".to_owned()));
    }
    let query = form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes());
    let query: Vec<(String, String)> = query.into_owned().take(16).collect();
    api.get(path, &query).await
}

fn parameter<'a>(query: &'a [(String, String)], name: &str) -> Result<&'a str, (StatusCode, String)> {
    let found = query.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str());
    found.ok_or_else(|| (StatusCode::BAD_REQUEST, format!("the parameter {name} is missing")))
}

/// A pod without a broker has no resources; whatever a broker says is between it and this machine.
fn no_answer(error: &BrokerError) -> (StatusCode, String) {
    let status = match error {
        BrokerError::None => StatusCode::NOT_FOUND,
        BrokerError::Client(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    (status, failed(error).1)
}

/// The reason with its causes: whoever asks is the workload, which its own secrets are not kept from.
fn failed(error: &dyn std::error::Error) -> (StatusCode, String) {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    (StatusCode::INTERNAL_SERVER_ERROR, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use peerpods_attester::Attester;
    use peerpods_key_broker::KeyBrokerError;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    async fn ask(api: &WorkloadApi, request: &str) -> (String, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let serving = tokio::spawn(api.clone().serve(listener));
        let mut stream = TcpStream::connect(address).await.expect("connects");
        stream.write_all(format!("{request} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes()).await.expect("sends");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("an answer");
        serving.abort();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        (head.lines().next().unwrap_or_default().to_owned(), body.to_owned())
    }

    fn api() -> WorkloadApi {
        let attestation = Attestation::new(Attester::for_tee("sample").expect("an attester"));
        let broker = Broker::from_initdata(|_| None, None, attestation.clone()).expect("no broker");
        WorkloadApi { attestation, broker, is_tee_keypair_allowed: false }
    }

    #[tokio::test]
    async fn evidence_carries_the_workloads_data() {
        let (status, body) = ask(&api(), "GET /aa/evidence?runtime_data=abc").await;
        assert!(status.contains("200"), "{status}");
        let evidence: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        assert!(evidence["report_data"].as_str().expect("text").starts_with("YWJj"), "{body}");
        let (_, same) = ask(&api(), "GET /aa/evidence?runtime_data=YWJj&encoding=base64").await;
        assert_eq!(same, body);
    }

    #[tokio::test]
    async fn errors_are_upstreams() {
        for (request, status, text) in [
            ("GET /aa/evidence", "400", "runtime_data is missing"),
            ("GET /aa/evidence?runtime_data=AAAA&encoding=rot13", "400", "rot13"),
            ("GET /aa/token?token_type=coco_as", "400", "coco_as"),
            ("GET /aa/token?token_type=kbs", "403", "AllowTeeKeypair"),
            ("GET /cdh/resource/default/key/1", "404", "names no key broker"),
            ("GET /cdh/resource/../key/1", "400", ""),
            ("GET /nothing", "404", "no such path"),
            ("POST /aa/token?token_type=kbs", "405", "only GET"),
            ("POST /aa/aael", "404", "no event log"),
        ] {
            let (line, body) = ask(&api(), request).await;
            assert!(line.contains(status) && body.contains(text), "{request}: {line}: {body}");
        }
    }

    #[test]
    fn status_follows_from_what_went_wrong_and_not_from_its_words() {
        assert_eq!(no_answer(&BrokerError::None).0, StatusCode::NOT_FOUND);
        // A broker's refusal may have any words.
        let same = std::io::Error::other(BrokerError::None.to_string());
        let client = BrokerError::Client(KeyBrokerError::Evidence(Box::new(same)));
        assert_eq!(no_answer(&client).0, StatusCode::INTERNAL_SERVER_ERROR);
    }

    #[tokio::test]
    async fn info_names_the_tee() {
        let (_, body) = ask(&api(), "GET /info").await;
        assert!(body.contains("\"tee\":\"sample\""), "{body}");
    }
}
