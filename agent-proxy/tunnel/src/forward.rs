//! Forwarded connections: the first bytes of a `peerpods-forward/1` stream, then the bytes of one TCP connection.
//!
//! The node sends version and port, three bytes; the guest connects to that port in the pod's network namespace and answers with
//! version and result, two bytes. After "connected" the stream is the connection, half-closing included. A stream outlives cut
//! connections as every [`AgentStream`] does; it is for one connection and then ends.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::AgentStream;
use crate::node::DialError;

/// The version that this crate speaks.
const VERSION: u8 = 1;
const CONNECTED: u8 = 1;

/// For the request, which follows its stream at once.
const REQUEST_WITHIN: Duration = Duration::from_secs(10);
/// For the answer: a refusal of the guest's kernel comes at once, and silence of a workload's own packet filter must end.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// How long the guest waits for a workload's port.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// Why a port could not be reached, in the guest's words. A closed list; a later release's word is [`ForwardRefusal::Failed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ForwardRefusal {
    /// Nothing listens there.
    #[error("nothing in the pod listens on this port")]
    NotListening,
    /// The port is the guest's own and never forwarded.
    #[error("this port is the pod VM's own and is not forwarded")]
    Forbidden,
    /// The pod's connection was not made for another reason.
    #[error("the pod VM could not connect to this port")]
    Failed,
    /// The pod's owner does not allow it.
    #[error("the pod's agent policy does not allow this port to be forwarded: rule PortForwardRequest")]
    Denied,
    /// The VM speaks another version.
    #[error("the pod VM's image speaks another version of forwarding: use a node of the image's release")]
    UnsupportedVersion,
}

const REFUSALS: [(u8, ForwardRefusal); 5] = [
    (16, ForwardRefusal::NotListening),
    (17, ForwardRefusal::Forbidden),
    (18, ForwardRefusal::Failed),
    (19, ForwardRefusal::UnsupportedVersion),
    (20, ForwardRefusal::Denied),
];

/// Why there is no forwarded connection.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// The VM could not be reached.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The VM said no.
    #[error(transparent)]
    Refused(#[from] ForwardRefusal),
    /// The stream ended before the answer, or the answer is none.
    #[error("no answer from the pod VM")]
    NoAnswer(#[source] io::Error),
}

/// Serves one stream to its end. `connect` opens a connection to that port of the pod.
///
/// The end of either side's bytes is passed on; a connection that is reset ends both directions.
pub async fn serve<C, F>(mut stream: AgentStream, connect: C) -> io::Result<()>
where
    C: FnOnce(u16) -> F,
    F: Future<Output = Result<TcpStream, ForwardRefusal>>,
{
    let asked = timeout(REQUEST_WITHIN, receive(&mut stream)).await.map_err(|_| io::ErrorKind::TimedOut)??;
    let connected = match asked {
        Ok(port) => timeout(CONNECT_WITHIN, connect(port)).await.unwrap_or(Err(ForwardRefusal::Failed)),
        Err(refusal) => Err(refusal),
    };
    let mut tcp = match connected {
        Ok(tcp) => tcp,
        Err(refusal) => {
            stream.write_all(&answer(Err(refusal))).await?;
            return stream.shutdown().await;
        }
    };
    stream.write_all(&answer(Ok(()))).await?;
    stream.flush().await?;
    copy_bidirectional(&mut stream, &mut tcp).await.map(drop)
}

/// The node's half of the beginning.
pub(crate) async fn ask<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, port: u16) -> Result<(), ForwardError> {
    let asking = async {
        stream.write_all(&request(port)).await?;
        stream.flush().await?;
        let mut head = [0; 2];
        stream.read_exact(&mut head).await?;
        Ok(head)
    };
    let head =
        timeout(ANSWER_WITHIN, asking).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(ForwardError::NoAnswer)?;
    match head {
        [VERSION, CONNECTED] => Ok(()),
        [VERSION, code] => {
            let known = REFUSALS.iter().find(|(known, _)| *known == code);
            Err(known.map_or(ForwardRefusal::Failed, |(_, refusal)| *refusal).into())
        }
        _ => Err(ForwardRefusal::UnsupportedVersion.into()),
    }
}

fn request(port: u16) -> [u8; 3] {
    let [high, low] = port.to_be_bytes();
    [VERSION, high, low]
}

/// The version comes alone first: what follows it is for that version to say.
async fn receive<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Result<u16, ForwardRefusal>> {
    if stream.read_u8().await? != VERSION {
        return Ok(Err(ForwardRefusal::UnsupportedVersion));
    }
    stream.read_u16().await.map(Ok)
}

fn answer(result: Result<(), ForwardRefusal>) -> [u8; 2] {
    let code = match result {
        Ok(()) => CONNECTED,
        Err(refusal) => REFUSALS.iter().find(|(_, known)| *known == refusal).map_or(0, |(code, _)| *code),
    };
    [VERSION, code]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden(name: &str) -> Vec<u8> {
        let lines = include_str!("../../../tests/compat/forward/v1/messages.txt");
        let line = lines.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        hex::decode(line.unwrap_or_else(|| panic!("no line {name}"))).unwrap()
    }

    async fn asked(answer: &[u8]) -> Result<(), ForwardError> {
        let (mut node, mut guest) = tokio::io::duplex(64);
        guest.write_all(answer).await.unwrap();
        drop(guest.shutdown().await);
        ask(&mut node, 8080).await
    }

    #[tokio::test]
    async fn version_1_bytes_decode_and_encode_unchanged() {
        assert_eq!(request(8080).to_vec(), golden("request-8080"));
        assert_eq!(receive(&mut golden("request-8080").as_slice()).await.unwrap(), Ok(8080));
        assert_eq!(answer(Ok(())).to_vec(), golden("connected"));
        asked(&golden("connected")).await.unwrap();
        for (name, (_, refusal)) in ["not-listening", "forbidden", "failed", "unsupported-version", "denied"].into_iter().zip(REFUSALS) {
            assert_eq!(answer(Err(refusal)).to_vec(), golden(name), "{name}");
            assert!(matches!(asked(&golden(name)).await, Err(ForwardError::Refused(read)) if read == refusal), "{name}");
        }
    }

    #[tokio::test]
    async fn other_versions_are_refused_and_later_words_are_failures() {
        assert_eq!(receive(&mut [2_u8, 9, 9, 9].as_slice()).await.unwrap(), Err(ForwardRefusal::UnsupportedVersion));
        assert!(matches!(asked(&[2, 1]).await, Err(ForwardError::Refused(ForwardRefusal::UnsupportedVersion))));
        assert!(matches!(asked(&[1, 99]).await, Err(ForwardError::Refused(ForwardRefusal::Failed))));
    }

    #[tokio::test]
    async fn stream_that_ends_early_is_no_answer() {
        let (mut node, guest) = tokio::io::duplex(64);
        drop(guest);
        assert!(matches!(ask(&mut node, 8080).await, Err(ForwardError::NoAnswer(_))));
    }
}
