//! What stands between a node's containerd and the registry: it writes down what is fetched, and can refuse blobs.
//!
//! Pod VMs ask the registry itself, so what is refused here can be had by them alone.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::Netns;

/// A running gate.
pub struct Gate {
    address: SocketAddr,
    netns: std::fs::File,
    ledger: Arc<Ledger>,
}

#[derive(Default)]
struct Ledger {
    is_closed: AtomicBool,
    refused: Mutex<BTreeSet<String>>,
    fetched: Mutex<BTreeSet<String>>,
}

impl Gate {
    /// Opens a gate on a port of its own in a node's namespace.
    pub(super) fn open(node: &Netns, registry: u16) -> Result<Self> {
        let listener = node.run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))??;
        let address = listener.local_addr()?;
        let ledger = Arc::new(Ledger::default());
        let (shared, netns) = (Arc::clone(&ledger), std::fs::File::open(node.path())?);
        node.spawn(move || {
            for client in listener.incoming().flatten() {
                if shared.is_closed.load(Ordering::Acquire) {
                    return;
                }
                let ledger = Arc::clone(&shared);
                // Threads stay in the namespace that they were made in.
                std::thread::spawn(move || {
                    let _ = pass(&client, SocketAddr::from((Ipv4Addr::LOCALHOST, registry)), &ledger);
                });
            }
        })?;
        Ok(Self { address, netns, ledger })
    }

    /// Where containerd asks.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on nobody gets this blob here.
    pub fn refuse(&self, digest: &str) {
        lock(&self.ledger.refused).insert(digest.to_owned());
    }

    /// Paths that were answered.
    pub fn fetched(&self) -> BTreeSet<String> {
        lock(&self.ledger.fetched).clone()
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.ledger.is_closed.store(true, Ordering::Release);
        // One more connection lets it see that it is closed.
        let (address, netns) = (self.address, self.netns.try_clone());
        let _ = std::thread::spawn(move || -> Result<()> {
            nix::sched::setns(netns?, nix::sched::CloneFlags::CLONE_NEWNET)?;
            TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
            Ok(())
        })
        .join();
    }
}

/// Passes one request on; each has a connection of its own.
fn pass(client: &TcpStream, registry: SocketAddr, ledger: &Ledger) -> Result<()> {
    const LIMIT: Duration = Duration::from_secs(30);
    client.set_read_timeout(Some(LIMIT))?;
    let mut reader = BufReader::new(client.take(65536));
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        ensure!(reader.read_line(&mut head)? > 0, "the client hung up");
    }
    // containerd says by a query which registry it means.
    let target = head.split(' ').nth(1).context("no path")?;
    let path = target.split('?').next().unwrap_or_default().to_owned();
    let digest = path.rsplit('/').next().unwrap_or_default();
    if lock(&ledger.refused).contains(digest) {
        (&*client).write_all(b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")?;
        return Ok(());
    }
    let mut server = TcpStream::connect_timeout(&registry, LIMIT)?;
    server.set_read_timeout(Some(LIMIT))?;
    let kept = head.trim_end().lines().filter(|line| !line.to_ascii_lowercase().starts_with("connection:"));
    let request: String = kept.map(|line| format!("{line}\r\n")).collect();
    server.write_all(format!("{request}Connection: close\r\n\r\n").as_bytes())?;
    std::io::copy(&mut server, &mut &*client)?;
    lock(&ledger.fetched).insert(path);
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
