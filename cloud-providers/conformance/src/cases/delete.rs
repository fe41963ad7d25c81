//! What a deletion does, and what it leaves alone.

use anyhow::{Result, ensure};
use futures::future::join_all;
use peerpods_cloud_api::{InstanceId, InstanceState, LaunchRequest, ProviderError};

use super::read::STRANGE;
use crate::Trial;
use crate::trial::ids;

/// Accepted, or gone already.
fn is_fine(result: &Result<(), ProviderError>) -> bool {
    matches!(result, Ok(()) | Err(ProviderError::NotFound))
}

pub(super) async fn a_deletion_is_accepted_and_the_instance_goes(trial: &Trial<'_>) -> Result<()> {
    let instance = trial.until_running(&trial.one().await?.id).await?;
    trial.delete(&instance.id).await
}

pub(super) async fn a_deletion_again_is_no_error(trial: &Trial<'_>) -> Result<()> {
    let instance = trial.one().await?;
    trial.provider.delete(&instance.id).await?;
    let again = trial.provider.delete(&instance.id).await;
    ensure!(is_fine(&again), "{again:?}");
    trial.until_gone(&instance.id).await
}

pub(super) async fn a_gone_instance_is_not_found(trial: &Trial<'_>) -> Result<()> {
    let instance = trial.one().await?;
    trial.delete(&instance.id).await?;
    // A cloud may still know its name; then a read must say that it is gone.
    let again = trial.provider.delete(&instance.id).await;
    ensure!(is_fine(&again), "{again:?}");
    ensure!(trial.provider.get(&instance.id).await == Err(ProviderError::NotFound));
    Ok(())
}

pub(super) async fn an_unknown_instance_cannot_be_deleted(trial: &Trial<'_>) -> Result<()> {
    let answer = trial.provider.delete(&InstanceId::new("i-0123456789abcdef0")?).await;
    ensure!(answer == Err(ProviderError::NotFound), "{answer:?}");
    Ok(())
}

pub(super) async fn a_strange_id_deletes_nothing(trial: &Trial<'_>) -> Result<()> {
    let instance = trial.one().await?;
    for id in STRANGE {
        let answer = trial.provider.delete(&InstanceId::new(*id)?).await;
        ensure!(answer == Err(ProviderError::NotFound), "{id}: {answer:?}");
    }
    ensure!(trial.listed(&trial.owner()).await? == [instance.id].into());
    Ok(())
}

pub(super) async fn a_deleted_instance_never_runs_again(trial: &Trial<'_>) -> Result<()> {
    let instance = trial.one().await?;
    trial.provider.delete(&instance.id).await?;
    // Each read on the way is checked.
    trial.until_gone(&instance.id).await?;
    for _ in 0..3 {
        ensure!(trial.provider.get(&instance.id).await == Err(ProviderError::NotFound));
    }
    Ok(())
}

pub(super) async fn a_deleted_instance_is_listed_as_such_or_not_at_all(trial: &Trial<'_>) -> Result<()> {
    let instance = trial.one().await?;
    trial.provider.delete(&instance.id).await?;
    let listed = trial.provider.list(&trial.owner()).await?;
    ensure!(listed.iter().all(|seen| seen.state == InstanceState::Deleting), "{listed:?}");
    trial.until_gone(&instance.id).await?;
    ensure!(trial.listed(&trial.owner()).await?.is_empty());
    Ok(())
}

pub(super) async fn the_rest_of_a_batch_stays(trial: &Trial<'_>) -> Result<()> {
    let launched = trial.launch(3).await?;
    trial.delete(&launched[1].id).await?;
    for instance in [&launched[0], &launched[2]] {
        trial.until_running(&instance.id).await?;
    }
    Ok(())
}

pub(super) async fn five_deletions_at_once_are_one(trial: &Trial<'_>) -> Result<()> {
    let instance = trial.one().await?;
    let openings: Vec<_> = (0..5).map(|_| trial.another()).collect();
    let answers = join_all(openings.iter().map(|provider| provider.delete(&instance.id))).await;
    ensure!(answers.iter().all(is_fine) && answers.iter().any(Result::is_ok), "{answers:?}");
    trial.until_gone(&instance.id).await
}

pub(super) async fn an_instance_may_be_deleted_at_once(trial: &Trial<'_>) -> Result<()> {
    for instance in trial.launch(2).await? {
        trial.delete(&instance.id).await?;
    }
    Ok(())
}

pub(super) async fn another_opening_deletes_it(trial: &Trial<'_>) -> Result<()> {
    let instance = trial.one().await?;
    trial.another().delete(&instance.id).await?;
    trial.until_gone(&instance.id).await
}

pub(super) async fn one_owners_deletion_leaves_the_other_ones(trial: &Trial<'_>) -> Result<()> {
    let own = trial.one().await?;
    let theirs = trial.launch_as(&LaunchRequest { owner: trial.other_owner()?, ..trial.request(1)? }).await?;
    trial.delete(&own.id).await?;
    ensure!(trial.listed(&trial.other_owner()?).await? == ids(&theirs));
    Ok(())
}

pub(super) async fn a_launch_after_a_deletion_is_another_one(trial: &Trial<'_>) -> Result<()> {
    let first = trial.one().await?;
    trial.delete(&first.id).await?;
    let second = trial.until_running(&trial.one().await?.id).await?;
    ensure!(first.id != second.id);
    Ok(())
}
