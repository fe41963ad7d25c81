//! What `kubectl exec`, `attach` and `port-forward` hold in hand.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::spdy::{Connection, Stream};

/// The version of the streams of exec and attach that every kubelet speaks.
const REMOTE_COMMAND: &str = "v4.channel.k8s.io";
const PORT_FORWARD: &str = "portforward.k8s.io";

/// Which streams are asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub(super) stdin: bool,
    pub(super) stdout: bool,
    pub(super) stderr: bool,
    pub(super) tty: bool,
}

/// An open exec or attach.
pub struct Session {
    error: Stream,
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    resize: Option<Stream>,
    /// What has come on standard output and was not taken yet.
    pending: Vec<u8>,
    _connection: Connection,
}

/// What a session came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// The exit code, if the stream server told one; 0 for success.
    pub code: Option<i32>,
    /// The stream server's own words on a failure.
    pub message: String,
}

impl Session {
    pub(super) async fn open(netns: &Path, url: &str, wanted: Wanted) -> Result<Self> {
        let mut connection = Connection::open(netns, url, &[REMOTE_COMMAND]).await?;
        let error = connection.stream(&[("streamtype", "error")]).await?;
        let mut stdin = None;
        let mut stdout = None;
        let mut stderr = None;
        let mut resize = None;
        for (is_wanted, name, slot) in [
            (wanted.stdin, "stdin", &mut stdin),
            (wanted.stdout, "stdout", &mut stdout),
            // With a terminal there is no other output.
            (wanted.stderr && !wanted.tty, "stderr", &mut stderr),
            (wanted.tty, "resize", &mut resize),
        ] {
            if is_wanted {
                *slot = Some(connection.stream(&[("streamtype", name)]).await?);
            }
        }
        Ok(Self { error, stdin, stdout, stderr, resize, pending: Vec::new(), _connection: connection })
    }

    /// Writes to standard input.
    pub async fn write(&self, bytes: &[u8]) -> Result<()> {
        self.stdin.as_ref().context("no stdin")?.write(bytes).await
    }

    /// Closes standard input.
    pub async fn close_stdin(&self) -> Result<()> {
        self.stdin.as_ref().context("no stdin")?.finish().await
    }

    /// Tells the terminal's size.
    pub async fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        let size = format!("{{\"Width\":{columns},\"Height\":{rows}}}");
        self.resize.as_ref().context("no terminal")?.write(size.as_bytes()).await
    }

    /// Reads standard output until it holds `text`; gives what came up to its end.
    pub async fn read_until(&mut self, text: &str) -> Result<String> {
        let stdout = self.stdout.as_mut().context("no stdout")?;
        let limit = Duration::from_secs(30);
        loop {
            let found = self.pending.windows(text.len().max(1)).position(|window| window == text.as_bytes());
            if let Some(at) = found {
                let taken: Vec<u8> = self.pending.drain(..at + text.len()).collect();
                return Ok(String::from_utf8_lossy(&taken).into_owned());
            }
            let seen = || format!("{text:?} did not come; seen: {:?}", String::from_utf8_lossy(&self.pending));
            let read = tokio::time::timeout(limit, stdout.read()).await.with_context(seen)?;
            self.pending.extend(read.with_context(seen)?);
        }
    }

    /// Reads everything until the other end is done.
    pub async fn finish(mut self) -> Result<Outcome> {
        let limit = Duration::from_secs(120);
        let all = async {
            let (out, err, error) = tokio::join!(
                async { if let Some(s) = &mut self.stdout { s.read_to_end().await } else { Vec::new() } },
                async { if let Some(s) = &mut self.stderr { s.read_to_end().await } else { Vec::new() } },
                self.error.read_to_end(),
            );
            (out, err, error)
        };
        let (out, stderr, error) = tokio::time::timeout(limit, all).await.context("the session does not end")?;
        let mut stdout = std::mem::take(&mut self.pending);
        stdout.extend(out);
        let (code, message) = verdict(&error);
        Ok(Outcome { stdout, stderr, code, message })
    }
}

/// Reads a `v1.Status`, which names the exit code among its causes.
fn verdict(error: &[u8]) -> (Option<i32>, String) {
    let Ok(status) = serde_json::from_slice::<Value>(error) else { return (None, String::from_utf8_lossy(error).into_owned()) };
    if status["status"] == "Success" {
        return (Some(0), String::new());
    }
    let causes = status["details"]["causes"].as_array();
    let code = causes.into_iter().flatten().find(|cause| cause["reason"] == "ExitCode");
    let code = code.and_then(|cause| cause["message"].as_str()?.parse().ok());
    (code, status["message"].as_str().unwrap_or_default().to_owned())
}

/// One forwarded connection.
pub struct PortStream {
    data: Stream,
    error: Stream,
    _connection: Connection,
}

impl PortStream {
    pub(super) async fn open(netns: &Path, url: &str, port: u16) -> Result<Self> {
        let mut connection = Connection::open(netns, url, &[PORT_FORWARD]).await?;
        let port = port.to_string();
        let headers = |kind| [("streamtype", kind), ("port", port.as_str()), ("requestid", "0")];
        let error = connection.stream(&headers("error")).await?;
        let data = connection.stream(&headers("data")).await?;
        Ok(Self { data, error, _connection: connection })
    }

    /// Sends bytes.
    pub async fn write(&self, bytes: &[u8]) -> Result<()> {
        self.data.write(bytes).await
    }

    /// Says that no more bytes will come.
    pub async fn close(&self) -> Result<()> {
        self.data.finish().await
    }

    /// The next bytes; `None` at the end.
    pub async fn read(&mut self) -> Option<Vec<u8>> {
        self.data.read().await
    }

    /// What came until both streams ended: the data and the error, which is "stream reset" when the server only reset it.
    pub async fn finish(mut self) -> Result<(Vec<u8>, String)> {
        let both = async { tokio::join!(self.data.read_to_end(), self.error.read_to_end()) };
        let (data, error) = tokio::time::timeout(Duration::from_secs(60), both).await.context("the forwarded connection does not end")?;
        // Some servers reset both streams of a failed connection after they told the error.
        let is_silent_reset = error.is_empty() && self.error.was_reset();
        Ok((data, if is_silent_reset { "stream reset".to_owned() } else { String::from_utf8_lossy(&error).into_owned() }))
    }
}
