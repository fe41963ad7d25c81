//! One running controller: engine, Claims service, metrics.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use peerpods_cloud_api::{ProviderError, Tee};
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

/// How long the provider may take to prove itself.
const VERIFY_DEADLINE: Duration = Duration::from_secs(120);

/// Runs until `stop` is done: first the service ends, then the engine. Machines run on.
pub async fn serve(config: &ControllerConfig, provider: &Provider, stop: impl Future<Output = ()>) -> Result<(), ServerError> {
    let state = StateDir::open(&config.state_dir)?;
    let verified = tokio::time::timeout(VERIFY_DEADLINE, provider.cloud.verify()).await;
    verified.unwrap_or(Err(ProviderError::DeadlineExceeded)).map_err(ServerError::VerifyProvider)?;

    let listen = |address: String| move |source| ServerError::Listen { address, source };
    let metrics_listener = match config.metrics {
        Some(address) => Some(metrics::bind(address).await.map_err(listen(address.to_string()))?),
        None => None,
    };
    let binder_ca = Arc::new(state.binder_ca.clone());
    let (driver, engine) = engine(state, provider, config.class.clone(), Timing::default());
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
