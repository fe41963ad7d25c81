//! `peerpods-controller cleanup`: deletes everything that this controller owns.

use std::time::Duration;

use peerpods_cloud_api::ProviderError;
use peerpods_controller_api::config::ControllerConfig;
use peerpods_engine::{DriverError, RequestError, Timing, Totals};

use crate::state_dir::{StateDir, StateError};
use crate::{Provider, server};

/// Why not everything is deleted.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// The folder cannot be used; most likely the controller still runs.
    #[error(transparent)]
    OpenState(#[from] StateError),
    /// The claims cannot be released.
    #[error("cannot release the claims")]
    ReleaseClaims(#[from] RequestError),
    /// The engine has stopped by itself.
    #[error("the engine has stopped")]
    Engine(#[from] DriverError),
    /// Time is up.
    #[error("not everything is gone after {limit:?}: {left}; run cleanup again")]
    Wait {
        /// The limit.
        limit: Duration,
        /// What is left.
        left: String,
    },
    /// What the provider has made on this host besides instances cannot be removed.
    #[error("cannot clean up the host")]
    CleanHost(#[source] ProviderError),
}

/// Interval between listings: somebody waits for this.
const SWEEP: Duration = Duration::from_millis(100);
/// Listings in a row that must show nothing.
const EMPTY_LISTINGS: u32 = 2;

/// Releases every claim, waits until the cloud shows nothing of ours, and removes what the provider made on this host.
pub async fn clean_up(config: &ControllerConfig, provider: &Provider, limit: Duration) -> Result<(), CleanupError> {
    let state = StateDir::open(&config.state_dir)?;
    let timing = Timing { sweep: SWEEP, reuse: Duration::ZERO, ..Timing::default() };
    let mut classes = config.class.clone();
    // Nothing is to be kept ready.
    classes.values_mut().for_each(|class| class.pool = None);
    let (driver, engine) = server::engine(state, provider, classes, timing);
    let mut totals = engine.totals();
    let emptied = async {
        engine.release_all().await?;
        // Listings that show nothing after everything is gone: one that began earlier could have missed what came late.
        let wait = async {
            let listings = |totals: &Totals| totals.calls.get("list").copied().unwrap_or_default();
            let mut last = listings(&*totals.wait_for(Totals::is_empty).await?);
            let mut empty = 0;
            while empty < EMPTY_LISTINGS {
                let now = totals.wait_for(|totals| listings(totals) > last).await?;
                (last, empty) = (listings(&now), if now.is_empty() { empty + 1 } else { 0 });
            }
            Ok::<_, tokio::sync::watch::error::RecvError>(())
        };
        match tokio::time::timeout(limit, wait).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(CleanupError::ReleaseClaims(RequestError::Stopped)),
            Err(_) => Err(CleanupError::Wait { limit, left: left(&engine.totals().borrow()) }),
        }
    };
    tokio::select! {
        result = driver.run(std::future::pending()) => result?,
        result = emptied => result?,
    }
    if let Some(host) = &provider.host {
        host.cleanup_host().await.map_err(CleanupError::CleanHost)?;
    }
    Ok(())
}

fn left(totals: &Totals) -> String {
    if !totals.is_listed {
        return "the cloud has not been listed yet".to_owned();
    }
    let counts = totals.claims.iter().map(|(status, n)| format!("{n} {status} claims"));
    let counts = counts.chain(totals.pod_vms.iter().map(|(state, n)| format!("{n} {state} pod VMs")));
    counts.chain([format!("{} instances without a record", totals.unowned)]).collect::<Vec<_>>().join(", ")
}
