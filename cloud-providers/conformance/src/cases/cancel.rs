//! Calls that are dropped half way, as those of a controller that dies.

use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::time::{sleep, timeout};

use crate::Trial;
use crate::trial::ids;

/// Some calls have not begun by then, some are half done, and some have ended.
const MOMENTS: [Duration; 4] = [Duration::ZERO, Duration::from_millis(1), Duration::from_millis(10), Duration::from_millis(50)];

pub(super) async fn a_launch_that_is_dropped_is_found_by_its_token(trial: &Trial<'_>) -> Result<()> {
    for moment in MOMENTS {
        let request = trial.request(2)?;
        let _ = timeout(moment, trial.provider.launch(&request)).await;
        let launched = trial.another().launch(&request).await?.instances;
        ensure!(ids(&trial.launch_as(&request).await?) == ids(&launched), "dropped after {moment:?}");
        let listed = trial.provider.list(&trial.owner()).await?;
        let of_token = listed.iter().filter(|instance| instance.token == request.token).count();
        ensure!(of_token == 2, "dropped after {moment:?}: {listed:?}");
    }
    Ok(())
}

pub(super) async fn a_deletion_that_is_dropped_can_be_repeated(trial: &Trial<'_>) -> Result<()> {
    for moment in MOMENTS {
        let instance = trial.one().await?;
        let _ = timeout(moment, trial.provider.delete(&instance.id)).await;
        match trial.another().delete(&instance.id).await {
            Ok(()) | Err(peerpods_cloud_api::ProviderError::NotFound) => trial.until_gone(&instance.id).await?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

pub(super) async fn a_read_that_is_dropped_harms_nothing(trial: &Trial<'_>) -> Result<()> {
    let instance = trial.until_running(&trial.one().await?.id).await?;
    for moment in MOMENTS {
        let _ = timeout(moment, trial.provider.get(&instance.id)).await;
        let _ = timeout(moment, trial.provider.list(&trial.owner())).await;
    }
    sleep(Duration::from_millis(50)).await;
    ensure!(trial.provider.get(&instance.id).await? == instance);
    Ok(())
}
