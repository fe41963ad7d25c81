//! containerd's task API, version 2, for one pod.
//!
//! One file because the API is one trait: each call's few lines stand beside the conversion of its messages.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use containerd_shim::asynchronous::ExitSignal;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse, DeleteRequest,
    DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest, PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest,
    ResumeRequest, ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse, Status,
    UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskIO, TaskPaused, TaskResumed, TaskStart,
};
use containerd_shim_protos::shim_async::Task;
use containerd_shim_protos::ttrpc::r#async::TtrpcContext;
use containerd_shim_protos::ttrpc::{Code, Result as TtrpcResult};
use oci_spec::runtime::{LinuxResources, Process as ProcessSpec};
use peerpods_protos::agent;
use tokio::sync::Mutex;
use ttrpc::context::with_duration;

use crate::config::Config;
use crate::container::Container;
use crate::create::{self, SHORT};
use crate::events::Events;
use crate::failure::Failure;
use crate::plan;
use crate::pod::Pod;
use crate::process::{LOST, Process, State};
use crate::{stats, stdio};

/// The task service of a shim.
pub struct TaskService {
    namespace: String,
    events: Events,
    exit: Arc<ExitSignal>,
    /// There after the sandbox's task has been created; held while it is.
    pod: Mutex<Option<Arc<Pod>>>,
}

/// How long a stream that somebody left open is carried after the process was deleted.
const LAST_WORDS: Duration = Duration::from_millis(200);

impl TaskService {
    /// A service without a pod.
    pub fn new(namespace: String, events: Events, exit: Arc<ExitSignal>) -> Self {
        Self { namespace, events, exit, pod: Mutex::new(None) }
    }

    async fn pod(&self) -> Result<Arc<Pod>, Failure> {
        self.pod.lock().await.clone().ok_or_else(|| Failure::not_found("the pod's sandbox"))
    }

    async fn container(&self, id: &str) -> Result<(Arc<Pod>, Arc<Container>), Failure> {
        let pod = self.pod().await?;
        let container = pod.container(id)?;
        Ok((pod, container))
    }

    async fn process(&self, id: &str, exec_id: &str) -> Result<(Arc<Pod>, Arc<Container>, Arc<Process>), Failure> {
        let (pod, container) = self.container(id).await?;
        let process = container.process(exec_id)?;
        Ok((pod, container, process))
    }

    async fn create_task(&self, request: &CreateTaskRequest) -> Result<u32, Failure> {
        let spec = create::read_spec(Path::new(&request.bundle))?;
        let container = match create::sandbox_of(&spec) {
            Some(_) => {
                let pod = self.pod().await?;
                if pod.has(&request.id) {
                    return Err(Failure::new(Code::ALREADY_EXISTS, format!("container {}: already exists", request.id)));
                }
                if let Some(reason) = pod.end_reason() {
                    return Err(Failure::precondition(format!("the pod VM is lost: {reason}")));
                }
                let container = create::workload(&pod, &self.namespace, request, &spec).await?;
                pod.add(Arc::clone(&container));
                container
            }
            None => {
                let mut slot = self.pod.lock().await;
                if slot.is_some() {
                    return Err(Failure::new(Code::ALREADY_EXISTS, format!("sandbox {}: already exists", request.id)));
                }
                let config = Config::from_options(request.options.as_ref()).map_err(|error| Failure::because("read shim.toml", &error))?;
                let pod = Pod::open(&request.id, Path::new(&request.bundle), &spec, config, self.events.clone()).await?;
                match create::sandbox(&pod, request, &spec).await {
                    Ok(container) => {
                        pod.add(Arc::clone(&container));
                        *slot = Some(pod);
                        container
                    }
                    Err(failure) => {
                        pod.release().await;
                        pod.close();
                        return Err(failure);
                    }
                }
            }
        };
        let mut event = TaskCreate::new();
        event.container_id.clone_from(&request.id);
        event.bundle.clone_from(&request.bundle);
        event.rootfs.clone_from(&request.rootfs);
        event.io = Some(TaskIO {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
            ..Default::default()
        })
        .into();
        event.pid = container.pid();
        self.events.send(event).await;
        tracing::info!(container_id = container.id, "created");
        Ok(container.pid())
    }

    async fn start_process(&self, request: &StartRequest) -> Result<u32, Failure> {
        let (pod, container, process) = self.process(&request.id, &request.exec_id).await?;
        process.begin_start()?;
        let started = match &process.exec {
            None => {
                let mut start = agent::StartContainerRequest::new();
                start.container_id.clone_from(&request.id);
                pod.agent.start_container(with_duration(SHORT), &start).await
            }
            Some(exec) => {
                let mut start = agent::ExecProcessRequest::new();
                start.container_id.clone_from(&request.id);
                start.exec_id.clone_from(&request.exec_id);
                start.process = Some(exec.clone()).into();
                pod.agent.exec_process(with_duration(SHORT), &start).await
            }
        };
        if let Err(error) = started {
            // The end is not published: containerd deletes a process that did not start, without waiting for it.
            process.state.send_replace(State::Exited(crate::process::Exit { status: LOST, at: crate::clock::now() }));
            return Err(error.into());
        }
        if let Some(opened) = process.take_opened() {
            process.carried(opened.carry(&pod.agent, &process.address));
        }
        process.state.send_replace(State::Running);
        let pid = container.pid();
        if process.is_init() {
            let mut event = TaskStart::new();
            event.container_id.clone_from(&request.id);
            event.pid = pid;
            pod.publish(event).await;
        } else {
            let mut event = TaskExecStarted::new();
            event.container_id.clone_from(&request.id);
            event.exec_id.clone_from(&request.exec_id);
            event.pid = pid;
            pod.publish(event).await;
        }
        pod.supervise(container, process);
        Ok(pid)
    }

    async fn delete_process(&self, request: &DeleteRequest) -> Result<DeleteResponse, Failure> {
        let (pod, container, process) = self.process(&request.id, &request.exec_id).await?;
        let state = process.state.borrow().clone();
        let exit = match state {
            State::Exited(exit) => exit,
            State::Created => crate::process::Exit { status: 0, at: crate::clock::now() },
            State::Starting | State::Running => {
                return Err(Failure::precondition(format!("process {} is running and cannot be deleted", process.name())));
            }
        };
        if process.is_init() {
            container.watcher.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
            let mut remove = agent::RemoveContainerRequest::new();
            remove.container_id.clone_from(&request.id);
            if pod.end_reason().is_none()
                && let Err(error) = pod.agent.remove_container(with_duration(SHORT), &remove).await
            {
                tracing::warn!(%error, container_id = request.id, "the agent did not remove the container");
            }
            pod.remove(&request.id);
            if request.id == pod.sandbox_id {
                pod.release().await;
            }
        } else {
            container.remove(&request.exec_id);
        }
        if let Some(streams) = process.streams() {
            // Something that the process left behind may be in the middle of a line.
            let _ = tokio::time::timeout(LAST_WORDS, streams.ended()).await;
        }
        process.close();
        let mut event = TaskDelete::new();
        event.container_id.clone_from(&request.id);
        event.id.clone_from(&request.exec_id);
        event.pid = container.pid();
        event.exit_status = exit.status;
        event.exited_at = Some(exit.at.clone()).into();
        pod.publish(event).await;
        let mut response = DeleteResponse::new();
        response.pid = container.pid();
        response.exit_status = exit.status;
        response.exited_at = Some(exit.at).into();
        Ok(response)
    }

    async fn add_exec(&self, request: &ExecProcessRequest) -> Result<(), Failure> {
        let (pod, container) = self.container(&request.id).await?;
        if container.init.exit().is_some() {
            return Err(Failure::precondition(format!("container {} is not running", request.id)));
        }
        let bytes = request.spec.as_ref().map(|any| any.value.as_slice()).unwrap_or_default();
        let mut spec: ProcessSpec = serde_json::from_slice(bytes).map_err(|error| Failure::because("read the exec's process", &error))?;
        spec.set_terminal(Some(request.terminal));
        let exec = plan::process(&spec).map_err(|refusal| Failure::precondition(refusal.to_string()))?;
        let stdio = create::stdio_of(request.terminal, &request.stdin, &request.stdout, &request.stderr);
        let opened = stdio::open(&stdio).await?;
        let address = stdio::Address { container_id: request.id.clone(), exec_id: request.exec_id.clone() };
        container.add(Arc::new(Process::new(address, stdio, Some(exec), opened)))?;
        let mut event = TaskExecAdded::new();
        event.container_id.clone_from(&request.id);
        event.exec_id.clone_from(&request.exec_id);
        pod.publish(event).await;
        Ok(())
    }

    async fn signal(&self, request: &KillRequest) -> Result<(), Failure> {
        let (pod, container, process) = self.process(&request.id, &request.exec_id).await?;
        if process.exit().is_some() {
            return Err(Failure::new(Code::NOT_FOUND, "process already finished".to_owned()));
        }
        let state = process.state.borrow().clone();
        if state == State::Created {
            if process.is_init() {
                // As with runc, a container that was never started is stopped by a signal.
                pod.exited(&container, &process, 128 + request.signal).await;
                return Ok(());
            }
            return Err(Failure::precondition(format!("process {} is not running", process.name())));
        }
        let mut kill = agent::SignalProcessRequest::new();
        kill.container_id.clone_from(&request.id);
        if !request.all {
            kill.exec_id.clone_from(&request.exec_id);
        }
        kill.signal = request.signal;
        let _on_its_way = process.signals.read().await;
        tokio::select! {
            sent = pod.agent.signal_process(with_duration(SHORT), &kill) => Ok(sent.map(drop)?),
            reason = pod.over() => Err(Failure::not_found(&format!("the pod VM of process {} ({reason})", process.name()))),
        }
    }

    async fn state_of(&self, request: &StateRequest) -> Result<StateResponse, Failure> {
        let (_, container, process) = self.process(&request.id, &request.exec_id).await?;
        let mut response = StateResponse::new();
        response.id.clone_from(&request.id);
        response.exec_id.clone_from(&request.exec_id);
        response.bundle = container.bundle.display().to_string();
        response.pid = container.pid();
        response.stdin.clone_from(&process.stdio.stdin);
        response.stdout.clone_from(&process.stdio.stdout);
        response.stderr.clone_from(&process.stdio.stderr);
        response.terminal = process.stdio.terminal;
        let state = process.state.borrow().clone();
        response.status = match state {
            State::Created | State::Starting => Status::CREATED,
            State::Running if process.is_init() && container.is_paused.load(Ordering::Relaxed) => Status::PAUSED,
            State::Running => Status::RUNNING,
            State::Exited(exit) => {
                response.exit_status = exit.status;
                response.exited_at = Some(exit.at).into();
                Status::STOPPED
            }
        }
        .into();
        Ok(response)
    }

    async fn set_paused(&self, id: &str, is_paused: bool) -> Result<(), Failure> {
        let (pod, container) = self.container(id).await?;
        if is_paused {
            let mut request = agent::PauseContainerRequest::new();
            id.clone_into(&mut request.container_id);
            pod.agent.pause_container(with_duration(SHORT), &request).await?;
        } else {
            let mut request = agent::ResumeContainerRequest::new();
            id.clone_into(&mut request.container_id);
            pod.agent.resume_container(with_duration(SHORT), &request).await?;
        }
        container.is_paused.store(is_paused, Ordering::Relaxed);
        if is_paused {
            let mut event = TaskPaused::new();
            id.clone_into(&mut event.container_id);
            pod.publish(event).await;
        } else {
            let mut event = TaskResumed::new();
            id.clone_into(&mut event.container_id);
            pod.publish(event).await;
        }
        Ok(())
    }

    async fn resize(&self, request: &ResizePtyRequest) -> Result<(), Failure> {
        let (pod, _, process) = self.process(&request.id, &request.exec_id).await?;
        if !process.stdio.terminal {
            return Err(Failure::precondition(format!("process {} has no terminal", process.name())));
        }
        let mut resize = agent::TtyWinResizeRequest::new();
        resize.container_id.clone_from(&request.id);
        resize.exec_id.clone_from(&request.exec_id);
        resize.row = request.height;
        resize.column = request.width;
        pod.agent.tty_win_resize(with_duration(SHORT), &resize).await?;
        Ok(())
    }

    async fn update_task(&self, request: &UpdateTaskRequest) -> Result<(), Failure> {
        let (pod, _) = self.container(&request.id).await?;
        let bytes = request.resources.as_ref().map(|any| any.value.as_slice()).unwrap_or_default();
        let resources: LinuxResources = serde_json::from_slice(bytes).map_err(|error| Failure::because("read the resources", &error))?;
        let mut update = agent::UpdateContainerRequest::new();
        update.container_id.clone_from(&request.id);
        update.resources = Some(plan::resources(&resources)).into();
        pod.agent.update_container(with_duration(SHORT), &update).await?;
        Ok(())
    }

    async fn stats_of(&self, id: &str) -> Result<StatsResponse, Failure> {
        let (pod, _) = self.container(id).await?;
        let mut request = agent::StatsContainerRequest::new();
        id.clone_into(&mut request.container_id);
        let answer = pod.agent.stats_container(with_duration(SHORT), &request).await?;
        let mut response = StatsResponse::new();
        response.stats = Some(stats::metrics(&answer)).into();
        Ok(response)
    }

    async fn shut_down(&self, is_now: bool) {
        let mut slot = self.pod.lock().await;
        if let Some(pod) = slot.as_ref() {
            if !is_now && !pod.is_empty() {
                return;
            }
            pod.release().await;
            pod.close();
        }
        *slot = None;
        self.exit.signal();
    }
}

/// A failure is logged where it is answered.
fn answer<T>(call: &str, id: &str, result: Result<T, Failure>) -> TtrpcResult<T> {
    result.map_err(|failure| {
        tracing::warn!(call, id, %failure, "refused");
        failure.into()
    })
}

fn done((): ()) -> Empty {
    Empty::new()
}

#[async_trait]
impl Task for TaskService {
    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> TtrpcResult<StateResponse> {
        Ok(self.state_of(&request).await?)
    }

    async fn create(&self, _: &TtrpcContext, request: CreateTaskRequest) -> TtrpcResult<CreateTaskResponse> {
        let pid = answer("Create", &request.id, self.create_task(&request).await)?;
        Ok(CreateTaskResponse { pid, ..Default::default() })
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> TtrpcResult<StartResponse> {
        let pid = answer("Start", &request.id, self.start_process(&request).await)?;
        Ok(StartResponse { pid, ..Default::default() })
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> TtrpcResult<DeleteResponse> {
        answer("Delete", &request.id, self.delete_process(&request).await)
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> TtrpcResult<PidsResponse> {
        let (_, container) = self.container(&request.id).await?;
        let info = ProcessInfo { pid: container.pid(), ..Default::default() };
        Ok(PidsResponse { processes: vec![info], ..Default::default() })
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> TtrpcResult<Empty> {
        answer("Pause", &request.id, self.set_paused(&request.id, true).await).map(done)
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> TtrpcResult<Empty> {
        answer("Resume", &request.id, self.set_paused(&request.id, false).await).map(done)
    }

    async fn checkpoint(&self, _: &TtrpcContext, request: CheckpointTaskRequest) -> TtrpcResult<Empty> {
        let text = "a container in a pod VM cannot be checkpointed: its memory is not the node's to see";
        answer("Checkpoint", &request.id, Err(Failure::new(Code::UNIMPLEMENTED, text)))
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> TtrpcResult<Empty> {
        Ok(self.signal(&request).await.map(done)?)
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> TtrpcResult<Empty> {
        answer("Exec", &request.id, self.add_exec(&request).await).map(done)
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> TtrpcResult<Empty> {
        answer("ResizePty", &request.id, self.resize(&request).await).map(done)
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> TtrpcResult<Empty> {
        let (_, _, process) = self.process(&request.id, &request.exec_id).await?;
        if let Some(streams) = process.streams().filter(|_| request.stdin) {
            streams.close_input();
        }
        Ok(Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> TtrpcResult<Empty> {
        answer("Update", &request.id, self.update_task(&request).await).map(done)
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> TtrpcResult<WaitResponse> {
        let (_, _, process) = self.process(&request.id, &request.exec_id).await?;
        let exit = process.wait().await;
        Ok(WaitResponse { exit_status: exit.status, exited_at: Some(exit.at).into(), ..Default::default() })
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> TtrpcResult<StatsResponse> {
        Ok(self.stats_of(&request.id).await?)
    }

    async fn connect(&self, _: &TtrpcContext, _: ConnectRequest) -> TtrpcResult<ConnectResponse> {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(ConnectResponse { shim_pid: std::process::id(), task_pid: std::process::id(), version, ..Default::default() })
    }

    async fn shutdown(&self, _: &TtrpcContext, request: ShutdownRequest) -> TtrpcResult<Empty> {
        self.shut_down(request.now).await;
        Ok(Empty::new())
    }
}
