//! Memory of the daemon and its links with 50 idle pods, and of the guest with one idle container.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use peerpods_e2e::{ContainerRequest, Image, KataShim, Level, World, WorldOptions, eventually};

use crate::figure::{Budget, Figure};

const PODS: u64 = 50;

/// Starts 50 idle pods on sandboxes and adds up what their processes hold.
pub(crate) async fn run() -> Result<Vec<Figure>> {
    let mut world = World::start(&WorldOptions::new(Level::Sandbox))?;
    let node = world.node_pid().context("the node daemon does not run")?;
    let empty = pss_mib(node)?;
    let image = format!("{}/idle:1", world.registry_host());
    world.registry().push(world.netns(), "idle", "1", &Image::busybox(&[])?)?;
    let mut shims: Vec<KataShim> = Vec::new();
    for seed in 0..PODS {
        shims.push(pod(&mut world, seed, &image).await.with_context(|| world.logs())?);
    }
    let daemon = settled_mib(node)?;
    let links = processes(|exe| exe.ends_with("peerpods-link"))?;
    let link = mean(&links)?;
    let agents = processes(|exe| exe == Path::new("/init"))?;
    // Per pod: PID 1, the agent, the runner of the pause container and that of the workload.
    let guest = agents.iter().map(|pid| pss_mib(*pid).unwrap_or(0.0)).sum::<f64>() / PODS as f64;
    for shim in &shims {
        shim.stop_vm().await?;
    }
    world.wait_for_no_machines(Duration::from_secs(120))?;
    let figure = |name: &str, value: f64, baseline: &str, baseline_value: f64, limit: f64| Figure {
        name: name.to_owned(),
        value,
        unit: "MiB",
        baseline: baseline.to_owned(),
        baseline_value,
        budget: Budget::AtMost(limit),
    };
    Ok(vec![
        figure("node daemon with 50 idle pods, PSS", daemon, "the daemon without pods", empty, 20.0 + PODS as f64 * 0.1),
        figure("peerpods-link, PSS, mean of 50", link, "Kata's Rust shim, private, as the design states", 3.1, 3.0),
        figure("guest with one idle container, PSS, mean of 50", guest, "kata-agent, as the design states", 25.0, 16.0),
    ])
}

async fn pod(world: &mut World, seed: u64, image: &str) -> Result<KataShim> {
    let netns = world.add_pod()?.netns().path();
    let mut shim = world.shim(&format!("idle-{seed}"), seed);
    let socket = shim.create_vm(&netns, &[("cc_init_data", &world.initdata())]).await?;
    shim.start_vm(&socket).await?;
    shim.create_sandbox().await?;
    let id = format!("{seed:064x}").replacen('0', "c", 1);
    shim.create_container(&ContainerRequest::new(&id, image, &["/bin/sleep", "1000000"])).await?;
    shim.start_container(&id).await?;
    Ok(shim)
}

/// A process's memory once two readings half a second apart agree: it has done what the last pod gave it to do.
pub(crate) fn settled_mib(pid: u32) -> Result<f64> {
    let mut last = f64::NAN;
    let mut next = std::time::Instant::now();
    eventually("the daemon's memory settles", Duration::from_secs(30), || {
        anyhow::ensure!(std::time::Instant::now() >= next, "between two readings");
        next = std::time::Instant::now() + Duration::from_millis(500);
        let before = std::mem::replace(&mut last, pss_mib(pid)?);
        anyhow::ensure!((last - before).abs() < 0.05, "{before:.2} MiB, then {last:.2} MiB");
        Ok(last)
    })
}

fn mean(pids: &[u32]) -> Result<f64> {
    anyhow::ensure!(!pids.is_empty(), "no such process");
    let sum: f64 = pids.iter().map(|pid| pss_mib(*pid)).collect::<Result<Vec<f64>>>()?.iter().sum();
    Ok(sum / pids.len() as f64)
}

/// The processes of which this is true of their executable.
pub(crate) fn processes(is_wanted: impl Fn(&Path) -> bool) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if std::fs::read_link(entry.path().join("exe")).is_ok_and(|exe| is_wanted(&exe)) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// The proportional set size: shared pages are divided among those who share them.
pub(crate) fn pss_mib(pid: u32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).with_context(|| format!("process {pid}"))?;
    let line = text.lines().find(|line| line.starts_with("Pss:")).context("no Pss")?;
    let kib: f64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
    Ok(kib / 1024.0)
}
