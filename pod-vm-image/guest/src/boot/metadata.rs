//! The metadata service of EC2, version 2 ("Use IMDS to access instance metadata" of the EC2 user guide).
//!
//! A session is begun with a PUT, and every question names it. The service may come up after the machine: the first try is made at
//! once, the next within half a second, until the deadline. What it says is limited before it is read.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use peerpods_tunnel::user_data::MAX_USER_DATA_BYTES;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::{BootError, Item};

const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// All questions together, with their repetitions. A machine that knows no user data serves nobody.
const DEADLINE: Duration = Duration::from_secs(120);
/// One question. The service is on the machine's own host.
const TRY: Duration = Duration::from_secs(2);
/// Between one try and the next.
const PAUSE: Duration = Duration::from_millis(250);
/// Long enough for all questions; nothing is asked later.
const SESSION_SECS: &str = "300";
/// Sessions' names have 56 characters.
const LONGEST_SESSION: usize = 1024;
/// Longer than any instance id.
const LONGEST_ID: usize = 256;

/// What the service says.
pub(super) struct Told {
    pub(super) instance_id: Vec<u8>,
    pub(super) user_data: Vec<u8>,
}

/// Asks until everything is answered.
pub(super) async fn ask() -> Result<Told, BootError> {
    ask_at(SocketAddr::from((ADDRESS, 80)), DEADLINE).await
}

async fn ask_at(address: SocketAddr, deadline: Duration) -> Result<Told, BootError> {
    let begin = Instant::now();
    loop {
        let (item, detail) = match all(address).await {
            Ok(told) => return Ok(told),
            Err(failed) => failed,
        };
        if begin.elapsed() + PAUSE > deadline {
            return Err(BootError::Metadata { item, detail });
        }
        sleep(PAUSE).await;
    }
}

async fn all(address: SocketAddr) -> Result<Told, (Item, String)> {
    let question = |path| Request::builder().method(Method::GET).uri(path);
    let begin =
        Request::builder().method(Method::PUT).uri("/latest/api/token").header("x-aws-ec2-metadata-token-ttl-seconds", SESSION_SECS);
    let session = one(address, begin, LONGEST_SESSION).await.map_err(|detail| (Item::InstanceId, detail))?;
    let ask = async |path, limit| one(address, question(path).header("x-aws-ec2-metadata-token", &session[..]), limit).await;
    let instance_id = ask("/latest/meta-data/instance-id", LONGEST_ID).await.map_err(|detail| (Item::InstanceId, detail))?;
    let user_data = ask("/latest/user-data", MAX_USER_DATA_BYTES).await.map_err(|detail| (Item::UserData, detail))?;
    Ok(Told { instance_id, user_data })
}

/// One question on a connection of its own. An error says in fixed words what went wrong.
async fn one(address: SocketAddr, request: hyper::http::request::Builder, limit: usize) -> Result<Vec<u8>, String> {
    let request = request.header("host", address.ip().to_string()).body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    let answered = async {
        let stream = TcpStream::connect(address).await.map_err(|error| format!("connect: {}", error.kind()))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
        let answer = async {
            let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
            if answer.status() != StatusCode::OK {
                return Err(format!("HTTP status {}", answer.status().as_u16()));
            }
            let body = Limited::new(answer.into_body(), limit).collect().await;
            body.map(|body| body.to_bytes().to_vec()).map_err(|_| format!("more than {limit} bytes, or a broken answer"))
        };
        // A connection that has ended leaves the rest to whoever waits for the answer.
        let drive = async {
            let _ = connection.await;
            std::future::pending().await
        };
        tokio::select! {
            answer = answer => answer,
            never = drive => never,
        }
    };
    timeout(TRY, answered).await.unwrap_or_else(|_| Err("no answer in time".to_owned()))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// A service that gives these answers, one for each connection, and tells the questions.
    async fn service(answers: Vec<String>) -> (SocketAddr, tokio::task::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let address = listener.local_addr().expect("address");
        let questions = tokio::spawn(async move {
            let mut questions = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.expect("accept");
                let mut question = Vec::new();
                while !question.ends_with(b"\r\n\r\n") {
                    question.push(stream.read_u8().await.expect("a question"));
                }
                questions.push(String::from_utf8(question).expect("text"));
                stream.write_all(answer.as_bytes()).await.expect("answer");
            }
            questions
        });
        (address, questions)
    }

    fn ok(body: &str) -> String {
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    }

    fn status(code: u16) -> String {
        format!("HTTP/1.1 {code} Something\r\ncontent-length: 0\r\n\r\n")
    }

    #[tokio::test]
    async fn a_session_is_begun_and_named() {
        let (address, questions) = service(vec![ok("session-1"), ok("i-0123456789abcdef0"), ok("{}")]).await;
        let told = ask_at(address, Duration::ZERO).await.expect("told");
        assert_eq!((told.instance_id, told.user_data), (b"i-0123456789abcdef0".to_vec(), b"{}".to_vec()));
        let questions = questions.await.expect("questions");
        assert!(questions[0].starts_with("PUT /latest/api/token") && questions[0].contains("ttl-seconds: 300"));
        assert!(questions[1].starts_with("GET /latest/meta-data/instance-id") && questions[1].contains("metadata-token: session-1"));
        assert!(questions[2].starts_with("GET /latest/user-data") && questions[2].contains("metadata-token: session-1"));
    }

    #[tokio::test]
    async fn a_service_that_comes_up_late_is_asked_again() {
        let begin = Instant::now();
        let answers = vec![status(503), ok("s"), status(404), ok("s"), ok("i-1"), ok("{}")];
        let (address, _) = service(answers).await;
        assert!(ask_at(address, Duration::from_secs(20)).await.is_ok());
        assert!(begin.elapsed() < Duration::from_secs(3), "two pauses are half a second");
    }

    #[tokio::test]
    async fn what_is_too_long_or_missing_is_named() {
        let (address, _) = service(vec![ok("s"), ok("i-1"), ok(&"x".repeat(MAX_USER_DATA_BYTES + 1))]).await;
        let said = ask_at(address, Duration::ZERO).await.err().expect("too long").to_string();
        assert!(said.contains("user-data") && said.contains("more than 1024 bytes"), "{said}");
        let (address, _) = service(vec![ok("s"), ok("i-1"), status(404)]).await;
        let said = ask_at(address, Duration::ZERO).await.err().expect("missing").to_string();
        assert!(said.contains("user-data") && said.contains("404"), "{said}");
        let (address, _) = service(vec![status(403)]).await;
        let said = ask_at(address, Duration::ZERO).await.err().expect("refused").to_string();
        assert!(said.contains("instance-id") && said.contains("403"), "{said}");
    }
}
