//! What a provider says of itself.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};

use crate::Trial;

pub(super) async fn verify_says_that_all_is_well(trial: &Trial<'_>) -> Result<()> {
    Ok(trial.provider.verify().await?)
}

pub(super) async fn verify_changes_nothing(trial: &Trial<'_>) -> Result<()> {
    let instance = trial.one().await?;
    for _ in 0..2 {
        trial.provider.verify().await?;
    }
    ensure!(trial.listed(&trial.owner()).await? == [instance.id].into());
    Ok(())
}

pub(super) async fn types_are_offered(trial: &Trial<'_>) -> Result<()> {
    ensure!(!trial.provider.instance_types().await?.is_empty());
    Ok(())
}

pub(super) async fn types_have_different_names(trial: &Trial<'_>) -> Result<()> {
    let types = trial.provider.instance_types().await?;
    let names: BTreeSet<&str> = types.iter().map(|offered| offered.name.as_str()).collect();
    ensure!(names.len() == types.len() && !names.contains(""), "{types:?}");
    Ok(())
}

pub(super) async fn types_have_sizes(trial: &Trial<'_>) -> Result<()> {
    let types = trial.provider.instance_types().await?;
    ensure!(types.iter().all(|offered| offered.vcpus > 0 && offered.memory.0 > 0), "{types:?}");
    Ok(())
}

pub(super) async fn types_stay_the_same(trial: &Trial<'_>) -> Result<()> {
    ensure!(trial.provider.instance_types().await? == trial.another().instance_types().await?);
    Ok(())
}

pub(super) async fn types_have_the_tee_that_is_launched(trial: &Trial<'_>) -> Result<()> {
    let types = trial.provider.instance_types().await?;
    let launched = types.iter().find(|offered| offered.name == trial.subject.instance_type).context("the subject's type")?;
    ensure!(launched.tees.contains(&trial.subject.tee), "{launched:?}");
    Ok(())
}

pub(super) async fn limits_let_something_pass(trial: &Trial<'_>) -> Result<()> {
    let limits = trial.provider.limits();
    let rates = [limits.launches, limits.instances, limits.reads, limits.deletes];
    ensure!(rates.into_iter().flatten().all(|rate| rate.burst > 0 && rate.per_second > 0), "{limits:?}");
    Ok(())
}
