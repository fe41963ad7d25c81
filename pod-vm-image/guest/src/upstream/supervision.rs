//! Starting the programs in their order, and noticing the end of any.

use std::fs::File;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use peerpods_network::POD_NETNS;
use peerpods_protos::agent::GuestDetailsRequest;
use peerpods_protos::agent_ttrpc::AgentServiceClient;
use tokio::process::Child;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::Features;
use super::components::{AGENT_SOCKET, Component};
use crate::console;

/// For a program to answer at its socket; upstream gives it 6 s. All four together are within the limit of a Bind.
const READY_WITHIN: Duration = Duration::from_secs(10);
/// Between looks at a socket.
const PAUSE: Duration = Duration::from_millis(20);
/// What an agent that asks its policy calls that.
const POLICY_FEATURE: &str = "agent-policy";
const ASK_WITHIN: Duration = Duration::from_secs(5);

/// The programs while they run; dropping it kills them.
pub(crate) struct Components {
    running: JoinSet<Ended>,
}

/// A program is no more.
#[derive(Debug, thiserror::Error)]
#[error("{component} {}", how(status))]
pub(crate) struct Ended {
    component: Component,
    status: io::Result<ExitStatus>,
}

/// The pod cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The program does not start.
    #[error("start {component}")]
    Spawn {
        /// Which.
        component: Component,
        /// What the kernel said.
        source: io::Error,
    },
    /// It runs and does not answer.
    #[error("{component} does not answer at {} within {} s", component.address(), READY_WITHIN.as_secs())]
    Silent {
        /// Which.
        component: Component,
        /// The last attempt.
        source: io::Error,
    },
    /// It, or one before it, has ended already.
    #[error(transparent)]
    Ended(Ended),
    /// Nobody would ask the owner's policy.
    #[error("kata-agent was built without the feature {POLICY_FEATURE}, so the pod's policy would not be asked; pack one that has it")]
    NoPolicy,
    /// It does not say what it can.
    #[error("ask kata-agent for its features")]
    Ask(#[source] ttrpc::Error),
}

impl Components {
    /// Starts all four. On an error those that were started are killed.
    pub(crate) async fn start(features: Features) -> Result<Self, StartError> {
        let mut components = Self { running: JoinSet::new() };
        for component in Component::ALL {
            let child = spawn(component, features).await.map_err(|source| StartError::Spawn { component, source })?;
            components.running.spawn(until_its_end(component, child));
            tokio::select! {
                ready = answers(component) => ready?,
                ended = components.ended() => return Err(StartError::Ended(ended)),
            }
            console::event(component.name());
        }
        asks_its_policy().await?;
        Ok(components)
    }

    /// Waits for the first of them to end and tells the console which and how.
    pub(crate) async fn ended(&mut self) -> Ended {
        let ended = match self.running.join_next().await {
            Some(Ok(ended)) => ended,
            // A task that panicked; and after the last has ended there is nothing to wait for.
            Some(Err(_)) | None => return std::future::pending().await,
        };
        let number = |code: i32| u64::from(code.unsigned_abs());
        match &ended.status {
            Ok(status) => match status.signal() {
                Some(signal) => console::event_with(ended.component.killed(), number(signal)),
                None => console::event_with(ended.component.exited(), number(status.code().unwrap_or_default())),
            },
            Err(_) => console::event(ended.component.exited()),
        }
        ended
    }
}

async fn answers(component: Component) -> Result<(), StartError> {
    let mut last = io::Error::from(io::ErrorKind::TimedOut);
    let ready = async {
        while let Err(error) = component.knock().await {
            last = error;
            sleep(PAUSE).await;
        }
    };
    match timeout(READY_WITHIN, ready).await {
        Ok(()) => Ok(()),
        Err(_) => Err(StartError::Silent { component, source: last }),
    }
}

/// An agent without a policy answers everything; one with a policy says so, or refuses by it.
async fn asks_its_policy() -> Result<(), StartError> {
    let client = ttrpc::r#async::Client::connect(&format!("unix://{AGENT_SOCKET}")).await.map_err(StartError::Ask)?;
    let agent = AgentServiceClient::new(client);
    match agent.get_guest_details(ttrpc::context::with_duration(ASK_WITHIN), &GuestDetailsRequest::new()).await {
        Ok(details) if details.agent_details.extra_features.iter().any(|feature| feature == POLICY_FEATURE) => Ok(()),
        Ok(_) => Err(StartError::NoPolicy),
        Err(ttrpc::Error::RpcStatus(status)) if is_refusal(status.code()) => Ok(()),
        Err(error) => Err(StartError::Ask(error)),
    }
}

/// Kata's agent says INTERNAL where the policy has no rule for a request.
fn is_refusal(code: ttrpc::Code) -> bool {
    matches!(code, ttrpc::Code::PERMISSION_DENIED | ttrpc::Code::INTERNAL)
}

/// The program's process group; it is killed when the program has ended or is no longer wanted.
struct Group(Pid);

impl Drop for Group {
    fn drop(&mut self) {
        // Nobody may be left in it.
        let _ = killpg(self.0, Signal::SIGKILL);
    }
}

async fn until_its_end(component: Component, (mut child, _group): (Child, Group)) -> Ended {
    Ended { component, status: child.wait().await }
}

async fn spawn(component: Component, features: Features) -> io::Result<(Child, Group)> {
    let mut command = component.command(features);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.current_dir("/").process_group(0).kill_on_drop(true);
    let child = if component.is_in_pod() { in_pod(move || command.spawn()).await? } else { command.spawn()? };
    let id = child.id().and_then(|id| i32::try_from(id).ok()).ok_or_else(|| io::Error::other("it has ended already"))?;
    Ok((child, Group(Pid::from_raw(id))))
}

/// Starts a process from a thread that is in the pod's network, which the process inherits; the thread ends there.
async fn in_pod<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let namespace = File::open(POD_NETNS)?;
    let runtime = tokio::runtime::Handle::current();
    let (done, finished) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("netns".to_owned()).spawn(move || {
        let _context = runtime.enter();
        let entered = setns(namespace, CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
        let _ = done.send(entered.and_then(|()| work()));
    })?;
    finished.await.map_err(|_| io::Error::other("the thread in the pod's network died"))?
}

fn how(status: &io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("exited with code {code}"),
            (None, signal) => format!("was killed by signal {}", signal.unwrap_or_default()),
        },
        Err(error) => format!("cannot be waited for: {error}"),
    }
}
