//! What peer pods bear and what ends them, seen through both containerds; and an image that the node cannot fetch.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use peerpods_e2e::{
    Container, Handler, Image, Level, Rig, RigOptions, Running, RunningPod, Story, Version, WorldOptions, eventually, eventually_async, v1,
};

fn rig(version: Version) -> Arc<Rig> {
    Arc::new(Rig::start(&RigOptions::new(version, WorldOptions::new(Level::Sandbox))).unwrap())
}

async fn story(rig: &Arc<Rig>, name: &'static str) -> Story {
    Story::begin(Arc::clone(rig), Handler::PeerPods, name).await.unwrap()
}

/// A pod whose container logs a number ten times a second.
async fn counting(story: &Story) -> (RunningPod, Running) {
    let pod = story.pod("counting").run().await.unwrap();
    let script = "i=0; while :; do echo $i; i=$((i+1)); usleep 100000; done";
    let container = pod.start(Container::script("c", script)).await.unwrap();
    container.logs(" 3\n").await.unwrap();
    (pod, container)
}

/// Fails unless the log counts from 0 without a gap; gives the last number.
fn counted(container: &Running) -> Result<usize> {
    let text = String::from_utf8(container.output("stdout")?)?;
    let numbers: Vec<usize> = text.lines().map(str::parse).collect::<Result<_, _>>()?;
    ensure!(numbers.iter().copied().eq(0..numbers.len()), "{numbers:?}");
    numbers.last().copied().context("nothing logged")
}

/// The process of this sandbox's shim.
fn shim(pod: &RunningPod) -> Result<Pid> {
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|&byte| byte == 0).collect();
        if words[0].ends_with(b"containerd-shim-peerpods-v2") && words.contains(&pod.id().as_bytes()) {
            return Ok(Pid::from_raw(pid));
        }
    }
    anyhow::bail!("no shim of {}", pod.id())
}

/// The process that is the only machine.
fn machine(rig: &Rig) -> Pid {
    let folder = rig.world().machines().pop().unwrap();
    let record: serde_json::Value = serde_json::from_slice(&std::fs::read(folder.join("machine.json")).unwrap()).unwrap();
    Pid::from_raw(i32::try_from(record["process"]["pid"].as_i64().unwrap()).unwrap())
}

/// Tells a test on both versions, one after the other.
async fn on_both<F: Future<Output = ()>>(name: &'static str, told: impl Fn(Arc<Rig>, Story) -> F) {
    for version in Version::ALL {
        let rig = rig(version);
        let story = story(&rig, name).await;
        told(Arc::clone(&rig), story.clone()).await;
        story.clean_up().await.unwrap();
        rig.world().wait_for_no_machines(Duration::from_secs(30)).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_containerd_is_invisible_to_a_pod() {
    on_both("restart", |rig, story| async move {
        let (pod, container) = counting(&story).await;
        let before = counted(&container).unwrap();
        rig.kill_containerd().unwrap();
        rig.start_containerd().unwrap();
        assert_eq!(pod.status().await.unwrap().state(), v1::PodSandboxState::SandboxReady);
        assert_eq!(container.status().await.unwrap().state(), v1::ContainerState::ContainerRunning);
        container.prints("echo alive", "alive\n").await.unwrap();
        eventually("the log goes on", Duration::from_secs(20), || {
            let now = counted(&container)?;
            ensure!(now > before + 20, "{now}");
            Ok(())
        })
        .unwrap();
        let next = pod.start(Container::script("next", "echo next; exit 3")).await.unwrap();
        assert_eq!(next.is_over().await.unwrap().exit_code, 3);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_shim_takes_its_pod_vm_along_within_ten_seconds() {
    on_both("shim", |rig, story| async move {
        let (pod, container) = counting(&story).await;
        kill(shim(&pod).unwrap(), Signal::SIGKILL).unwrap();
        rig.world().wait_for_no_machines(Duration::from_secs(10)).unwrap();
        container.is_over().await.unwrap();
        eventually_async("the sandbox is not ready", Duration::from_secs(20), || async {
            let state = pod.status().await?.state();
            ensure!(state == v1::PodSandboxState::SandboxNotready, "{state:?}");
            Ok(())
        })
        .await
        .unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_whose_vm_died_fails_with_the_reason_within_five_seconds() {
    on_both("vm", |rig, story| async move {
        let (pod, container) = counting(&story).await;
        let begin = SystemTime::now();
        kill(machine(&rig), Signal::SIGKILL).unwrap();
        let status = container.is_over().await.unwrap();
        let took = begin.elapsed().unwrap();
        assert!(took < Duration::from_secs(5), "{took:?}");
        assert_eq!(status.exit_code, 137);
        let said = String::from_utf8(container.output("stderr").unwrap()).unwrap();
        assert!(said.contains("pod VM"), "{said:?} {:?}", std::fs::read_to_string(container.log_path()));
        println!("{took:?}: {said}");
        let late = container.exec(&["true"], 10).await;
        assert!(late.is_err(), "{late:?}");
        eventually_async("the sandbox is not ready", Duration::from_secs(5), || async {
            let state = pod.status().await?.state();
            ensure!(state == v1::PodSandboxState::SandboxNotready, "{state:?}");
            Ok(())
        })
        .await
        .unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_node_daemon_is_invisible_to_logs_and_execs() {
    on_both("daemon", |rig, story| async move {
        let (pod, container) = counting(&story).await;
        let mut session = container.stream(&["cat"], "i").await.unwrap();
        for round in 0..3 {
            rig.world().kill_node().unwrap();
            session.write(format!("round {round}\n").as_bytes()).await.unwrap();
            session.read_until(&format!("round {round}\n")).await.unwrap();
            rig.world().start_node().unwrap();
        }
        session.close_stdin().await.unwrap();
        assert_eq!(session.finish().await.unwrap().code, Some(0));
        counted(&container).unwrap();
        let next = pod.start(Container::script("next", "exit 3")).await.unwrap();
        assert_eq!(next.is_over().await.unwrap().exit_code, 3);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_whose_layers_only_the_vm_can_reach_runs() {
    on_both("layers", |rig, story| async move {
        let image = Image::busybox(&[("secret", b"for the VM alone\n")]).unwrap();
        for layer in &image.layers {
            rig.gate().refuse(&layer.digest());
        }
        rig.world().registry().push(rig.world().netns(), "hidden", "1", &image).unwrap();
        let pod = story.pod("hidden").run().await.unwrap();
        let command = Container::script("x", "cat /secret").config.command;
        let container = pod.start(Container::of_image("c", "hidden").with(|config| config.command = command)).await.unwrap();
        assert_eq!(container.is_over().await.unwrap().exit_code, 0);
        assert_eq!(container.output("stdout").unwrap(), b"for the VM alone\n");
        let layers = rig.gate().fetched().into_iter().filter(|path| image.layers.iter().any(|layer| path.ends_with(&layer.digest())));
        assert_eq!(layers.count(), 0);
    })
    .await;
}
