//! One case's corner of the account.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use peerpods_cloud_api::{CloudProvider, Instance, InstanceId, InstanceState, LaunchRequest, LaunchToken, OwnerTag, ProviderError};
use tokio::time::{Instant, sleep};

use crate::Subject;

/// How long a cloud may take to make an instance run, to show it, or to delete it.
const LIMIT: Duration = Duration::from_secs(300);
const PAUSE: Duration = Duration::from_millis(20);

/// What a case works with.
pub struct Trial<'a> {
    /// What the provider offers.
    pub subject: &'a Subject,
    /// The provider.
    pub provider: Arc<dyn CloudProvider>,
    owner: OwnerTag,
    number: usize,
    tokens: AtomicU32,
}

impl<'a> Trial<'a> {
    pub(crate) fn new(subject: &'a Subject, number: usize) -> Result<Self> {
        let owner = OwnerTag::new(format!("{}{number}", subject.owner_prefix))?;
        Ok(Self { provider: (subject.open)(), subject, owner, number, tokens: AtomicU32::new(0) })
    }

    /// The provider, opened once more.
    pub fn another(&self) -> Arc<dyn CloudProvider> {
        (self.subject.open)()
    }

    /// Whose instances are this case's.
    pub fn owner(&self) -> OwnerTag {
        self.owner.clone()
    }

    /// Another owner, whose instances are this case's too.
    pub fn other_owner(&self) -> Result<OwnerTag> {
        Ok(OwnerTag::new(format!("{}/other", self.owner))?)
    }

    /// A token that was never used.
    pub fn token(&self) -> Result<LaunchToken> {
        let count = self.tokens.fetch_add(1, Ordering::Relaxed);
        Ok(LaunchToken::new(format!("{}{}-{count}", self.subject.owner_prefix.replace('/', "-"), self.number))?)
    }

    /// A request that can be served, with a new token.
    pub fn request(&self, count: u32) -> Result<LaunchRequest> {
        Ok(LaunchRequest {
            token: self.token()?,
            owner: self.owner(),
            instance_type: self.subject.instance_type.clone(),
            zone: self.subject.zone.clone(),
            image: None,
            tee: self.subject.tee,
            count,
            user_data: b"conformance".to_vec(),
        })
    }

    /// Launches so many instances.
    pub async fn launch(&self, count: u32) -> Result<Vec<Instance>> {
        self.launch_as(&self.request(count)?).await
    }

    /// Launches what is asked for, all of it.
    pub async fn launch_as(&self, request: &LaunchRequest) -> Result<Vec<Instance>> {
        let instances = self.provider.launch(request).await.context("launching")?.instances;
        ensure!(instances.len() == usize::try_from(request.count)?, "{} asked for, {instances:?}", request.count);
        Ok(instances)
    }

    /// Launches one.
    pub async fn one(&self) -> Result<Instance> {
        self.launch(1).await?.pop().context("one instance")
    }

    /// Reads the instance until it runs.
    pub async fn until_running(&self, id: &InstanceId) -> Result<Instance> {
        let begin = Instant::now();
        loop {
            let seen = self.provider.get(id).await.with_context(|| format!("reading {id}"))?;
            if seen.state == InstanceState::Running && seen.address.is_some() {
                return Ok(seen);
            }
            ensure!(begin.elapsed() < LIMIT && seen.state != InstanceState::Stopped, "it does not come to run: {seen:?}");
            sleep(PAUSE).await;
        }
    }

    /// Reads a deleted instance until it is gone; until then it may only be shown as being deleted.
    pub async fn until_gone(&self, id: &InstanceId) -> Result<()> {
        let begin = Instant::now();
        loop {
            match self.provider.get(id).await {
                Err(ProviderError::NotFound) => return Ok(()),
                Ok(Instance { state: InstanceState::Deleting, .. }) if begin.elapsed() < LIMIT => sleep(PAUSE).await,
                other => bail!("{id} is deleted, and this is read: {other:?}"),
            }
        }
    }

    /// Deletes and waits until it is gone.
    pub async fn delete(&self, id: &InstanceId) -> Result<()> {
        self.provider.delete(id).await.with_context(|| format!("deleting {id}"))?;
        self.until_gone(id).await
    }

    /// The ids that are listed for this owner.
    pub async fn listed(&self, owner: &OwnerTag) -> Result<BTreeSet<InstanceId>> {
        let listed = self.provider.list(owner).await.context("listing")?;
        let ids: BTreeSet<InstanceId> = listed.iter().map(|instance| instance.id.clone()).collect();
        ensure!(ids.len() == listed.len(), "one is listed twice: {listed:?}");
        Ok(ids)
    }

    /// Deletes what is left of both owners, and proves that it is gone.
    pub(crate) async fn clear(&self) -> Result<()> {
        for owner in [self.owner(), self.other_owner()?] {
            let listed = self.listed(&owner).await?;
            for id in &listed {
                match self.provider.delete(id).await {
                    Ok(()) | Err(ProviderError::NotFound) => {}
                    Err(error) => return Err(error).with_context(|| format!("deleting {id}")),
                }
            }
            for id in &listed {
                self.until_gone(id).await?;
            }
            let left = self.listed(&owner).await?;
            ensure!(left.is_empty(), "what is gone is listed: {left:?}");
        }
        Ok(())
    }
}

/// The ids of instances.
pub(crate) fn ids(instances: &[Instance]) -> BTreeSet<InstanceId> {
    instances.iter().map(|instance| instance.id.clone()).collect()
}
