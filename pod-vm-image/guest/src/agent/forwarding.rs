//! Ports of the pod, reached from the node, if the agent policy's rule `PortForwardRequest` allows it.

use std::io;
use std::path::Path;

use peerpods_agent::AgentPolicy;
use peerpods_agent::policy::PORT_FORWARD;
use peerpods_network::POD_NETNS;
use peerpods_tunnel::AgentStream;
use peerpods_tunnel::forward::{self, ForwardRefusal};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::pod::BoundPod;
use crate::console;

/// It answers the workload with its secrets and must answer nobody on the node.
const WORKLOAD_API: u16 = super::workload_api::PORT;

/// Carries every stream to the port that it asks for, each in a task of this function's.
pub(super) async fn serve(mut streams: mpsc::Receiver<AgentStream>, bound: BoundPod) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            stream = streams.recv() => match (stream, bound.get()) {
                (Some(stream), Some(pod)) => {
                    let policy = pod.policy.clone();
                    connections.spawn(forward::serve(stream, move |port| connect(policy, port)));
                }
                // The channel admits streams of a bound machine only.
                (Some(_), None) => console::event("stream-before-bind"),
                (None, _) => return,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connect(policy: AgentPolicy, port: u16) -> Result<TcpStream, ForwardRefusal> {
    permit(&policy, port).await?;
    let connected = peerpods_network::forward::connect(Path::new(POD_NETNS), port).await;
    connected.map_err(|error| match error.kind() {
        io::ErrorKind::ConnectionRefused => ForwardRefusal::NotListening,
        _ => ForwardRefusal::Failed,
    })
}

/// Whatever the policy says, nobody on the node gets to the workload API.
async fn permit(policy: &AgentPolicy, port: u16) -> Result<(), ForwardRefusal> {
    if port == WORKLOAD_API {
        return Err(ForwardRefusal::Forbidden);
    }
    policy.ask(PORT_FORWARD, serde_json::json!({ "port": port })).await.map_err(|denied| {
        tracing::info!(port, error = &denied as &dyn std::error::Error, "a port is not forwarded");
        ForwardRefusal::Denied
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn policy_decides_about_all_ports_but_the_guests_own() {
        let own = AgentPolicy::parse("package agent_policy\nPortForwardRequest if input.port == 8080").expect("a policy");
        let silent = AgentPolicy::parse("package agent_policy\ndefault ExecProcessRequest := true").expect("a policy");
        let built_in = AgentPolicy::built_in_default().expect("a policy");
        let strict = AgentPolicy::strict_default().expect("a policy");
        for (policy, port, expected) in [
            (&own, 8080, Ok(())),
            (&own, 8081, Err(ForwardRefusal::Denied)),
            (&silent, 8080, Err(ForwardRefusal::Denied)),
            (&strict, 8080, Err(ForwardRefusal::Denied)),
            (&built_in, 8080, Ok(())),
            (&built_in, WORKLOAD_API, Err(ForwardRefusal::Forbidden)),
        ] {
            assert_eq!(permit(policy, port).await, expected, "{port}");
        }
        assert!(ForwardRefusal::Denied.to_string().contains(PORT_FORWARD));
    }
}
