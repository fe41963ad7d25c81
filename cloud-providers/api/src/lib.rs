//! The contract between the controller and a cloud: [`CloudProvider`], its closed errors and units.
//!
//! A provider turns launch requests into instances and deletes them; it keeps no record of its own and retries nothing.
//! Retry, rate limits and metrics are decorators written once, above this trait.
//! There is no SDK here: every crate that talks of instances may depend on this one.

mod error;
mod instance;
mod limits;
pub mod settings;
mod units;

pub use error::ProviderError;
pub use instance::{
    Instance, InstanceId, InstanceState, InstanceType, InvalidName, LaunchRequest, LaunchToken, Launched, OwnerTag, Tee, Zone,
};
pub use limits::{Limits, Rate};
pub use units::Mib;

use async_trait::async_trait;

/// What the engine needs of a cloud.
///
/// Every call is tried once, returns within the provider's own deadline and may be cancelled at any await.
/// After an error other than [`ProviderError::InvalidRequest`] and [`ProviderError::PermissionDenied`] the caller must
/// assume that the call may have taken effect, and find out with [`CloudProvider::list`].
#[async_trait]
pub trait CloudProvider: Send + Sync {
    /// Proves, without changing anything, that credentials, image, network and quota can serve launches.
    /// The error says what is wrong in words for the operator.
    async fn verify(&self) -> Result<(), ProviderError>;

    /// Launches `request.count` instances and returns as soon as the cloud has accepted them.
    ///
    /// Idempotent by `request.token`: a second call with the same token and parameters returns the instances of the
    /// first one. Fewer instances than asked for may come back; the rest were not launched.
    async fn launch(&self, request: &LaunchRequest) -> Result<Launched, ProviderError>;

    /// Reads one instance. `NotFound` means that it is gone or was never there.
    async fn get(&self, id: &InstanceId) -> Result<Instance, ProviderError>;

    /// Asks the cloud to delete an instance with everything that belongs to it.
    /// Success means "accepted"; only `NotFound`, from here or from [`CloudProvider::get`], means "gone".
    async fn delete(&self, id: &InstanceId) -> Result<(), ProviderError>;

    /// Lists all instances that carry this owner tag, whatever their state, those being deleted included.
    async fn list(&self, owner: &OwnerTag) -> Result<Vec<Instance>, ProviderError>;

    /// Lists the instance types that may be launched, cheapest first.
    async fn instance_types(&self) -> Result<Vec<InstanceType>, ProviderError>;

    /// Where instances may be launched, the first choice first; empty where a cloud has no such places.
    async fn zones(&self) -> Result<Vec<Zone>, ProviderError> {
        Ok(Vec::new())
    }

    /// How often all of this may be called; the caller keeps to it.
    fn limits(&self) -> Limits {
        Limits::default()
    }
}
