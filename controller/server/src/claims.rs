//! The Claims service over the engine: parses requests, issues binder certificates with assignments.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures::StreamExt as _;
use peerpods_claims::{Assignment, Claim, ClaimError, ClaimRequest, ClaimState, Claims, StateStream};
use peerpods_controller_api::{ClaimKey, ClassName, NodeName};
use peerpods_engine::{ClaimSpec, ClaimView, Handle, RequestError};
use peerpods_tunnel::credential::BinderCa;
use tokio_stream::wrappers::WatchStream;

/// How long a certificate is valid. A node binds within minutes; it asks again if it needs longer.
const CERTIFICATE_TTL: Duration = Duration::from_secs(3600);

pub(crate) struct Service {
    pub(crate) engine: Handle,
    pub(crate) binder_ca: Arc<BinderCa>,
}

#[async_trait]
impl Claims for Service {
    async fn claim(&self, request: ClaimRequest) -> Result<Claim, ClaimError> {
        let spec = self.parse(request)?;
        let key = spec.key.clone();
        let view = self.engine.claim(spec).await.map_err(explain)?;
        state_of(&self.binder_ca, &key, view)
    }

    async fn get(&self, key: &str) -> Result<Claim, ClaimError> {
        let key = parse_key(key)?;
        let view = self.engine.get(&key).await.map_err(explain)?;
        state_of(&self.binder_ca, &key, view)
    }

    async fn watch(&self, key: &str) -> Result<StateStream, ClaimError> {
        let key = parse_key(key)?;
        let views = WatchStream::new(self.engine.watch(&key).await.map_err(explain)?);
        let binder_ca = Arc::clone(&self.binder_ca);
        let states = views.map(move |view| state_of(&binder_ca, &key, view));
        // Gone is the last thing to be said of a claim.
        let mut is_over = false;
        Ok(Box::pin(states.take_while(move |state| {
            let goes_on = !is_over;
            is_over = matches!(state, Err(_) | Ok(Claim { state: ClaimState::Gone, .. }));
            std::future::ready(goes_on)
        })))
    }

    async fn release(&self, key: &str) -> Result<(), ClaimError> {
        self.engine.release(&parse_key(key)?).await.map_err(explain)
    }
}

impl Service {
    fn parse(&self, request: ClaimRequest) -> Result<ClaimSpec, ClaimError> {
        let invalid = |error: peerpods_controller_api::InvalidId| ClaimError::Invalid { detail: error.to_string() };
        let node = NodeName::new(request.node).map_err(invalid)?;
        // A key that cannot be certified would only be noticed when the pod VM runs.
        if let Err(error) = self.binder_ca.issue(&request.node_spki, "trial", node.as_str(), SystemTime::now(), CERTIFICATE_TTL) {
            return Err(ClaimError::Invalid { detail: format!("node or node_spki cannot be certified: {error}") });
        }
        Ok(ClaimSpec {
            key: ClaimKey::new(request.key).map_err(invalid)?,
            pod: request.pod,
            class: request.class.map(ClassName::new).transpose().map_err(invalid)?,
            vcpus: request.vcpus,
            memory: request.memory,
            image: request.image,
            instance_type: request.instance_type,
            node,
            node_spki: hex::encode(request.node_spki),
        })
    }
}

fn parse_key(key: &str) -> Result<ClaimKey, ClaimError> {
    ClaimKey::new(key).map_err(|error| ClaimError::Invalid { detail: error.to_string() })
}

fn explain(error: RequestError) -> ClaimError {
    match error {
        RequestError::Refused(refusal) => ClaimError::InUse { detail: refusal.to_string() },
        RequestError::NotRecorded { detail } => ClaimError::Unavailable { detail },
        RequestError::Stopped => ClaimError::Unavailable { detail: "the controller is stopping".to_owned() },
    }
}

/// A view as the node gets it: with a fresh certificate when a pod VM is assigned.
fn state_of(binder_ca: &BinderCa, key: &ClaimKey, view: ClaimView) -> Result<Claim, ClaimError> {
    let state = match view {
        ClaimView::Pending { phase } => ClaimState::Pending { phase },
        ClaimView::Failed { during, cause } => ClaimState::Failed { during, cause },
        ClaimView::Gone => ClaimState::Gone,
        ClaimView::Assigned { instance_id, address, tee, root_of_trust, reference_values, node, node_spki, host_access } => {
            let fault = |detail: String| ClaimError::Internal { detail };
            let spki = hex::decode(&node_spki).map_err(|error| fault(format!("the recorded node key is damaged: {error}")))?;
            let chain = binder_ca
                .issue(&spki, instance_id.as_str(), node.as_str(), SystemTime::now(), CERTIFICATE_TTL)
                .map_err(|error| fault(format!("no certificate can be issued: {error}")))?;
            ClaimState::Assigned(Assignment {
                instance_id: instance_id.to_string(),
                address,
                tee: tee.as_str().to_owned(),
                root_of_trust: root_of_trust.as_str().to_owned(),
                reference_values,
                chain,
                valid_secs: CERTIFICATE_TTL.as_secs(),
                host_access: host_access.into_iter().map(|access| access.as_str().to_owned()).collect(),
            })
        }
    };
    Ok(Claim { key: key.to_string(), state })
}
