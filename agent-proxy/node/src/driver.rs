//! One sandbox's task: it alone writes the sandbox's record and acts for it.
//!
//! The task looks at the record's state, does the one thing that follows from it, writes the result, and begins again. It can therefore be
//! dropped at any await and a new one be started on the file: every step is repeated until its result is written, and every step may be
//! repeated. What is sent to a pod VM or to the controller is made from the record alone, so a repetition has the same bytes.
//!
//! Commands interrupt the step at work: StopVM turns the state into `Stopping` at once, and what the step had begun is undone from there.

mod bring_up;
mod take_down;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use peerpods_claims::{Assignment, ClaimRequest};
use peerpods_controller_api::NodeName;
use peerpods_tunnel::credential::NodeKey;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tracing::Instrument as _;

use crate::gc::{DEAD_AFTER, Netns, Observation, looks_dead};
use crate::ledger::{Ledger, now_ms};
use crate::metrics::Metrics;
use crate::ports::{LinkReport, Ports};
use crate::record::{ClaimDuty, Failure, SandboxRecord, SandboxState, StopReason, Stopping};
use crate::store::Store;

/// What all sandboxes' tasks share.
#[derive(Clone)]
pub struct Context {
    /// Who acts.
    pub ports: Ports,
    /// Where records are kept.
    pub store: Store,
    /// How long things may take.
    pub timing: Timing,
    /// This node.
    pub node: NodeName,
    /// This node's key: claims name it, pod VMs let it drive their agent.
    pub node_key: NodeKey,
    /// Where times are shown.
    pub metrics: Metrics,
}

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// From the assignment of a pod VM until it is bound; also how long StartVM waits.
    pub start: Duration,
    /// How long the coming pod VM of a stopped sandbox waits for a newer one.
    pub takeover: Duration,
    /// Between the first and the second try of something that fails; doubles from there.
    pub retry_first: Duration,
    /// The longest pause between two tries.
    pub retry_last: Duration,
    /// How long a step on this node may keep failing.
    pub local_step: Duration,
    /// How often a sandbox is looked at: is its link there, is it dead?
    pub look: Duration,
}

impl Timing {
    /// The values of a real node.
    pub fn new(start: Duration, takeover: Duration) -> Self {
        Self {
            start,
            takeover,
            retry_first: Duration::from_millis(100),
            retry_last: Duration::from_secs(5),
            local_step: Duration::from_secs(60),
            look: Duration::from_secs(10),
        }
    }
}

/// What a sandbox's task is asked.
pub enum Command {
    /// Take the sandbox down. Answered when that is on disk.
    Stop {
        /// Why.
        reason: StopReason,
        /// Holds what the disk says.
        reply: oneshot::Sender<Result<(), String>>,
    },
    /// Let a newer sandbox of the same pod have the claim. Answered with whether it has it.
    HandOver {
        /// Records the newer sandbox as the claim's owner; called only if this one may let go.
        commit: Box<dyn FnOnce() -> bool + Send>,
        /// Whether the newer sandbox is recorded.
        reply: oneshot::Sender<bool>,
    },
}

/// Why a step did not end well.
#[derive(Debug)]
pub(crate) enum StepError {
    /// To be tried again.
    Retry {
        /// The step, as in "claim a pod VM".
        during: &'static str,
        /// The chain of causes.
        cause: String,
    },
    /// Never to be tried again.
    Fatal {
        /// The step.
        during: String,
        /// The chain of causes.
        cause: String,
        /// What a person may do next.
        advice: &'static str,
    },
}

/// What follows from a step.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// Look at the state again.
    Plan,
    /// Nothing of the sandbox is left.
    Finished,
}

pub(crate) struct Driver {
    context: Arc<Context>,
    ledger: Ledger,
    /// The newest certificate, and until when it is good.
    credential: Mutex<Option<(Assignment, Instant)>>,
    /// Whether an earlier daemon may have done the steps so far: what it made is looked after once more.
    is_resumed: bool,
}

/// Runs the sandbox until nothing of it is left. Ends early, without undoing anything, when nobody can command it any more.
pub async fn run(context: Arc<Context>, ledger: Ledger, mut commands: mpsc::Receiver<Command>, is_resumed: bool) {
    let span = ledger.read(|record| {
        tracing::info_span!("sandbox", sandbox_id = %record.sandbox_id, pod = %record.pod, instance_id = record.state.instance_id())
    });
    let driver = Driver { context, ledger, credential: Mutex::new(None), is_resumed };
    driver.run(&mut commands).instrument(span).await;
}

impl Driver {
    async fn run(&self, commands: &mut mpsc::Receiver<Command>) {
        let mut look = interval(self.context.timing.look);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut health = Health::default();
        loop {
            let step = self.step();
            tokio::pin!(step);
            loop {
                tokio::select! {
                    biased;
                    command = commands.recv() => match command {
                        None => return,
                        Some(command) => if self.obey(command) { break },
                    },
                    next = &mut step => match next {
                        Next::Plan => break,
                        Next::Finished => return,
                    },
                    _ = look.tick() => if self.is_dead(&mut health).await {
                        tracing::warn!("nobody wants the sandbox any more: stopping it");
                        let _ = self.stop(StopReason::Dead);
                        break;
                    },
                }
            }
        }
    }

    /// Does what follows from the state, with pauses between tries.
    async fn step(&self) -> Next {
        let began = Instant::now();
        let mut pause = self.context.timing.retry_first;
        loop {
            let state = self.ledger.state();
            let is_local = matches!(state, SandboxState::Bound(_) | SandboxState::Networked(_));
            let result = match state {
                SandboxState::Created | SandboxState::Claiming => self.claim().await,
                SandboxState::Assigned(vm) | SandboxState::Dialled(vm) | SandboxState::Attested(vm) => self.bind(&vm).await,
                SandboxState::Bound(vm) => self.connect_network(&vm).await,
                SandboxState::Networked(vm) => self.start_link(&vm).await,
                SandboxState::Ready(vm) => self.keep(&vm).await,
                SandboxState::Failed(_) => self.clean_up().await,
                SandboxState::Stopping(_) => return self.take_down().await,
            };
            match result {
                Ok(()) => return Next::Plan,
                Err(StepError::Retry { during, cause }) if is_local && began.elapsed() > self.context.timing.local_step => {
                    self.fail(during.to_owned(), cause, "look at the node daemon's log");
                    return Next::Plan;
                }
                Err(StepError::Retry { during, cause }) => {
                    tracing::warn!(during, cause, "trying again");
                    self.ledger.set_trouble(Some(&format!("cannot {during}: {cause}")));
                    sleep(pause).await;
                    pause = (pause * 2).min(self.context.timing.retry_last);
                }
                Err(StepError::Fatal { during, cause, advice }) => {
                    self.fail(during, cause, advice);
                    return Next::Plan;
                }
            }
        }
    }

    /// True when the step at work must be given up.
    fn obey(&self, command: Command) -> bool {
        match command {
            Command::Stop { reason, reply } => {
                let was_stopping = matches!(self.ledger.state(), SandboxState::Stopping(_));
                let result = if was_stopping { Ok(()) } else { self.stop(reason) };
                // The caller may have gone; what it asked for is done all the same.
                let _ = reply.send(result);
                !was_stopping
            }
            Command::HandOver { commit, reply } => {
                let handed_over = self.may_hand_over() && commit();
                if handed_over {
                    self.let_go();
                }
                let _ = reply.send(handed_over);
                handed_over
            }
        }
    }

    fn stop(&self, reason: StopReason) -> Result<(), String> {
        let written = self.ledger.force(|record| {
            let age = Duration::from_millis(now_ms().saturating_sub(record.created_unix_ms));
            let claim = match record.state.claim_duty() {
                // A pod VM that did not come in time is not worth waiting for once more.
                ClaimDuty::Offer if age >= self.context.timing.start => ClaimDuty::Release,
                duty => duty,
            };
            let instance_id = record.state.instance_id().map(str::to_owned);
            record.state = SandboxState::Stopping(Stopping { reason, instance_id, claim, since_unix_ms: now_ms() });
        });
        tracing::info!(?reason, "stopping");
        written.map_err(|error| {
            let text = crate::ports::chain(&error);
            tracing::error!(cause = text, "the stop is not on disk");
            text
        })
    }

    fn may_hand_over(&self) -> bool {
        self.ledger.read(|record| record.state.may_hand_over(self.netns(record) == Netns::Gone))
    }

    /// The newer sandbox is on disk as the claim's owner. If this write is lost, the next start sees that and does the same.
    fn let_go(&self) {
        let written = self.ledger.force(let_go);
        tracing::info!("a newer sandbox of the pod has taken the claim over");
        if let Err(error) = written {
            tracing::error!(error = crate::ports::chain(&error), "the hand-over is not on disk");
        }
    }

    fn fail(&self, during: String, cause: String, advice: &str) {
        tracing::error!(during, cause, advice, "bring-up has failed");
        let written = self.ledger.force(|record| {
            let claim = match record.state.claim_duty() {
                ClaimDuty::Offer => ClaimDuty::Release,
                duty => duty,
            };
            let instance_id = record.state.instance_id().map(str::to_owned);
            record.state = SandboxState::Failed(Failure { during, cause, advice: advice.to_owned(), instance_id, claim });
        });
        if let Err(error) = written {
            tracing::error!(error = crate::ports::chain(&error), "the failure is not on disk");
        }
    }

    async fn is_dead(&self, health: &mut Health) -> bool {
        if matches!(self.ledger.state(), SandboxState::Stopping(_)) {
            return false;
        }
        // Looked at every second once the sandbox is Ready; on the way there this look must do.
        if let Some(shim) = self.ledger.read(|record| record.shim) {
            return !shim.is_alive();
        }
        let (id, netns, created) = self.ledger.read(|r| (r.sandbox_id.clone(), self.netns(r), r.created_unix_ms));
        let connections = match self.context.ports.links.report(&id).await {
            LinkReport::Running { connections, accepted } => {
                health.was_connected |= accepted > 0;
                connections
            }
            LinkReport::Lost(_) | LinkReport::Absent => 0,
        };
        let age = Duration::from_millis(now_ms().saturating_sub(created));
        if !looks_dead(Observation { netns, connections, was_connected: health.was_connected, age }) {
            health.dead_since = None;
            return false;
        }
        health.dead_since.get_or_insert_with(Instant::now).elapsed() >= DEAD_AFTER
    }

    fn netns(&self, record: &SandboxRecord) -> Netns {
        match &record.netns {
            None => Netns::Host,
            Some(path) if self.context.ports.networks.exists(path) => Netns::Present,
            Some(_) => Netns::Gone,
        }
    }

    fn claim_request(&self) -> ClaimRequest {
        self.ledger.read(|record| ClaimRequest {
            key: record.claim_key.clone(),
            pod: record.pod.clone(),
            class: record.request.class.clone(),
            vcpus: record.request.vcpus,
            memory: record.request.memory_mib,
            image: record.request.image.clone(),
            instance_type: record.request.instance_type.clone(),
            node: self.context.node.to_string(),
            node_spki: self.context.node_key.spki_der().to_vec(),
        })
    }

    fn set_credential(&self, assignment: Assignment) {
        let good_until = Instant::now() + Duration::from_secs(assignment.valid_secs);
        *self.credential.lock().unwrap_or_else(PoisonError::into_inner) = Some((assignment, good_until));
    }
}

/// Makes a record let go of its claim.
pub(crate) fn let_go(record: &mut SandboxRecord) {
    match &mut record.state {
        SandboxState::Stopping(stopping) => stopping.claim = ClaimDuty::Nothing,
        state => {
            *state = SandboxState::Stopping(Stopping {
                reason: StopReason::Superseded,
                instance_id: state.instance_id().map(str::to_owned),
                claim: ClaimDuty::Nothing,
                since_unix_ms: now_ms(),
            });
        }
    }
}

/// What the looks at a sandbox have shown so far.
#[derive(Default)]
struct Health {
    was_connected: bool,
    dead_since: Option<Instant>,
}
