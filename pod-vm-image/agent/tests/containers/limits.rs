//! Memory and CPU limits, statistics, OOM events, pause.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use peerpods_protos::agent::{
    CreateContainerRequest, GetOOMEventRequest, PauseContainerRequest, ResumeContainerRequest, StatsContainerRequest,
    UpdateContainerRequest,
};
use peerpods_protos::oci;

use crate::world::{Pod, rpc, shell};

const MIB: i64 = 1 << 20;

fn limited(mut request: CreateContainerRequest, bytes: i64) -> Result<CreateContainerRequest> {
    let mut memory = oci::LinuxMemory::new();
    memory.Limit = bytes;
    memory.Swap = bytes;
    let mut cpu = oci::LinuxCPU::new();
    (cpu.Shares, cpu.Quota, cpu.Period) = (512, 50_000, 100_000);
    let mut resources = oci::LinuxResources::new();
    resources.Memory = Some(memory).into();
    resources.CPU = Some(cpu).into();
    request.OCI.as_mut().context("spec")?.Linux.as_mut().context("linux")?.Resources = Some(resources).into();
    Ok(request)
}

pub(crate) async fn memory_limit_ends_in_an_oom_event() -> Result<()> {
    let pod = Pod::start().await?;
    let asked = GetOOMEventRequest::new();
    let event = pod.rpc.get_oom_event(ttrpc::context::Context::default(), &asked);
    let run = async {
        // The pause container has no limit, and a small one is not in the way of what fits.
        ensure!(pod.run(&limited(shell("c0", "echo fits"), 32 * MIB)?).await.is_ok());
        ensure!(pod.finish("c0", "").await?.stdout == "fits\n");
        pod.run(&limited(shell("c1", "exec tail /dev/zero"), 32 * MIB)?).await?;
        pod.finish("c1", "").await
    };
    let (event, ended) = tokio::join!(event, run);
    ensure!(event.context("GetOOMEvent")?.container_id == "c1");
    ensure!(ended?.status == 137);

    // A child's death counts too, while the container goes on.
    pod.run(&limited(shell("c2", "tail /dev/zero; echo child ended; sleep 1000"), 32 * MIB)?).await?;
    let event = pod.rpc.get_oom_event(rpc(), &GetOOMEventRequest::new()).await?;
    ensure!(event.container_id == "c2");
    pod.read_until("c2", "", "child ended\n").await?;
    ensure!(
        tokio::time::timeout(Duration::from_millis(700), pod.rpc.get_oom_event(rpc(), &GetOOMEventRequest::new())).await.is_err(),
        "one event per kill"
    );
    pod.destroy().await
}

pub(crate) async fn statistics_and_updates_are_the_cgroups() -> Result<()> {
    let pod = Pod::start().await?;
    let script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; ls /sys/fs/cgroup; \
        cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; \
        file=/sys/fs/cgroup/memory.max; test -e $file || file=/sys/fs/cgroup/memory/memory.limit_in_bytes; \
        (echo 1 > $file) 2>/dev/null || echo read-only; sleep 1000";
    pod.run(&limited(shell("c1", script), 64 * MIB)?).await?;
    let shown = pod.read_until("c1", "", "read-only\n").await?;
    ensure!(shown.contains("67108864\n"), "the container sees its own limit: {shown}");
    let mut request = StatsContainerRequest::new();
    request.container_id = "c1".to_owned();
    let stats = pod.rpc.stats_container(rpc(), &request).await?.cgroup_stats;
    ensure!(stats.cpu_stats.cpu_usage.total_usage > 0, "{stats:?}");
    ensure!(stats.memory_stats.usage.usage > 0 && stats.memory_stats.usage.limit == 67_108_864, "{stats:?}");
    ensure!(stats.memory_stats.stats.contains_key("total_inactive_file"), "{stats:?}");
    ensure!(stats.pids_stats.current >= 1, "{stats:?}");

    let mut memory = oci::LinuxMemory::new();
    (memory.Limit, memory.Swap) = (128 * MIB, 128 * MIB);
    let mut cpu = oci::LinuxCPU::new();
    (cpu.Shares, cpu.Quota, cpu.Period) = (800, 80_000, 100_000);
    let mut resources = oci::LinuxResources::new();
    resources.Devices = vec![oci::LinuxDeviceCgroup::new()];
    resources.Memory = Some(memory).into();
    resources.CPU = Some(cpu).into();
    let mut update = UpdateContainerRequest::new();
    update.container_id = "c1".to_owned();
    update.resources = Some(resources).into();
    pod.rpc.update_container(rpc(), &update).await.context("UpdateContainer")?;
    let stats = pod.rpc.stats_container(rpc(), &request).await?.cgroup_stats;
    ensure!(stats.memory_stats.usage.limit == 134_217_728, "{stats:?}");
    update.resources.as_mut().context("resources")?.Memory.as_mut().context("memory")?.Limit = 48 * MIB;
    update.resources.as_mut().context("resources")?.Memory.as_mut().context("memory")?.Swap = 48 * MIB;
    pod.rpc.update_container(rpc(), &update).await.context("UpdateContainer, down again")?;
    pod.destroy().await
}

pub(crate) async fn paused_containers_stand_still() -> Result<()> {
    let pod = Pod::start().await?;
    pod.run(&shell("c1", "while read a; do echo got $a; done")).await?;
    let mut pause = PauseContainerRequest::new();
    pause.container_id = "c1".to_owned();
    pod.rpc.pause_container(rpc(), &pause).await.context("PauseContainer")?;
    pod.write("c1", "", b"x\n").await?;
    {
        let read = pod.read_until("c1", "", "got x\n");
        tokio::pin!(read);
        ensure!(tokio::time::timeout(Duration::from_millis(100), &mut read).await.is_err(), "it stands still");
        let mut resume = ResumeContainerRequest::new();
        resume.container_id = "c1".to_owned();
        pod.rpc.resume_container(rpc(), &resume).await.context("ResumeContainer")?;
        read.await?;
    }
    // A paused container can be removed.
    pod.rpc.pause_container(rpc(), &pause).await?;
    pod.remove("c1").await?;
    pod.destroy().await
}
