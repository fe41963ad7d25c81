//! As much of SPDY/3.1 as the kubelet's streams need: it is what the kubelet speaks to containerd, whatever `kubectl` spoke before.
//!
//! Header blocks are compressed with a preset dictionary. This end sends them as stored blocks, which need the dictionary's checksum
//! alone, and skips those that it receives: an answer to a stream says nothing that is of use here. There is no flow control: the
//! library at the other end (`moby/spdystream`) has none either.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const FIN: u8 = 1;
/// Larger than any frame that the other end sends.
const MAX_FRAME: usize = 1 << 24;
/// Parts of a stream that wait for their reader.
const QUEUE: usize = 64;

/// What a stream brought.
pub(super) enum Part {
    /// The other end has taken it on; before that it drops whatever it gets.
    Reply,
    /// Bytes.
    Data(Vec<u8>),
    /// Nothing more will come.
    End,
    /// The other end gave the stream up.
    Reset,
}

type Readers = Arc<Mutex<HashMap<u32, mpsc::Sender<Part>>>>;

/// One connection with its streams.
pub(super) struct Connection {
    writer: Arc<tokio::sync::Mutex<OwnedWriteHalf>>,
    readers: Readers,
    next: u32,
    is_first_header: bool,
    reading: JoinHandle<()>,
}

/// This end of one stream.
pub(super) struct Stream {
    id: u32,
    writer: Arc<tokio::sync::Mutex<OwnedWriteHalf>>,
    parts: mpsc::Receiver<Part>,
    is_ended: bool,
    was_reset: bool,
}

impl Connection {
    /// Dials `url` in a network namespace and upgrades to SPDY with this protocol of streams.
    pub(super) async fn open(netns: &Path, url: &str, protocols: &[&str]) -> Result<Self> {
        let (host, path) = url.strip_prefix("http://").and_then(|rest| rest.split_once('/')).with_context(|| format!("URL {url}"))?;
        let address = host.parse().with_context(|| format!("address in {url}"))?;
        let netns = std::fs::File::open(netns)?;
        let dialled = std::thread::spawn(move || -> Result<std::net::TcpStream> {
            setns(netns, CloneFlags::CLONE_NEWNET)?;
            Ok(std::net::TcpStream::connect_timeout(&address, Duration::from_secs(10))?)
        });
        let socket = dialled.join().map_err(|_| anyhow::anyhow!("a dialling thread panicked"))??;
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        let (read, mut write) = TcpStream::from_std(socket)?.into_split();
        let offered: String = protocols.iter().map(|protocol| format!("X-Stream-Protocol-Version: {protocol}\r\n")).collect();
        let head = format!(
            "POST /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n{offered}\r\n"
        );
        write.write_all(head.as_bytes()).await?;
        let mut read = BufReader::new(read);
        let mut answer = String::new();
        while !answer.ends_with("\r\n\r\n") {
            ensure!(read.read_line(&mut answer).await? > 0 && answer.len() < 65536, "the stream server hung up: {answer}");
        }
        if !answer.starts_with("HTTP/1.1 101") {
            let mut body = Vec::new();
            let _ = tokio::time::timeout(Duration::from_secs(1), read.take(4096).read_to_end(&mut body)).await;
            bail!("{} {}", answer.lines().next().unwrap_or_default(), String::from_utf8_lossy(&body).trim());
        }
        let readers = Readers::default();
        let writer = Arc::new(tokio::sync::Mutex::new(write));
        let reading = tokio::spawn(read_frames(read, Arc::clone(&readers), Arc::clone(&writer)));
        Ok(Self { writer, readers, next: 1, is_first_header: true, reading })
    }

    /// Opens a stream with these headers.
    pub(super) async fn stream(&mut self, headers: &[(&str, &str)]) -> Result<Stream> {
        let id = self.next;
        self.next += 2;
        let (sender, parts) = mpsc::channel(QUEUE);
        lock(&self.readers).insert(id, sender);
        let mut frame = Vec::new();
        frame.extend(id.to_be_bytes());
        frame.extend([0, 0, 0, 0, 0, 0]); // no associated stream, highest priority, no slot
        frame.extend(header_block(headers, std::mem::take(&mut self.is_first_header))?);
        self.writer.lock().await.write_all(&control(SYN_STREAM, 0, &frame)?).await?;
        let mut stream = Stream { id, writer: Arc::clone(&self.writer), parts, is_ended: false, was_reset: false };
        let reply = tokio::time::timeout(Duration::from_secs(30), stream.parts.recv()).await.context("a stream is not answered")?;
        ensure!(matches!(reply, Some(Part::Reply)), "a stream is refused");
        Ok(stream)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

impl Stream {
    /// Sends bytes.
    pub(super) async fn write(&self, bytes: &[u8]) -> Result<()> {
        for piece in bytes.chunks(1 << 16) {
            self.send(piece, 0).await?;
        }
        Ok(())
    }

    /// Says that no more bytes will come.
    pub(super) async fn finish(&self) -> Result<()> {
        self.send(&[], FIN).await
    }

    /// The next bytes; `None` at the end.
    pub(super) async fn read(&mut self) -> Option<Vec<u8>> {
        if self.is_ended {
            return None;
        }
        loop {
            match self.parts.recv().await {
                Some(Part::Data(bytes)) => return Some(bytes),
                Some(Part::Reply) => {}
                Some(part @ (Part::End | Part::Reset)) => {
                    self.was_reset = matches!(part, Part::Reset);
                    self.is_ended = true;
                    return None;
                }
                None => {
                    self.is_ended = true;
                    return None;
                }
            }
        }
    }

    /// Whether its end was a reset.
    pub(super) fn was_reset(&self) -> bool {
        self.was_reset
    }

    /// Everything up to the end.
    pub(super) async fn read_to_end(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(bytes) = self.read().await {
            all.extend(bytes);
        }
        all
    }

    async fn send(&self, bytes: &[u8], flags: u8) -> Result<()> {
        let mut frame = self.id.to_be_bytes().to_vec();
        frame.push(flags);
        frame.extend(&u32::try_from(bytes.len())?.to_be_bytes()[1..]);
        frame.extend(bytes);
        Ok(self.writer.lock().await.write_all(&frame).await?)
    }
}

async fn read_frames(mut read: BufReader<OwnedReadHalf>, readers: Readers, writer: Arc<tokio::sync::Mutex<OwnedWriteHalf>>) {
    // The connection's end is the end of all its streams: dropping their senders says so.
    let _ = async {
        loop {
            let mut head = [0; 8];
            read.read_exact(&mut head).await?;
            let first = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
            let (flags, length) = (head[4], u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize);
            ensure!(length <= MAX_FRAME, "a frame of {length} bytes");
            let mut body = vec![0; length];
            read.read_exact(&mut body).await?;
            if first & 1 << 31 == 0 {
                let sender = lock(&readers).get(&first).cloned();
                if let Some(sender) = sender {
                    if !body.is_empty() {
                        let _ = sender.send(Part::Data(body)).await;
                    }
                    if flags & FIN != 0 {
                        let _ = sender.send(Part::End).await;
                    }
                }
                continue;
            }
            let kind = (first & 0xffff) as u16;
            match kind {
                PING => writer.lock().await.write_all(&control(PING, 0, &body)?).await?,
                RST_STREAM if length >= 4 => {
                    let id = u32::from_be_bytes([body[0], body[1], body[2], body[3]]);
                    let sender = lock(&readers).remove(&id);
                    if let Some(sender) = sender {
                        let _ = sender.send(Part::Reset).await;
                    }
                }
                GOAWAY => {}
                SYN_REPLY if length >= 4 => {
                    let id = u32::from_be_bytes([body[0], body[1], body[2], body[3]]);
                    let sender = lock(&readers).get(&id).cloned();
                    if let Some(sender) = sender {
                        let _ = sender.send(Part::Reply).await;
                        if flags & FIN != 0 {
                            let _ = sender.send(Part::End).await;
                        }
                    }
                }
                _ if flags & FIN != 0 && length >= 4 => {
                    let id = u32::from_be_bytes([body[0], body[1], body[2], body[3]]);
                    lock(&readers).remove(&id);
                }
                _ => {}
            }
        }
        #[allow(unreachable_code, reason = "gives the block its type")]
        Ok::<(), anyhow::Error>(())
    }
    .await;
    lock(&readers).clear();
}

fn control(kind: u16, flags: u8, body: &[u8]) -> Result<Vec<u8>> {
    let mut frame = vec![0x80, 3];
    frame.extend(kind.to_be_bytes());
    frame.push(flags);
    frame.extend(&u32::try_from(body.len())?.to_be_bytes()[1..]);
    frame.extend(body);
    Ok(frame)
}

fn header_block(headers: &[(&str, &str)], is_first: bool) -> Result<Vec<u8>> {
    let mut plain = Vec::new();
    plain.extend(u32::try_from(headers.len())?.to_be_bytes());
    for (name, value) in headers {
        for word in [name, value] {
            plain.extend(u32::try_from(word.len())?.to_be_bytes());
            plain.extend(word.as_bytes());
        }
    }
    // zlib with a preset dictionary, whose checksum stands in the first block of a connection; then one stored block.
    let mut block = if is_first { vec![0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2] } else { Vec::new() };
    let length = u16::try_from(plain.len())?;
    block.push(0);
    block.extend(length.to_le_bytes());
    block.extend((!length).to_le_bytes());
    block.extend(plain);
    // An empty stored block makes the other end's decoder give out what it holds.
    block.extend([0, 0, 0, 0xff, 0xff]);
    Ok(block)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
