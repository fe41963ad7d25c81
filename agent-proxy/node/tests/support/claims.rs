//! A controller that launches at once.

use async_trait::async_trait;
use futures::StreamExt as _;
use peerpods_claims::{Assignment, Claim, ClaimError, ClaimRequest, ClaimState, ClaimStream};
use peerpods_node::ports::Claims;
use tokio::sync::watch;

use super::{FakeClaim, FakePodVm, World};

#[async_trait]
impl Claims for World {
    async fn claim(&self, request: ClaimRequest) -> Result<Claim, ClaimError> {
        self.point("claim.before").await;
        let claim = self.claim_now(request)?;
        self.point("claim.after").await;
        Ok(claim)
    }

    async fn watch(&self, key: &str) -> Result<ClaimStream, ClaimError> {
        let state = self.state();
        let Some(claim) = state.claims.get(key) else { return Ok(Box::pin(futures::stream::empty())) };
        let key = key.to_owned();
        let changes = futures::stream::unfold((claim.state.subscribe(), true), |(mut receiver, is_first)| async move {
            if !is_first {
                receiver.changed().await.ok()?;
            }
            let state = receiver.borrow_and_update().clone();
            Some((state, (receiver, false)))
        });
        Ok(Box::pin(changes.map(move |state| Ok(Claim { key: key.clone(), state }))))
    }

    async fn release(&self, key: &str) -> Result<(), ClaimError> {
        self.point("release.before").await;
        {
            let mut state = self.state();
            if state.unavailable > 0 {
                state.unavailable -= 1;
                return Err(ClaimError::Unavailable { detail: "restarting".to_owned() });
            }
            state.released.push(key.to_owned());
            if let Some(claim) = state.claims.remove(key) {
                state.pod_vms.remove(&claim.instance_id);
            }
        }
        self.point("release.after").await;
        Ok(())
    }
}

impl World {
    fn claim_now(&self, request: ClaimRequest) -> Result<Claim, ClaimError> {
        let mut state = self.state();
        if state.unavailable > 0 {
            state.unavailable -= 1;
            return Err(ClaimError::Unavailable { detail: "restarting".to_owned() });
        }
        let key = request.key.clone();
        if let Some(known) = state.claims.get(&key) {
            if known.request != request {
                return Err(ClaimError::InUse { detail: "other wish".to_owned() });
            }
            let state = known.state.borrow().clone();
            return Ok(Claim { key, state });
        }
        state.launched += 1;
        let number = u8::try_from(state.launched).expect("few");
        let instance_id = format!("i-{number}");
        state.pod_vms.insert(instance_id.clone(), FakePodVm::default());
        let assigned = ClaimState::Assigned(Assignment {
            instance_id: instance_id.clone(),
            address: [10, 93, 0, number].into(),
            tee: "sample".to_owned(),
            root_of_trust: "insecure".to_owned(),
            reference_values: std::collections::BTreeMap::new(),
            chain: vec![vec![1, 2, 3]],
            valid_secs: 600,
            host_access: vec!["host-path".to_owned()],
        });
        let now = match (&state.claim_failure, state.is_claim_held) {
            (Some(cause), _) => ClaimState::Failed { during: "launch".to_owned(), cause: cause.clone() },
            (None, true) => ClaimState::Pending { phase: "launching".to_owned() },
            (None, false) => assigned,
        };
        let (sender, _) = watch::channel(now.clone());
        state.claims.insert(key.clone(), FakeClaim { request, state: sender, instance_id });
        Ok(Claim { key, state: now })
    }

    /// What a pending claim turns into when its pod VM runs.
    pub(crate) fn assign(&self, key: &str, number: u8) {
        let state = self.state();
        let claim = state.claims.get(key).expect("claimed");
        claim.state.send_replace(ClaimState::Assigned(Assignment {
            instance_id: claim.instance_id.clone(),
            address: [10, 93, 0, number].into(),
            tee: "sample".to_owned(),
            root_of_trust: "insecure".to_owned(),
            reference_values: std::collections::BTreeMap::new(),
            chain: vec![vec![1, 2, 3]],
            valid_secs: 600,
            host_access: vec!["host-path".to_owned()],
        }));
    }
}
