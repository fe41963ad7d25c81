//! Connections that somebody on the node makes to the pod's loopback, carried to the pod: what `kubectl port-forward` ends in.

use std::path::PathBuf;
use std::time::Duration;

use peerpods_network::forward::{Accepted, Listener};
use peerpods_tunnel::forward::ForwardError;
use peerpods_tunnel::node::AgentDialer;
use tokio::io::copy_bidirectional;
use tokio::task::JoinSet;

/// Forwarded connections of one pod at one time; the pod VM has the same limit.
const CONNECTION_LIMIT: usize = 64;
/// After a failed accept: for the descriptors or memory that it lacked.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves the pod's netns on this node. Never ends; dropping it closes every connection.
///
/// Without a netns there is nothing to serve: such a pod is in the node's own network, where nothing is ours to take. A kernel that
/// cannot steer local connections (before 5.9) costs the pod port-forwarding and nothing else.
pub async fn serve(netns: Option<PathBuf>, dialer: AgentDialer) {
    let Some(netns) = netns else { return std::future::pending().await };
    let listener = match Listener::open(&netns).await {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "ports of this pod cannot be forwarded");
            return std::future::pending().await;
        }
    };
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) if connections.len() >= CONNECTION_LIMIT => {
                    tracing::warn!(limit = CONNECTION_LIMIT, port = accepted.port, "reset a forwarded connection: too many are open");
                    reset(&accepted);
                }
                Ok(accepted) => {
                    let dialer = dialer.clone();
                    connections.spawn(async move { carry(accepted, &dialer).await });
                }
                Err(error) => {
                    tracing::error!(%error, "accepting a connection to forward");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn carry(mut accepted: Accepted, dialer: &AgentDialer) {
    let port = accepted.port;
    let mut stream = match dialer.forward(port).await {
        Ok(stream) => stream,
        Err(error) => {
            match &error {
                ForwardError::Refused(refusal) => tracing::info!(port, %refusal, "a port was not forwarded"),
                error => tracing::warn!(port, error = error as &dyn std::error::Error, "a port was not forwarded"),
            }
            return reset(&accepted);
        }
    };
    match copy_bidirectional(&mut accepted.stream, &mut stream).await {
        Ok(_) => {}
        Err(error) => {
            tracing::debug!(port, %error, "a forwarded connection broke");
            reset(&accepted);
        }
    }
}

/// The dialler must not take a connection that failed for one that ended: it is reset when it is dropped.
fn reset(accepted: &Accepted) {
    if let Err(error) = rustix::net::sockopt::set_socket_linger(&accepted.stream, Some(Duration::ZERO)) {
        tracing::debug!(%error, "a failed connection will look like one that ended");
    }
}
