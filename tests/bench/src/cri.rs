//! Pods that an unmodified containerd 2.x runs, beside the same pods on runc in the same run, pod VMs at level `sandbox`.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use peerpods_e2e::{Container, Handler, Level, Rig, RigOptions, RunningPod, Story, Version, WorldOptions};

use crate::figure::{Budget, Figure, percentile};
use crate::memory::{processes, pss_mib, settled_mib};

const PODS: usize = 50;
const EXECS: usize = 200;
const LOG_BYTES: u64 = 1 << 30;

/// What was measured on one handler.
struct Measured {
    /// RunPodSandbox, CreateContainer and StartContainer together, in milliseconds, of each pod.
    starts: Vec<f64>,
    /// ExecSync of a command that does nothing, in milliseconds.
    execs: Vec<f64>,
    /// Of a container's output, from its start to its end, in MB/s.
    logs: f64,
    /// Mean of the shims of idle pods, with the node daemon's growth divided among them, in MiB.
    memory: f64,
}

/// Both handlers, one after the other.
pub(crate) async fn run() -> Result<Vec<Figure>> {
    let rig = Arc::new(Rig::start(&RigOptions::new(Version::V2, WorldOptions::new(Level::Sandbox)))?);
    let mut runc = measure(&rig, Handler::Runc).await.with_context(|| rig.logs())?;
    let mut ours = measure(&rig, Handler::PeerPods).await.with_context(|| rig.logs())?;
    let figure = |name: &str, unit, value, baseline_value, budget| Figure {
        name: format!("containerd: {name}"),
        value,
        unit,
        baseline: "the same on runc".to_owned(),
        baseline_value,
        budget,
    };
    let p50 = |samples: &mut Vec<f64>| percentile(samples, 0.5);
    let p99 = |samples: &mut Vec<f64>| percentile(samples, 0.99);
    Ok(vec![
        figure("a pod's start, p50 of 50", "ms", p50(&mut ours.starts), p50(&mut runc.starts), Budget::None),
        figure("a pod's start, p99 of 50", "ms", p99(&mut ours.starts), p99(&mut runc.starts), Budget::None),
        figure("exec round trip, p50 of 200", "ms", p50(&mut ours.execs), p50(&mut runc.execs), Budget::None),
        figure("exec round trip, p99 of 200", "ms", p99(&mut ours.execs), p99(&mut runc.execs), Budget::None),
        figure("1 GiB of logs", "MB/s", ours.logs, runc.logs, Budget::RatioAtLeast(0.7)),
        figure("shim of an idle pod, PSS, mean of 50", "MiB", ours.memory, runc.memory, Budget::AtMost(3.0)),
    ])
}

async fn measure(rig: &Arc<Rig>, handler: Handler) -> Result<Measured> {
    let story = Story::begin(Arc::clone(rig), handler, "bench").await?;
    let node = rig.world().node_pid().context("the node daemon does not run")?;
    let daemon_before = settled_mib(node)?;
    let mut starts = Vec::new();
    let mut last: Option<(RunningPod, peerpods_e2e::Running)> = None;
    for number in 0..PODS {
        let begin = Instant::now();
        let pod = story.pod(&format!("pod-{number}")).run().await?;
        let container = pod.start(Container::new("c", &["/bin/sleep", "1000000"])).await?;
        starts.push(begin.elapsed().as_secs_f64() * 1e3);
        last = Some((pod, container));
    }
    let (pod, container) = last.context("no pods")?;
    let daemon = settled_mib(node)? - daemon_before;
    let shim = match handler {
        Handler::PeerPods => "containerd-shim-peerpods-v2",
        Handler::Runc => "containerd-shim-runc-v2",
    };
    let shims = processes(|exe| exe.file_name() == Path::new(shim).file_name())?;
    ensure!(shims.len() == PODS, "{} shims of {PODS} pods", shims.len());
    let held = shims.iter().map(|pid| pss_mib(*pid)).collect::<Result<Vec<f64>>>()?;
    let memory = (held.iter().sum::<f64>() + daemon.max(0.0)) / PODS as f64;
    let mut execs = Vec::new();
    for _ in 0..EXECS {
        let begin = Instant::now();
        container.exec(&["/bin/true"], 30).await?;
        execs.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    let logs = logs(&pod).await?;
    story.clean_up().await?;
    rig.world().wait_for_no_machines(Duration::from_secs(120))?;
    Ok(Measured { starts, execs, logs, memory })
}

/// Lines of 1 KiB, until there are enough.
async fn logs(pod: &RunningPod) -> Result<f64> {
    let script = format!("yes $(head -c 1023 /dev/zero | tr '\\0' x) | head -c {LOG_BYTES}");
    let container = pod.start(Container::script("talk", &script)).await?;
    let begin = Instant::now();
    // Polled more finely than `is_over` does, and without its limit.
    loop {
        let status = container.status().await?;
        if status.finished_at > 0 {
            ensure!(status.exit_code == 0, "the container ended with {}", status.exit_code);
            break;
        }
        ensure!(begin.elapsed() < Duration::from_secs(300), "the container still talks");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let took = begin.elapsed().as_secs_f64();
    let size = std::fs::metadata(container.log_path())?.len();
    ensure!(size > LOG_BYTES, "the log holds {size} bytes");
    std::fs::write(container.log_path(), b"")?;
    Ok(LOG_BYTES as f64 / took / 1e6)
}
