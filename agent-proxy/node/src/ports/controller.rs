//! The controller over its unix socket.

use async_trait::async_trait;
use peerpods_claims::{Claim, ClaimError, ClaimRequest, ClaimStream, Client};

use super::Claims;

#[async_trait]
impl Claims for Client {
    async fn claim(&self, request: ClaimRequest) -> Result<Claim, ClaimError> {
        Client::claim(self, request).await
    }

    async fn watch(&self, key: &str) -> Result<ClaimStream, ClaimError> {
        Client::watch(self, key).await
    }

    async fn release(&self, key: &str) -> Result<(), ClaimError> {
        Client::release(self, key).await
    }
}
