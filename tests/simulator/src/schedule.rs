//! One schedule from its seed.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use peerpods_cloud_api::{InstanceId, Limits, OwnerTag, Rate, Zone};
use peerpods_controller_api::{ClaimKey, Class, ClassName, Mib, NodeName, PodRef, Pool, RootOfTrust, Tee};
use peerpods_engine::{ClaimSpec, ClaimView, Driver, DriverError, Handle, JournalError, MemoryJournal, Parts, Timing, Totals};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::Report;
use crate::cloud::{ModelCloud, OWNER};
use crate::journal::FaultyJournal;
use crate::offer::ZONES;

/// Pods that come and go.
const PODS: u32 = 6;
/// What they, and the world around them, do.
const EVENTS: u32 = 24;
/// Within this time, in milliseconds.
const LENGTH: u64 = 90_000;
/// The longest that anything may take once the faults have ended.
const PATIENCE: Duration = Duration::from_secs(3600);

/// What half of the clouds let pass: so little that every schedule meets it.
const TIGHT: Limits = Limits {
    launches: Some(Rate { burst: 2, per_second: 1 }),
    instances: Some(Rate { burst: 4, per_second: 1 }),
    reads: Some(Rate { burst: 8, per_second: 4 }),
    deletes: Some(Rate { burst: 2, per_second: 1 }),
};
/// Longer than reads are stale and deletions take.
const STALENESS: Duration = Duration::from_secs(60);

/// Runs the schedule of that seed; `Err` says what went wrong.
pub fn run(seed: u64) -> Result<Report> {
    play(seed, None)
}

/// Runs the schedule of that seed with one kill, when the engine would be polled for the `poll`-th time.
pub fn run_killed_at(seed: u64, poll: u64) -> Result<Report> {
    play(seed, Some(poll)).with_context(|| format!("killed at poll {poll}"))
}

fn play(seed: u64, kill: Option<u64>) -> Result<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
    runtime.block_on(Schedule::new(seed)?.play(kill)).with_context(|| format!("seed {seed}"))
}

struct Schedule {
    rng: fastrand::Rng,
    cloud: Arc<ModelCloud>,
    journal: MemoryJournal,
    pool: Option<Pool>,
    owner: OwnerTag,
}

impl Schedule {
    fn new(seed: u64) -> Result<Self> {
        let mut rng = fastrand::Rng::with_seed(seed);
        let pool = rng.bool().then(|| {
            let min = rng.u32(0..3);
            Pool { min, max: min + rng.u32(0..3), ttl_secs: rng.u64(1..40) }
        });
        let limits = if rng.bool() { TIGHT } else { Limits::default() };
        let cloud = Arc::new(ModelCloud::new(rng.u64(..), limits, true));
        Ok(Self { cloud, journal: MemoryJournal::new(), pool, owner: OwnerTag::new(OWNER)?, rng })
    }

    async fn play(mut self, kill: Option<u64>) -> Result<Report> {
        for _ in 0..self.rng.u32(0..3) {
            self.cloud.plant("theirs");
        }
        // Whoever needs the engine waits for the one that runs now.
        let (publish, engines) = watch::channel(None);
        let mut nodes = Nodes { engines, cloud: Arc::clone(&self.cloud), rng: self.rng.fork(), held: BTreeMap::new() };
        let mut work = Box::pin(timeout(PATIENCE, async move {
            let outcome = nodes.act().await;
            (nodes, outcome)
        }));
        let mut random_kills = || (0..self.rng.u32(0..4)).map(|_| self.rng.u64(1..600)).collect();
        let mut kills = kill.map_or_else(&mut random_kills, |poll| vec![poll]).into_iter();
        let (life, finished) = loop {
            let (driver, handle) = self.engine(self.pool)?;
            publish.send_replace(Some(handle));
            let mut life = KillAfter { inner: Box::pin(driver.run(std::future::pending())), left: kills.next().unwrap_or(u64::MAX) };
            tokio::select! {
                biased;
                ended = &mut life => match ended {
                    None => self.cloud.killed(),
                    // It does not start without its records; whoever runs it starts it again.
                    Some(Err(DriverError::Journal(JournalError::Unavailable { .. }))) => self.cloud.note("no start"),
                    Some(outcome) => bail!("the engine ended by itself: {outcome:?}"),
                },
                finished = &mut work => break (life, finished.context("the nodes wait for ever")?),
            }
            publish.send_replace(None);
            sleep(Duration::from_millis(self.rng.u64(0..3000))).await;
        };
        let (mut nodes, outcome) = finished;
        outcome?;
        self.cloud.mend();
        tokio::select! {
            biased;
            ended = life.inner => bail!("the engine ended by itself: {ended:?}"),
            left = timeout(PATIENCE, nodes.leave()) => left.context("claims are not released")??,
        }
        // The last controller keeps nothing ready.
        let (driver, handle) = self.engine(None)?;
        let mut totals = handle.totals();
        let emptied = async {
            // What a stale read hid from the engine shows up within that time, and the sweeper is to find it.
            sleep(STALENESS).await;
            let empty = totals.wait_for(Totals::is_empty);
            timeout(PATIENCE, empty).await.context("something is left")?.context("the engine stopped").map(drop)
        };
        tokio::select! {
            biased;
            ended = driver.run(std::future::pending()) => bail!("the engine ended by itself: {ended:?}"),
            emptied = emptied => emptied?,
        }
        let (violations, left, report) = self.cloud.end(&self.owner);
        if !violations.is_empty() || !left.is_empty() {
            bail!("{violations:?}, leaked: {left:?}");
        }
        Ok(report)
    }

    fn engine(&mut self, pool: Option<Pool>) -> Result<(Driver, Handle)> {
        self.journal = self.journal.reopen();
        let zones = ZONES.map(Zone::new).into_iter().collect::<Result<_, _>>()?;
        let class = Class { zones, pool, ..Class::new(Tee::Snp, RootOfTrust::Hardware)? };
        let mut random = self.rng.fork();
        let journal = FaultyJournal { inner: self.journal.share(), cloud: Arc::clone(&self.cloud), rng: Mutex::new(self.rng.fork()) };
        Ok(Driver::new(Parts {
            journal: Arc::new(journal),
            provider: Arc::clone(&self.cloud) as _,
            console: None,
            owner: self.owner.clone(),
            classes: BTreeMap::from([(ClassName::new("default")?, class)]),
            user_data: Box::new(|_| b"{}".to_vec()),
            random: Box::new(move || random.u128(..)),
            timing: Timing::default(),
        }))
    }
}

/// Nodes as the engine sees them: they ask until they are answered, and use what they are given.
struct Nodes {
    engines: watch::Receiver<Option<Handle>>,
    cloud: Arc<ModelCloud>,
    rng: fastrand::Rng,
    /// Claims that were made and not released, with what each was given.
    held: BTreeMap<ClaimKey, Option<InstanceId>>,
}

impl Nodes {
    async fn act(&mut self) -> Result<()> {
        let begin = Instant::now();
        let mut times: Vec<u64> = (0..EVENTS).map(|_| self.rng.u64(0..LENGTH)).collect();
        times.sort_unstable();
        for at in times {
            sleep_until(begin + Duration::from_millis(at)).await;
            match self.rng.u32(0..20) {
                0..10 => self.claim().await?,
                10..16 => {
                    let chosen = self.rng.usize(0..=self.held.len());
                    if let Some(key) = self.held.keys().nth(chosen).cloned() {
                        self.release(&key).await?;
                    }
                }
                16 => self.cloud.fill(ZONES[self.rng.usize(..ZONES.len())], true),
                17 => ZONES.into_iter().for_each(|zone| self.cloud.fill(zone, false)),
                _ => {}
            }
            self.look().await?;
        }
        Ok(())
    }

    async fn claim(&mut self) -> Result<()> {
        let name = format!("pod-{}", self.rng.u32(0..PODS));
        let key = ClaimKey::new(format!("node/default/{name}"))?;
        if self.held.contains_key(&key) {
            return Ok(());
        }
        let spec = ClaimSpec {
            key: key.clone(),
            pod: PodRef::new("default", name, None)?,
            class: None,
            vcpus: if self.rng.u32(0..4) == 0 { 4.0 } else { 1.0 },
            memory: Mib(512),
            image: None,
            instance_type: None,
            node: NodeName::new("node")?,
            node_spki: "aa".to_owned(),
        };
        loop {
            let engine = self.engine().await?;
            if engine.claim(spec.clone()).await.is_ok() {
                break;
            }
            sleep(Duration::from_millis(200)).await;
        }
        self.held.insert(key, None);
        Ok(())
    }

    async fn release(&mut self, key: &ClaimKey) -> Result<()> {
        if let Some(id) = self.held.remove(key).flatten() {
            self.cloud.hold(&id, false);
        }
        loop {
            let engine = self.engine().await?;
            if engine.release(key).await.is_ok() {
                return Ok(());
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// How every claim stands; what was given must not change and must not be somebody else's.
    async fn look(&mut self) -> Result<()> {
        for key in self.held.keys().cloned().collect::<Vec<_>>() {
            let Ok(view) = self.engine().await?.get(&key).await else { continue };
            let name = match &view {
                ClaimView::Pending { .. } => "pending",
                ClaimView::Assigned { .. } => "assigned",
                ClaimView::Failed { .. } => "failed",
                ClaimView::Gone => "gone",
            };
            self.cloud.reach(name);
            match view {
                ClaimView::Assigned { instance_id, .. } => {
                    let has_other = self.held.iter().any(|(other, id)| *other != key && id.as_ref() == Some(&instance_id));
                    let before = self.held.insert(key.clone(), Some(instance_id.clone())).flatten();
                    if has_other || before.as_ref().is_some_and(|before| *before != instance_id) {
                        self.cloud.violation(format!("{key} has {instance_id}, it had {before:?}, another one has it: {has_other}"));
                    }
                    self.cloud.hold(&instance_id, true);
                }
                // As a node does: what has failed is given up.
                ClaimView::Failed { .. } => self.release(&key).await?,
                ClaimView::Gone => self.cloud.violation(format!("{key} was forgotten")),
                ClaimView::Pending { .. } => {}
            }
        }
        Ok(())
    }

    async fn leave(&mut self) -> Result<()> {
        for key in self.held.keys().cloned().collect::<Vec<_>>() {
            self.release(&key).await?;
        }
        Ok(())
    }

    async fn engine(&mut self) -> Result<Handle> {
        let engine = self.engines.wait_for(Option::is_some).await.context("there is no engine any more")?;
        engine.clone().context("just seen")
    }
}

/// A driver that is dropped instead of being polled once more.
struct KillAfter<'a> {
    inner: Pin<Box<dyn Future<Output = Result<(), DriverError>> + 'a>>,
    left: u64,
}

impl Future for KillAfter<'_> {
    type Output = Option<Result<(), DriverError>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        self.left -= 1;
        self.inner.as_mut().poll(cx).map(Some)
    }
}
