//! Kills the node daemon, the controller or both at random moments of pods' lives and checks that nothing is lost.
//!
//! Pods are driven as a kubelet drives them: what fails before the pod is ready is tried again with a new sandbox id
//! and network namespace; a ready pod must stay, and its container's output must be complete.
//! The same seed gives the same kills and the same waits between them.
//!
//! Then the same with the AWS provider on a mock cloud whose calls fail by chance: there the controller is also killed while a call that
//! has taken effect waits for its answer.
//!
//! Then pods of containerd that do nothing but log, and execs that do nothing but echo, see the daemon killed under them.

mod account;
mod steady;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use peerpods_e2e::{Cloud, ContainerRequest, Image, Leftovers, Level, World, WorldOptions, eventually_async};

const LINES: usize = 150;

/// Where a pod is in its life when a kill falls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    Idle,
    CreateVm,
    StartVm,
    CreateContainer,
    Ready,
    Delete,
}

struct Shared {
    world: Mutex<World>,
    image: String,
    moments: Mutex<Vec<Moment>>,
    is_over: AtomicBool,
    /// Counts sandboxes asked for.
    next_seed: AtomicU64,
    finished: AtomicU64,
    retried: AtomicU64,
    /// Kills that fell between a call's effect and its answer.
    aimed: AtomicU64,
}

struct Options {
    seed: u64,
    kills: u64,
    pods: usize,
}

fn main() -> Result<()> {
    let options = options()?;
    let seed = options.seed;
    println!("soak: seed {seed}, {} kills on this host and on the mock cloud each, {} pods at once", options.kills, options.pods);
    let before = Leftovers::now()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(soak(&options, Cloud::Local)).context("local provider")?;
    runtime.block_on(soak(&options, Cloud::MockAws)).context("AWS provider on the mock cloud")?;
    runtime.block_on(steady::soak(options.seed, 2 * options.kills, options.pods))?;
    drop(runtime);
    let left = Leftovers::now()?.since(&before);
    ensure!(left.is_empty(), "left behind: {left}");
    println!("nothing left: {left}");
    Ok(())
}

fn options() -> Result<Options> {
    let mut options = Options { seed: fastrand::u64(..), kills: 100, pods: 10 };
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let value: u64 = args.next().and_then(|v| v.parse().ok()).with_context(|| format!("{name} needs a number"))?;
        match name.as_str() {
            "--seed" => options.seed = value,
            "--kills" => options.kills = value,
            "--pods" => options.pods = usize::try_from(value)?,
            _ => bail!("unknown option {name}"),
        }
    }
    Ok(options)
}

async fn soak(options: &Options, cloud: Cloud) -> Result<()> {
    println!("{cloud:?}");
    let mock_extra = account::mock_options(options.seed);
    let world = World::start(&WorldOptions { cloud, mock_extra, ..WorldOptions::new(Level::Sandbox) })?;
    account::move_in(&world)?;
    let image = format!("{}/soak:1", world.registry_host());
    world.registry().push(world.netns(), "soak", "1", &Image::busybox(&[])?)?;
    let shared = Arc::new(Shared {
        world: Mutex::new(world),
        image,
        moments: Mutex::new(vec![Moment::Idle; options.pods]),
        is_over: AtomicBool::new(false),
        next_seed: AtomicU64::new(1),
        finished: AtomicU64::new(0),
        retried: AtomicU64::new(0),
        aimed: AtomicU64::new(0),
    });
    let mut pods = tokio::task::JoinSet::new();
    for index in 0..options.pods {
        pods.spawn(pod_after_pod(Arc::clone(&shared), index));
    }
    let killer = kill_all(&shared, options);
    let reached = tokio::select! {
        reached = killer => reached?,
        Some(ended) = pods.join_next() => { ended??; bail!("a pod's task ended before the kills were done") }
    };
    shared.is_over.store(true, Ordering::Relaxed);
    while let Some(ended) = pods.join_next().await {
        ended??;
    }
    let (finished, retried) = (shared.finished.load(Ordering::Relaxed), shared.retried.load(Ordering::Relaxed));
    let aimed = shared.aimed.load(Ordering::Relaxed);
    println!("kills: attempted {0}, injected {0}, {aimed} of them between a call's effect and its answer", options.kills);
    println!("pods: {finished} complete, 0 Ready pods lost, {retried} tries repeated before Ready");
    for (moment, count) in reached {
        println!("  {count:5} x a pod was in {moment:?} when a kill fell");
    }
    let world = shared.lock();
    match cloud {
        Cloud::Local => world.wait_for_no_machines(Duration::from_secs(60))?,
        Cloud::MockAws => account::check(&world, shared.next_seed.load(Ordering::Relaxed))?,
    }
    println!("machines leaked: 0");
    Ok(())
}

/// One kill after the other; each must hit a running daemon while some pod is in the middle of its life.
async fn kill_all(shared: &Arc<Shared>, options: &Options) -> Result<BTreeMap<Moment, u64>> {
    let mut random = fastrand::Rng::with_seed(options.seed);
    let mut reached: BTreeMap<Moment, u64> = BTreeMap::new();
    for number in 1..=options.kills {
        tokio::time::sleep(Duration::from_millis(random.u64(50..1200))).await;
        let (kills_node, mut kills_controller) = [(true, false), (false, true), (true, true)][random.usize(..3)];
        let aim = account::Aim::choose(&mut random);
        let pause = Duration::from_millis(random.u64(0..400));
        let shared = Arc::clone(shared);
        let moments = tokio::task::spawn_blocking(move || -> Result<Vec<Moment>> {
            let is_aimed = aim.wait(&shared)?;
            kills_controller |= is_aimed;
            if is_aimed {
                shared.aimed.fetch_add(1, Ordering::Relaxed);
            }
            let mut world = shared.lock();
            world.check_alive().context("a daemon died by itself")?;
            let moments = shared.moments.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if kills_node {
                world.kill_node()?;
            }
            if kills_controller {
                world.kill_controller()?;
            }
            std::thread::sleep(pause);
            if kills_controller {
                world.start_controller()?;
            }
            if kills_node {
                world.start_node()?;
            }
            Ok(moments)
        })
        .await??;
        ensure!(moments.iter().any(|m| *m != Moment::Idle), "kill {number} hit nothing: no pod was alive");
        for moment in moments {
            *reached.entry(moment).or_default() += 1;
        }
        if number % 10 == 0 {
            println!("  {number} kills");
        }
    }
    Ok(reached)
}

async fn pod_after_pod(shared: Arc<Shared>, index: usize) -> Result<()> {
    let name = format!("pod-{index}");
    while !shared.is_over.load(Ordering::Relaxed) {
        one_pod(&shared, index, &name).await.with_context(|| name.clone())?;
        shared.finished.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// One pod until it has ended well; an error means that something was lost.
async fn one_pod(shared: &Arc<Shared>, index: usize, name: &str) -> Result<()> {
    let limit = std::time::SystemTime::now() + Duration::from_secs(180);
    loop {
        let seed = shared.next_seed.fetch_add(1, Ordering::Relaxed);
        let (netns, address) = {
            let mut world = shared.lock();
            let pod = world.add_pod()?;
            (pod.netns().path(), pod.address())
        };
        let (mut shim, initdata) = {
            let world = shared.lock();
            (world.shim(name, seed), world.initdata())
        };
        let id = format!("{seed:016x}").repeat(3) + "cccccccccccccccc";
        let script = format!("i=0; while [ $i -lt {LINES} ]; do echo line $i; i=$((i+1)); usleep 20000; done");
        let container = ContainerRequest::new(&id, &shared.image, &["/bin/sh", "-c", &script]);
        let ready = async {
            shared.enter(index, Moment::CreateVm);
            let socket = shim.create_vm(&netns, &[("cc_init_data", &initdata)]).await?;
            shared.enter(index, Moment::StartVm);
            shim.start_vm(&socket).await?;
            shared.enter(index, Moment::CreateContainer);
            shim.create_sandbox().await?;
            shim.create_container(&container).await?;
            shim.start_container(&id).await
        }
        .await;
        let outcome = match ready {
            Ok(()) => {
                shared.enter(index, Moment::Ready);
                Some(shim.finish(&id, "").await.context("a Ready pod was lost"))
            }
            Err(error) if std::time::SystemTime::now() > limit => return Err(error.context("never became Ready")),
            Err(_) => None,
        };
        shared.enter(index, Moment::Delete);
        eventually_async("StopVM is accepted", Duration::from_secs(30), || async { shim.stop_vm().await }).await?;
        shared.lock().remove_pod(address);
        shared.enter(index, Moment::Idle);
        let Some(io) = outcome else {
            shared.retried.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        let io = io?;
        let expected: String = (0..LINES).map(|i| format!("line {i}\n")).collect();
        ensure!(io.stdout == expected.as_bytes(), "output incomplete: {} of {} bytes", io.stdout.len(), expected.len());
        ensure!(io.status == 0, "status {}", io.status);
        return Ok(());
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, index: usize, moment: Moment) {
        self.moments.lock().unwrap_or_else(PoisonError::into_inner)[index] = moment;
    }
}
