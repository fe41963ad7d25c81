//! Wire to types and back, with bounds on everything that comes in.

use peerpods_controller_api::{MAX_REFERENCE_BYTES, MAX_REFERENCES, Mib, PodRef};
use tonic::{Code, Status};

use crate::proto;
use crate::types::{Assignment, Claim, ClaimError, ClaimRequest, ClaimState};

/// Longest text of a field that is not an id; ids have grammars of their own.
const MAX_TEXT: usize = 4096;
/// A P-256 key has 91 bytes, an RSA key of 4096 bits 550.
const MAX_SPKI: usize = 1024;
const MAX_CHAIN: usize = 4;
const MAX_CERTIFICATE: usize = 8192;
/// There are two words today.
const MAX_WORDS: usize = 16;
const MAX_WORD: usize = 64;
/// The root of trust of assignments that name none.
const INSECURE: &str = "insecure";

impl From<ClaimRequest> for proto::ClaimRequest {
    fn from(request: ClaimRequest) -> Self {
        let pod = proto::Pod {
            namespace: request.pod.namespace().to_owned(),
            name: request.pod.name().to_owned(),
            uid: request.pod.uid().map(str::to_owned),
        };
        Self {
            key: request.key,
            pod: Some(pod),
            class: request.class,
            vcpus: request.vcpus,
            memory_mib: request.memory.0,
            image: request.image,
            instance_type: request.instance_type,
            node: request.node,
            node_spki: request.node_spki,
        }
    }
}

impl TryFrom<proto::ClaimRequest> for ClaimRequest {
    type Error = ClaimError;
    fn try_from(request: proto::ClaimRequest) -> Result<Self, ClaimError> {
        let invalid = |detail: String| ClaimError::Invalid { detail };
        let pod = request.pod.ok_or_else(|| invalid("pod is missing".to_owned()))?;
        let pod = PodRef::new(pod.namespace, pod.name, pod.uid).map_err(|e| invalid(e.to_string()))?;
        let texts = [("class", &request.class), ("image", &request.image), ("instance_type", &request.instance_type)];
        let too_long = texts.iter().find(|(_, text)| text.as_ref().is_some_and(|t| t.is_empty() || t.len() > MAX_TEXT));
        if let Some((field, _)) = too_long {
            return Err(invalid(format!("{field} must be absent or have 1 to {MAX_TEXT} bytes")));
        }
        if !(1..=MAX_SPKI).contains(&request.node_spki.len()) {
            return Err(invalid(format!("node_spki must have 1 to {MAX_SPKI} bytes")));
        }
        if !(request.vcpus.is_finite() && request.vcpus >= 0.0) {
            return Err(invalid(format!("vcpus = {} is not a number of processors", request.vcpus)));
        }
        Ok(Self {
            key: request.key,
            pod,
            class: request.class,
            vcpus: request.vcpus,
            memory: Mib(request.memory_mib),
            image: request.image,
            instance_type: request.instance_type,
            node: request.node,
            node_spki: request.node_spki,
        })
    }
}

impl From<Claim> for proto::ClaimReply {
    fn from(claim: Claim) -> Self {
        use proto::claim_reply::State;
        let state = match claim.state {
            ClaimState::Pending { phase } => State::Pending(proto::Pending { phase }),
            ClaimState::Assigned(assignment) => State::Assigned(proto::Assigned {
                instance_id: assignment.instance_id,
                address: assignment.address.to_string(),
                tee: assignment.tee,
                chain: assignment.chain,
                valid_secs: assignment.valid_secs,
                host_access: assignment.host_access,
                // Left out where an older node would expect nothing.
                root_of_trust: if assignment.root_of_trust == INSECURE { String::new() } else { assignment.root_of_trust },
                reference_values: assignment
                    .reference_values
                    .into_iter()
                    .map(|(claim, values)| proto::ReferenceValue { claim, values })
                    .collect(),
            }),
            ClaimState::Failed { during, cause } => State::Failed(proto::Failed { during, cause }),
            ClaimState::Gone => State::Gone(proto::Gone {}),
        };
        Self { key: claim.key, state: Some(state) }
    }
}

impl TryFrom<proto::ClaimReply> for Claim {
    type Error = ClaimError;
    fn try_from(reply: proto::ClaimReply) -> Result<Self, ClaimError> {
        use proto::claim_reply::State;
        let fault = |detail: String| ClaimError::Internal { detail };
        // A state that a later controller has added is not understood here, and not guessed.
        let state = match reply.state.ok_or_else(|| fault("the answer has no state that this release knows".to_owned()))? {
            State::Pending(pending) => ClaimState::Pending { phase: pending.phase },
            State::Assigned(assigned) => {
                if assigned.chain.is_empty() || assigned.chain.len() > MAX_CHAIN || assigned.chain.iter().any(|c| c.len() > MAX_CERTIFICATE)
                {
                    return Err(fault(format!("the answer's chain is not 1 to {MAX_CHAIN} certificates of {MAX_CERTIFICATE} bytes")));
                }
                if assigned.host_access.len() > MAX_WORDS || assigned.host_access.iter().any(|word| word.len() > MAX_WORD) {
                    return Err(fault(format!("the answer's host_access is not at most {MAX_WORDS} words of {MAX_WORD} bytes")));
                }
                let too_long = |value: &proto::ReferenceValue| {
                    value.claim.len() > MAX_REFERENCE_BYTES
                        || value.values.len() > MAX_REFERENCES
                        || value.values.iter().any(|v| v.len() > MAX_REFERENCE_BYTES)
                };
                if assigned.reference_values.len() > MAX_REFERENCES || assigned.reference_values.iter().any(too_long) {
                    return Err(fault(format!(
                        "the answer's reference_values are not at most {MAX_REFERENCES} claims with {MAX_REFERENCES} values of {MAX_REFERENCE_BYTES} bytes"
                    )));
                }
                let address = assigned.address.parse().map_err(|_| fault(format!("{:?} is not an IP address", assigned.address)))?;
                ClaimState::Assigned(Assignment {
                    instance_id: assigned.instance_id,
                    address,
                    tee: assigned.tee,
                    chain: assigned.chain,
                    valid_secs: assigned.valid_secs,
                    host_access: assigned.host_access,
                    root_of_trust: if assigned.root_of_trust.is_empty() { INSECURE.to_owned() } else { assigned.root_of_trust },
                    reference_values: assigned.reference_values.into_iter().map(|value| (value.claim, value.values)).collect(),
                })
            }
            State::Failed(failed) => ClaimState::Failed { during: failed.during, cause: failed.cause },
            State::Gone(_) => ClaimState::Gone,
        };
        Ok(Self { key: reply.key, state })
    }
}

impl From<ClaimError> for Status {
    fn from(error: ClaimError) -> Self {
        match error {
            ClaimError::Invalid { detail } => Status::invalid_argument(detail),
            ClaimError::InUse { detail } => Status::already_exists(detail),
            ClaimError::Unavailable { detail } => Status::unavailable(detail),
            ClaimError::DeadlineExceeded => Status::deadline_exceeded("no answer in time"),
            ClaimError::Internal { detail } => Status::internal(detail),
        }
    }
}

impl From<Status> for ClaimError {
    fn from(status: Status) -> Self {
        let detail = status.message().to_owned();
        match status.code() {
            Code::InvalidArgument | Code::OutOfRange | Code::FailedPrecondition => ClaimError::Invalid { detail },
            Code::AlreadyExists => ClaimError::InUse { detail },
            // What tonic reports when the connection breaks or the server stops.
            Code::Unavailable | Code::Cancelled | Code::Unknown | Code::Aborted | Code::ResourceExhausted => {
                ClaimError::Unavailable { detail }
            }
            Code::DeadlineExceeded => ClaimError::DeadlineExceeded,
            Code::Ok
            | Code::NotFound
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::Unimplemented
            | Code::Internal
            | Code::DataLoss => ClaimError::Internal { detail: format!("{:?}: {detail}", status.code()) },
        }
    }
}
