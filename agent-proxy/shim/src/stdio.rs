//! The standard streams of a process: FIFOs of containerd on one side, reads and writes of the agent on the other.
//!
//! Of an output's FIFO the shim holds both ends. The reading end is never read: it keeps what is in the FIFO from being lost when
//! containerd goes away, also after the process has ended, until the process is deleted. Of the input's FIFO it holds both ends too, the
//! writing one until CloseIO, so that a client that comes and goes is no end of input.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use peerpods_protos::agent::{CloseStdinRequest, ReadStreamRequest, WriteStreamRequest};
use peerpods_protos::agent_ttrpc::AgentServiceClient;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use ttrpc::context::{Context, with_duration};

use crate::failure::Failure;

/// Where containerd put the streams; empty means that there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stdio {
    /// One stream both ways.
    pub terminal: bool,
    /// A FIFO.
    pub stdin: String,
    /// A FIFO, or `file://` and a path.
    pub stdout: String,
    /// As `stdout`; empty with a terminal.
    pub stderr: String,
}

/// Whose streams.
#[derive(Debug, Clone)]
pub struct Address {
    /// The container.
    pub container_id: String,
    /// Empty for the container's first process.
    pub exec_id: String,
}

/// One of the two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Opened streams of a process that is not started yet.
#[derive(Debug)]
pub struct Opened {
    stdin: Option<Input>,
    stdout: Output,
    stderr: Output,
    terminal: bool,
}

#[derive(Debug)]
struct Input {
    reader: pipe::Receiver,
    writer: pipe::Sender,
}

#[derive(Debug)]
enum Output {
    /// Nobody listens: what comes is thrown away, so that the process does not block.
    Nothing,
    Fifo {
        writer: pipe::Sender,
        keeper: pipe::Receiver,
    },
    File(tokio::fs::File),
}

/// Streams at work; dropping them ends the work and lets go of the FIFOs.
#[derive(Debug)]
pub struct Streams {
    _tasks: tokio::task::JoinSet<()>,
    progress: Arc<Progress>,
    input_open: watch::Sender<bool>,
}

/// How far the outputs are.
#[derive(Debug, Default)]
struct Progress {
    /// Outputs that are not at their end.
    open: watch::Sender<usize>,
    /// Counts everything that was read.
    reads: AtomicU64,
    /// Outputs that are being written out just now.
    writing: AtomicU64,
}

/// The most that one read asks of the agent.
const READ_BYTES: u32 = 256 << 10;
/// The most that one write gives to the agent.
const WRITE_BYTES: usize = 32 << 10;
/// How long an output may give nothing after the process's end before a process that it left behind is thought to hold it.
const QUIET: Duration = Duration::from_millis(500);
const CALL: Duration = Duration::from_secs(60);
/// How long containerd may take to open its end of an output.
const READER: Duration = Duration::from_secs(10);
const READER_PAUSE: Duration = Duration::from_millis(2);

/// Opens all streams; waits for the readers of the outputs, within a limit.
pub async fn open(stdio: &Stdio) -> Result<Opened, Failure> {
    let stdin = if stdio.stdin.is_empty() { None } else { Some(open_input(&stdio.stdin)?) };
    let stderr = if stdio.terminal { Output::Nothing } else { open_output(&stdio.stderr).await? };
    Ok(Opened { stdin, stdout: open_output(&stdio.stdout).await?, stderr, terminal: stdio.terminal })
}

fn open_input(path: &str) -> Result<Input, Failure> {
    let cannot = |error: std::io::Error| Failure::because(&format!("open {path} for input"), &error);
    let reader = pipe::OpenOptions::new().open_receiver(path).map_err(cannot)?;
    let writer = pipe::OpenOptions::new().open_sender(path).map_err(cannot)?;
    Ok(Input { reader, writer })
}

async fn open_output(path: &str) -> Result<Output, Failure> {
    if path.is_empty() {
        return Ok(Output::Nothing);
    }
    let cannot = |error: std::io::Error| Failure::because(&format!("open {path} for output"), &error);
    if let Some(file) = path.strip_prefix("file://") {
        let file = tokio::fs::OpenOptions::new().create(true).append(true).open(Path::new(file)).await.map_err(cannot)?;
        return Ok(Output::File(file));
    }
    if path.contains("://") {
        return Err(Failure::new(
            containerd_shim_protos::ttrpc::Code::UNIMPLEMENTED,
            format!("output to {path} is not supported: use a FIFO or file://"),
        ));
    }
    let writer = open_writer(path).await.map_err(cannot)?;
    let keeper = pipe::OpenOptions::new().open_receiver(path).map_err(cannot)?;
    Ok(Output::Fifo { writer, keeper })
}

/// Waits until containerd has opened its end, which it does in the background. A process that ended before that would leave containerd
/// waiting for a writer for ever.
async fn open_writer(path: &str) -> std::io::Result<pipe::Sender> {
    let give_up = Instant::now() + READER;
    loop {
        match pipe::OpenOptions::new().open_sender(path) {
            // Nobody reads yet.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NXIO.raw_os_error()) && Instant::now() < give_up => {
                sleep(READER_PAUSE).await;
            }
            opened => return opened,
        }
    }
}

impl Opened {
    /// Begins to carry bytes; the process must have been started.
    pub fn carry(self, agent: &AgentServiceClient, address: &Address) -> Streams {
        let progress = Arc::new(Progress::default());
        let (input_open, input) = watch::channel(true);
        let mut tasks = tokio::task::JoinSet::new();
        let outputs = [(Stream::Stdout, Some(self.stdout)), (Stream::Stderr, (!self.terminal).then_some(self.stderr))];
        for (stream, output) in outputs.into_iter().filter_map(|(stream, output)| Some((stream, output?))) {
            progress.open.send_modify(|open| *open += 1);
            tasks.spawn(carry_output(agent.clone(), address.clone(), stream, output, Arc::clone(&progress)));
        }
        match self.stdin {
            Some(from) => {
                tasks.spawn(carry_input(agent.clone(), address.clone(), from, input));
            }
            // As from /dev/null; a terminal has no end.
            None if !self.terminal => {
                let (agent, address) = (agent.clone(), address.clone());
                tasks.spawn(async move { close_stdin(&agent, &address).await });
            }
            None => {}
        }
        Streams { _tasks: tasks, progress, input_open }
    }
}

impl Streams {
    /// CloseIO: the end of the input comes once containerd's own end is closed too.
    pub fn close_input(&self) {
        self.input_open.send_replace(false);
    }

    /// After the process's end: comes back when the outputs are at their ends, or give nothing more because something that the
    /// process left behind holds them. What comes later is still carried.
    pub async fn drained(&self) {
        let mut open = self.progress.open.subscribe();
        loop {
            let before = self.progress.reads.load(Ordering::Relaxed);
            tokio::select! {
                done = open.wait_for(|open| *open == 0) => {
                    let _ = done;
                    return;
                }
                () = sleep(QUIET) => {}
            }
            let is_quiet = self.progress.reads.load(Ordering::Relaxed) == before;
            if is_quiet && self.progress.writing.load(Ordering::Relaxed) == 0 {
                return;
            }
        }
    }

    /// Comes back when all outputs are at their ends.
    pub async fn ended(&self) {
        let mut open = self.progress.open.subscribe();
        let _ = open.wait_for(|open| *open == 0).await;
    }
}

async fn carry_output(agent: AgentServiceClient, address: Address, stream: Stream, mut output: Output, progress: Arc<Progress>) {
    let mut request = ReadStreamRequest::new();
    request.container_id.clone_from(&address.container_id);
    request.exec_id.clone_from(&address.exec_id);
    request.len = READ_BYTES;
    loop {
        // Waits as long as the process says nothing; the session's end is an error.
        let read = match stream {
            Stream::Stdout => agent.read_stdout(Context::default(), &request).await,
            Stream::Stderr => agent.read_stderr(Context::default(), &request).await,
        };
        // A terminal whose processes are gone ends with an error.
        let data = match read {
            Ok(response) if !response.data.is_empty() => response.data,
            Ok(_) => break,
            Err(error) => {
                tracing::debug!(%error, ?stream, "the end of an output");
                break;
            }
        };
        progress.reads.fetch_add(1, Ordering::Relaxed);
        progress.writing.fetch_add(1, Ordering::Relaxed);
        let written = match &mut output {
            Output::Nothing => Ok(()),
            Output::Fifo { writer, .. } => writer.write_all(&data).await,
            Output::File(file) => file.write_all(&data).await,
        };
        progress.writing.fetch_sub(1, Ordering::Relaxed);
        if let Err(error) = written {
            tracing::warn!(%error, container_id = address.container_id, "output is thrown away from here");
            output = Output::Nothing;
        }
    }
    // Readers see the end now; what they have not read yet stays in the FIFO.
    let keeper = match output {
        Output::Fifo { writer, keeper } => {
            drop(writer);
            Some(keeper)
        }
        Output::File(_) | Output::Nothing => None,
    };
    progress.open.send_modify(|open| *open -= 1);
    let _held = keeper;
    std::future::pending::<()>().await;
}

async fn carry_input(agent: AgentServiceClient, address: Address, from: Input, mut input_open: watch::Receiver<bool>) {
    let Input { mut reader, writer } = from;
    let mut writer = Some(writer);
    let mut buffer = Vec::new();
    loop {
        buffer.resize(WRITE_BYTES, 0);
        let read = tokio::select! {
            read = reader.read(&mut buffer) => read,
            _ = input_open.wait_for(|is_open| !is_open), if writer.is_some() => {
                writer = None;
                continue;
            }
        };
        match read {
            Ok(0) => break,
            Ok(count) => {
                let mut request = WriteStreamRequest::new();
                request.container_id.clone_from(&address.container_id);
                request.exec_id.clone_from(&address.exec_id);
                request.data = buffer[..count].to_vec();
                // Waits as long as the process does not read; its end is an error.
                if let Err(error) = agent.write_stdin(Context::default(), &request).await {
                    tracing::debug!(%error, "the process takes no more input");
                    break;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "reading input");
                break;
            }
        }
    }
    close_stdin(&agent, &address).await;
}

async fn close_stdin(agent: &AgentServiceClient, address: &Address) {
    let mut request = CloseStdinRequest::new();
    request.container_id.clone_from(&address.container_id);
    request.exec_id.clone_from(&address.exec_id);
    if let Err(error) = agent.close_stdin(with_duration(CALL), &request).await {
        tracing::debug!(%error, "closing the input");
    }
}

/// Writes a text for people to where a process's errors go, without waiting; a process that is being carried has its own writer.
pub fn tell(stdio: &Stdio, text: &str) {
    let path = if stdio.stderr.is_empty() { &stdio.stdout } else { &stdio.stderr };
    if path.is_empty() || path.contains("://") {
        return;
    }
    // Not tokio's: one that was just opened does not know yet that it may be written to.
    let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    if let Ok(mut writer) = std::fs::OpenOptions::new().write(true).custom_flags(nonblocking).open(path) {
        let _ = writer.write_all(text.as_bytes());
    }
}
