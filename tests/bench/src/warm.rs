//! Claims of pod VMs that wait, beside claims for which one is launched, on both kinds of machine.
//!
//! The time is from StartVM until Health.Check answers: attestation with evidence of type `sample`, Bind, pod network, link. The pool is
//! filled again meanwhile, and here that runs on the same processors; a cloud's would not.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use peerpods_e2e::{Level, World, WorldOptions, eventually};
use tokio::task::JoinSet;

use crate::figure::{Budget, Figure, percentile};

/// A row of figures.
struct Run {
    level: Level,
    name: &'static str,
    claims: u64,
    at_once: u64,
}

const RUNS: [Run; 2] = [
    Run { level: Level::Sandbox, name: "sandbox", claims: 200, at_once: 20 },
    Run { level: Level::Qemu, name: "qemu", claims: 20, at_once: 1 },
];

/// Warm and cold claims at both levels.
pub(crate) async fn run() -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for run in RUNS {
        let mut cold = claims(&run, false).await?;
        let mut warm = claims(&run, true).await?;
        let Run { name, claims, at_once, .. } = run;
        for (share, label, budget) in [(0.5, "p50", 300.0), (0.99, "p99", 1000.0)] {
            figures.push(Figure {
                name: format!("warm claim, {name}, {label} of {claims}, {at_once} at once"),
                value: percentile(&mut warm, share),
                unit: "ms",
                baseline: "the same without a pool".to_owned(),
                baseline_value: percentile(&mut cold, share),
                budget: Budget::AtMost(budget),
            });
        }
    }
    Ok(figures)
}

async fn claims(run: &Run, is_warm: bool) -> Result<Vec<f64>> {
    let waiting = if is_warm { run.at_once } else { 0 };
    let pool = format!("[class.default.pool]\nmin = {waiting}\nmax = {waiting}\n");
    let controller_extra = if is_warm { pool } else { String::new() };
    let mut world = World::start(&WorldOptions { controller_extra, ..WorldOptions::new(run.level) })?;
    let mut times = Vec::new();
    for round in 0..run.claims / run.at_once {
        let ready = |world: &World| {
            let machines = world.machines();
            let is_ready = |machine: &std::path::PathBuf| {
                let console = std::fs::read(machine.join("console.log")).unwrap_or_default();
                String::from_utf8_lossy(&console).contains("peerpods: listening")
            };
            let count = machines.iter().filter(|machine| is_ready(machine)).count();
            ensure!(machines.len() as u64 == waiting && count == machines.len(), "{count} of {} machines are ready", machines.len());
            Ok(())
        };
        eventually("the pool is full", Duration::from_secs(300), || ready(&world)).with_context(|| world.logs())?;
        let mut pods = JoinSet::new();
        for number in 0..run.at_once {
            let seed = round * run.at_once + number + 1;
            let netns = world.add_pod()?;
            let (netns, address) = (netns.netns().path(), netns.address());
            let mut shim = world.shim(&format!("pod-{seed}"), seed);
            pods.spawn(async move {
                let socket = shim.create_vm(&netns, &[]).await?;
                let begin = Instant::now();
                shim.start_vm(&socket).await?;
                shim.check().await?;
                anyhow::Ok((shim, address, begin.elapsed().as_secs_f64() * 1e3))
            });
        }
        let served = pods.join_all().await.into_iter().collect::<Result<Vec<_>>>().with_context(|| world.logs())?;
        for (shim, address, ms) in served {
            times.push(ms);
            shim.stop_vm().await?;
            world.remove_pod(address);
        }
    }
    world.shut_down()?;
    Ok(times)
}
