//! Pod VMs over the tunnel; here evidence meets its verifier.

use std::net::SocketAddr;
use std::time::SystemTime;

use async_trait::async_trait;
use peerpods_evidence::{Endorsement, Expected, InitdataState, RootOfTrust, Trust};
use peerpods_tunnel::credential::{Credential, NodeKey};
use peerpods_tunnel::node::{self, BindError, EvidenceMessage, Verdict};
use peerpods_tunnel::{PORT, RefusalCode};

use super::{BindFailure, BindObserver, BindTarget, Bound, PodVms, chain};

/// Binds with this node's key, after evidence that these files and the built-in roots vouch for.
#[derive(Debug)]
pub struct TunnelBinder {
    key: NodeKey,
    trust: Trust,
    port: u16,
}

impl TunnelBinder {
    /// Pod VMs listen on the guest channel's port.
    pub fn new(key: NodeKey, trust: Trust) -> Self {
        Self { key, trust, port: PORT }
    }

    /// The same for pod VMs of tests, which listen on any port.
    pub fn with_port(self, port: u16) -> Self {
        Self { port, ..self }
    }
}

#[async_trait]
impl PodVms for TunnelBinder {
    async fn bind(&self, target: BindTarget<'_>, observer: &mut (dyn BindObserver + Send)) -> Result<Bound, BindFailure> {
        let credential = Credential { chain: target.chain.to_vec(), key: self.key.clone() };
        let initdata = target.request.initdata.as_deref();
        let mut attested_key = target.attested_key;
        let mut asked: Option<Endorsement> = None;
        let verify = |message: &EvidenceMessage| -> Result<Verdict, String> {
            let endorsed = match (asked.take(), &message.activated) {
                (Some(asked), Some(answer)) => Some(asked.trust(answer, &self.trust).map_err(|error| chain(&error))?),
                _ => {
                    observer.evidence_arrived()?;
                    asked = endorsement(&target, &self.trust, message)?;
                    if let Some(asked) = &asked {
                        return Ok(Verdict::Challenge(asked.challenge()));
                    }
                    None
                }
            };
            let trust = endorsed.as_ref().unwrap_or(&self.trust);
            verify(&target, trust, message, expected_initdata(initdata, attested_key == Some(message.pin))?)?;
            observer.attested(message.pin)?;
            // Bind is sent now; if its answer is lost, the next try finds a pod VM that may have taken it.
            attested_key = Some(message.pin);
            Ok(Verdict::Trusted)
        };
        let addr = SocketAddr::new(target.address, self.port);
        let bound = node::bind(addr, target.instance_id, &credential, target.request, verify, target.deadline).await;
        bound.map(|bound| Bound { pin: bound.pin, attest_ms: bound.attest_ms }).map_err(|error| failure(&error))
    }
}

/// What the initdata register must hold: its reset value, which no pod VM that ever ran a workload can show, unless this very request may
/// have extended it. That is believed of the pod VM alone that was attested before, by its key: a workload with the same initdata can have
/// evidence made with report data of its choice, but not hold that key. A pod VM that another request has bound refuses the Bind.
fn expected_initdata(initdata: Option<&str>, may_be_bound: bool) -> Result<InitdataState, String> {
    if !may_be_bound {
        return Ok(InitdataState::Reset);
    }
    peerpods_evidence::initdata::digest(initdata).map(InitdataState::ResetOrExtended).map_err(|error| chain(&error))
}

/// What the pod VM's TPM must be asked, where the class wants a TPM that somebody vouches for and its endorsement key is what is known.
fn endorsement(target: &BindTarget<'_>, trust: &Trust, message: &EvidenceMessage) -> Result<Option<Endorsement>, String> {
    if target.root_of_trust == RootOfTrust::Insecure || message.tee != target.tee || message.activated.is_some() {
        return Ok(None);
    }
    Endorsement::of(target.tee, &message.evidence, trust).map_err(|error| chain(&error))
}

fn verify(target: &BindTarget<'_>, trust: &Trust, message: &EvidenceMessage, initdata: InitdataState) -> Result<(), String> {
    let tee = target.tee;
    if message.tee != tee {
        return Err(format!(
            "the pod VM shows evidence of {:?}, its class wants {tee:?}",
            message.tee.chars().take(40).collect::<String>()
        ));
    }
    let expected = Expected {
        report_data: message.report_data,
        initdata,
        root_of_trust: target.root_of_trust,
        reference_values: target.reference_values.clone(),
    };
    let appraisal = peerpods_evidence::verify(tee, &message.evidence, &expected, trust, SystemTime::now());
    let appraisal = appraisal.map_err(|error| chain(&error))?;
    if appraisal.root_of_trust == RootOfTrust::Insecure {
        tracing::warn!(tee, "this evidence protects nothing: the class says so");
    }
    if appraisal.claims["tcb_status"] == "Unknown" {
        tracing::warn!(
            tee,
            "whether the platform's firmware is up to date is unknown: give the node Intel's files by trust.tdx_collateral"
        );
    }
    Ok(())
}

fn failure(error: &BindError) -> BindFailure {
    let (during, advice) = match error {
        BindError::NeverAnswered { .. } => {
            ("reach the pod VM", "look at the pod VM's console log and at whether the node reaches TCP port 15150 of it")
        }
        BindError::Credential(_) => ("bind the pod VM", "check that controller and pod VM agree on the binder CA, and their clocks"),
        BindError::Unverified(_) => ("attest the pod VM", "check that the class's TEE and image are what the controller launches"),
        BindError::Refused(refusal) if refusal.code == RefusalCode::AlreadyBound => {
            ("bind the pod VM", "nothing: the pod VM serves another pod and is released; the kubelet tries again by itself")
        }
        BindError::Refused(_) => ("bind the pod VM", "see the reason, and the pod VM's console log"),
        BindError::Protocol(_) => ("bind the pod VM", "use a pod VM image and a node daemon of the same release"),
    };
    let is_stale_credential = matches!(error, BindError::Credential(_) | BindError::NeverAnswered { .. });
    BindFailure { during, cause: chain(error), advice, is_stale_credential }
}
