//! Where the time of a cold start goes, on both kinds of machine.
//!
//! Ours is (CreateVM until Health.Check answers) minus the provider's pending time minus the kernel's time to PID 1.
//! The first comes from the daemon's own phases, the second from the machine's console.
//!
//! Another pod is there all the time, as on most nodes. Without it each start makes the local provider's bridge anew, and a kernel that
//! has just seen links go lets a new bridge carry packets only after up to a second; that is this provider's, and no cloud's.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use peerpods_e2e::{Level, World, WorldOptions, eventually};

use crate::figure::{Budget, Figure, percentile};

/// One cold start in milliseconds.
struct Start {
    total: f64,
    pending: f64,
    kernel: f64,
}

/// Cold starts at both levels.
pub(crate) async fn run() -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (level, name, runs) in [(Level::Sandbox, "sandbox", 20), (Level::Qemu, "qemu", 5)] {
        let mut starts = Vec::new();
        let mut world = World::start(&WorldOptions::new(level))?;
        let netns = world.add_pod()?.netns().path();
        let mut resident = world.shim("resident", u64::MAX);
        let socket = resident.create_vm(&netns, &[]).await?;
        resident.start_vm(&socket).await?;
        for seed in 0..runs {
            starts.push(start(&mut world, level, seed).await.with_context(|| world.logs())?);
        }
        let total = percentile(&mut starts.iter().map(|s| s.total).collect::<Vec<_>>(), 0.5);
        let mut ours: Vec<f64> = starts.iter().map(|s| s.total - s.pending - s.kernel).collect();
        for (share, label, budget) in [(0.5, "p50", Budget::None), (0.99, "p99", Budget::AtMost(250.0))] {
            figures.push(Figure {
                name: format!("cold start, {name}, our share, {label} of {runs}"),
                value: percentile(&mut ours, share),
                unit: "ms",
                baseline: "the whole start, p50".to_owned(),
                baseline_value: total,
                budget,
            });
        }
        for (label, pick) in [("provider pending", (|s| s.pending) as fn(&Start) -> f64), ("kernel to PID 1", |s| s.kernel)] {
            figures.push(Figure {
                name: format!("cold start, {name}, {label}, p50"),
                value: percentile(&mut starts.iter().map(pick).collect::<Vec<_>>(), 0.5),
                unit: "ms",
                baseline: "the whole start, p50".to_owned(),
                baseline_value: total,
                budget: Budget::None,
            });
        }
    }
    Ok(figures)
}

async fn start(world: &mut World, level: Level, seed: u64) -> Result<Start> {
    let pod = world.add_pod()?;
    let (netns, address) = (pod.netns().path(), pod.address());
    let mut shim = world.shim(&format!("start-{seed}"), seed);
    let begin = Instant::now();
    let socket = shim.create_vm(&netns, &[]).await?;
    shim.start_vm(&socket).await?;
    shim.check().await?;
    let total = begin.elapsed().as_secs_f64() * 1e3;
    let list = world.node_list()?;
    let own = list.as_array().into_iter().flatten().find(|s| s["sandbox_id"] == shim.sandbox_id()).context("the sandbox is not listed")?;
    let phases = own["phases"].as_array().context("no phases")?;
    let pending = phases.iter().find(|p| p["phase"] == "pod-vm-pending").and_then(|p| p["ms"].as_f64()).unwrap_or(0.0);
    let kernel = if level == Level::Qemu { kernel_ms(world, own["instance_id"].as_str().unwrap_or(""))? } else { 0.0 };
    shim.stop_vm().await?;
    eventually("the pod VM is deleted", Duration::from_secs(60), || {
        let count = world.machines().len();
        anyhow::ensure!(count == 1, "{count} machines");
        Ok(())
    })?;
    world.remove_pod(address);
    Ok(Start { total, pending, kernel })
}

/// The console's line `peerpods: init <milliseconds since the kernel started>`.
fn kernel_ms(world: &World, instance_id: &str) -> Result<f64> {
    let machine = world.machines().into_iter().find(|machine| machine.ends_with(instance_id)).context("no machine")?;
    let console = std::fs::read(machine.join("console.log"))?;
    let console = String::from_utf8_lossy(&console).into_owned();
    let line = console.lines().find_map(|line| line.split_once("peerpods: init ")).context("the console has no line of init")?;
    Ok(line.1.trim().parse()?)
}
