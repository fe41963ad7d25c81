//! Requests that can never be served: the error names the field, and nothing is made.

use anyhow::{Result, bail, ensure};
use peerpods_cloud_api::{LaunchRequest, ProviderError, Tee, Zone};

use crate::Trial;

/// Gives the error's words.
async fn refused(trial: &Trial<'_>, field: &str, request: LaunchRequest) -> Result<String> {
    let detail = match trial.provider.launch(&request).await {
        Err(ProviderError::InvalidRequest { detail }) => detail,
        other => bail!("{field} is wrong, and this is the answer: {other:?}"),
    };
    ensure!(detail.contains(field), "{detail:?} does not name {field}");
    ensure!(trial.listed(&trial.owner()).await?.is_empty());
    Ok(detail)
}

pub(super) async fn none_are_refused(trial: &Trial<'_>) -> Result<()> {
    refused(trial, "count", trial.request(0)?).await.map(drop)
}

pub(super) async fn too_many_are_refused(trial: &Trial<'_>) -> Result<()> {
    refused(trial, "count", trial.request(101)?).await.map(drop)
}

pub(super) async fn too_much_user_data_is_refused(trial: &Trial<'_>) -> Result<()> {
    refused(trial, "user data", LaunchRequest { user_data: vec![0; 1025], ..trial.request(1)? }).await.map(drop)
}

pub(super) async fn an_unknown_type_is_refused(trial: &Trial<'_>) -> Result<()> {
    let request = LaunchRequest { instance_type: "no-such-type".to_owned(), ..trial.request(1)? };
    refused(trial, "instance type", request).await.map(drop)
}

pub(super) async fn an_unknown_zone_is_refused(trial: &Trial<'_>) -> Result<()> {
    refused(trial, "zone", LaunchRequest { zone: Some(Zone::new("no-such-zone")?), ..trial.request(1)? }).await.map(drop)
}

pub(super) async fn an_unknown_image_is_refused(trial: &Trial<'_>) -> Result<()> {
    refused(trial, "image", LaunchRequest { image: Some("no-such-image".to_owned()), ..trial.request(1)? }).await.map(drop)
}

pub(super) async fn a_tee_that_the_type_has_not_is_refused(trial: &Trial<'_>) -> Result<()> {
    let types = trial.provider.instance_types().await?;
    let has = |tee: &Tee| types.iter().any(|offered| offered.name == trial.subject.instance_type && offered.tees.contains(tee));
    let Some(tee) = Tee::ALL.into_iter().find(|tee| !has(tee)) else { bail!("the type has every TEE") };
    refused(trial, "tee", LaunchRequest { tee, ..trial.request(1)? }).await.map(drop)
}

pub(super) async fn a_refusal_does_not_repeat_user_data(trial: &Trial<'_>) -> Result<()> {
    let canary = "canary-7c1b";
    let user_data = canary.repeat(100).into_bytes();
    let detail = refused(trial, "user data", LaunchRequest { user_data, ..trial.request(1)? }).await?;
    ensure!(!detail.contains(canary), "{detail}");
    Ok(())
}
