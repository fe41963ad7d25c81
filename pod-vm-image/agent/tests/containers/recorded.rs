//! Requests recorded from Kata's Rust shim, replayed to this agent in their order.
//!
//! A request is sent when the recording has it, and an answer is awaited where the recording has that; so whatever the shim saw
//! before a request has happened here too. Codes must be the recorded ones, and payloads where they do not depend on the machine.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tokio::task::JoinHandle;
use ttrpc::asynchronous::Client;

use crate::world::{Pod, connect};

const SCENARIOS: [&str; 5] = ["pod-basic", "pod-two", "pod-annotations", "volumes-bulk", "failures"];
/// Their answers say what the machine has and uses, or arrive in other pieces.
const MACHINE_DEPENDENT: [&str; 4] = ["GetGuestDetails", "StatsContainer", "ReadStdout", "ReadStderr"];
const DEADLINE: Duration = Duration::from_secs(20);

struct Answer {
    code: i32,
    message: String,
    payload: Vec<u8>,
}

pub(crate) async fn recorded_requests_are_accepted() -> Result<()> {
    let folder = std::env::var_os("PEERPODS_VECTORS").map_or_else(default_folder, PathBuf::from).join("kata-rs");
    if !folder.is_dir() {
        println!("no recordings at {}: nothing to replay", folder.display());
        return Ok(());
    }
    for scenario in SCENARIOS {
        let text = fs::read_to_string(folder.join(format!("{scenario}.jsonl"))).with_context(|| scenario.to_owned())?;
        let mut vms: BTreeMap<u64, Vec<Value>> = BTreeMap::new();
        for line in text.lines() {
            let record: Value = serde_json::from_str(line)?;
            if record["ev"] == "frame" && record["sock"] == "agent" {
                vms.entry(record["vm"].as_u64().context("vm")?).or_default().push(record);
            }
        }
        for (vm, frames) in vms {
            let count = replay(&frames).await.with_context(|| format!("{scenario}, VM {vm}"))?;
            println!("replayed {count} requests of {scenario}, VM {vm}");
        }
    }
    Ok(())
}

fn default_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors")
}

async fn replay(frames: &[Value]) -> Result<usize> {
    let network = network_namespace()?;
    let pod = Pod::bare(Some(format!("/proc/{}/fd/{}", std::process::id(), network.as_raw_fd()).into()))?;
    let (client, _server) = connect(&pod.agent)?;
    let mut pending: HashMap<u64, (String, JoinHandle<Result<Answer>>)> = HashMap::new();
    let mut count = 0;
    for frame in frames.iter().filter(|frame| frame["conn"] == 1) {
        let stream = frame["stream"].as_u64().context("stream")?;
        if frame["type"] == 1 {
            // The recording keeps only the beginning of large payloads.
            if frame.get("truncated_from").is_none() {
                let method = frame["method"].as_str().context("method")?.to_owned();
                pending.insert(stream, (method, tokio::spawn(send(client.clone(), frame.clone()))));
                count += 1;
            }
            continue;
        }
        let Some((method, request)) = pending.remove(&stream) else { continue };
        if method == "ReadStdout" || method == "ReadStderr" {
            pending.insert(stream, (method, request));
            continue;
        }
        let answer = tokio::time::timeout(DEADLINE, request).await.with_context(|| format!("stream {stream}, {method}"))???;
        compare(&method, frame, &answer).with_context(|| format!("stream {stream}, {method}"))?;
    }
    for (stream, (method, request)) in pending {
        // Reads end with their containers; what else is open was never answered in the recording either.
        if method.starts_with("Read") && has_end(frames) {
            tokio::time::timeout(DEADLINE, request).await.with_context(|| format!("stream {stream}, {method}"))???;
        } else {
            request.abort();
        }
    }
    pod.destroy().await?;
    Ok(count)
}

/// Whether the recording goes on until every container is removed.
fn has_end(frames: &[Value]) -> bool {
    let count = |method: &str| frames.iter().filter(|frame| frame["type"] == 1 && frame["method"] == method).count();
    count("RemoveContainer") >= count("CreateContainer")
}

async fn send(client: Client, frame: Value) -> Result<Answer> {
    let mut request = ttrpc::Request::new();
    request.service = frame["service"].as_str().context("service")?.to_owned();
    request.method = frame["method"].as_str().context("method")?.to_owned();
    request.timeout_nano = frame["timeout_nano"].as_i64().unwrap_or(0);
    request.payload = hex::decode(frame["payload"].as_str().unwrap_or_default())?;
    Ok(match client.request(request).await {
        Ok(response) => Answer { code: 0, message: String::new(), payload: response.payload },
        Err(ttrpc::Error::RpcStatus(status)) => Answer { code: status.code.value(), message: status.message, payload: Vec::new() },
        Err(other) => return Err(other.into()),
    })
}

fn compare(method: &str, frame: &Value, answer: &Answer) -> Result<()> {
    let recorded = frame["status"].as_i64().unwrap_or(0);
    // The end of an input that comes as the process ends meets it or does not.
    if method == "WriteStdin" && answer.payload.is_empty() {
        return Ok(());
    }
    ensure!(i64::from(answer.code) == recorded, "code {} ({}) instead of {recorded} ({})", answer.code, answer.message, frame["message"]);
    if !MACHINE_DEPENDENT.contains(&method) {
        let payload = hex::encode(&answer.payload);
        ensure!(payload == frame["payload"].as_str().unwrap_or_default(), "payload {payload} instead of {}", frame["payload"]);
    }
    Ok(())
}

/// A network namespace that lives as long as the file.
fn network_namespace() -> Result<File> {
    let made = std::thread::spawn(|| -> Result<File> {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
        Ok(File::open("/proc/thread-self/ns/net")?)
    });
    made.join().map_err(|_| anyhow::anyhow!("the thread panicked"))?
}
