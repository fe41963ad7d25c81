//! An agent stream of the node's, carried to Kata's agent frame by frame.
//!
//! Frames are ttrpc's: length, stream and type in ten bytes, then the payload, of at most 4 MiB. The node is not trusted: the length
//! is looked at before anything is read, memory grows with what has come, and what does not decode as a request ends the connection, so
//! that the agent never reads a request otherwise than this program did. A refusal ([`Refused`]) is answered in the agent's place.
//!
//! A stream is over when either end is; the agent is dialled once for each, since all of its state is its own.

use std::io;
use std::path::Path;

use peerpods_tunnel::AgentStream;
use protobuf::{Message as _, MessageField};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use ttrpc::proto::{MESSAGE_HEADER_LENGTH, MESSAGE_LENGTH_MAX, MESSAGE_TYPE_REQUEST};
use ttrpc::{Code, MessageHeader, Request, Response, Status};

use super::components::AGENT_SOCKET;
use super::requests::{Refused, adapt};

/// Serves one stream to its end.
pub(crate) async fn serve(stream: AgentStream) {
    if let Err(error) = relay(stream, Path::new(AGENT_SOCKET)).await {
        tracing::warn!(%error, "agent stream ended");
    }
}

/// Why a stream was ended before its time.
#[derive(Debug, thiserror::Error)]
enum RelayError {
    #[error("connect to kata-agent")]
    Connect(#[source] io::Error),
    #[error("carry a frame")]
    Io(#[from] io::Error),
    #[error("a frame of {0} bytes; at most {MESSAGE_LENGTH_MAX} are allowed")]
    TooLong(usize),
    #[error("a frame that is no request")]
    Malformed,
}

async fn relay(stream: impl AsyncRead + AsyncWrite, agent: &Path) -> Result<(), RelayError> {
    let (mut from_agent, to_agent) = UnixStream::connect(agent).await.map_err(RelayError::Connect)?.into_split();
    let (from_node, to_node) = tokio::io::split(stream);
    let to_node = Mutex::new(to_node);
    let answers = async {
        while let Some(frame) = Frame::read(&mut from_agent).await? {
            send(&to_node, frame).await?;
        }
        Ok(())
    };
    tokio::select! {
        result = requests(from_node, to_agent, &to_node) => result,
        result = answers => result,
    }
}

async fn requests(
    mut from_node: impl AsyncRead + Unpin,
    mut to_agent: impl AsyncWrite + Unpin,
    to_node: &Mutex<impl AsyncWrite + Unpin>,
) -> Result<(), RelayError> {
    while let Some(frame) = Frame::read(&mut from_node).await? {
        match frame.adapted()? {
            Ok(frame) => to_agent.write_all(&frame.bytes()).await?,
            Err(refusal) => send(to_node, refusal).await?,
        }
    }
    Ok(())
}

async fn send(to: &Mutex<impl AsyncWrite + Unpin>, frame: Frame) -> io::Result<()> {
    let mut to = to.lock().await;
    to.write_all(&frame.bytes()).await?;
    to.flush().await
}

/// One frame, whose payload has the length that its header says.
struct Frame {
    header: MessageHeader,
    payload: Vec<u8>,
}

impl Frame {
    /// The next one; `None` at an end between two.
    async fn read(from: &mut (impl AsyncRead + Unpin)) -> Result<Option<Self>, RelayError> {
        let mut head = [0; MESSAGE_HEADER_LENGTH];
        if from.read(&mut head[..1]).await? == 0 {
            return Ok(None);
        }
        from.read_exact(&mut head[1..]).await?;
        let header = MessageHeader::from(head);
        let length = usize::try_from(header.length).unwrap_or(usize::MAX);
        if length > MESSAGE_LENGTH_MAX {
            return Err(RelayError::TooLong(length));
        }
        let mut payload = Vec::new();
        from.take(u64::from(header.length)).read_to_end(&mut payload).await?;
        if payload.len() < length {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(Some(Self { header, payload }))
    }

    /// What the agent gets of it, or what the node is answered.
    fn adapted(self) -> Result<Result<Self, Self>, RelayError> {
        if self.header.type_ != MESSAGE_TYPE_REQUEST {
            return Ok(Ok(self));
        }
        let mut request = Request::parse_from_bytes(&self.payload).map_err(|_| RelayError::Malformed)?;
        match adapt(&request.service, &request.method, &request.payload) {
            Ok(None) => Ok(Ok(self)),
            Ok(Some(payload)) => {
                request.payload = payload;
                Self::new(self.header, &request).map(Ok)
            }
            Err(refused) => self.refusal(&refused).map(Err),
        }
    }

    fn refusal(&self, refused: &Refused) -> Result<Self, RelayError> {
        let mut status = Status::new();
        status.set_code(Code::INVALID_ARGUMENT);
        status.set_message(refused.to_string());
        let mut response = Response::new();
        response.status = MessageField::some(status);
        Self::new(MessageHeader::new_response(self.header.stream_id, 0), &response)
    }

    fn new(header: MessageHeader, message: &impl protobuf::Message) -> Result<Self, RelayError> {
        let payload = message.write_to_bytes().map_err(|_| RelayError::Malformed)?;
        match u32::try_from(payload.len()) {
            Ok(length) if payload.len() <= MESSAGE_LENGTH_MAX => Ok(Self { header: MessageHeader { length, ..header }, payload }),
            _ => Err(RelayError::TooLong(payload.len())),
        }
    }

    fn bytes(self) -> Vec<u8> {
        let mut bytes = Vec::from(self.header);
        bytes.extend_from_slice(&self.payload);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use peerpods_protos::agent::{CreateContainerRequest, CreateSandboxRequest};
    use peerpods_protos::oci::{Linux, Spec};
    use tokio::io::DuplexStream;
    use tokio::net::UnixListener;
    use tokio::task::JoinHandle;

    /// A node, a relay, and the connection that the agent takes.
    struct World {
        node: DuplexStream,
        agent: UnixStream,
        relay: JoinHandle<Result<(), RelayError>>,
        _folder: tempfile::TempDir,
    }

    impl World {
        async fn new() -> Self {
            let folder = tempfile::tempdir().expect("folder");
            let path = folder.path().join("agent.sock");
            let listener = UnixListener::bind(&path).expect("listen");
            let (node, theirs) = tokio::io::duplex(64 << 10);
            let relay = tokio::spawn(async move { relay(theirs, &path).await });
            let (agent, _) = listener.accept().await.expect("accept");
            Self { node, agent, relay, _folder: folder }
        }

        async fn send(&mut self, bytes: &[u8]) {
            self.node.write_all(bytes).await.expect("write");
        }

        async fn agent_gets(&mut self, length: usize) -> Vec<u8> {
            let mut bytes = vec![0; length];
            self.agent.read_exact(&mut bytes).await.expect("read");
            bytes
        }

        /// Why the relay ended, and that the agent has got nothing.
        async fn ends(mut self) -> RelayError {
            let error = self.relay.await.expect("relay").expect_err("refused");
            let mut rest = Vec::new();
            self.agent.read_to_end(&mut rest).await.expect("end");
            assert!(rest.is_empty(), "{rest:?}");
            error
        }
    }

    fn request(method: &str, payload: Vec<u8>) -> Vec<u8> {
        let mut request = Request::new();
        request.service = "grpc.AgentService".to_owned();
        request.method = method.to_owned();
        request.timeout_nano = 60_000_000_000;
        request.payload = payload;
        Frame::new(MessageHeader::new_request(7, 0), &request).expect("frame").bytes()
    }

    fn header(length: u32, kind: u8) -> Vec<u8> {
        [&length.to_be_bytes()[..], &7_u32.to_be_bytes(), &[kind, 0]].concat()
    }

    #[tokio::test]
    async fn frames_pass_byte_for_byte_in_both_directions() {
        let mut world = World::new().await;
        let data = [header(3, 3), b"abc".to_vec()].concat();
        for frame in [request("CopyFile", vec![9; 300_000]), request("CreateSandbox", Vec::new()), request("Unheard", vec![0xff]), data] {
            let (node, expected) = (&mut world.node, frame.clone());
            let (sent, came) = tokio::join!(node.write_all(&frame), async {
                let mut bytes = vec![0; expected.len()];
                world.agent.read_exact(&mut bytes).await.map(|_| bytes)
            });
            sent.expect("write");
            assert!(came.expect("read") == expected, "{} bytes differ", expected.len());
        }
        let answer = [header(2, 2), b"ok".to_vec()].concat();
        world.agent.write_all(&answer).await.expect("write");
        let mut came = vec![0; answer.len()];
        world.node.read_exact(&mut came).await.expect("read");
        assert_eq!(came, answer);
    }

    #[tokio::test]
    async fn changed_request_keeps_its_envelope() {
        let mut world = World::new().await;
        let mut create = CreateContainerRequest::new();
        create.OCI = MessageField::some(Spec { Linux: MessageField::some(Linux::new()), ..Default::default() });
        world.send(&request("CreateContainer", create.write_to_bytes().expect("bytes"))).await;
        let head = world.agent_gets(MESSAGE_HEADER_LENGTH).await;
        let head = MessageHeader::from(head.as_slice());
        assert_eq!((head.stream_id, head.type_, head.flags), (7, MESSAGE_TYPE_REQUEST, 0));
        let came = Request::parse_from_bytes(&world.agent_gets(head.length as usize).await).expect("request");
        assert_eq!(
            (came.service.as_str(), came.method.as_str(), came.timeout_nano),
            ("grpc.AgentService", "CreateContainer", 60_000_000_000)
        );
        let create = CreateContainerRequest::parse_from_bytes(&came.payload).expect("payload");
        assert_eq!(create.OCI.Linux.Namespaces.len(), 1);
    }

    #[tokio::test]
    async fn refusal_is_answered_and_the_stream_goes_on() {
        let mut world = World::new().await;
        world.send(&request("CreateContainer", Vec::new())).await;
        let mut head = [0; MESSAGE_HEADER_LENGTH];
        world.node.read_exact(&mut head).await.expect("head");
        let head = MessageHeader::from(head);
        assert_eq!((head.stream_id, head.type_), (7, 2));
        let mut payload = vec![0; head.length as usize];
        world.node.read_exact(&mut payload).await.expect("payload");
        let status = Response::parse_from_bytes(&payload).expect("response").status;
        assert!(status.code() == Code::INVALID_ARGUMENT && status.message.contains("no linux section"), "{status:?}");
        let next = request("CreateSandbox", CreateSandboxRequest::new().write_to_bytes().expect("bytes"));
        world.send(&next).await;
        assert_eq!(world.agent_gets(next.len()).await, next);
    }

    #[tokio::test]
    async fn hostile_frames_end_the_stream_and_reach_nobody() {
        for (frame, why) in [
            (header(u32::MAX, 1), "4294967295 bytes"),
            (header((4 << 20) + 1, 3), "4194305 bytes"),
            ([header(2, 1), b"\xff\xff".to_vec()].concat(), "no request"),
        ] {
            let mut world = World::new().await;
            world.send(&frame).await;
            assert!(world.ends().await.to_string().contains(why), "{why}");
        }
        let mut world = World::new().await;
        world.send(&header(100, 1)).await;
        world.send(b"cut").await;
        world.node.shutdown().await.expect("shutdown");
        assert!(matches!(world.ends().await, RelayError::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof));
    }

    #[tokio::test]
    async fn request_that_grows_beyond_a_frame_is_refused() {
        let mut create = CreateContainerRequest::new();
        create.OCI = MessageField::some(Spec { Linux: MessageField::some(Linux::new()), ..Default::default() });
        let overhead = request("CreateContainer", create.write_to_bytes().expect("bytes")).len() - MESSAGE_HEADER_LENGTH;
        create.container_id = "c".repeat(MESSAGE_LENGTH_MAX - overhead - 20);
        let frame = request("CreateContainer", create.write_to_bytes().expect("bytes"));
        let mut world = World::new().await;
        world.send(&frame).await;
        assert!(matches!(world.ends().await, RelayError::TooLong(length) if length > MESSAGE_LENGTH_MAX));
    }

    #[tokio::test]
    async fn end_of_the_agent_ends_the_stream() {
        let World { mut node, agent, relay, _folder } = World::new().await;
        drop(agent);
        relay.await.expect("relay").expect("an orderly end");
        assert_eq!(node.read(&mut [0; 1]).await.expect("end"), 0);
    }
}
