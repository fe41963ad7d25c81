//! Pods of containerd with steady logs and open execs, while the node daemon is killed again and again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use peerpods_e2e::{Container, Handler, Level, Rig, RigOptions, Story, Version, WorldOptions, v1};
use tokio::task::JoinSet;

/// Logs a number fifty times a second until it is told to end.
const SCRIPT: &str = "i=0; while [ ! -e /tmp/end ]; do echo $i; i=$((i+1)); usleep 20000; done; echo end";

/// What all tellings have in common.
struct Shared {
    ready: AtomicU64,
    is_over: AtomicBool,
    lines: AtomicU64,
    echoes: AtomicU64,
}

/// Kills the daemon `kills` times under `pods` pods.
pub(crate) async fn soak(seed: u64, kills: u64, pods: usize) -> Result<()> {
    println!("steady: {kills} kills of the node daemon under {pods} pods of containerd");
    let rig = Arc::new(Rig::start(&RigOptions::new(Version::V2, WorldOptions::new(Level::Sandbox)))?);
    let shared =
        Arc::new(Shared { ready: AtomicU64::new(0), is_over: AtomicBool::new(false), lines: AtomicU64::new(0), echoes: AtomicU64::new(0) });
    let mut tellings = JoinSet::new();
    for index in 0..pods {
        let (rig, shared) = (Arc::clone(&rig), Arc::clone(&shared));
        tellings.spawn(async move {
            let story = Story::begin(rig, Handler::PeerPods, "steady").await?;
            let told = pod(&story, &shared, index).await.with_context(|| format!("pod {index}"));
            told.and(story.clean_up().await)
        });
    }
    let killed = tokio::select! {
        killed = kill_all(&rig, &shared, seed, kills, pods) => killed,
        Some(ended) = tellings.join_next() => ended?.and(Err(anyhow::anyhow!("a pod ended before the kills were done"))),
    };
    shared.is_over.store(true, Ordering::Relaxed);
    if let Err(error) = killed {
        println!("{}", rig.logs());
        return Err(error);
    }
    while let Some(ended) = tellings.join_next().await {
        ended??;
    }
    rig.world().wait_for_no_machines(Duration::from_secs(60))?;
    println!("  {kills} kills, 0 container restarts");
    println!(
        "  {} log lines and {} echoes, none lost or doubled",
        shared.lines.load(Ordering::Relaxed),
        shared.echoes.load(Ordering::Relaxed)
    );
    Ok(())
}

async fn kill_all(rig: &Arc<Rig>, shared: &Arc<Shared>, seed: u64, kills: u64, pods: usize) -> Result<()> {
    let pods = u64::try_from(pods)?;
    peerpods_e2e::eventually_async("all pods log and echo", Duration::from_secs(120), || async {
        let ready = shared.ready.load(Ordering::Relaxed);
        ensure!(ready == pods, "{ready} of {pods}");
        Ok(())
    })
    .await?;
    let mut random = fastrand::Rng::with_seed(seed);
    for number in 1..=kills {
        let (before, after) = (Duration::from_millis(random.u64(20..300)), Duration::from_millis(random.u64(0..150)));
        tokio::time::sleep(before).await;
        let rig = Arc::clone(rig);
        tokio::task::spawn_blocking(move || -> Result<()> {
            rig.world().check_daemons().context("a daemon died by itself")?;
            rig.world().kill_node()?;
            std::thread::sleep(after);
            rig.world().start_node()
        })
        .await??;
        if number % 20 == 0 {
            println!("  {number} kills");
        }
    }
    Ok(())
}

async fn pod(story: &Story, shared: &Shared, index: usize) -> Result<()> {
    let pod = story.pod(&format!("steady-{index}")).run().await?;
    let container = pod.start(Container::script("c", SCRIPT)).await?;
    container.logs(" 1\n").await?;
    let mut exec = container.stream(&["cat"], "i").await?;
    shared.ready.fetch_add(1, Ordering::Relaxed);
    let mut number = 0;
    while !shared.is_over.load(Ordering::Relaxed) {
        exec.write(format!("{number}\n").as_bytes()).await?;
        let echoed = exec.read_until(&format!("{number}\n")).await?;
        ensure!(echoed == format!("{number}\n"), "the exec said {echoed:?} in place of {number}");
        number += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    exec.close_stdin().await?;
    let outcome = exec.finish().await?;
    ensure!(outcome.stdout.is_empty() && outcome.code == Some(0), "the exec ended with {outcome:?}");
    shared.echoes.fetch_add(number, Ordering::Relaxed);

    let filter = v1::ContainerFilter { pod_sandbox_id: pod.id().to_owned(), ..Default::default() };
    let listed = story.cri().runtime.clone().list_containers(v1::ListContainersRequest { filter: Some(filter) }).await?.into_inner();
    ensure!(listed.containers.len() == 1 && listed.containers[0].state() == v1::ContainerState::ContainerRunning, "{listed:?}");
    container.exec(&["touch", "/tmp/end"], 30).await?;
    let status = container.is_over().await?;
    ensure!(status.exit_code == 0, "exit {}", status.exit_code);
    let text = String::from_utf8(container.output("stdout")?)?;
    let lines: Vec<&str> = text.lines().collect();
    let (last, numbers) = lines.split_last().context("nothing logged")?;
    let is_whole = *last == "end" && numbers.iter().enumerate().all(|(index, line)| *line == index.to_string());
    ensure!(is_whole, "the log is not whole: {} lines, the last {last:?}", lines.len());
    shared.lines.fetch_add(u64::try_from(lines.len())?, Ordering::Relaxed);
    Ok(())
}
