//! Sends the requests of a recording to our daemon and agent, in the recorded order, and compares what the answers mean.
//!
//! A request goes out when it was sent; the replay goes on past a recorded answer only when ours is there too, so cause and
//! effect keep their order while pauses are not repeated. Reads of output are the exception: how output falls into pieces is chance,
//! so each stream is read to its end and compared as a whole; the replay only waits until as much has come as had come then. Rewritten are the network namespace, the image's name, GPUs, and the
//! initdata, which must name this world's registry.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use peerpods_protos::agent::{
    CopyFileRequest, CreateContainerRequest, ExecProcessRequest, GuestDetailsResponse, ReadStreamRequest, ReadStreamResponse,
    StatsContainerResponse, WaitProcessRequest, WaitProcessResponse,
};
use peerpods_protos::hypervisor::{CreateVMRequest, CreateVMResponse};
use protobuf::Message;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use ttrpc::proto::{Code, Request};

use crate::World;
use crate::recording::{CallId, Event, Socket};

const ANSWER: Duration = Duration::from_secs(60);

type Answer = Result<Vec<u8>, ttrpc::Error>;
/// Container, exec, and whether it is standard error.
type Stream = (String, String, bool);

/// A stream that is being read to its end.
struct Drain {
    output: watch::Receiver<Vec<u8>>,
    task: JoinHandle<()>,
}

/// A replay under way.
pub struct Replay<'a> {
    world: &'a mut World,
    image: String,
    connections: BTreeMap<(Socket, u64, u64), ttrpc::asynchronous::Client>,
    calls: BTreeMap<CallId, (String, Vec<u8>, JoinHandle<Answer>)>,
    agent_sockets: Vec<PathBuf>,
    reads: BTreeMap<CallId, Stream>,
    drains: BTreeMap<Stream, Drain>,
    recorded_output: BTreeMap<Stream, Vec<u8>>,
    compared: usize,
}

impl<'a> Replay<'a> {
    /// A replay in which every container's image is `image`.
    pub fn new(world: &'a mut World, image: &str) -> Self {
        Self {
            world,
            image: image.to_owned(),
            connections: BTreeMap::new(),
            calls: BTreeMap::new(),
            agent_sockets: Vec::new(),
            reads: BTreeMap::new(),
            drains: BTreeMap::new(),
            recorded_output: BTreeMap::new(),
            compared: 0,
        }
    }

    /// Replays everything; gives the number of answers compared.
    pub async fn run(mut self, events: &[Event]) -> Result<usize> {
        for event in events {
            match event {
                Event::Request { id, service, method, payload, is_cut } => {
                    let payload = self.rewrite(method, payload, *is_cut).with_context(|| format!("rewriting {method}"))?;
                    self.send(*id, service, method, payload).await.with_context(|| format!("sending {method}"))?;
                }
                Event::Response { id, status, payload } => self.compare(*id, *status, payload).await?,
            }
        }
        for (_, (_, _, call)) in std::mem::take(&mut self.calls) {
            call.abort();
        }
        Ok(self.compared)
    }

    fn rewrite(&mut self, method: &str, payload: &[u8], is_cut: bool) -> Result<Vec<u8>> {
        Ok(match method {
            "CreateVM" => {
                let mut request = CreateVMRequest::parse_from_bytes(payload)?;
                if !request.networkNamespacePath.is_empty() {
                    request.networkNamespacePath = self.world.add_pod()?.netns().path().display().to_string();
                }
                let initdata = self.world.initdata();
                request.annotations.insert("io.katacontainers.config.hypervisor.cc_init_data".to_owned(), initdata);
                // A cloud's instance type and GPUs: there are none here, and asking for them is refused by name rather than forgotten.
                for key in ["machine_type", "default_gpus", "default_gpu_model"] {
                    request.annotations.insert(format!("io.katacontainers.config.hypervisor.{key}"), String::new());
                }
                request.write_to_bytes()?
            }
            "CreateContainer" => {
                let mut request = CreateContainerRequest::parse_from_bytes(payload)?;
                for storage in &mut request.storages {
                    if storage.driver == "image_guest_pull" && storage.source != "pause" && !storage.source.contains("missing") {
                        storage.source.clone_from(&self.image);
                    }
                }
                request.write_to_bytes()?
            }
            "CopyFile" if is_cut => complete_copy(payload)?,
            _ => payload.to_vec(),
        })
    }

    async fn send(&mut self, id: CallId, service: &str, method: &str, payload: Vec<u8>) -> Result<()> {
        let (socket, vm, conn, _) = id;
        if method == "ReadStdout" || method == "ReadStderr" {
            return self.drain(id, method, &payload).await;
        }
        if method == "WaitProcess" {
            let wait = WaitProcessRequest::parse_from_bytes(&payload)?;
            self.finish_output(&wait.container_id, &wait.exec_id).await?;
        }
        let client = self.connection(socket, vm, conn).await?;
        let request = request(service, method, &payload);
        let call = tokio::spawn(async move { client.request(request).await.map(|response| response.payload) });
        self.calls.insert(id, (method.to_owned(), payload, call));
        Ok(())
    }

    async fn connection(&mut self, socket: Socket, vm: u64, conn: u64) -> Result<ttrpc::asynchronous::Client> {
        if let Some(client) = self.connections.get(&(socket, vm, conn)) {
            return Ok(client.clone());
        }
        let path = match socket {
            Socket::Hypervisor => self.world.hypervisor_socket(),
            Socket::Agent => self.agent_sockets.get(usize::try_from(vm)? - 1).context("no CreateVM for this VM yet")?.clone(),
        };
        let client = ttrpc::asynchronous::Client::connect(&format!("unix://{}", path.display()))
            .await
            .with_context(|| path.display().to_string())?;
        self.connections.insert((socket, vm, conn), client.clone());
        Ok(client)
    }

    /// The first read of a stream starts reading it to its end.
    async fn drain(&mut self, id: CallId, method: &str, payload: &[u8]) -> Result<()> {
        let read = ReadStreamRequest::parse_from_bytes(payload)?;
        let stream = (read.container_id, read.exec_id, method == "ReadStderr");
        self.reads.insert(id, stream.clone());
        if self.drains.contains_key(&stream) || self.recorded_output.contains_key(&stream) {
            return Ok(());
        }
        let client = self.connection(id.0, id.1, id.2).await?;
        let (method, payload) = (method.to_owned(), payload.to_vec());
        let (sender, output) = watch::channel(Vec::new());
        let task = tokio::spawn(async move {
            while let Ok(response) = client.request(request("grpc.AgentService", &method, &payload)).await {
                match ReadStreamResponse::parse_from_bytes(&response.payload) {
                    Ok(read) if !read.data.is_empty() => sender.send_modify(|all| all.extend(read.data)),
                    _ => break,
                }
            }
        });
        self.drains.insert(stream.clone(), Drain { output, task });
        self.recorded_output.insert(stream, Vec::new());
        Ok(())
    }

    /// Waits for the ends of a process's output and compares it with the recorded output.
    async fn finish_output(&mut self, container_id: &str, exec_id: &str) -> Result<()> {
        for is_stderr in [false, true] {
            let stream = (container_id.to_owned(), exec_id.to_owned(), is_stderr);
            let Some(drain) = self.drains.remove(&stream) else { continue };
            tokio::time::timeout(ANSWER, drain.task).await.with_context(|| format!("no end of output of {stream:?}"))??;
            let ours = drain.output.borrow().clone();
            let recorded = self.recorded_output.get(&stream).cloned().unwrap_or_default();
            ensure!(
                comparable(&ours) == comparable(&recorded),
                "output of {stream:?}: ours {:?}, recorded {:?}",
                String::from_utf8_lossy(&ours),
                String::from_utf8_lossy(&recorded)
            );
            self.compared += 1;
        }
        Ok(())
    }

    async fn compare(&mut self, id: CallId, status: i64, payload: &[u8]) -> Result<()> {
        if let Some(stream) = self.reads.get(&id) {
            if status == 0 {
                let data = ReadStreamResponse::parse_from_bytes(payload)?.data;
                let recorded = self.recorded_output.entry(stream.clone()).or_default();
                recorded.extend(data);
                let expected = text_of(recorded).len();
                if let Some(drain) = self.drains.get_mut(stream) {
                    // An end before that much has come is found when the whole is compared.
                    let _ = tokio::time::timeout(ANSWER, drain.output.wait_for(|ours| text_of(ours).len() >= expected)).await;
                }
            }
            return Ok(());
        }
        let (method, request, call) = self.calls.remove(&id).with_context(|| format!("an answer without a request: {id:?}"))?;
        let ours = tokio::time::timeout(ANSWER, call).await.with_context(|| format!("{method} has no answer"))??;
        self.same_meaning(&method, &request, &ours, status, payload).with_context(|| format!("{method} {id:?}"))?;
        self.compared += 1;
        Ok(())
    }

    fn same_meaning(&mut self, method: &str, request: &[u8], ours: &Answer, status: i64, recorded: &[u8]) -> Result<()> {
        let payload = match (ours, status) {
            (Ok(payload), 0) => payload,
            (Err(ttrpc::Error::RpcStatus(ours)), recorded) if recorded != 0 => {
                let is_not_found = recorded == Code::NOT_FOUND as i64;
                ensure!(!is_not_found || ours.code() == Code::NOT_FOUND, "ours {ours:?}, recorded NOT_FOUND");
                return Ok(());
            }
            // A process that has ended: whether the last write or signal comes before its end is chance.
            (Ok(_), _) | (Err(_), _) if method == "WriteStdin" || method == "SignalProcess" => return Ok(()),
            // Removing what was never created: we call it done, kata-agent calls it an internal error.
            (Ok(_), _) if method == "RemoveContainer" => return Ok(()),
            (ours, recorded) => bail!("ours {ours:?}, recorded status {recorded}"),
        };
        match method {
            "CreateVM" => self.agent_sockets.push(PathBuf::from(CreateVMResponse::parse_from_bytes(payload)?.agentSocketPath)),
            "WaitProcess" => {
                let (ours, recorded) = (WaitProcessResponse::parse_from_bytes(payload)?, WaitProcessResponse::parse_from_bytes(recorded)?);
                ensure!(ours.status == recorded.status, "ours {}, recorded {}", ours.status, recorded.status);
            }
            "GetGuestDetails" => {
                let ours = GuestDetailsResponse::parse_from_bytes(payload)?;
                ensure!(ours.mem_block_size_bytes > 0 && !ours.agent_details.version.is_empty(), "{ours:?}");
            }
            "StatsContainer" => {
                let ours = StatsContainerResponse::parse_from_bytes(payload)?;
                let stats = &ours.cgroup_stats;
                ensure!(stats.cpu_stats.cpu_usage.total_usage > 0 && stats.memory_stats.usage.usage > 0, "{ours:?}");
            }
            "ExecProcess" => drop(ExecProcessRequest::parse_from_bytes(request)?),
            _ => {}
        }
        Ok(())
    }
}

fn request(service: &str, method: &str, payload: &[u8]) -> Request {
    Request { service: service.to_owned(), method: method.to_owned(), payload: payload.to_vec(), ..Request::default() }
}

/// A shell on a terminal asks for the cursor's position whenever it comes to its prompt, and draws the prompt again when the terminal
/// is resized at it; whether either happens depends on who comes first.
fn text_of(output: &[u8]) -> String {
    String::from_utf8_lossy(output).replace("\r/ # \u{1b}[J", "").replace('\r', "").replace("\u{1b}[6n", "")
}

/// Addresses, dates and sizes of directories differ between machines; digits are masked where a listing shows them.
fn comparable(output: &[u8]) -> Vec<String> {
    text_of(output)
        .lines()
        .filter(|line| !line.starts_with("total "))
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let is_listing = words.len() >= 9 && words[0].len() == 10 && "dl-".contains(&words[0][..1]);
            if !is_listing {
                return line.to_owned();
            }
            // Kata 4.1's agent gives a folder the owner of a file copied into it, which later versions and ours do not.
            if words[0].starts_with('d') {
                return format!("{} {}", words[0], words[8..].join(" "));
            }
            // Mode, owner, group and the name; not links, size and date.
            format!("{} {} {} {}", words[0], words[2], words[3], words[8..].join(" "))
        })
        .collect()
}

/// A CopyFile request whose data the recording cut: filled with zeros up to the file's size.
fn complete_copy(payload: &[u8]) -> Result<Vec<u8>> {
    let mut input = protobuf::CodedInputStream::from_bytes(payload);
    let mut head = 0;
    while let Some(tag) = input.read_raw_tag_or_eof()? {
        let is_data = tag == (8 << 3) | 2;
        if is_data {
            break;
        }
        match tag & 7 {
            0 => drop(input.read_raw_varint64()?),
            2 => {
                let length = input.read_raw_varint32()?;
                input.skip_raw_bytes(length)?;
            }
            other => bail!("wire type {other}"),
        }
        head = usize::try_from(input.pos())?;
    }
    let mut request = CopyFileRequest::parse_from_bytes(&payload[..head])?;
    request.data = vec![0; usize::try_from(request.file_size)?];
    Ok(request.write_to_bytes()?)
}
