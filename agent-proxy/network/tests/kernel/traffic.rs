//! Sockets inside machines: an echo server, and clients that say whether it was reached.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::machine::Machine;

/// Long enough for a loaded machine; only failing tests wait for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is dropped never comes, and there is nothing to wait for that says so: three retransmissions of a SYN fit.
const SILENCE: Duration = Duration::from_millis(1500);

/// Echoes one TCP connection in `machine`; its result is where the client came from.
pub(crate) fn echo_once(machine: &Machine, at: impl Into<IpAddr>) -> (SocketAddr, JoinHandle<SocketAddr>) {
    let at = at.into();
    let listener = machine.inside(|| TcpListener::bind((at, 0)).unwrap());
    let address = listener.local_addr().unwrap();
    let serve = move || {
        let (stream, peer) = listener.accept().unwrap();
        std::io::copy(&mut &stream, &mut &stream).unwrap();
        peer
    };
    (address, thread::spawn(serve))
}

/// Sends `size` bytes to an echo server and takes them back, at the same time.
pub(crate) fn echo(machine: &Machine, server: SocketAddr, size: usize) {
    let stream = machine.inside(|| TcpStream::connect_timeout(&server, PATIENCE)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let sent: Vec<u8> = (0..size).map(|at| u8::try_from(at % 251).unwrap()).collect();
    thread::scope(|scope| {
        scope.spawn(|| {
            (&stream).write_all(&sent).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        });
        let mut received = Vec::new();
        (&stream).read_to_end(&mut received).unwrap();
        assert!(received == sent, "{} of {size} bytes came back", received.len());
    });
}

/// Whether a TCP handshake with `server` completes; the listener need not accept.
pub(crate) fn reaches(machine: &Machine, server: SocketAddr) -> bool {
    machine.inside(|| TcpStream::connect_timeout(&server, SILENCE)).is_ok()
}

pub(crate) fn listen<A: Into<IpAddr>>(machine: &Machine, (at, port): (A, u16)) -> (TcpListener, SocketAddr) {
    let at = at.into();
    let listener = machine.inside(|| TcpListener::bind((at, port)).unwrap());
    let address = listener.local_addr().unwrap();
    (listener, address)
}

pub(crate) fn udp(machine: &Machine, at: Ipv4Addr) -> (UdpSocket, SocketAddr) {
    let socket = machine.inside(|| UdpSocket::bind((at, 0)).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

/// Takes the next datagram; its source and its size.
pub(crate) fn receive(socket: &UdpSocket) -> (SocketAddr, usize) {
    let mut buffer = vec![0; 65536];
    let (size, source) = socket.recv_from(&mut buffer).unwrap();
    (source, size)
}

/// Whether `datagram`, sent by `from`, is what `to` gets. Sends a marker from `marker` behind it, which must arrive,
/// so that there is no waiting for what never comes.
pub(crate) fn passes(send: impl FnOnce(), send_marker: impl FnOnce(), to: &UdpSocket) -> bool {
    send();
    send_marker();
    let mut buffer = [0; 2048];
    let size = to.recv(&mut buffer).unwrap();
    let passed = &buffer[..size] != b"marker";
    if passed {
        let size = to.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..size], b"marker");
    }
    passed
}
