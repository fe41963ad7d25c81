//! What reads and listings show.

use anyhow::{Result, bail, ensure};
use peerpods_cloud_api::{InstanceId, InstanceState, LaunchRequest, OwnerTag, ProviderError};

use crate::Trial;
use crate::trial::ids;

/// Names that are no instance's on any cloud, and some that could lead out of a folder.
pub(super) const STRANGE: &[&str] = &["..", "../../etc/passwd", "a/b", ".", "-", ":", "i-00000000000000000"];

pub(super) async fn a_launched_instance_can_be_read(trial: &Trial<'_>) -> Result<()> {
    let launched = trial.one().await?;
    let seen = trial.provider.get(&launched.id).await?;
    ensure!((&seen.id, &seen.owner, &seen.token) == (&launched.id, &launched.owner, &launched.token), "{seen:?}");
    Ok(())
}

pub(super) async fn an_instance_comes_to_run_and_has_an_address(trial: &Trial<'_>) -> Result<()> {
    trial.until_running(&trial.one().await?.id).await.map(drop)
}

pub(super) async fn running_instances_have_different_addresses(trial: &Trial<'_>) -> Result<()> {
    let mut addresses = std::collections::BTreeSet::new();
    for instance in trial.launch(3).await? {
        addresses.extend(trial.until_running(&instance.id).await?.address);
    }
    ensure!(addresses.len() == 3, "{addresses:?}");
    Ok(())
}

pub(super) async fn a_running_instance_stays_what_it_is(trial: &Trial<'_>) -> Result<()> {
    let running = trial.until_running(&trial.one().await?.id).await?;
    for _ in 0..5 {
        ensure!(trial.provider.get(&running.id).await? == running);
    }
    Ok(())
}

pub(super) async fn an_unknown_instance_is_not_found(trial: &Trial<'_>) -> Result<()> {
    // As an id that there could have been: one that is gone.
    let instance = trial.one().await?;
    trial.delete(&instance.id).await?;
    ensure!(trial.provider.get(&instance.id).await == Err(ProviderError::NotFound));
    Ok(())
}

pub(super) async fn a_strange_id_is_not_found(trial: &Trial<'_>) -> Result<()> {
    let long = "x".repeat(128);
    for id in STRANGE.iter().copied().chain([long.as_str()]) {
        let seen = trial.provider.get(&InstanceId::new(id)?).await;
        ensure!(seen == Err(ProviderError::NotFound), "{id}: {seen:?}");
    }
    Ok(())
}

pub(super) async fn another_opening_reads_the_same(trial: &Trial<'_>) -> Result<()> {
    let running = trial.until_running(&trial.one().await?.id).await?;
    ensure!(trial.another().get(&running.id).await? == running);
    Ok(())
}

pub(super) async fn nothing_is_listed_for_an_owner_of_nothing(trial: &Trial<'_>) -> Result<()> {
    ensure!(trial.listed(&trial.owner()).await?.is_empty());
    Ok(())
}

pub(super) async fn a_launched_instance_is_listed(trial: &Trial<'_>) -> Result<()> {
    let instance = trial.one().await?;
    ensure!(trial.listed(&trial.owner()).await? == [instance.id].into());
    Ok(())
}

pub(super) async fn a_batch_is_listed_whole(trial: &Trial<'_>) -> Result<()> {
    let launched = trial.launch(trial.subject.largest_batch).await?;
    ensure!(trial.listed(&trial.owner()).await? == ids(&launched));
    Ok(())
}

pub(super) async fn owners_see_their_own_alone(trial: &Trial<'_>) -> Result<()> {
    let own = trial.launch(2).await?;
    let theirs = trial.launch_as(&LaunchRequest { owner: trial.other_owner()?, ..trial.request(1)? }).await?;
    ensure!(trial.listed(&trial.owner()).await? == ids(&own));
    ensure!(trial.listed(&trial.other_owner()?).await? == ids(&theirs));
    Ok(())
}

async fn not_shown_to(trial: &Trial<'_>, similar: OwnerTag) -> Result<()> {
    trial.one().await?;
    let listed = trial.listed(&similar).await?;
    ensure!(listed.is_empty(), "{similar} sees {listed:?}");
    Ok(())
}

pub(super) async fn an_owner_whose_name_starts_another_sees_its_own_alone(trial: &Trial<'_>) -> Result<()> {
    let owner = trial.owner();
    let owner = owner.as_str();
    not_shown_to(trial, OwnerTag::new(&owner[..owner.len() - 1])?).await?;
    not_shown_to(trial, OwnerTag::new(format!("{owner}0"))?).await
}

pub(super) async fn owners_differ_by_case(trial: &Trial<'_>) -> Result<()> {
    let upper = trial.owner().as_str().to_ascii_uppercase();
    if upper == trial.owner().as_str() {
        bail!("the subject's owner_prefix needs a lower-case letter");
    }
    not_shown_to(trial, OwnerTag::new(upper)?).await
}

pub(super) async fn a_listing_agrees_with_a_read(trial: &Trial<'_>) -> Result<()> {
    let running = trial.until_running(&trial.one().await?.id).await?;
    ensure!(trial.provider.list(&trial.owner()).await? == [running]);
    Ok(())
}

pub(super) async fn another_opening_lists_the_same(trial: &Trial<'_>) -> Result<()> {
    let launched = trial.launch(2).await?;
    ensure!(ids(&trial.another().list(&trial.owner()).await?) == ids(&launched));
    Ok(())
}

pub(super) async fn listings_during_a_launch_show_nothing_twice(trial: &Trial<'_>) -> Result<()> {
    let looks = async {
        for _ in 0..20 {
            let listed = trial.provider.list(&trial.owner()).await?;
            let is_deleted = listed.iter().any(|instance| instance.state == InstanceState::Deleting);
            ensure!(ids(&listed).len() == listed.len() && listed.len() <= 3 && !is_deleted, "{listed:?}");
        }
        Ok(())
    };
    tokio::try_join!(trial.launch(3), looks).map(drop)
}
