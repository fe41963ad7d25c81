//! The steps from Created to Ready.

use std::time::Duration;

use futures::StreamExt as _;
use peerpods_claims::{Assignment, ClaimError, ClaimState};
use peerpods_evidence::ReferenceValues;
use peerpods_link::folder::ProcessIdentity;
use peerpods_tunnel::BindRequest;
use peerpods_tunnel::node::Pin;
use tokio::time::{Instant, sleep};

use super::{Driver, StepError};
use crate::ledger::{end_bring_up, now_ms};
use crate::ports::{BindObserver, BindTarget, LinkReport, LinkSpec, chain};
use crate::record::{Assigned, BoundTo, Phase, SandboxState, StopReason};

const CLAIM: &str = "claim a pod VM";
/// A certificate with less than this left is not used.
const CREDENTIAL_MARGIN: Duration = Duration::from_secs(5);

/// How often the shim's process is looked for.
const SHIM_LOOK: Duration = Duration::from_secs(1);

/// What a claim turned into while its pod VM was being bound.
enum Change {
    /// Another pod VM, or none yet.
    Moved,
    /// No pod VM.
    Failed(StepError),
}

impl Driver {
    /// Created, Claiming -> Assigned.
    pub(super) async fn claim(&self) -> Result<(), StepError> {
        if self.ledger.state() == SandboxState::Created {
            self.ledger.update(|record| record.state = SandboxState::Claiming).map_err(|e| disk(CLAIM, &e))?;
        }
        let claims = &self.context.ports.claims;
        let key = self.ledger.read(|record| record.claim_key.clone());
        let claim = match claims.claim(self.claim_request()).await {
            Ok(claim) => claim,
            Err(ClaimError::InUse { detail }) => {
                // The key begins with this node's name and no other record has it: what holds it is left from a record that was lost.
                claims.release(&key).await.map_err(|e| claim_error(&e))?;
                return Err(StepError::Retry {
                    during: CLAIM,
                    cause: format!("an older claim of the same name is being released: {detail}"),
                });
            }
            Err(error) => return Err(claim_error(&error)),
        };
        self.ledger.note(|record| {
            if !record.phases.iter().any(|phase| phase.phase == Phase::Claim) {
                record.end_phase(Phase::Claim, now_ms());
            }
        });
        if let Some(assignment) = self.assignment(claim.state)? {
            return self.assign(assignment).await;
        }
        let mut changes = claims.watch(&key).await.map_err(|e| claim_error(&e))?;
        while let Some(claim) = changes.next().await {
            let state = claim.map_err(|e| claim_error(&e))?.state;
            if state == ClaimState::Gone {
                break;
            }
            if let Some(assignment) = self.assignment(state)? {
                return self.assign(assignment).await;
            }
        }
        Err(StepError::Retry { during: CLAIM, cause: "the controller no longer tells how the claim stands".to_owned() })
    }

    /// `None` while there is nothing yet.
    fn assignment(&self, state: ClaimState) -> Result<Option<Assignment>, StepError> {
        match state {
            ClaimState::Assigned(assignment) => Ok(Some(assignment)),
            ClaimState::Pending { phase } => {
                self.ledger.set_trouble(Some(&format!("the controller says: {phase}")));
                Ok(None)
            }
            ClaimState::Gone => Ok(None),
            ClaimState::Failed { during, cause } => Err(claim_failed(&during, cause)),
        }
    }

    async fn assign(&self, assignment: Assignment) -> Result<(), StepError> {
        let during = "describe the pod's network";
        let (netns, vni) = self.ledger.read(|record| (record.netns.clone(), record.vni));
        let network = match netns {
            None => serde_json::Value::Null,
            Some(netns) => self
                .context
                .ports
                .networks
                .describe(&netns, assignment.address, vni)
                .await
                .map_err(|error| StepError::Retry { during, cause: error.to_string() })?,
        };
        let vm = Assigned {
            instance_id: assignment.instance_id.clone(),
            address: assignment.address,
            tee: assignment.tee.clone(),
            root_of_trust: assignment.root_of_trust.parse().map_err(|cause: String| StepError::Fatal {
                during: CLAIM.to_owned(),
                cause,
                advice: "use a node daemon and a controller of the same release",
            })?,
            reference_values: ReferenceValues(assignment.reference_values.clone()),
            attested_key: None,
            network,
            host_access: assignment.host_access.clone(),
        };
        tracing::info!(instance_id = vm.instance_id, address = %vm.address, "a pod VM is assigned");
        self.ledger
            .update(|record| {
                record.end_phase(Phase::PodVmPending, now_ms());
                record.state = SandboxState::Assigned(vm);
            })
            .map_err(|e| disk(during, &e))?;
        self.set_credential(assignment);
        Ok(())
    }

    /// Assigned, Dialled, Attested -> Bound; back to Claiming when the controller has changed its mind.
    pub(super) async fn bind(&self, vm: &Assigned) -> Result<(), StepError> {
        let Some((assignment, good_for)) = self.credential_for(vm).await? else {
            tracing::info!(instance_id = vm.instance_id, "the pod VM is no longer ours");
            return self.ledger.update(|record| record.state = SandboxState::Claiming).map_err(|e| disk(CLAIM, &e));
        };
        let waited = self.ledger.read(|record| now_ms().saturating_sub(record.phase_began_unix_ms));
        let left = self.context.timing.start.saturating_sub(Duration::from_millis(waited));
        let request = self.bind_request(vm);
        let target = BindTarget {
            instance_id: &vm.instance_id,
            address: vm.address,
            tee: &vm.tee,
            root_of_trust: vm.root_of_trust,
            reference_values: &vm.reference_values,
            chain: &assignment.chain,
            request: &request,
            attested_key: match self.ledger.state() {
                SandboxState::Attested(vm) => vm.attested_key,
                _ => None,
            },
            deadline: left.min(good_for),
        };
        let mut observer = Observer { driver: self, vm, attested_at: now_ms() };
        let bound = tokio::select! {
            bound = self.context.ports.pod_vms.bind(target, &mut observer) => bound,
            change = self.claim_changes(&vm.instance_id) => return match change {
                Change::Failed(error) => Err(error),
                Change::Moved => self.ledger.update(|record| record.state = SandboxState::Claiming).map_err(|e| disk(CLAIM, &e)),
            },
        };
        let attested_at = observer.attested_at;
        match bound {
            Ok(bound) => {
                tracing::info!(instance_id = vm.instance_id, pin = %bound.pin, "the pod VM is bound");
                let to = BoundTo {
                    instance_id: vm.instance_id.clone(),
                    address: vm.address,
                    pin: bound.pin,
                    host_access: vm.host_access.clone(),
                };
                self.ledger
                    .update(|record| {
                        let boot = record.phases.iter().find(|p| p.phase == Phase::Boot).map_or(0, |p| p.ms);
                        // The boot was over when the connection came, not when the evidence did.
                        record.push_phase(Phase::Boot, boot.saturating_sub(bound.attest_ms));
                        record.push_phase(Phase::Attest, bound.attest_ms);
                        record.phase_began_unix_ms = attested_at;
                        record.end_phase(Phase::Bind, now_ms());
                        record.request.initdata = None;
                        record.state = SandboxState::Bound(to);
                    })
                    .map_err(|e| disk("bind the pod VM", &e))
            }
            Err(failure) if failure.is_stale_credential && left > good_for => {
                self.forget_credential();
                Err(StepError::Retry { during: failure.during, cause: failure.cause })
            }
            Err(failure) => Err(StepError::Fatal { during: failure.during.to_owned(), cause: failure.cause, advice: failure.advice }),
        }
    }

    /// A certificate for that pod VM and how long it may be used; `None` if the controller has no longer assigned it to us.
    async fn credential_for(&self, vm: &Assigned) -> Result<Option<(Assignment, Duration)>, StepError> {
        if let Some(known) = self.known_credential(vm) {
            return Ok(Some(known));
        }
        let claim = self.context.ports.claims.claim(self.claim_request()).await.map_err(|e| claim_error(&e))?;
        match self.assignment(claim.state)? {
            Some(assignment) if assignment.instance_id == vm.instance_id && assignment.address == vm.address => {
                let good_for = Duration::from_secs(assignment.valid_secs).saturating_sub(CREDENTIAL_MARGIN);
                self.set_credential(assignment.clone());
                Ok(Some((assignment, good_for)))
            }
            _ => Ok(None),
        }
    }

    fn known_credential(&self, vm: &Assigned) -> Option<(Assignment, Duration)> {
        let known = self.credential.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (assignment, good_until) = known.as_ref().filter(|(a, _)| a.instance_id == vm.instance_id)?;
        let good_for = good_until.saturating_duration_since(Instant::now()).saturating_sub(CREDENTIAL_MARGIN);
        (!good_for.is_zero()).then(|| (assignment.clone(), good_for))
    }

    fn forget_credential(&self) {
        *self.credential.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
    }

    /// Comes back when the claim is no longer assigned to this pod VM.
    async fn claim_changes(&self, instance_id: &str) -> Change {
        let key = self.ledger.read(|record| record.claim_key.clone());
        loop {
            if let Ok(mut changes) = self.context.ports.claims.watch(&key).await {
                while let Some(Ok(claim)) = changes.next().await {
                    match claim.state {
                        ClaimState::Assigned(assignment) if assignment.instance_id == instance_id => {}
                        ClaimState::Failed { during, cause } => return Change::Failed(claim_failed(&during, cause)),
                        ClaimState::Assigned(_) | ClaimState::Pending { .. } | ClaimState::Gone => return Change::Moved,
                    }
                }
            }
            // The controller is restarting; the Bind does not need it.
            sleep(self.context.timing.retry_last).await;
        }
    }

    fn bind_request(&self, vm: &Assigned) -> BindRequest {
        self.ledger.read(|record| BindRequest {
            version: peerpods_tunnel::BIND_VERSION,
            sandbox_id: record.sandbox_id.to_string(),
            pod: peerpods_tunnel::Pod {
                namespace: record.pod.namespace().to_owned(),
                name: record.pod.name().to_owned(),
                uid: record.pod.uid().map(str::to_owned),
            },
            network: vm.network.clone(),
            initdata: record.request.initdata.clone(),
            agent_keys: vec![self.context.node_key.spki_sha256_hex()],
        })
    }

    /// Bound -> Networked.
    pub(super) async fn connect_network(&self, vm: &BoundTo) -> Result<(), StepError> {
        self.ensure_network(vm).await?;
        self.ledger
            .update(|record| {
                record.end_phase(Phase::PodNetwork, now_ms());
                record.state = SandboxState::Networked(vm.clone());
            })
            .map_err(|e| disk("connect the pod's network", &e))
    }

    async fn ensure_network(&self, vm: &BoundTo) -> Result<(), StepError> {
        let (netns, vni) = self.ledger.read(|record| (record.netns.clone(), record.vni));
        let Some(netns) = netns else { return Ok(()) };
        let done = self.context.ports.networks.ensure(&netns, vm.address, vni).await;
        done.map_err(|error| StepError::Retry { during: "connect the pod's network", cause: error.to_string() })
    }

    /// Networked -> Ready.
    pub(super) async fn start_link(&self, vm: &BoundTo) -> Result<(), StepError> {
        self.ensure_link(vm).await?;
        self.ledger
            .update(|record| {
                end_bring_up(record);
                record.state = SandboxState::Ready(vm.clone());
            })
            .map_err(|e| disk("start the link", &e))?;
        tracing::info!(instance_id = vm.instance_id, "ready");
        Ok(())
    }

    /// Our own shim dials the pod VM itself.
    async fn ensure_link(&self, vm: &BoundTo) -> Result<(), StepError> {
        if self.ledger.read(|record| record.shim.is_some()) {
            return Ok(());
        }
        let spec = LinkSpec {
            sandbox_id: self.ledger.read(|record| record.sandbox_id.clone()),
            instance_id: vm.instance_id.clone(),
            address: vm.address,
            pin: vm.pin,
            netns: self.ledger.read(|record| record.netns.clone()),
        };
        let done = self.context.ports.links.ensure(&spec).await;
        done.map_err(|error| StepError::Retry { during: "start the link", cause: error.to_string() })
    }

    /// Ready: the network is looked after once if an earlier daemon made it, the link as long as the session lives. Never ends well.
    pub(super) async fn keep(&self, vm: &BoundTo) -> Result<(), StepError> {
        if self.is_resumed {
            let is_there = self.ledger.read(|record| record.netns.as_ref().is_some_and(|netns| self.context.ports.networks.exists(netns)));
            if is_there {
                self.ensure_network(vm).await?;
            }
        }
        let (id, shim) = self.ledger.read(|record| (record.sandbox_id.clone(), record.shim));
        if let Some(shim) = shim {
            return self.keep_for(shim, vm).await;
        }
        loop {
            match self.context.ports.links.report(&id).await {
                LinkReport::Running { .. } => self.ledger.set_trouble(None),
                LinkReport::Absent => {
                    tracing::warn!("the link is gone; starting a new one");
                    self.ensure_link(vm).await?;
                }
                LinkReport::Lost(reason) => self.ledger.set_trouble(Some(&format!("the session with the pod VM is lost: {reason}"))),
            }
            sleep(self.context.timing.look).await;
        }
    }
}

impl Driver {
    /// Ready, with our own shim: until the shim ends or the pod VM is lost.
    async fn keep_for(&self, shim: ProcessIdentity, vm: &BoundTo) -> Result<(), StepError> {
        let shim_ended = async {
            while shim.is_alive() {
                sleep(SHIM_LOOK).await;
            }
        };
        let change = tokio::select! {
            () = shim_ended => {
                tracing::warn!(pid = shim.pid, "the shim has ended without StopSandbox: stopping the sandbox");
                // What the disk refuses is in memory all the same.
                let _ = self.stop(StopReason::Dead);
                return Ok(());
            }
            change = self.claim_changes(&vm.instance_id) => change,
        };
        let cause = match change {
            Change::Failed(StepError::Fatal { cause, .. } | StepError::Retry { cause, .. }) => cause,
            Change::Moved => format!("the controller says that {} is gone", vm.instance_id),
        };
        Err(StepError::Fatal {
            during: format!("keep pod VM {}", vm.instance_id),
            cause,
            advice: "look at the pod VM's console and the controller's log; the kubelet starts the pod again by its restart policy",
        })
    }
}

/// Writes down how far a Bind is. Called while the Bind is polled, that is, within the sandbox's own task.
struct Observer<'a> {
    driver: &'a Driver,
    vm: &'a Assigned,
    attested_at: u64,
}

impl BindObserver for Observer<'_> {
    fn evidence_arrived(&mut self) -> Result<(), String> {
        let ledger = &self.driver.ledger;
        if !matches!(ledger.state(), SandboxState::Assigned(_)) {
            return Ok(());
        }
        let written = ledger.update(|record| {
            record.end_phase(Phase::Boot, now_ms());
            record.state = SandboxState::Dialled(self.vm.clone());
        });
        written.map_err(|e| chain(&e))
    }

    fn attested(&mut self, key: Pin) -> Result<(), String> {
        self.attested_at = now_ms();
        let ledger = &self.driver.ledger;
        if matches!(ledger.state(), SandboxState::Attested(vm) if vm.attested_key == Some(key)) {
            return Ok(());
        }
        let vm = Assigned { attested_key: Some(key), ..self.vm.clone() };
        let written = ledger.update(|record| record.state = SandboxState::Attested(vm));
        written.map_err(|e| chain(&e))
    }
}

fn claim_error(error: &ClaimError) -> StepError {
    if error.is_retryable() {
        return StepError::Retry { during: CLAIM, cause: chain(error) };
    }
    StepError::Fatal { during: CLAIM.to_owned(), cause: chain(error), advice: "correct the pod's annotations or the controller's classes" }
}

fn claim_failed(during: &str, cause: String) -> StepError {
    StepError::Fatal {
        during: format!("{CLAIM} ({during})"),
        cause,
        advice: "look at the controller's log for this claim; the kubelet tries again by itself",
    }
}

fn disk(during: &'static str, error: &crate::store::StoreError) -> StepError {
    StepError::Retry { during, cause: chain(error) }
}
