//! What a launch gives.

use anyhow::{Result, ensure};
use peerpods_cloud_api::{InstanceState, LaunchRequest, LaunchToken, OwnerTag};

use crate::Trial;
use crate::trial::ids;

/// All that the grammar of names allows, in a few characters.
const CHARACTERS: &str = "AZaz09._:/-";

pub(super) async fn one_instance_is_launched(trial: &Trial<'_>) -> Result<()> {
    trial.one().await.map(drop)
}

pub(super) async fn three_instances_have_three_ids(trial: &Trial<'_>) -> Result<()> {
    ensure!(ids(&trial.launch(3).await?).len() == 3);
    Ok(())
}

pub(super) async fn the_largest_batch_is_launched(trial: &Trial<'_>) -> Result<()> {
    let count = trial.subject.largest_batch;
    ensure!(ids(&trial.launch(count).await?).len() == usize::try_from(count)?);
    Ok(())
}

pub(super) async fn instances_carry_the_owner(trial: &Trial<'_>) -> Result<()> {
    let instance = trial.one().await?;
    ensure!(instance.owner == trial.owner() && trial.provider.get(&instance.id).await?.owner == trial.owner());
    Ok(())
}

pub(super) async fn instances_carry_the_token(trial: &Trial<'_>) -> Result<()> {
    let request = trial.request(2)?;
    for instance in trial.launch_as(&request).await? {
        ensure!(instance.token == request.token && trial.provider.get(&instance.id).await?.token == request.token);
    }
    Ok(())
}

pub(super) async fn a_new_instance_is_pending_or_running(trial: &Trial<'_>) -> Result<()> {
    let instance = trial.one().await?;
    ensure!(matches!(instance.state, InstanceState::Pending | InstanceState::Running), "{instance:?}");
    Ok(())
}

async fn with_user_data(trial: &Trial<'_>, user_data: Vec<u8>) -> Result<()> {
    trial.launch_as(&LaunchRequest { user_data, ..trial.request(1)? }).await.map(drop)
}

pub(super) async fn user_data_may_be_empty(trial: &Trial<'_>) -> Result<()> {
    with_user_data(trial, Vec::new()).await
}

pub(super) async fn user_data_may_be_as_long_as_allowed(trial: &Trial<'_>) -> Result<()> {
    with_user_data(trial, vec![b'x'; 1024]).await
}

pub(super) async fn user_data_may_be_any_bytes(trial: &Trial<'_>) -> Result<()> {
    with_user_data(trial, (0..=255).collect()).await
}

async fn with_owner(trial: &Trial<'_>, suffix: &str) -> Result<()> {
    let owner = OwnerTag::new(format!("{}{suffix}", trial.owner()))?;
    let instance = trial.launch_as(&LaunchRequest { owner: owner.clone(), ..trial.request(1)? }).await?.remove(0);
    ensure!(trial.listed(&owner).await? == [instance.id.clone()].into());
    trial.delete(&instance.id).await
}

pub(super) async fn an_owner_may_have_every_allowed_character(trial: &Trial<'_>) -> Result<()> {
    with_owner(trial, CHARACTERS).await
}

pub(super) async fn an_owner_may_be_as_long_as_allowed(trial: &Trial<'_>) -> Result<()> {
    with_owner(trial, &"x".repeat(128 - trial.owner().as_str().len())).await
}

async fn with_token(trial: &Trial<'_>, suffix: &str) -> Result<()> {
    let request = trial.request(1)?;
    let token = LaunchToken::new(format!("{}{suffix}", request.token))?;
    let request = LaunchRequest { token: token.clone(), ..request };
    let launched = trial.launch_as(&request).await?;
    ensure!(launched[0].token == token && ids(&trial.launch_as(&request).await?) == ids(&launched));
    Ok(())
}

pub(super) async fn a_token_may_have_every_allowed_character(trial: &Trial<'_>) -> Result<()> {
    with_token(trial, CHARACTERS).await
}

pub(super) async fn a_token_may_be_as_long_as_allowed(trial: &Trial<'_>) -> Result<()> {
    let length = trial.token()?.as_str().len();
    with_token(trial, &"x".repeat(64 - length)).await
}

pub(super) async fn two_launches_at_once_are_two(trial: &Trial<'_>) -> Result<()> {
    let (one, other) = tokio::try_join!(trial.launch(1), trial.launch(2))?;
    ensure!(ids(&one).is_disjoint(&ids(&other)));
    ensure!(trial.listed(&trial.owner()).await?.len() == 3);
    Ok(())
}
