//! A TCP proxy between node and pod VM that can cut, stall and refuse.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;

/// What the proxy does to connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weather {
    Fair,
    /// Connections stay open and nothing passes.
    BlackHole,
    /// Connections are reset as soon as they come.
    Down,
}

/// Which side of a cut connection gets the reset at once; the other one is merely closed with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Node,
    Guest,
    Both,
}

pub(crate) struct Proxy {
    pub(crate) addr: SocketAddr,
    weather: watch::Sender<Weather>,
    cuts: watch::Sender<(u64, Side)>,
    pub(crate) ports: Arc<Mutex<Vec<u16>>>,
    pub(crate) accepted: Arc<AtomicUsize>,
    _task: JoinSet<()>,
}

impl Proxy {
    pub(crate) async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (weather, cuts) = (watch::Sender::new(Weather::Fair), watch::Sender::new((0, Side::Both)));
        let (ports, accepted) = (Arc::default(), Arc::default());
        let mut task = JoinSet::new();
        task.spawn(serve(listener, target, weather.subscribe(), cuts.subscribe(), Arc::clone(&ports), Arc::clone(&accepted)));
        Self { addr, weather, cuts, ports, accepted, _task: task }
    }

    pub(crate) fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    /// Resets all connections.
    pub(crate) fn cut(&self, side: Side) {
        self.cuts.send_modify(|(count, how)| {
            *count += 1;
            *how = side;
        });
    }

    pub(crate) fn dials(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

async fn serve(
    listener: TcpListener,
    target: SocketAddr,
    weather: watch::Receiver<Weather>,
    cuts: watch::Receiver<(u64, Side)>,
    ports: Arc<Mutex<Vec<u16>>>,
    accepted: Arc<AtomicUsize>,
) {
    let mut pairs = JoinSet::new();
    loop {
        let (node, peer) = listener.accept().await.unwrap();
        ports.lock().await.push(peer.port());
        accepted.fetch_add(1, Ordering::SeqCst);
        let (weather, mut cuts) = (weather.clone(), cuts.clone());
        cuts.mark_unchanged();
        if *weather.borrow() == Weather::Down {
            reset(node);
            continue;
        }
        pairs.spawn(async move {
            let Ok(guest) = TcpStream::connect(target).await else { return reset(node) };
            pass(node, guest, weather, cuts).await;
        });
    }
}

async fn pass(mut node: TcpStream, mut guest: TcpStream, mut weather: watch::Receiver<Weather>, mut cuts: watch::Receiver<(u64, Side)>) {
    let (mut up, mut down) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        let is_open = *weather.borrow_and_update() == Weather::Fair;
        tokio::select! {
            _ = cuts.changed() => {
                let side = cuts.borrow().1;
                if side != Side::Guest { reset(node); }
                if side != Side::Node { reset(guest); }
                return;
            }
            _ = weather.changed() => {}
            read = node.read(&mut up), if is_open => match read {
                Ok(1..) => if guest.write_all(&up[..*read.as_ref().unwrap()]).await.is_err() { return },
                _ => return,
            },
            read = guest.read(&mut down), if is_open => match read {
                Ok(1..) => if node.write_all(&down[..*read.as_ref().unwrap()]).await.is_err() { return },
                _ => return,
            },
        }
    }
}

/// Closes with RST: unsent and unread bytes are gone at once.
fn reset(stream: TcpStream) {
    rustix::net::sockopt::set_socket_linger(&stream, Some(std::time::Duration::ZERO)).unwrap();
    drop(stream);
}

/// Listens where somebody listened before, whose connections may not all be gone.
pub(crate) async fn listen_on(addr: SocketAddr) -> TcpListener {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    loop {
        match socket.bind(addr) {
            Ok(()) => return socket.listen(16).unwrap(),
            Err(_) => tokio::task::yield_now().await,
        }
    }
}
