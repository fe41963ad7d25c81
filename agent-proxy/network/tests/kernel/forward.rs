//! Dials of the pod's loopback: taken on every port, and made again elsewhere.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use peerpods_network::forward::{self, Listener};
use tokio::io::AsyncWriteExt as _;

use crate::machine::Machine;
use crate::world::World;

const LIMIT: Duration = Duration::from_secs(5);

fn dial(machine: &Machine, address: &str) -> std::io::Result<TcpStream> {
    let address: SocketAddr = address.parse().unwrap();
    machine.inside(|| TcpStream::connect_timeout(&address, LIMIT))
}

fn with_loopback() -> Machine {
    let machine = Machine::new("pod");
    machine.ip("link set lo up");
    machine
}

/// A child that another test is starting has a dropped listener open until it runs its program.
fn until_let_go(is_so: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < LIMIT, "the listener stays");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_port_of_the_loopback_is_taken_and_told() {
    let pod = with_loopback();
    let listener = Listener::open(&pod.path()).await.unwrap();
    for port in [1, 80, 8080, 65535] {
        for host in ["127.0.0.1", "127.9.9.9"] {
            let mut dialled = dial(&pod, &format!("{host}:{port}")).unwrap();
            let mut accepted = listener.accept().await.unwrap();
            assert_eq!(accepted.port, port);
            accepted.stream.write_all(b"here").await.unwrap();
            let mut read = [0; 4];
            dialled.read_exact(&mut read).unwrap();
            assert_eq!(&read, b"here");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_addresses_are_left_alone() {
    let world = World::new();
    let pod = world.pod(5);
    pod.netns.ip("link set lo up");
    let _listener = Listener::open(&pod.netns.path()).await.unwrap();
    let inside = dial(&pod.netns, "10.88.0.5:80").unwrap_err();
    let outside = dial(&world.node, "10.88.0.5:80").unwrap_err();
    assert_eq!([inside.kind(), outside.kind()], [ErrorKind::ConnectionRefused; 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_listener_leaves_nothing_behind() {
    let pod = with_loopback();
    drop(Listener::open(&pod.path()).await.unwrap());
    until_let_go(|| dial(&pod, "127.0.0.1:80").is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused));
    let own = pod.inside(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 80)).unwrap());
    let _dialled = dial(&pod, "127.0.0.1:80").unwrap();
    own.accept().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_listeners_follow_each_other() {
    let pod = with_loopback();
    let first = Listener::open(&pod.path()).await.unwrap();
    let second = Listener::open(&pod.path()).await.unwrap();
    drop(first);
    let begin = Instant::now();
    let accepted = loop {
        // The first one may take a dial with it: see `until_let_go`.
        let _dialled = dial(&pod, "127.0.0.1:80");
        match tokio::time::timeout(Duration::from_millis(100), second.accept()).await {
            Ok(accepted) => break accepted.unwrap(),
            Err(_) => assert!(begin.elapsed() < LIMIT, "the second listener takes nothing"),
        }
    };
    assert_eq!(accepted.port, 80);
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_tries_both_families_and_tells_a_refusal() {
    let pod = with_loopback();
    for address in ["127.0.0.1:80", "[::1]:81"] {
        let address: SocketAddr = address.parse().unwrap();
        let server = pod.inside(|| TcpListener::bind(address).unwrap());
        let _connected = forward::connect(&pod.path(), address.port()).await.unwrap();
        let (mut accepted, _) = server.accept().unwrap();
        accepted.write_all(b"there").unwrap();
    }
    assert_eq!(forward::connect(&pod.path(), 82).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
}
