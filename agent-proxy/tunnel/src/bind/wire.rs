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
/// Largest Activate, and largest answer to it: a credential for an RSA key has some 350 bytes.
pub(crate) const MAX_ACTIVATE: usize = 8 << 10;
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

/// Whether a message that could be Bind is Activate.
pub(crate) fn is_activate(bytes: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Kind {
        challenge: Option<serde::de::IgnoredAny>,
    }
    bytes.len() <= MAX_ACTIVATE && serde_json::from_slice::<Kind>(bytes).is_ok_and(|kind| kind.challenge.is_some())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bind::{Activate, Activated, Answer, Evidence, Hello, Reply};
    use crate::{BindRequest, Pod};
    use std::fmt::Debug;

    fn unchanged<T: Serialize + DeserializeOwned + PartialEq + Debug>(golden: &[u8], value: &T) {
        assert_eq!(&decode::<T>(golden).unwrap(), value);
        assert_eq!(encode(value), golden);
    }

    #[test]
    fn version_1_bytes_decode_and_encode_unchanged() {
        let golden = include_bytes!("../../../../tests/compat/bind/v1/hello.json");
        unchanged(golden, &Hello { version: 1, nonce: [0xa5; 32] });
        let golden = include_bytes!("../../../../tests/compat/bind/v1/evidence.json");
        unchanged(golden, &Evidence { tee: "sample".to_owned(), evidence: vec![0, 1, 2, 255] });
        let golden = include_bytes!("../../../../tests/compat/bind/v1/bind.json");
        let request = BindRequest {
            version: 1,
            sandbox_id: "0a1b".to_owned(),
            pod: Pod { namespace: "default".to_owned(), name: "web-0".to_owned(), uid: Some("4d5e".to_owned()) },
            network: serde_json::json!({"mtu": 1450, "version": 1}),
            initdata: Some("version = \"0.1.0\"\n".to_owned()),
            agent_keys: vec!["00ff".repeat(16)],
        };
        unchanged(golden, &request);
        let golden = include_bytes!("../../../../tests/compat/bind/v1/bind-minimal.json");
        let pod = Pod { uid: None, ..request.pod.clone() };
        unchanged(golden, &BindRequest { pod, network: serde_json::Value::Null, initdata: None, ..request });
        assert!(!is_activate(golden));
        let golden = include_bytes!("../../../../tests/compat/bind/v1/activate.json");
        unchanged(golden, &Activate { version: 1, challenge: vec![0, 1, 2, 255] });
        assert!(is_activate(golden));
        let golden = include_bytes!("../../../../tests/compat/bind/v1/activated.json");
        unchanged(golden, &Activated { activated: vec![3, 4, 5] });
        let golden = include_bytes!("../../../../tests/compat/bind/v1/answer-bound.json");
        unchanged(golden, &Answer::Bound);
        let golden = include_bytes!("../../../../tests/compat/bind/v1/answer-refused.json");
        unchanged(golden, &Answer::Refused(Refusal::new(RefusalCode::AlreadyBound, "taken")));
        assert!(matches!(decode::<Reply>(golden), Ok(Reply::Answer(Answer::Refused(_)))));
    }

    #[test]
    fn refusal_code_of_a_later_release_is_read_as_unknown() {
        let answer = decode::<Answer>(br#"{"answer":"refused","code":"moon-phase","message":"full"}"#).unwrap();
        assert!(matches!(answer, Answer::Refused(Refusal { code: RefusalCode::Unknown, .. })));
    }

    #[test]
    fn unknown_version_is_refused_whatever_else_the_message_holds() {
        let refusal = decode_versioned::<Hello>(br#"{"version":2,"salt":[]}"#).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::UnsupportedVersion);
        assert!(refusal.message.contains("version 2"), "{refusal}");
    }

    #[tokio::test]
    async fn length_over_the_limit_is_refused_before_it_is_read() {
        let mut wire: &[u8] = &[0, 0, 0, 5, 1, 2, 3, 4, 5];
        assert!(matches!(receive(&mut wire, 4).await, Err(WireError::TooLong { length: 5, limit: 4 })));
        let mut wire: &[u8] = &[0, 0, 0, 5, 1, 2, 3, 4, 5];
        assert_eq!(receive(&mut wire, 5).await.unwrap(), [1, 2, 3, 4, 5]);
    }
}
