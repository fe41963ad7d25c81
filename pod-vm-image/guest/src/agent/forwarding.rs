//! Ports of the pod, reached from the node.

use std::io;
use std::path::Path;

use peerpods_network::POD_NETNS;
use peerpods_tunnel::AgentStream;
use peerpods_tunnel::forward::{self, ForwardRefusal};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// It answers the workload with its secrets and must answer nobody on the node.
const WORKLOAD_API: u16 = super::workload_api::PORT;

/// Carries every stream to the port that it asks for, each in a task of this function's.
pub(super) async fn serve(mut streams: mpsc::Receiver<AgentStream>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            stream = streams.recv() => match stream {
                Some(stream) => { connections.spawn(forward::serve(stream, connect)); }
                None => return,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connect(port: u16) -> Result<TcpStream, ForwardRefusal> {
    if port == WORKLOAD_API {
        return Err(ForwardRefusal::Forbidden);
    }
    let connected = peerpods_network::forward::connect(Path::new(POD_NETNS), port).await;
    connected.map_err(|error| match error.kind() {
        io::ErrorKind::ConnectionRefused => ForwardRefusal::NotListening,
        _ => ForwardRefusal::Failed,
    })
}
