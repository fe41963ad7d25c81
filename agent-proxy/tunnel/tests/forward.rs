//! Forwarded connections over loopback: bytes, ends and refusals of both sides.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use std::time::Duration;

use peerpods_tunnel::ResumeOptions;
use peerpods_tunnel::credential::NodeKey;
use peerpods_tunnel::forward::{self, ForwardError, ForwardRefusal};
use peerpods_tunnel::node::{AgentDialer, DialError};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use world::{PodVm, World};

async fn bound(world: &World) -> (PodVm, AgentDialer) {
    let vm = PodVm::boot(&world.ca).await;
    let bound = world.bind(&vm).await.unwrap();
    let dialer = AgentDialer::new(vm.addr, world.key.clone(), bound.pin, ResumeOptions::default());
    (vm, dialer)
}

/// Answers every stream of the VM: port 7 is `server`, others are refused by number.
fn serve(vm: PodVm, server: std::net::SocketAddr) {
    tokio::spawn(async move {
        // The whole of it: without its other fields it serves nobody.
        let mut vm = vm;
        while let Some(stream) = vm.forwards.recv().await {
            tokio::spawn(forward::serve(stream, move |port| async move {
                match port {
                    7 => TcpStream::connect(server).await.map_err(|_| ForwardRefusal::Failed),
                    8 => Err(ForwardRefusal::Forbidden),
                    _ => Err(ForwardRefusal::NotListening),
                }
            }));
        }
    });
}

#[tokio::test]
async fn bytes_and_ends_pass_in_both_directions() {
    let world = World::new();
    let (vm, dialer) = bound(&world).await;
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    serve(vm, server.local_addr().unwrap());
    let mut near = dialer.forward(7).await.unwrap();
    let (mut far, _) = server.accept().await.unwrap();
    near.write_all(b"question").await.unwrap();
    near.shutdown().await.unwrap();
    let mut read = Vec::new();
    far.read_to_end(&mut read).await.unwrap();
    assert_eq!(read, b"question");
    // The other half is still open.
    far.write_all(b"answer").await.unwrap();
    drop(far);
    let mut read = Vec::new();
    near.read_to_end(&mut read).await.unwrap();
    assert_eq!(read, b"answer");
}

#[tokio::test]
async fn refusals_arrive_as_they_were_said() {
    let world = World::new();
    let (vm, dialer) = bound(&world).await;
    serve(vm, "127.0.0.1:9".parse().unwrap());
    for (port, refusal) in [(8, ForwardRefusal::Forbidden), (9, ForwardRefusal::NotListening)] {
        let error = dialer.forward(port).await.unwrap_err();
        assert!(matches!(error, ForwardError::Refused(said) if said == refusal), "{port}: {error}");
    }
}

#[tokio::test]
async fn key_that_may_not_drive_the_agent_forwards_nothing() {
    let world = World::new();
    let vm = PodVm::boot(&world.ca).await;
    let bound = world.bind(&vm).await.unwrap();
    let stranger = AgentDialer::new(vm.addr, NodeKey::generate().unwrap(), bound.pin, ResumeOptions::default());
    let error = stranger.forward(7).await.unwrap_err();
    assert!(matches!(error, ForwardError::Dial(DialError::Refused(_))), "{error}");
}

#[tokio::test]
async fn bytes_of_another_protocol_are_refused() {
    let world = World::new();
    let (mut vm, dialer) = bound(&world).await;
    // A stream for the agent is none for a port: its first bytes are another protocol's.
    let mut stream = dialer.connect().await.unwrap();
    let guest = vm.streams.recv().await.unwrap();
    stream.write_all(&[9; 16]).await.unwrap();
    let served = tokio::time::timeout(Duration::from_secs(5), forward::serve(guest, |_| async { Err(ForwardRefusal::Failed) }));
    served.await.unwrap().unwrap();
    let mut answer = [0; 2];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, [1, 19], "another version is refused by its number");
}
