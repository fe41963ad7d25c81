//! Connections to the pod's loopback: taken where they are made, on the node, and made again where the pod is.
//!
//! containerd and CRI-O forward a port by dialling 127.0.0.1 in the pod's netns on the node. No interface carries loopback to the
//! VM, so a [`Listener`] takes every such dial, whatever its port, and the guest [`connect`]s in the pod's netns there.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use tokio::net::TcpStream;

use crate::error::NetworkError;
use crate::netns::Netns;
use crate::steer::Steering;

/// How long a packet filter of the pod may leave a dial unanswered; loopback without one answers at once.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Takes TCP connections to 127.0.0.0/8 in one netns, on every port, until it is dropped.
///
/// The kernel's socket lookup is told so by a BPF program: no packet is changed, no rule or module is needed, and when this
/// process dies the kernel forgets it. Callers try 127.0.0.1 before ::1, so the former is enough.
#[derive(Debug)]
pub struct Listener {
    socket: tokio::net::TcpListener,
    _steering: Steering,
}

/// A connection that somebody made to the pod's loopback.
#[derive(Debug)]
pub struct Accepted {
    /// Its bytes.
    pub stream: TcpStream,
    /// The port that was dialled.
    pub port: u16,
}

impl Listener {
    /// Begins to listen in the netns pinned there; its loopback must be up, as CRI runtimes leave it.
    pub async fn open(netns: &Path) -> Result<Self, NetworkError> {
        let inside = Netns::open(netns)?;
        let refused = |operation| {
            let subject = netns.display().to_string();
            move |source| NetworkError::Request { operation, subject, source }
        };
        let listen = || {
            let socket = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let socket = inside.run(listen).await.map_err(refused("listen on the loopback of"))?;
        let steering = Steering::attach(&inside, &socket).map_err(refused("steer the local connections of"))?;
        let socket = tokio::net::TcpListener::from_std(socket).map_err(refused("listen on the loopback of"))?;
        Ok(Self { socket, _steering: steering })
    }

    /// Waits for the next connection.
    pub async fn accept(&self) -> io::Result<Accepted> {
        let (stream, _) = self.socket.accept().await?;
        let port = stream.local_addr()?.port();
        Ok(Accepted { stream, port })
    }
}

/// Listens on a port of 127.0.0.1 in the netns pinned there: what a service of this process offers to the pod and to nobody else.
pub async fn listen(netns: &Path, port: u16) -> io::Result<tokio::net::TcpListener> {
    let inside = Netns::open(netns).map_err(io::Error::other)?;
    let listen = move || {
        let socket = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    tokio::net::TcpListener::from_std(inside.run(listen).await?)
}

/// Connects to a port on the loopback of the netns pinned there, as containerd does on a node: 127.0.0.1, then ::1.
pub async fn connect(netns: &Path, port: u16) -> io::Result<TcpStream> {
    let inside = Netns::open(netns).map_err(io::Error::other)?;
    let dial = move |address: IpAddr| std::net::TcpStream::connect_timeout(&SocketAddr::new(address, port), CONNECT_LIMIT);
    let stream = inside.run(move || dial(Ipv4Addr::LOCALHOST.into()).or_else(|first| dial(Ipv6Addr::LOCALHOST.into()).map_err(|_| first)));
    let stream = stream.await?;
    stream.set_nonblocking(true)?;
    TcpStream::from_std(stream)
}
