//! What a token guarantees.

use anyhow::{Result, bail, ensure};
use futures::future::try_join_all;
use peerpods_cloud_api::{LaunchRequest, ProviderError};

use crate::Trial;
use crate::trial::ids;

pub(super) async fn the_same_request_gives_the_same_instances(trial: &Trial<'_>) -> Result<()> {
    let request = trial.request(2)?;
    let first = trial.launch_as(&request).await?;
    ensure!(ids(&trial.launch_as(&request).await?) == ids(&first));
    ensure!(trial.listed(&trial.owner()).await? == ids(&first));
    Ok(())
}

pub(super) async fn the_same_request_of_another_opening_gives_the_same(trial: &Trial<'_>) -> Result<()> {
    let request = trial.request(2)?;
    let first = trial.launch_as(&request).await?;
    ensure!(ids(&trial.another().launch(&request).await?.instances) == ids(&first));
    Ok(())
}

async fn at_once(trial: &Trial<'_>, times: usize) -> Result<()> {
    let request = trial.request(2)?;
    let openings: Vec<_> = (0..times).map(|_| trial.another()).collect();
    let launched = try_join_all(openings.iter().map(|provider| provider.launch(&request))).await?;
    let listed = trial.listed(&trial.owner()).await?;
    ensure!(listed.len() == 2, "{listed:?}");
    // Whoever is answered last knows of all.
    ensure!(launched.iter().all(|one| ids(&one.instances).is_subset(&listed)) && trial.launch_as(&request).await?.len() == 2);
    Ok(())
}

pub(super) async fn the_same_request_at_once_launches_once(trial: &Trial<'_>) -> Result<()> {
    at_once(trial, 2).await
}

pub(super) async fn ten_of_the_same_at_once_launch_once(trial: &Trial<'_>) -> Result<()> {
    at_once(trial, 10).await
}

pub(super) async fn the_same_request_later_gives_the_same(trial: &Trial<'_>) -> Result<()> {
    let request = trial.request(1)?;
    let first = trial.launch_as(&request).await?;
    trial.until_running(&first[0].id).await?;
    trial.one().await?;
    ensure!(ids(&trial.launch_as(&request).await?) == ids(&first));
    Ok(())
}

pub(super) async fn a_deleted_instance_does_not_come_back(trial: &Trial<'_>) -> Result<()> {
    let request = trial.request(3)?;
    let first = trial.launch_as(&request).await?;
    trial.delete(&first[0].id).await?;
    let again = ids(&trial.provider.launch(&request).await?.instances);
    // A cloud may still remember it, but as deleted.
    let left: Vec<_> = first[1..].iter().map(|instance| instance.id.clone()).collect();
    ensure!(left.iter().all(|id| again.contains(id)) && again.is_subset(&ids(&first)), "{again:?} of {first:?}");
    ensure!(trial.listed(&trial.owner()).await? == left.into_iter().collect());
    Ok(())
}

pub(super) async fn another_token_gives_other_instances(trial: &Trial<'_>) -> Result<()> {
    ensure!(ids(&trial.launch(1).await?).is_disjoint(&ids(&trial.launch(1).await?)));
    Ok(())
}

async fn refused(trial: &Trial<'_>, change: impl FnOnce(&mut LaunchRequest) -> Result<()>) -> Result<()> {
    let mut request = trial.request(2)?;
    let first = trial.launch_as(&request).await?;
    change(&mut request)?;
    match trial.provider.launch(&request).await {
        Err(ProviderError::AlreadyExists { .. }) => {}
        other => bail!("the token is taken, and this is the answer: {other:?}"),
    }
    ensure!(trial.listed(&trial.owner()).await? == ids(&first) && trial.listed(&trial.other_owner()?).await?.is_empty());
    Ok(())
}

pub(super) async fn a_token_with_other_user_data_is_refused(trial: &Trial<'_>) -> Result<()> {
    refused(trial, |request| {
        request.user_data.push(b'!');
        Ok(())
    })
    .await
}

pub(super) async fn a_token_with_a_larger_count_is_refused(trial: &Trial<'_>) -> Result<()> {
    refused(trial, |request| {
        request.count = 3;
        Ok(())
    })
    .await
}

pub(super) async fn a_token_with_a_smaller_count_is_refused(trial: &Trial<'_>) -> Result<()> {
    refused(trial, |request| {
        request.count = 1;
        Ok(())
    })
    .await
}

pub(super) async fn a_token_with_another_type_is_refused(trial: &Trial<'_>) -> Result<()> {
    let types = trial.provider.instance_types().await?;
    let fits = |name: &str| name != trial.subject.instance_type;
    let Some(other) = types.iter().find(|offered| fits(&offered.name) && offered.tees.contains(&trial.subject.tee)) else {
        bail!("the subject offers one type alone");
    };
    refused(trial, |request| {
        request.instance_type.clone_from(&other.name);
        Ok(())
    })
    .await
}

pub(super) async fn a_token_of_another_owner_is_refused(trial: &Trial<'_>) -> Result<()> {
    refused(trial, |request| {
        request.owner = trial.other_owner()?;
        Ok(())
    })
    .await
}

pub(super) async fn a_refused_token_keeps_its_instances(trial: &Trial<'_>) -> Result<()> {
    let request = trial.request(1)?;
    let first = trial.launch_as(&request).await?;
    let other = LaunchRequest { user_data: b"other".to_vec(), ..request.clone() };
    ensure!(trial.provider.launch(&other).await.is_err());
    ensure!(ids(&trial.launch_as(&request).await?) == ids(&first));
    Ok(())
}

pub(super) async fn a_refused_request_does_not_use_its_token_up(trial: &Trial<'_>) -> Result<()> {
    let request = trial.request(1)?;
    let bad = LaunchRequest { instance_type: "no-such-type".to_owned(), ..request.clone() };
    ensure!(trial.provider.launch(&bad).await.is_err());
    trial.launch_as(&request).await.map(drop)
}
