//! A container that was created, and what can be seen of it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::Story;
use crate::cri::Session;
use crate::{eventually_async, v1};

/// A container that was created.
pub struct Running {
    story: Story,
    name: String,
    id: String,
    log: PathBuf,
    termination: PathBuf,
}

/// A line of a container's log, as the CRI's format has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// `stdout` or `stderr`.
    pub stream: String,
    /// `F` for a whole line, `P` for a part of one.
    pub tag: String,
    /// The bytes.
    pub content: Vec<u8>,
}

/// What an ExecSync answered.
type Answer = v1::ExecSyncResponse;

const PATIENCE: Duration = Duration::from_secs(60);

impl Running {
    pub(super) fn new(story: &Story, name: &str, id: String, log: PathBuf, termination: PathBuf) -> Self {
        Self { story: story.clone(), name: name.to_owned(), id, log, termination }
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where the node finds its log.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// What its termination log holds on the node.
    pub fn termination_log(&self) -> Result<Vec<u8>> {
        Ok(std::fs::read(&self.termination)?)
    }

    pub(super) async fn try_start(&self) -> Result<(), tonic::Status> {
        let request = v1::StartContainerRequest { container_id: self.id.clone() };
        self.story.cri().runtime.clone().start_container(request).await.map(|_| ())
    }

    /// Starts what was only created.
    pub async fn start(&self) -> Result<()> {
        self.try_start().await.with_context(|| format!("starting {}", self.name))
    }

    /// What containerd says of it.
    pub async fn status(&self) -> Result<v1::ContainerStatus> {
        let request = v1::ContainerStatusRequest { container_id: self.id.clone(), verbose: false };
        self.story.cri().runtime.clone().container_status(request).await?.into_inner().status.context("no status")
    }

    /// Waits for its end; writes down exit code, reason, message and log.
    pub async fn ends(&self) -> Result<v1::ContainerStatus> {
        let status = self.is_over().await?;
        self.shows_exit().await?;
        self.shows_log()?;
        Ok(status)
    }

    /// Waits for its end.
    pub async fn is_over(&self) -> Result<v1::ContainerStatus> {
        eventually_async(&format!("{} ends", self.name), PATIENCE, || async {
            let status = self.status().await?;
            ensure!(status.state() == v1::ContainerState::ContainerExited, "{:?}", status.state());
            Ok(status)
        })
        .await
    }

    /// Writes down state, exit code, reason and message.
    pub async fn shows_exit(&self) -> Result<()> {
        let status = self.status().await?;
        let times = (status.created_at > 0, status.started_at > 0, status.finished_at > 0);
        // A message of a failed start is the error that was answered, which has a step of its own.
        let message = if status.reason == "StartError" { "" } else { &status.message };
        self.story.record(
            &format!("{} ended", self.name),
            format!("{:?}, exit {}, reason {:?}, message {message:?}, times {times:?}", status.state(), status.exit_code, status.reason),
        );
        Ok(())
    }

    /// Writes down the log, each stream in its own order.
    pub fn shows_log(&self) -> Result<()> {
        let lines = self.log()?;
        for stream in ["stdout", "stderr"] {
            let mut texts: Vec<(String, usize)> = Vec::new();
            for text in lines.iter().filter(|line| line.stream == stream).map(describe) {
                match texts.last_mut().filter(|(last, _)| *last == text) {
                    Some((_, times)) => *times += 1,
                    None => texts.push((text, 1)),
                }
            }
            let texts: Vec<String> =
                texts.into_iter().map(|(text, times)| if times == 1 { text } else { format!("{text} ({times} times)") }).collect();
            if !texts.is_empty() {
                self.story.record(&format!("{} {stream}", self.name), texts.join("\n"));
            }
        }
        Ok(())
    }

    /// The log's lines.
    pub fn log(&self) -> Result<Vec<LogLine>> {
        let bytes = std::fs::read(&self.log).with_context(|| self.log.display().to_string())?;
        let lines = bytes.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n"));
        lines
            .map(|line| {
                let mut words = line[..line.len() - 1].splitn(4, |&byte| byte == b' ');
                let mut word = || words.next().with_context(|| format!("log line {:?}", String::from_utf8_lossy(line)));
                let (_, stream, tag) = (word()?, word()?, word()?);
                let text = |word: &[u8]| String::from_utf8_lossy(word).into_owned();
                Ok(LogLine { stream: text(stream), tag: text(tag), content: word()?.to_vec() })
            })
            .collect()
    }

    /// All bytes of one stream.
    pub fn output(&self, stream: &str) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        for line in self.log()?.into_iter().filter(|line| line.stream == stream) {
            all.extend(line.content);
            if line.tag == "F" {
                all.push(b'\n');
            }
        }
        Ok(all)
    }

    /// Waits until the log holds this.
    pub async fn logs(&self, text: &str) -> Result<()> {
        eventually_async(&format!("{} logs {text:?}", self.name), PATIENCE, || async {
            let log = std::fs::read(&self.log).unwrap_or_default();
            ensure!(log.windows(text.len()).any(|part| part == text.as_bytes()), "{}", String::from_utf8_lossy(&log));
            Ok(())
        })
        .await
    }

    /// Runs a script in it; the answer is written down under the script and must be this on standard output.
    pub async fn prints(&self, script: &str, expected: &str) -> Result<()> {
        let answer = self.says(script).await?;
        let stdout = String::from_utf8_lossy(&answer.stdout);
        ensure!(stdout == expected, "{} says {stdout:?} to {script:?}, not {expected:?}", self.name);
        Ok(())
    }

    /// Runs a script in it and writes the answer down.
    pub async fn says(&self, script: &str) -> Result<Answer> {
        self.execs(&["/bin/sh", "-c", script]).await
    }

    /// Runs a command in it and writes the answer down.
    pub async fn execs(&self, command: &[&str]) -> Result<Answer> {
        let answer = self.exec(command, 60).await.with_context(|| format!("exec {command:?} in {}", self.name))?;
        let shown = if let ["/bin/sh", "-c", script] = command { (*script).to_owned() } else { command.join(" ") };
        let mut text = format!("{:?}", String::from_utf8_lossy(&answer.stdout));
        if !answer.stderr.is_empty() {
            text += &format!(", stderr {:?}", String::from_utf8_lossy(&answer.stderr));
        }
        if answer.exit_code != 0 {
            text += &format!(", exit {}", answer.exit_code);
        }
        self.story.record(&format!("{}: {shown}", self.name), text);
        Ok(answer)
    }

    /// Runs a command in it and writes nothing down.
    pub async fn exec(&self, command: &[&str], timeout: i64) -> Result<Answer, tonic::Status> {
        let cmd = command.iter().map(|&word| word.to_owned()).collect();
        let request = v1::ExecSyncRequest { container_id: self.id.clone(), cmd, timeout };
        Ok(self.story.cri().runtime.clone().exec_sync(request).await?.into_inner())
    }

    /// Runs a command whose failure is written down with these phrases.
    pub async fn refuses(&self, command: &[&str], timeout: i64, phrases: &[&str]) {
        let step = format!("{}: {}", self.name, command.join(" "));
        match self.exec(command, timeout).await {
            Ok(answer) => self.story.record(&step, format!("exit {}", answer.exit_code)),
            Err(status) => self.story.record_error(&step, &status, phrases),
        }
    }

    /// A stream of `kubectl exec`: `i` asks for standard input, `t` for a terminal.
    pub async fn stream(&self, command: &[&str], flags: &str) -> Result<Session> {
        let tty = flags.contains('t');
        let request = v1::ExecRequest {
            container_id: self.id.clone(),
            cmd: command.iter().map(|&word| word.to_owned()).collect(),
            tty,
            stdin: flags.contains('i'),
            stdout: true,
            stderr: !tty,
        };
        self.story.cri().exec(request).await
    }

    /// A stream of `kubectl attach`.
    pub async fn attach(&self, flags: &str) -> Result<Session> {
        let tty = flags.contains('t');
        let request = v1::AttachRequest { container_id: self.id.clone(), stdin: flags.contains('i'), tty, stdout: true, stderr: !tty };
        self.story.cri().attach(request).await
    }

    /// Asks it to end and kills it after this many seconds.
    pub async fn stop(&self, grace: i64) -> Result<()> {
        let request = v1::StopContainerRequest { container_id: self.id.clone(), timeout: grace };
        let mut runtime = self.story.cri().runtime.clone();
        let stopped = match runtime.stop_container(request.clone()).await {
            // containerd gives up its connection to the shim once it has heard of the end, also under a kill that is not answered yet:
            // with runc too. A kubelet asks again.
            Err(status) if status.message().ends_with("ttrpc: closed") => runtime.stop_container(request).await,
            other => other,
        };
        stopped.map(|_| ()).with_context(|| format!("stopping {}", self.name))
    }

    /// Removes it.
    pub async fn remove(&self) -> Result<()> {
        let request = v1::RemoveContainerRequest { container_id: self.id.clone() };
        self.story.cri().runtime.clone().remove_container(request).await.with_context(|| format!("removing {}", self.name))?;
        Ok(())
    }

    /// What it uses.
    pub async fn stats(&self) -> Result<v1::ContainerStats> {
        let request = v1::ContainerStatsRequest { container_id: self.id.clone() };
        self.story.cri().runtime.clone().container_stats(request).await?.into_inner().stats.context("no statistics")
    }
}

/// A log line for a person; a long one by its length and digest.
fn describe(line: &LogLine) -> String {
    const SHOWN: usize = 2000;
    let tag = if line.tag == "F" { String::new() } else { format!("[{}] ", line.tag) };
    if line.content.len() > SHOWN {
        return format!("{tag}{} bytes, {}", line.content.len(), crate::image::digest(&line.content));
    }
    match std::str::from_utf8(&line.content) {
        Ok(text) => format!("{tag}{text}"),
        Err(_) => format!("{tag}bytes {}", hex::encode(&line.content)),
    }
}
