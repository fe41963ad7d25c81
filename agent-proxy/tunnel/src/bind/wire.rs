//! Length-prefixed JSON: a big-endian u32, then that many bytes. The limit is checked before anything is allocated.

use std::io;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::{BIND_VERSION, Refusal, RefusalCode};

/// Largest Hello.
pub(crate) const MAX_HELLO: usize = 4 << 10;
/// Largest Evidence: a quote with its event log and certificates, in base64.
pub(crate) const MAX_EVIDENCE: usize = 2 << 20;
/// Largest Bind.
pub(crate) const MAX_BIND: usize = 1 << 20;
/// Largest Answer.
pub(crate) const MAX_ANSWER: usize = 64 << 10;

/// Why a message could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error("connection failed")]
    Io(#[from] io::Error),
    #[error("message of {length} bytes where at most {limit} are allowed")]
    TooLong { length: usize, limit: usize },
}

pub(crate) async fn receive<S: AsyncRead + Unpin>(stream: &mut S, limit: usize) -> Result<Vec<u8>, WireError> {
    let length = usize::try_from(stream.read_u32().await?).unwrap_or(usize::MAX);
    if length > limit {
        return Err(WireError::TooLong { length, limit });
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

pub(crate) async fn send<S: AsyncWrite + Unpin>(stream: &mut S, message: &[u8], limit: usize) -> Result<(), WireError> {
    let length = u32::try_from(message.len()).ok().filter(|_| message.len() <= limit);
    let length = length.ok_or(WireError::TooLong { length: message.len(), limit })?;
    let mut bytes = Vec::with_capacity(message.len() + 4);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(message);
    stream.write_all(&bytes).await?;
    stream.flush().await?;
    Ok(())
}

pub(crate) fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    serde_json::to_vec(message).expect("messages have string keys only")
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(bytes).map_err(|error| Refusal::new(RefusalCode::BadRequest, error.to_string()))
}

/// Decodes a message that starts with its version; an unknown one is refused by its number, whatever else the message holds.
pub(crate) fn decode_versioned<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u64,
    }
    let Versioned { version } = decode(bytes)?;
    if version != u64::from(BIND_VERSION) {
        let message = format!("version {version}; this pod VM reads version {BIND_VERSION}: use a node of the image's release");
        return Err(Refusal::new(RefusalCode::UnsupportedVersion, message));
    }
    decode(bytes)
}
