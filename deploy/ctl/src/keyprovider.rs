//! `peerpodctl keyprovider`: wraps the keys of image layers for skopeo, buildah and nerdctl.
//!
//! ocicrypt, which they share, asks a key provider by gRPC or by running a command; the JSON is the same ([`protocol`]). Keys come from
//! files; nothing is kept in memory. Who reaches the socket may use every key that this process may read, so it listens on
//! loopback addresses only.

mod packet;
mod protocol;

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

pub(crate) use protocol::{Keys, ProtocolError};

/// What `proto/keyprovider.proto` becomes.
#[allow(missing_docs, unreachable_pub, reason = "generated")]
mod wire {
    tonic::include_proto!("keyprovider");
}

use wire::key_provider_service_server::{KeyProviderService, KeyProviderServiceServer};
use wire::{KeyProviderKeyWrapProtocolInput as Input, KeyProviderKeyWrapProtocolOutput as Output};

/// Wrap and unwrap the keys of image layers for skopeo, buildah and nerdctl.
///
/// The tools name the key in their parameters: keyid=kbs:///default/key/1 is its name at the key broker,
/// keypath=/abs/file the key itself (or --keys a folder of keys), and algorithm=A256GCM may be added.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct KeyProvider {
    /// Address and port to listen on; loopback only. Port 0 takes any.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:50000")]
    listen: SocketAddr,
    /// A folder of keys by the name of their resource, such as DIR/default/key/1: for unwrapping, and for wrapping without keypath.
    #[arg(long, value_name = "DIR")]
    keys: Option<PathBuf>,
    /// Make a random key where there is none yet.
    #[arg(long)]
    create: bool,
    /// Answer the one request on standard input, and end: how ocicrypt runs a command.
    #[arg(long, conflicts_with = "listen")]
    once: bool,
}

const EXAMPLES: &str = "\
Examples:
  peerpodctl keyprovider --create &
  echo '{\"key-providers\":{\"attestation-agent\":{\"grpc\":\"127.0.0.1:50000\"}}}' > ocicrypt.json
  OCICRYPT_KEYPROVIDER_CONFIG=ocicrypt.json skopeo copy --encryption-key \\
    provider:attestation-agent:keyid=kbs:///default/key/1::keypath=$PWD/key::algorithm=A256GCM oci:app oci:encrypted

Without a server, the same with this ocicrypt.json:
  {\"key-providers\":{\"attestation-agent\":{\"cmd\":{\"path\":\"peerpodctl\",\"args\":[\"keyprovider\",\"--once\"]}}}}

The guest gets the key from the key broker by its name, so give the file to the broker, too:
  kbs-client --url URL config --auth-private-key admin.key set-resource --path default/key/1 --resource-file key";

/// Why no key is wrapped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyProviderError {
    /// The address is one that others reach.
    #[error("{0} is not a loopback address, and whoever reaches the key provider may use its keys; next: listen on 127.0.0.1")]
    NotLoopback(SocketAddr),
    /// The address is taken, for example.
    #[error("cannot listen on {address}; next: choose another port with --listen")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The server ended.
    #[error("cannot serve")]
    Serve(#[source] tonic::transport::Error),
    /// Standard input or output.
    #[error("cannot exchange the request with the program that called")]
    Exchange(#[source] std::io::Error),
    /// The request, or its key.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
}

/// Bytes of a request: the options of one layer are some 300, and parameters are of a command line.
const MAX_REQUEST_BYTES: usize = 256 << 10;

/// Carries the command out.
pub(crate) async fn run(command: KeyProvider) -> Result<(), KeyProviderError> {
    let keys = Keys { folder: command.keys, may_create: command.create };
    if command.once {
        return once(&keys);
    }
    if !command.listen.ip().is_loopback() {
        return Err(KeyProviderError::NotLoopback(command.listen));
    }
    let failed = |source| KeyProviderError::Listen { address: command.listen, source };
    let listener = TcpListener::bind(command.listen).await.map_err(failed)?;
    println!("listening on {}", listener.local_addr().map_err(failed)?);
    serve(listener, keys, async {
        // Without signals it runs until it is killed.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    })
    .await
}

fn once(keys: &Keys) -> Result<(), KeyProviderError> {
    let mut request = Vec::new();
    let limit = MAX_REQUEST_BYTES as u64 + 1;
    std::io::stdin().lock().take(limit).read_to_end(&mut request).map_err(KeyProviderError::Exchange)?;
    let answer = protocol::answer(&request, keys)?;
    std::io::stdout().lock().write_all(&answer).map_err(KeyProviderError::Exchange)
}

/// Serves until `shutdown` is done.
async fn serve(listener: TcpListener, keys: Keys, shutdown: impl Future<Output = ()>) -> Result<(), KeyProviderError> {
    let service = KeyProviderServiceServer::new(Service { keys }).max_decoding_message_size(MAX_REQUEST_BYTES);
    tonic::transport::Server::builder()
        .add_service(service)
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), shutdown)
        .await
        .map_err(KeyProviderError::Serve)
}

struct Service {
    keys: Keys,
}

impl Service {
    /// Both calls carry their kind inside; that they agree is checked, so that none is taken for the other.
    async fn answer(&self, request: Input, operation: protocol::Operation) -> Result<Response<Output>, Status> {
        let keys = self.keys.clone();
        let answer =
            tokio::task::spawn_blocking(move || protocol::answer_to(operation, &request.key_provider_key_wrap_protocol_input, &keys));
        let answer = answer.await.map_err(|error| Status::internal(error.to_string()))?;
        let answer = answer.map_err(|error| {
            let reason = chain(&error);
            eprintln!("peerpodctl: {reason}");
            Status::invalid_argument(reason)
        })?;
        Ok(Response::new(Output { key_provider_key_wrap_protocol_output: answer }))
    }
}

#[tonic::async_trait]
impl KeyProviderService for Service {
    async fn wrap_key(&self, request: Request<Input>) -> Result<Response<Output>, Status> {
        self.answer(request.into_inner(), protocol::Operation::Wrap).await
    }

    async fn un_wrap_key(&self, request: Request<Input>) -> Result<Response<Output>, Status> {
        self.answer(request.into_inner(), protocol::Operation::Unwrap).await
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

/// What a packet holds, for tests of those who wrap.
#[cfg(test)]
pub(crate) fn opened(packet: &[u8], key: &[u8]) -> Vec<u8> {
    serde_json::from_slice::<packet::Packet>(packet).expect("a packet").open(key).expect("its key").to_vec()
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde_json::{Value, json};
    use wire::key_provider_service_client::KeyProviderServiceClient;

    use super::*;

    fn input(request: &Value) -> Input {
        Input { key_provider_key_wrap_protocol_input: request.to_string().into_bytes() }
    }

    #[tokio::test]
    async fn keys_are_wrapped_and_unwrapped_over_grpc() {
        let folder = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let keys = Keys { folder: Some(folder.path().to_owned()), may_create: true };
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let server = tokio::spawn(serve(listener, keys, async { drop(stopped.await) }));
        let channel = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        let mut client = KeyProviderServiceClient::new(channel);

        let parameters = STANDARD.encode("keyid=kbs:///default/key/1::algorithm=A256GCM");
        let wrap = json!({"op": "keywrap", "keywrapparams": {
            "ec": {"Parameters": {"attestation-agent": [parameters]}, "DecryptConfig": {"Parameters": {}}},
            "optsdata": STANDARD.encode("options"),
        }});
        let answer = client.wrap_key(input(&wrap)).await.unwrap().into_inner().key_provider_key_wrap_protocol_output;
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        let packet: Vec<u8> = serde_json::from_value(answer["keywrapresults"]["annotation"].clone()).unwrap();
        assert_eq!(std::fs::read(folder.path().join("default/key/1")).unwrap().len(), 32);

        let unwrap = json!({"op": "keyunwrap", "keyunwrapparams": {
            "dc": {"Parameters": {"attestation-agent": [STANDARD.encode("attestation-agent")]}},
            "annotation": STANDARD.encode(&packet),
        }});
        let answer = client.un_wrap_key(input(&unwrap)).await.unwrap().into_inner().key_provider_key_wrap_protocol_output;
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        assert_eq!(answer["keyunwrapresults"]["optsdata"], json!(b"options"));

        let error = client.wrap_key(input(&unwrap)).await.unwrap_err();
        assert!(error.code() == tonic::Code::InvalidArgument && error.message().contains("keyunwrap"), "{error}");
        let error = client.wrap_key(Input { key_provider_key_wrap_protocol_input: vec![b' '; 1 << 20] }).await.unwrap_err();
        assert_eq!(error.code(), tonic::Code::OutOfRange, "{error}");
        drop(stop);
        server.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn only_this_machine_is_served() {
        let listen = "0.0.0.0:0".parse().unwrap();
        let command = KeyProvider { listen, keys: None, create: false, once: false };
        assert!(matches!(run(command).await, Err(KeyProviderError::NotLoopback(_))));
    }
}
