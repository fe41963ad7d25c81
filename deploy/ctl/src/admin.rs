//! The client of a controller's admin socket.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use peerpods_controller_api::InstanceId;
use peerpods_controller_api::report::{CONSOLE_SUFFIX, POD_VM_PATH, STATE_PATH, StateReport};
use tokio::net::UnixStream;

/// No answer takes longer.
const DEADLINE: Duration = Duration::from_secs(30);
/// Half a million claims.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// Asks; each call is a connection of its own.
pub(crate) struct Admin {
    socket: PathBuf,
}

impl Admin {
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Everything that there is.
    pub(crate) async fn state(&self) -> Result<StateReport> {
        let text = self.ask(Method::GET, STATE_PATH).await?;
        serde_json::from_slice(&text).context("the controller's answer cannot be read; is it of another version than peerpodctl?")
    }

    /// The end of a pod VM's console.
    pub(crate) async fn console(&self, id: &str) -> Result<String> {
        let text = self.ask(Method::GET, &format!("{POD_VM_PATH}{}{CONSOLE_SUFFIX}", InstanceId::new(id)?)).await?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Asks for a pod VM's deletion; gives the controller's words.
    pub(crate) async fn delete(&self, id: &str) -> Result<String> {
        let text = self.ask(Method::DELETE, &format!("{POD_VM_PATH}{}", InstanceId::new(id)?)).await?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    async fn ask(&self, method: Method, path: &str) -> Result<Bytes> {
        let late = || format!("no answer from {} within {DEADLINE:?}", self.socket.display());
        tokio::time::timeout(DEADLINE, self.exchange(method, path)).await.with_context(late)?
    }

    async fn exchange(&self, method: Method, path: &str) -> Result<Bytes> {
        let hint = || {
            let socket = self.socket.display();
            format!("cannot reach a controller at {socket}; does peerpods-controller run here, are you root, is --socket right?")
        };
        let stream = UnixStream::connect(&self.socket).await.with_context(hint)?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.with_context(hint)?;
        tokio::spawn(connection);
        let request = Request::builder().method(method).uri(path).header("host", "peerpods").body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await.with_context(hint)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await.map_err(|error| anyhow::anyhow!(error))?;
        let body = body.to_bytes();
        if status == StatusCode::NOT_FOUND {
            bail!("{}; `peerpodctl vm list` shows those that there are", String::from_utf8_lossy(&body).trim_end());
        }
        ensure!(status.is_success(), "the controller answers {status}: {}", String::from_utf8_lossy(&body).trim_end());
        Ok(body)
    }
}
