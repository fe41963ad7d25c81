//! What the daemon knows of one sandbox, version 1: one JSON file, written before each side effect that needs it and after each result.
//!
//! The states are the steps of bring-up; each holds exactly what the next step needs, so a daemon that starts on the file goes on where
//! the last one died. A record dies with the machine's boot, as pods do.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use peerpods_controller_api::PodRef;
use peerpods_evidence::{ReferenceValues, RootOfTrust};
use peerpods_link::folder::ProcessIdentity;
use peerpods_tunnel::node::Pin;
use serde::{Deserialize, Serialize};

use crate::id::SandboxId;
use crate::request::PodRequest;

/// The version of the file.
pub const VERSION: u32 = 1;

/// One sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxRecord {
    /// Format of the file: 1.
    pub version: u32,
    /// The shim's name for it.
    pub sandbox_id: SandboxId,
    /// The pod.
    pub pod: PodRef,
    /// The pod's network namespace; `None` for pods in the host's network.
    pub netns: Option<PathBuf>,
    /// The pod network's number on this node; unique among the records.
    pub vni: u32,
    /// The claim's key at the controller.
    pub claim_key: String,
    /// The older sandbox of the same pod whose claim this one has taken over.
    pub taken_from: Option<SandboxId>,
    /// The process of our own shim that asked for the sandbox; when it ends, so does the sandbox. `None` with Kata's shims, which have a
    /// link of ours instead. Left out then, so that files of version 1 without it stay as they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shim: Option<ProcessIdentity>,
    /// What the pod VM must be and be given. Its initdata is dropped once the pod VM has it.
    pub request: PodRequest,
    /// How far it is.
    pub state: SandboxState,
    /// How long each finished step took.
    pub phases: Vec<PhaseRecord>,
    /// When CreateVM came.
    pub created_unix_ms: u64,
    /// When the last phase ended.
    pub phase_began_unix_ms: u64,
}

/// `Created -> Claiming -> Assigned -> Dialled -> Attested -> Bound -> Networked -> Ready`; `Failed` from any of them but `Ready`, which a
/// sandbox leaves only by being stopped; `Stopping` from any. The file is removed when nothing is left.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case", deny_unknown_fields)]
pub enum SandboxState {
    /// Recorded; nobody else knows of it.
    Created,
    /// The controller may have been asked.
    Claiming,
    /// The controller has named a pod VM, which may still be booting.
    Assigned(Assigned),
    /// The pod VM has sent evidence.
    Dialled(Assigned),
    /// The evidence is accepted: from here on the pod VM may be bound, and it serves this sandbox or nobody.
    Attested(Assigned),
    /// The pod VM has the pod.
    Bound(BoundTo),
    /// Packets flow between the pod's network namespace and the pod VM.
    Networked(BoundTo),
    /// The link serves the agent socket.
    Ready(BoundTo),
    /// Bring-up has failed; everything made so far is being removed, the answer for StartVM stays.
    Failed(Failure),
    /// StopVM came, or the sandbox was found dead.
    Stopping(Stopping),
}

/// A pod VM that is to be bound.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assigned {
    /// The cloud's name of it.
    pub instance_id: String,
    /// Where it answers.
    pub address: IpAddr,
    /// The TEE whose evidence it must show.
    pub tee: String,
    /// The least that must stand behind that evidence. Files without it are of a time that knew `insecure` alone.
    #[serde(default = "insecure", skip_serializing_if = "is_insecure")]
    pub root_of_trust: RootOfTrust,
    /// What its image must be, as its class says.
    #[serde(default, skip_serializing_if = "has_none")]
    pub reference_values: ReferenceValues,
    /// The key of the pod VM that was attested and may have been given the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attested_key: Option<Pin>,
    /// The pod network as Bind carries it. Kept, so that a Bind that is sent again has the same bytes.
    pub network: serde_json::Value,
    /// What the pod's class lets it use of this node, in the class's words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_access: Vec<String>,
}

fn insecure() -> RootOfTrust {
    RootOfTrust::Insecure
}

fn is_insecure(root: &RootOfTrust) -> bool {
    *root == RootOfTrust::Insecure
}

fn has_none(values: &ReferenceValues) -> bool {
    values.0.is_empty()
}

/// A pod VM that is bound.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BoundTo {
    /// The cloud's name of it.
    pub instance_id: String,
    /// Where it answers.
    pub address: IpAddr,
    /// Its key.
    pub pin: Pin,
    /// What the pod's class lets it use of this node, in the class's words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_access: Vec<String>,
}

/// Why there is no pod VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// The step, as in "attest the pod VM".
    pub during: String,
    /// The chain of causes.
    pub cause: String,
    /// What a person may do next.
    pub advice: String,
    /// The pod VM that it was about, if there was one.
    pub instance_id: Option<String>,
    /// What is still to be done for the claim.
    pub claim: ClaimDuty,
}

/// The way down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stopping {
    /// For the log: `stop-vm`, `superseded`, `dead`.
    pub reason: StopReason,
    /// The pod VM, if there was one.
    pub instance_id: Option<String>,
    /// What is still to be done for the claim.
    pub claim: ClaimDuty,
    /// When it was stopped.
    pub since_unix_ms: u64,
}

/// Why a sandbox is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StopReason {
    /// The shim said so.
    StopVm,
    /// A newer sandbox of the same pod has taken the claim.
    Superseded,
    /// Its network namespace is gone and no shim is connected.
    Dead,
}

/// What a sandbox on its way out owes the controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClaimDuty {
    /// Nothing: never claimed, released, or handed to a newer sandbox.
    Nothing,
    /// The pod VM is coming and was never bound: for a moment a newer sandbox of the same pod may take it over.
    Offer,
    /// The claim must be released, and nobody may take it over any more.
    Release,
}

/// How long a step took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhaseRecord {
    /// The step.
    pub phase: Phase,
    /// Milliseconds of wall-clock time, daemon restarts included.
    pub ms: u64,
}

/// Steps whose time is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// From CreateVM until the controller had recorded the claim.
    Claim,
    /// Until the controller named a pod VM: mostly the cloud's time.
    PodVmPending,
    /// Until the pod VM answered on its port: mostly the kernel's boot.
    Boot,
    /// From the connection to accepted evidence.
    Attest,
    /// Until the pod VM had taken the pod.
    Bind,
    /// Until the node's end of the pod network stood.
    PodNetwork,
    /// Until the link listened.
    Link,
    /// From CreateVM until Ready.
    Total,
}

impl Phase {
    /// As in files and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Claim => "claim",
            Phase::PodVmPending => "pod-vm-pending",
            Phase::Boot => "boot",
            Phase::Attest => "attest",
            Phase::Bind => "bind",
            Phase::PodNetwork => "pod-network",
            Phase::Link => "link",
            Phase::Total => "total",
        }
    }
}

impl SandboxState {
    /// As in files, metrics and lists.
    pub fn as_str(&self) -> &'static str {
        match self {
            SandboxState::Created => "created",
            SandboxState::Claiming => "claiming",
            SandboxState::Assigned(_) => "assigned",
            SandboxState::Dialled(_) => "dialled",
            SandboxState::Attested(_) => "attested",
            SandboxState::Bound(_) => "bound",
            SandboxState::Networked(_) => "networked",
            SandboxState::Ready(_) => "ready",
            SandboxState::Failed(_) => "failed",
            SandboxState::Stopping(_) => "stopping",
        }
    }

    /// All names, for metrics.
    pub const NAMES: [&str; 10] =
        ["created", "claiming", "assigned", "dialled", "attested", "bound", "networked", "ready", "failed", "stopping"];

    /// The pod VM, if the controller has named one.
    pub fn instance_id(&self) -> Option<&str> {
        match self {
            SandboxState::Created | SandboxState::Claiming => None,
            SandboxState::Assigned(vm) | SandboxState::Dialled(vm) | SandboxState::Attested(vm) => Some(&vm.instance_id),
            SandboxState::Bound(vm) | SandboxState::Networked(vm) | SandboxState::Ready(vm) => Some(&vm.instance_id),
            SandboxState::Failed(failure) => failure.instance_id.as_deref(),
            SandboxState::Stopping(stopping) => stopping.instance_id.as_deref(),
        }
    }

    /// What is owed to the controller if the sandbox is stopped in this state.
    pub fn claim_duty(&self) -> ClaimDuty {
        match self {
            SandboxState::Created => ClaimDuty::Nothing,
            SandboxState::Claiming | SandboxState::Assigned(_) | SandboxState::Dialled(_) => ClaimDuty::Offer,
            SandboxState::Attested(_) | SandboxState::Bound(_) | SandboxState::Networked(_) | SandboxState::Ready(_) => ClaimDuty::Release,
            SandboxState::Failed(failure) => failure.claim,
            SandboxState::Stopping(stopping) => stopping.claim,
        }
    }

    /// Whether a newer sandbox of the same pod may take the claim over now, given whether this one is known to be dead.
    ///
    /// An old sandbox must be stopped or dead. From `Attested` on its pod VM may hold a pod, and serves nobody else. A failed one's pod
    /// VM is not offered: the next one shall not fail on it.
    pub fn may_hand_over(&self, is_dead: bool) -> bool {
        match self {
            SandboxState::Stopping(stopping) => stopping.claim == ClaimDuty::Offer,
            SandboxState::Created => is_dead,
            SandboxState::Failed(_) => false,
            other => is_dead && other.claim_duty() == ClaimDuty::Offer,
        }
    }
}

impl SandboxRecord {
    /// Ends a phase now. A clock that was set back gives 0.
    pub fn end_phase(&mut self, phase: Phase, now_unix_ms: u64) {
        self.push_phase(phase, now_unix_ms.saturating_sub(self.phase_began_unix_ms));
        self.phase_began_unix_ms = now_unix_ms;
    }

    /// Notes a phase; a step that is done again after a restart replaces its first time.
    pub fn push_phase(&mut self, phase: Phase, ms: u64) {
        self.phases.retain(|known| known.phase != phase);
        self.phases.push(PhaseRecord { phase, ms });
    }
}

/// Milliseconds since 1970.
pub fn unix_ms(now: SystemTime) -> u64 {
    u64::try_from(now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn assigned() -> Assigned {
        Assigned {
            instance_id: "i-1".to_owned(),
            address: IpAddr::from([10, 93, 0, 5]),
            tee: "sample".to_owned(),
            root_of_trust: RootOfTrust::Insecure,
            reference_values: ReferenceValues::default(),
            attested_key: None,
            network: serde_json::Value::Null,
            host_access: Vec::new(),
        }
    }

    fn bound() -> BoundTo {
        BoundTo { instance_id: "i-1".to_owned(), address: IpAddr::from([10, 93, 0, 5]), pin: Pin([7; 32]), host_access: Vec::new() }
    }

    fn stopping(claim: ClaimDuty) -> SandboxState {
        SandboxState::Stopping(Stopping { reason: StopReason::StopVm, instance_id: None, claim, since_unix_ms: 0 })
    }

    #[test]
    fn claim_is_handed_over_only_by_a_stopped_or_dead_sandbox_whose_pod_vm_was_never_bound() {
        for (state, when_alive, when_dead) in [
            (SandboxState::Created, false, true),
            (SandboxState::Claiming, false, true),
            (SandboxState::Assigned(assigned()), false, true),
            (SandboxState::Dialled(assigned()), false, true),
            (SandboxState::Attested(assigned()), false, false),
            (SandboxState::Bound(bound()), false, false),
            (SandboxState::Networked(bound()), false, false),
            (SandboxState::Ready(bound()), false, false),
            (stopping(ClaimDuty::Offer), true, true),
            (stopping(ClaimDuty::Release), false, false),
            (stopping(ClaimDuty::Nothing), false, false),
        ] {
            assert_eq!((state.may_hand_over(false), state.may_hand_over(true)), (when_alive, when_dead), "{}", state.as_str());
        }
    }

    #[test]
    fn a_pod_vm_that_may_be_bound_is_always_released() {
        assert_eq!(SandboxState::Created.claim_duty(), ClaimDuty::Nothing);
        assert_eq!(SandboxState::Claiming.claim_duty(), ClaimDuty::Offer);
        assert_eq!(SandboxState::Attested(assigned()).claim_duty(), ClaimDuty::Release);
        assert_eq!(SandboxState::Ready(bound()).claim_duty(), ClaimDuty::Release);
    }
}
