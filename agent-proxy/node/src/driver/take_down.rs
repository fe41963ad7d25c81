//! The way down: link, network, claim, folder, record. Every part is repeated until it has succeeded, also by the next daemon.

use std::future::ready;
use std::time::Duration;

use tokio::time::sleep;

use super::{Driver, Next, StepError};
use crate::ledger::now_ms;
use crate::ports::chain;
use crate::record::{ClaimDuty, SandboxState};

impl Driver {
    /// Stopping -> nothing.
    pub(super) async fn take_down(&self) -> Next {
        self.remove_parts().await;
        self.until_done("remove the sandbox's file", || ready(self.ledger.remove().map_err(|e| chain(&e)))).await;
        tracing::info!("nothing of the sandbox is left");
        Next::Finished
    }

    /// Failed: as Stopping, but the record stays for StartVM to ask why, until StopVM or the sandbox's death.
    pub(super) async fn clean_up(&self) -> Result<(), StepError> {
        self.remove_parts().await;
        std::future::pending().await
    }

    async fn remove_parts(&self) {
        let (id, netns, vni) = self.ledger.read(|record| (record.sandbox_id.clone(), record.netns.clone(), record.vni));
        let ports = &self.context.ports;
        self.until_done("stop the link", || ports.links.stop(&id)).await;
        let network = async {
            if let Some(netns) = &netns {
                self.until_done("remove the pod's network", || ports.networks.remove(netns, vni)).await;
            }
        };
        tokio::join!(network, self.settle_claim());
        self.until_done("remove the sandbox's folder", || ports.links.remove_folder(&id)).await;
    }

    /// Waits for a newer sandbox while the pod VM is on offer, then releases it. A hand-over interrupts this.
    async fn settle_claim(&self) {
        loop {
            let key = self.ledger.read(|record| record.claim_key.clone());
            match self.ledger.state().claim_duty() {
                ClaimDuty::Nothing => return,
                ClaimDuty::Offer => {
                    sleep(self.offer_left()).await;
                    // On disk before the release is sent: from here on nobody may take the claim over.
                    self.until_done("record the release", || ready(self.owe(ClaimDuty::Release))).await;
                }
                ClaimDuty::Release => {
                    let claims = &self.context.ports.claims;
                    self.until_done("release the pod VM", || claims.release(&key)).await;
                    tracing::info!("the pod VM is released");
                    self.until_done("record the release", || ready(self.owe(ClaimDuty::Nothing))).await;
                }
            }
        }
    }

    fn offer_left(&self) -> Duration {
        let SandboxState::Stopping(stopping) = self.ledger.state() else { return Duration::ZERO };
        let waited = Duration::from_millis(now_ms().saturating_sub(stopping.since_unix_ms));
        self.context.timing.takeover.saturating_sub(waited)
    }

    fn owe(&self, duty: ClaimDuty) -> Result<(), String> {
        let written = self.ledger.update(|record| match &mut record.state {
            SandboxState::Stopping(stopping) => stopping.claim = duty,
            SandboxState::Failed(failure) => failure.claim = duty,
            _ => {}
        });
        written.map_err(|e| chain(&e))
    }

    async fn until_done<F, E>(&self, during: &'static str, act: impl Fn() -> F)
    where
        F: Future<Output = Result<(), E>>,
        E: std::fmt::Display,
    {
        let mut pause = self.context.timing.retry_first;
        while let Err(error) = act().await {
            let cause = error.to_string();
            tracing::warn!(during, cause, "trying again");
            self.ledger.set_trouble(Some(&format!("cannot {during}: {cause}")));
            sleep(pause).await;
            pause = (pause * 2).min(self.context.timing.retry_last);
        }
    }
}
