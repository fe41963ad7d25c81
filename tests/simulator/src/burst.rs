//! Many pods at once under EC2's limits.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use peerpods_cloud_api::{CloudProvider as _, LaunchRequest, LaunchToken, Limits, OwnerTag, ProviderError};
use peerpods_controller_api::{ClaimKey, Class, ClassName, Mib, NodeName, PodRef, RootOfTrust, Tee};
use peerpods_engine::{ClaimSpec, Driver, MemoryJournal, Parts, RequestError, Timing, Totals};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::cloud::{ModelCloud, OWNER};

/// What came of a burst. Times are virtual: they are the cloud's, not the processor's.
#[derive(Debug, Clone)]
pub struct Burst {
    /// From the first claim to the last launch that the cloud accepted.
    pub accepted: Duration,
    /// From the first claim until every pod has its pod VM.
    pub served: Duration,
    /// Calls of the cloud: `launch`, `read`, `delete`.
    pub calls: BTreeMap<&'static str, u64>,
    /// Calls that the cloud refused for going over its limits.
    pub throttled: u64,
    /// Pods that were told that they cannot be served.
    pub failed: u64,
}

/// Longer than any burst takes.
const PATIENCE: Duration = Duration::from_secs(86_400);

/// So many pods through the engine.
pub fn burst(pods: u32) -> Result<Burst> {
    in_virtual_time(async {
        let cloud = Arc::new(ModelCloud::new(1, Limits::EC2, false));
        let mut random = fastrand::Rng::with_seed(1);
        let class = Class::new(Tee::Snp, RootOfTrust::Hardware)?;
        let (driver, handle) = Driver::new(Parts {
            journal: Arc::new(MemoryJournal::new()),
            provider: Arc::clone(&cloud) as _,
            console: None,
            owner: OwnerTag::new(OWNER)?,
            classes: BTreeMap::from([(ClassName::new("default")?, class)]),
            user_data: Box::new(|_| b"{}".to_vec()),
            random: Box::new(move || random.u128(..)),
            timing: Timing::default(),
        });
        let mut totals = handle.totals();
        let work = async {
            let begin = Instant::now();
            let mut claims = JoinSet::new();
            for pod in 0..pods {
                let (handle, spec) = (handle.clone(), spec(pod)?);
                claims.spawn(async move { handle.claim(spec).await.map(drop) });
            }
            claims.join_all().await.into_iter().collect::<Result<(), RequestError>>()?;
            let is_over = |totals: &Totals| {
                let failed = totals.claims.get("failed").copied().unwrap_or_default();
                totals.pod_vms.get("claimed").copied().unwrap_or_default() + failed >= u64::from(pods)
            };
            let failed = totals.wait_for(is_over).await?.claims.get("failed").copied().unwrap_or_default();
            outcome(&cloud, begin, failed)
        };
        tokio::select! {
            biased;
            ended = driver.run(std::future::pending()) => bail!("the engine ended by itself: {ended:?}"),
            outcome = timeout(PATIENCE, work) => outcome.context("the burst does not end")?,
        }
    })
}

/// The same without the engine: one call for each pod, made again after one second, then two, four and so on up to twenty.
pub fn one_call_each(pods: u32) -> Result<Burst> {
    in_virtual_time(async {
        let cloud = Arc::new(ModelCloud::new(1, Limits::EC2, false));
        let begin = Instant::now();
        let mut launches = JoinSet::new();
        for pod in 0..pods {
            let cloud = Arc::clone(&cloud);
            let mut random = fastrand::Rng::with_seed(u64::from(pod));
            let request = LaunchRequest {
                token: LaunchToken::new(format!("pod-{pod}"))?,
                owner: OwnerTag::new(OWNER)?,
                instance_type: "small".to_owned(),
                zone: None,
                image: None,
                tee: Tee::Snp,
                count: 1,
                user_data: b"{}".to_vec(),
            };
            launches.spawn(async move {
                let mut pause = 1000;
                while let Err(error) = cloud.launch(&request).await {
                    if !matches!(error, ProviderError::Throttled { .. }) {
                        return Err(error);
                    }
                    sleep(Duration::from_millis(random.u64(pause / 2..pause))).await;
                    pause = (pause * 2).min(20_000);
                }
                Ok(())
            });
        }
        timeout(PATIENCE, launches.join_all()).await.context("the burst does not end")?.into_iter().collect::<Result<(), _>>()?;
        outcome(&cloud, begin, 0)
    })
}

fn outcome(cloud: &ModelCloud, begin: Instant, failed: u64) -> Result<Burst> {
    let (launched, report) = cloud.launched();
    Ok(Burst {
        accepted: launched.context("nothing was launched")? - begin,
        served: begin.elapsed(),
        calls: report.calls,
        throttled: report.faults.get("over the limit").copied().unwrap_or_default(),
        failed,
    })
}

fn spec(pod: u32) -> Result<ClaimSpec> {
    let name = format!("pod-{pod}");
    Ok(ClaimSpec {
        key: ClaimKey::new(format!("node/default/{name}"))?,
        pod: PodRef::new("default", name, None)?,
        class: None,
        vcpus: 1.0,
        memory: Mib(512),
        image: None,
        instance_type: None,
        node: NodeName::new("node")?,
        node_spki: "aa".to_owned(),
    })
}

fn in_virtual_time<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?.block_on(work)
}
