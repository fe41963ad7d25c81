//! Recorded traffic of Kata's Rust shim, read from JSON lines.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// Which socket a frame was seen on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Socket {
    /// The hypervisor service.
    Hypervisor,
    /// The agent's.
    Agent,
}

/// One call is known by its socket, VM number, connection number and stream.
pub(crate) type CallId = (Socket, u64, u64, u64);

/// What the shim sent or got, in the order of time.
#[derive(Debug, Clone)]
pub enum Event {
    /// The shim asks.
    Request {
        /// Which call.
        id: CallId,
        /// `hypervisor.Hypervisor`, `grpc.AgentService` or `grpc.Health`.
        service: String,
        /// The method's name.
        method: String,
        /// The encoded message; cut when `is_cut`.
        payload: Vec<u8>,
        /// Whether the recording kept only the beginning.
        is_cut: bool,
    },
    /// The shim is answered.
    Response {
        /// Which call.
        id: CallId,
        /// The ttrpc status; 0 is OK.
        status: i64,
        /// The encoded message.
        payload: Vec<u8>,
    },
}

/// The folder of recordings, if it is there: `PEERPODS_VECTORS`, else beside the repository.
pub fn recordings_folder() -> Option<PathBuf> {
    let folder = std::env::var_os("PEERPODS_VECTORS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(3).unwrap_or(Path::new("/")).join("shared/vectors"),
        PathBuf::from,
    );
    Some(folder.join("kata-rs")).filter(|folder| folder.is_dir())
}

/// Reads one scenario.
pub fn read_recording(path: &Path) -> Result<Vec<Event>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let mut events = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line: Value = serde_json::from_str(line).with_context(|| format!("{} line {}", path.display(), number + 1))?;
        if line["ev"] == "frame" {
            events.extend(event(&line).with_context(|| format!("{} line {}", path.display(), number + 1))?);
        }
    }
    Ok(events)
}

fn event(line: &Value) -> Result<Option<Event>> {
    let socket = match line["sock"].as_str() {
        Some("hyp") => Socket::Hypervisor,
        Some("agent") => Socket::Agent,
        _ => return Ok(None),
    };
    let number = |key: &str| line[key].as_u64().unwrap_or(0);
    let id = (socket, number("vm"), number("conn"), number("stream"));
    let payload = hex::decode(line["payload"].as_str().unwrap_or("")).context("payload")?;
    let text = |key: &str| line[key].as_str().unwrap_or("").to_owned();
    Ok(Some(match line["dir"].as_str() {
        Some("c2s") => {
            let is_cut = !line["truncated_from"].is_null();
            Event::Request { id, service: text("service"), method: text("method"), payload, is_cut }
        }
        Some("s2c") => Event::Response { id, status: line["status"].as_i64().unwrap_or(0), payload },
        other => bail!("direction {other:?}"),
    }))
}
