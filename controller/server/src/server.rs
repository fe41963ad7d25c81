//! One running controller: engine, Claims service, metrics.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use peerpods_cloud_api::{CloudProvider, ProviderError, Tee};
use peerpods_controller_api::config::ControllerConfig;
use peerpods_controller_api::{Class, ClassName};
use peerpods_engine::{Driver, DriverError, Handle, Parts, Timing};
use peerpods_tunnel::user_data::UserData;
use tokio::sync::watch;

use crate::claims::Service;
use crate::state_dir::{StateDir, StateError, random};
use crate::{Provider, admin, metrics};

/// Why a controller cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Its folder cannot be used.
    #[error(transparent)]
    OpenState(#[from] StateError),
    /// The provider cannot launch anything.
    #[error("the provider cannot serve launches")]
    VerifyProvider(#[source] ProviderError),
    /// A socket cannot be bound.
    #[error("cannot listen on {address}")]
    Listen {
        /// Which one.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The engine has stopped by itself.
    #[error("the engine has stopped")]
    Engine(#[from] DriverError),
    /// The Claims service has stopped by itself.
    #[error("the claims service has stopped: {detail}")]
    ServeClaims {
        /// Why.
        detail: String,
    },
}

/// How long one proof of the provider may take.
const VERIFY_DEADLINE: Duration = Duration::from_secs(120);

/// Pauses between proofs that an outage or a limit has stopped.
const VERIFY_PAUSES: [Duration; 3] = [Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2)];

/// Runs until `stop` is done: first the service ends, then the engine. Machines run on.
pub async fn serve(config: &ControllerConfig, provider: &Provider, stop: impl Future<Output = ()>) -> Result<(), ServerError> {
    let state = StateDir::open(&config.state_dir)?;
    verify(provider.cloud.as_ref()).await.map_err(ServerError::VerifyProvider)?;

    let listen = |address: String| move |source| ServerError::Listen { address, source };
    let metrics_listener = match config.metrics {
        Some(address) => Some(metrics::bind(address).await.map_err(listen(address.to_string()))?),
        None => None,
    };
    let binder_ca = Arc::new(state.binder_ca.clone());
    let classes = with_zones(config.class.clone(), provider.cloud.as_ref()).await;
    let (driver, engine) = engine(state, provider, classes, Timing::default());
    let socket: &PathBuf = &config.claims_socket;
    let listener = peerpods_claims::bind_socket(socket).map_err(listen(socket.display().to_string()))?;
    let admin_socket = config.admin_socket();
    let admin_listener = peerpods_claims::bind_socket(&admin_socket).map_err(listen(admin_socket.display().to_string()))?;
    let admin = admin::serve(admin_listener, engine.clone(), provider.console.clone());
    tracing::info!(socket = %socket.display(), classes = config.class.len(), "serving claims");

    let (stopping, _) = watch::channel(Phase::Serving);
    let reached = |phase: Phase| {
        let mut phases = stopping.subscribe();
        async move { drop(phases.wait_for(|now| *now >= phase).await) }
    };
    let claims = async {
        let service = Arc::new(Service { engine: engine.clone(), binder_ca });
        let served = peerpods_claims::serve(listener, service, reached(Phase::Draining)).await;
        served.map_err(|error| ServerError::ServeClaims { detail: error.to_string() })?;
        // Nobody can ask any more: now the engine may stop.
        let _ = stopping.send(Phase::Stopped);
        Ok(())
    };
    let driver = async { driver.run(reached(Phase::Stopped)).await.map_err(ServerError::from) };
    let signal = async {
        stop.await;
        tracing::info!("stopping; machines run on");
        let _ = stopping.send(Phase::Draining);
        Ok(())
    };
    let metrics = async {
        match metrics_listener {
            Some(listener) => metrics::serve(listener, engine.totals()).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        result = async { tokio::try_join!(claims, driver, signal) } => result.map(|_| ()),
        () = metrics => Ok(()),
        () = admin => Ok(()),
    }
}

/// Lets the provider prove itself. What an operator must mend ends it; an outage of the cloud does not, as nodes need somebody who
/// records their wishes meanwhile.
async fn verify(cloud: &dyn CloudProvider) -> Result<(), ProviderError> {
    let mut pauses = VERIFY_PAUSES.into_iter();
    loop {
        let verified = tokio::time::timeout(VERIFY_DEADLINE, cloud.verify()).await.unwrap_or(Err(ProviderError::DeadlineExceeded));
        let error = match verified {
            Err(error @ (ProviderError::Unavailable { .. } | ProviderError::DeadlineExceeded | ProviderError::Throttled { .. })) => error,
            other => return other,
        };
        let Some(pause) = pauses.next() else {
            tracing::warn!(%error, "the provider cannot be verified now; serving all the same");
            return Ok(());
        };
        tracing::warn!(%error, "the provider cannot be verified yet");
        tokio::time::sleep(pause).await;
    }
}

/// Classes that name no zone may use all that the provider has, so that a full one is passed over.
async fn with_zones(mut classes: BTreeMap<ClassName, Class>, cloud: &dyn CloudProvider) -> BTreeMap<ClassName, Class> {
    match cloud.zones().await {
        Ok(zones) => {
            let unplaced = classes.values_mut().filter(|class| class.zone.is_none() && class.zones.is_empty());
            unplaced.for_each(|class| class.zones.clone_from(&zones));
        }
        Err(error) => tracing::warn!(%error, "the provider's zones are unknown: classes without zones use its first one"),
    }
    classes
}

/// An engine over the opened folder.
pub(crate) fn engine(state: StateDir, provider: &Provider, classes: BTreeMap<ClassName, Class>, timing: Timing) -> (Driver, Handle) {
    let binder_ca_sha256 = state.binder_ca.spki_sha256_hex();
    Driver::new(Parts {
        journal: Arc::new(state.journal),
        provider: Arc::clone(&provider.cloud),
        console: provider.console.clone(),
        owner: state.owner,
        classes,
        user_data: Box::new(move |tee| user_data(&binder_ca_sha256, tee)),
        random: Box::new(random),
        timing,
    })
}

/// Public and the same for every launch with this TEE and binder CA.
fn user_data(binder_ca_sha256: &str, tee: Tee) -> Vec<u8> {
    UserData::new(binder_ca_sha256, tee.as_str()).encode()
}

/// How far a controller is on its way down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Serving,
    Draining,
    Stopped,
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use async_trait::async_trait;
    use peerpods_cloud_api::{Instance, InstanceId, InstanceType, LaunchRequest, Launched, OwnerTag};

    use super::*;

    /// A cloud whose proof fails this often with this error.
    struct Proof(AtomicU32, ProviderError);

    #[async_trait]
    impl CloudProvider for Proof {
        async fn verify(&self) -> Result<(), ProviderError> {
            let left = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
            if left.is_ok() { Err(self.1.clone()) } else { Ok(()) }
        }

        async fn launch(&self, _: &LaunchRequest) -> Result<Launched, ProviderError> {
            Err(self.1.clone())
        }

        async fn get(&self, _: &InstanceId) -> Result<Instance, ProviderError> {
            Err(self.1.clone())
        }

        async fn delete(&self, _: &InstanceId) -> Result<(), ProviderError> {
            Err(self.1.clone())
        }

        async fn list(&self, _: &OwnerTag) -> Result<Vec<Instance>, ProviderError> {
            Err(self.1.clone())
        }

        async fn instance_types(&self) -> Result<Vec<InstanceType>, ProviderError> {
            Err(self.1.clone())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_at_the_start_is_waited_for_and_a_wrong_setting_is_not() {
        let outage = ProviderError::Unavailable { detail: "down".to_owned() };
        let short = Proof(AtomicU32::new(2), outage.clone());
        assert_eq!((verify(&short).await, short.0.load(Ordering::Relaxed)), (Ok(()), 0));
        let long = Proof(AtomicU32::new(100), outage);
        assert_eq!((verify(&long).await, long.0.load(Ordering::Relaxed)), (Ok(()), 96));
        let wrong = ProviderError::InvalidRequest { detail: "image".to_owned() };
        assert_eq!(verify(&Proof(AtomicU32::new(1), wrong.clone())).await, Err(wrong));
    }
}
