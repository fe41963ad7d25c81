//! One process of a container: its streams, its signals, its end.
//!
//! A task per process owns the runner and publishes the [`Phase`]; everything else reads that. Output is read from the pipe or
//! terminal only when a client asks for it, so a slow client slows the process down and nothing is buffered here. The end of a
//! stream is told once the process has ended and the pipe is empty, even if a left-over child still holds the other end.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::termios::Winsize;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Mutex, mpsc, oneshot, watch};

use crate::control::{Command, Report};
use crate::launch::{Runner, watched};

/// Where a process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Built; waits for the start.
    Created,
    /// Started.
    Running,
    /// Ended, with its exit code or 128 + signal.
    Exited(i32),
}

/// Which stream to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Standard output, or everything a terminal shows.
    Stdout,
    /// Standard error; empty with a terminal.
    Stderr,
}

/// A process was asked for something after its end.
#[derive(Debug, thiserror::Error)]
#[error("the process has ended")]
pub(crate) struct Ended;

/// One process of a container.
#[derive(Debug)]
pub(crate) struct Process {
    pid: i32,
    terminal: Option<Arc<AsyncFd<OwnedFd>>>,
    stdin: Mutex<Option<Arc<AsyncFd<OwnedFd>>>>,
    stdout: Output,
    stderr: Output,
    asks: mpsc::Sender<Ask>,
    phase: watch::Receiver<Phase>,
    is_waited: AtomicBool,
}

#[derive(Debug)]
struct Output {
    /// Held while reading, so that two readers cannot swap pieces.
    source: Mutex<Option<Arc<AsyncFd<OwnedFd>>>>,
}

#[derive(Debug)]
enum Ask {
    Start(oneshot::Sender<Result<(), String>>),
    Signal(i32),
}

/// Pending asks per process; more senders wait.
const MAX_ASKS: usize = 16;
/// What a reader gets at most, below ttrpc's limit of 4 MiB per message.
const MAX_READ_BYTES: usize = 1 << 20;
/// What ends the input of a program that reads a terminal line by line.
const END_OF_TRANSMISSION: &[u8] = &[4];

impl Process {
    /// Has a new runner build a process. `before_exit` runs once, before the end is published.
    pub(crate) async fn build(
        runner: &[OsString],
        command: Command,
        before_exit: impl FnOnce() + Send + 'static,
    ) -> Result<Arc<Self>, String> {
        let failed = |error: io::Error| format!("runner: {error}");
        let (terminal, phase) = match &command {
            Command::Create { terminal, .. } => (*terminal, Phase::Created),
            Command::Exec { terminal, .. } => (*terminal, Phase::Running),
            other => return Err(format!("{other:?} builds nothing")),
        };
        let (ours, theirs) = if terminal { (None, Vec::new()) } else { pipes().map(|(o, t)| (Some(o), t)).map_err(failed)? };
        let runner = Runner::spawn(runner).map_err(failed)?;
        runner.send(&command, &theirs).await.map_err(failed)?;
        drop(theirs);
        let (pid, mut attached) = match runner.receive().await.map_err(failed)? {
            Some((Report::Created { pid }, attached)) => (pid, attached),
            Some((Report::Failed { message }, _)) => {
                runner.wait().await;
                return Err(message);
            }
            other => {
                runner.wait().await;
                return Err(match other {
                    Some(report) => format!("runner: unexpected {report:?}"),
                    None => "the runner died while building the process".to_owned(),
                });
            }
        };
        let streams = match (ours, attached.pop()) {
            (Some(ours), _) => ours,
            (None, Some(terminal)) => Streams::of_terminal(terminal).map_err(failed)?,
            (None, None) => return Err("runner: no terminal came".to_owned()),
        };
        let (asks, receiver) = mpsc::channel(MAX_ASKS);
        let (publisher, phase) = watch::channel(phase);
        tokio::spawn(own(runner, receiver, publisher, before_exit));
        Ok(Arc::new(Self {
            pid,
            terminal: streams.terminal,
            stdin: Mutex::new(Some(streams.stdin)),
            stdout: Output { source: Mutex::new(Some(streams.stdout)) },
            stderr: Output { source: Mutex::new(streams.stderr) },
            asks,
            phase,
            is_waited: AtomicBool::new(false),
        }))
    }

    /// In the agent's pid namespace.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Where it is now.
    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Starts a created process.
    pub(crate) async fn start(&self) -> Result<(), String> {
        let (answer, answered) = oneshot::channel();
        self.asks.send(Ask::Start(answer)).await.map_err(|_| Ended.to_string())?;
        answered.await.map_err(|_| Ended.to_string())?
    }

    /// Sends a signal.
    pub(crate) async fn signal(&self, signal: i32) -> Result<(), Ended> {
        if matches!(self.phase(), Phase::Exited(_)) {
            return Err(Ended);
        }
        self.asks.send(Ask::Signal(signal)).await.map_err(|_| Ended)
    }

    /// Waits for the end; any number of waits may run at once.
    pub(crate) async fn wait(&self) -> i32 {
        let mut phase = self.phase.clone();
        loop {
            if let Phase::Exited(status) = *phase.borrow_and_update() {
                return status;
            }
            if phase.changed().await.is_err() {
                return LOST_STATUS;
            }
        }
    }

    /// Records that a client knows the status.
    pub(crate) fn mark_waited(&self) {
        self.is_waited.store(true, Ordering::Relaxed);
    }

    /// Whether a client knows the status and has read both streams to their ends.
    pub(crate) async fn is_finished(&self) -> bool {
        self.is_waited.load(Ordering::Relaxed) && self.stdout.source.lock().await.is_none() && self.stderr.source.lock().await.is_none()
    }

    /// Waits for output and gives at most `limit` bytes; empty means the end.
    pub(crate) async fn read(&self, stream: Stream, limit: usize) -> io::Result<Vec<u8>> {
        let output = match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        };
        let mut slot = output.source.lock().await;
        let Some(source) = slot.clone() else { return Ok(Vec::new()) };
        let data = self.read_source(&source, limit.clamp(1, MAX_READ_BYTES)).await?;
        if data.is_empty() {
            *slot = None;
        }
        Ok(data)
    }

    /// Writes all of it to standard input.
    pub(crate) async fn write(&self, data: &[u8]) -> io::Result<()> {
        let slot = self.stdin.lock().await;
        let Some(target) = slot.as_ref() else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let mut phase = self.phase.clone();
        let mut rest = data;
        while !rest.is_empty() {
            if matches!(*phase.borrow_and_update(), Phase::Exited(_)) {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            tokio::select! {
                guard = target.writable() => {
                    if let Ok(written) = guard?.try_io(|target| Ok(rustix::io::write(target, rest)?)) {
                        rest = rest.get(written?..).unwrap_or_default();
                    }
                }
                _ = phase.changed() => {}
            }
        }
        Ok(())
    }

    /// Ends standard input. A terminal stays open and is told so in its own way.
    pub(crate) async fn close_stdin(&self) -> io::Result<()> {
        if self.terminal.is_some() {
            return self.write(END_OF_TRANSMISSION).await;
        }
        *self.stdin.lock().await = None;
        Ok(())
    }

    /// Sets the size of the terminal; nothing happens without one.
    pub(crate) fn resize(&self, rows: u16, columns: u16) -> io::Result<()> {
        if let Some(terminal) = &self.terminal {
            let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
            rustix::termios::tcsetwinsize(terminal.get_ref(), size)?;
        }
        Ok(())
    }

    async fn read_source(&self, source: &AsyncFd<OwnedFd>, limit: usize) -> io::Result<Vec<u8>> {
        let mut phase = self.phase.clone();
        loop {
            // The order matters: all that the process wrote is in the pipe before its end is published.
            if matches!(*phase.borrow_and_update(), Phase::Exited(_)) {
                return match read_now(source.get_ref(), limit) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Vec::new()),
                    result => result,
                };
            }
            tokio::select! {
                guard = source.readable() => {
                    if let Ok(result) = guard?.try_io(|source| read_now(source.get_ref(), limit)) {
                        return result;
                    }
                }
                changed = phase.changed() => {
                    if changed.is_err() {
                        return read_now(source.get_ref(), limit).or(Ok(Vec::new()));
                    }
                }
            }
        }
    }
}

/// Status of a process whose runner died without a report.
const LOST_STATUS: i32 = 255;

/// The ends of a process's streams that the agent keeps.
struct Streams {
    stdin: Arc<AsyncFd<OwnedFd>>,
    stdout: Arc<AsyncFd<OwnedFd>>,
    stderr: Option<Arc<AsyncFd<OwnedFd>>>,
    terminal: Option<Arc<AsyncFd<OwnedFd>>>,
}

impl Streams {
    fn of_terminal(terminal: OwnedFd) -> io::Result<Self> {
        let terminal = keep(terminal)?;
        Ok(Self { stdin: terminal.clone(), stdout: terminal.clone(), stderr: None, terminal: Some(terminal) })
    }
}

/// Owns the runner until the process has ended.
async fn own(runner: Runner, mut asks: mpsc::Receiver<Ask>, phase: watch::Sender<Phase>, before_exit: impl FnOnce()) {
    let mut starting: Option<oneshot::Sender<Result<(), String>>> = None;
    let status = loop {
        tokio::select! {
            report = runner.receive() => match report {
                Ok(Some((Report::Started, _))) => {
                    phase.send_replace(Phase::Running);
                    if let Some(answer) = starting.take() {
                        let _ = answer.send(Ok(()));
                    }
                }
                Ok(Some((Report::Failed { message }, _))) => {
                    if let Some(answer) = starting.take() {
                        let _ = answer.send(Err(message));
                    }
                }
                Ok(Some((Report::Exited { status }, _))) => break status,
                Ok(Some((report @ Report::Created { .. }, _))) => tracing::warn!(?report, "unexpected report of a runner"),
                Ok(None) => break LOST_STATUS,
                Err(error) => {
                    tracing::warn!(%error, "a runner cannot be understood");
                    break LOST_STATUS;
                }
            },
            ask = asks.recv() => {
                let command = match ask {
                    Some(Ask::Start(answer)) => {
                        starting = Some(answer);
                        Command::Start
                    }
                    Some(Ask::Signal(signal)) => Command::Signal { signal },
                    // Nobody can ask any more: the container was dropped. The closed socket has the process killed.
                    None => break LOST_STATUS,
                };
                if let Err(error) = runner.send(&command, &[]).await {
                    tracing::warn!(%error, ?command, "a runner does not listen");
                }
            }
        }
    };
    if let Some(answer) = starting.take() {
        let _ = answer.send(Err(Ended.to_string()));
    }
    before_exit();
    phase.send_replace(Phase::Exited(status));
    runner.wait().await;
}

/// Pipes for a process without terminal: our ends, and its standard input, output and error.
fn pipes() -> io::Result<(Streams, Vec<OwnedFd>)> {
    let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC);
    let (stdin, our_stdin) = pipe()?;
    let (our_stdout, stdout) = pipe()?;
    let (our_stderr, stderr) = pipe()?;
    let ours = Streams { stdin: keep(our_stdin)?, stdout: keep(our_stdout)?, stderr: Some(keep(our_stderr)?), terminal: None };
    Ok((ours, vec![stdin, stdout, stderr]))
}

fn keep(descriptor: OwnedFd) -> io::Result<Arc<AsyncFd<OwnedFd>>> {
    Ok(Arc::new(watched(descriptor)?))
}

/// Reads what is there. A terminal without any process left answers EIO; that is its end.
fn read_now(source: &OwnedFd, limit: usize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; limit];
    loop {
        match rustix::io::read(source.as_fd(), &mut buffer[..]) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(Errno::INTR) => {}
            Err(Errno::IO) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
    }
}
