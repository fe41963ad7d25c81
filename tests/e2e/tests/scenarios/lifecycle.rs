//! How containers and pods end, and what is said of them meanwhile.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use peerpods_e2e::{Container, Handler, Scenario, Story, Version, eventually_async, scenarios, v1};

pub(super) fn scenarios() -> Vec<Scenario> {
    scenarios![
        a_container_that_heeds_sigterm_ends_by_itself,
        a_container_that_ignores_sigterm_is_killed_after_its_grace,
        the_images_stop_signal_is_sent,
        a_stopped_pod_ends_its_containers,
        a_running_pod_can_be_removed,
        a_container_is_created_again_after_its_end,
        a_container_that_was_never_started_can_be_removed,
        what_exceeds_its_memory_is_killed_with_a_reason,
        // containerd 1.7 says nothing of users.
        a_status_tells_what_was_asked_for.differs_on(
            Version::V2,
            "groups",
            "2147483640",
            "which groups the image has is known in the pod VM alone, so the status shows the mark that is resolved there"
        ),
        statistics_of_a_container_have_runcs_shape,
        statistics_of_a_pod_have_runcs_shape,
        limits_can_be_changed_while_it_runs,
        cpu_and_memory_limits_are_in_force,
        containers_and_sandboxes_are_listed,
        // containerd 1.7 gives each event to one client of many.
        events_come_in_runcs_order.only(Version::V2),
        a_missing_image_is_refused,
    ]
}

async fn a_container_that_heeds_sigterm_ends_by_itself(story: Story) -> Result<()> {
    let pod = story.pod("stop").run().await?;
    let script = "trap 'echo asked to end; exit 5' TERM; echo ready; while :; do sleep 1000 & wait $!; done";
    let container = pod.start(Container::script("c", script)).await?;
    container.logs("ready").await?;
    let begin = SystemTime::now();
    container.stop(30).await?;
    ensure!(begin.elapsed()? < Duration::from_secs(15), "it was killed after its grace");
    container.ends().await?;
    // Once more is no error.
    container.stop(30).await?;
    Ok(())
}

async fn a_container_that_ignores_sigterm_is_killed_after_its_grace(story: Story) -> Result<()> {
    let pod = story.pod("stop").run().await?;
    // The kernel itself keeps signals without a handler from the first process of a namespace.
    let unaware = pod.start(Container::new("unaware", &["/bin/sleep", "1000"])).await?;
    let stubborn = pod.start(Container::script("stubborn", "trap 'echo no' TERM; echo ready; while :; do sleep 0.1; done")).await?;
    stubborn.logs("ready").await?;
    for container in [&unaware, &stubborn] {
        let begin = SystemTime::now();
        container.stop(2).await?;
        let took = begin.elapsed()?;
        ensure!(took >= Duration::from_millis(1900) && took < Duration::from_secs(20), "{took:?}");
        container.ends().await?;
    }
    Ok(())
}

async fn the_images_stop_signal_is_sent(story: Story) -> Result<()> {
    let pod = story.pod("stop").run().await?;
    let script = "trap 'echo usr1; exit 0' USR1; trap 'echo term; exit 1' TERM; echo ready; while :; do sleep 1000 & wait $!; done";
    let command = Container::script("x", script).config.command;
    let container = pod.start(Container::of_image("c", "configured").with(|config| config.command = command)).await?;
    container.logs("ready").await?;
    container.stop(30).await?;
    container.ends().await?;
    Ok(())
}

async fn a_stopped_pod_ends_its_containers(story: Story) -> Result<()> {
    let pod = story.pod("stop").run().await?;
    let container = pod.start(Container::waiting("c")).await?;
    let other = pod.start(Container::script("other", "exit 4")).await?;
    other.is_over().await?;
    pod.stop().await?;
    container.shows_exit().await?;
    other.shows_exit().await?;
    pod.shows_state().await?;
    match pod.try_create(Container::script("late", "true")).await {
        Ok(_) => story.record("late", "created"),
        Err(status) => story.record_error("late", &status, &["not running"]),
    }
    Ok(())
}

async fn a_running_pod_can_be_removed(story: Story) -> Result<()> {
    let pod = story.pod("remove").run().await?;
    let container = pod.start(Container::waiting("c")).await?;
    match pod.remove().await {
        Ok(()) => story.record("remove", "done"),
        Err(error) => story.record("remove", format!("{error:#}")),
    }
    story.record("the container is gone", container.status().await.is_err());
    story.record("the sandbox is gone", pod.status().await.is_err());
    // Once more is no error.
    story.record("remove again", pod.remove().await.is_ok());
    Ok(())
}

async fn a_container_is_created_again_after_its_end(story: Story) -> Result<()> {
    let pod = story.pod("restart").run().await?;
    let scratch = pod.empty_dir("scratch")?;
    for attempt in 0..3 {
        let script = "echo run >> /keep/runs; wc -l < /keep/runs; ls /tmp; touch /tmp/mine; exit 1";
        let container = Container::script("c", script)
            .mount(&scratch, "/keep")
            .with(|config| config.metadata = Some(v1::ContainerMetadata { name: "c".to_owned(), attempt }));
        let container = pod.start(container).await?;
        container.ends().await?;
        if attempt == 1 {
            container.remove().await?;
        }
    }
    pod.shows_state().await
}

async fn a_container_that_was_never_started_can_be_removed(story: Story) -> Result<()> {
    let pod = story.pod("created").run().await?;
    let container = pod.try_create(Container::waiting("c")).await?;
    story.record("state", format!("{:?}", container.status().await?.state()));
    container.remove().await?;
    story.record("gone", container.status().await.is_err());
    pod.start(Container::script("next", "echo next")).await?.ends().await?;
    Ok(())
}

async fn what_exceeds_its_memory_is_killed_with_a_reason(story: Story) -> Result<()> {
    let pod = story.pod("oom").run().await?;
    // runc's shim sends the kill and the exit unordered, so that its reason is now and then "Error"
    // (containerd issue 12260); such a telling is no measure, and another container is asked. Ours has one chance.
    let chances = if story.handler() == Handler::Runc { 5 } else { 1 };
    for chance in 1..=chances {
        let greedy = Container::new("greedy", &["/bin/tail", "/dev/zero"]).limited(|limits| limits.memory_limit_in_bytes = 16 << 20);
        let greedy = pod.start(greedy).await?;
        if chance < chances && greedy.is_over().await?.reason != "OOMKilled" {
            greedy.remove().await?;
            continue;
        }
        let status = greedy.ends().await?;
        ensure!(status.exit_code == 137, "{}", status.exit_code);
        break;
    }
    Ok(())
}

async fn a_status_tells_what_was_asked_for(story: Story) -> Result<()> {
    let pod = story.pod("status").with(|config| _ = config.labels.insert("app".to_owned(), "web".to_owned())).run().await?;
    let scratch = pod.empty_dir("scratch")?;
    let container = Container::waiting("c").mount_read_only(&scratch, "/scratch").user(1000, Some(1001)).with(|config| {
        config.annotations.insert("note".to_owned(), "kept".to_owned());
    });
    let container = pod.start(container).await?;
    let mut status = container.status().await?;
    status.mounts.sort_by(|a, b| a.container_path.cmp(&b.container_path));
    story.record(
        "metadata",
        format!("{:?} {:?} {:?}", status.metadata, status.labels.get("io.kubernetes.container.name"), status.annotations),
    );
    story.record("state", format!("{:?} exit {} reason {:?}", status.state(), status.exit_code, status.reason));
    story.record("image", status.image.map(|image| image.image).unwrap_or_default());
    story.record("image reference", status.image_ref);
    story.record("log", status.log_path);
    story.record(
        "mounts",
        format!("{:?}", status.mounts.iter().map(|m| (&m.container_path, m.readonly, m.propagation())).collect::<Vec<_>>()),
    );
    story.record("resources", format!("{:?}", status.resources));
    let user = status.user.and_then(|user| user.linux);
    story.record("user", format!("{:?}", user.as_ref().map(|user| (user.uid, user.gid))));
    story.record("groups", format!("{:?}", user.map(|user| user.supplemental_groups)));
    let sandbox = pod.status().await?;
    story.record("sandbox", format!("{:?} {:?} {:?}", sandbox.state(), sandbox.metadata, sandbox.labels.get("app")));
    story.record("namespaces", format!("{:?}", sandbox.linux));
    let network = sandbox.network.context("a network")?;
    story.record("network", format!("{} {:?}", network.ip, network.additional_ips));
    Ok(())
}

/// Which numbers are there, and whether they are more than zero.
fn shape(stats: &v1::ContainerStats) -> String {
    let sign = |value: &Option<v1::UInt64Value>| match value {
        None => "absent",
        Some(value) if value.value > 0 => "some",
        Some(_) => "zero",
    };
    let cpu = stats.cpu.as_ref().map(|cpu| (cpu.timestamp > 0, sign(&cpu.usage_core_nano_seconds)));
    let memory = stats.memory.as_ref().map(|m| {
        // Whether a limit exists and how many faults happened depends on who counts; that they are counted does not.
        (
            m.timestamp > 0,
            sign(&m.working_set_bytes),
            sign(&m.usage_bytes),
            sign(&m.rss_bytes),
            sign(&m.available_bytes),
            m.page_faults.is_some(),
        )
    });
    let name = stats.attributes.as_ref().and_then(|a| a.metadata.as_ref()).map(|m| m.name.clone());
    format!("{name:?} cpu {cpu:?} memory {memory:?}")
}

const BUSY: &str =
    "trap 'exit 0' TERM; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo worked; while :; do sleep 1000 & wait $!; done";

async fn statistics_of_a_container_have_runcs_shape(story: Story) -> Result<()> {
    let pod = story.pod("stats").run().await?;
    let container = Container::script("c", BUSY).limited(|limits| limits.memory_limit_in_bytes = 64 << 20);
    let container = pod.start(container).await?;
    container.logs("worked").await?;
    let stats = eventually_async("some memory is counted", Duration::from_secs(20), || async {
        let stats = container.stats().await?;
        ensure!(stats.memory.as_ref().and_then(|m| m.working_set_bytes).is_some_and(|v| v.value > 0), "{stats:?}");
        Ok(stats)
    })
    .await?;
    story.record("stats", shape(&stats));
    let request = v1::ListContainerStatsRequest {
        filter: Some(v1::ContainerStatsFilter { pod_sandbox_id: pod.id().to_owned(), ..Default::default() }),
    };
    let listed = story.cri().runtime.clone().list_container_stats(request).await?.into_inner().stats;
    story.record("listed", listed.iter().map(shape).collect::<Vec<_>>().join(", "));
    container.stop(10).await?;
    match container.stats().await {
        Ok(stats) => story.record("stats after its end", shape(&stats)),
        Err(error) => story
            .record("stats after its end", error.downcast_ref::<tonic::Status>().map(|s| format!("{:?}", s.code())).unwrap_or_default()),
    }
    Ok(())
}

async fn statistics_of_a_pod_have_runcs_shape(story: Story) -> Result<()> {
    let pod = story.pod("stats").run().await?;
    let container = pod.start(Container::script("c", BUSY)).await?;
    container.logs("worked").await?;
    let request = v1::PodSandboxStatsRequest { pod_sandbox_id: pod.id().to_owned() };
    let stats = story.cri().runtime.clone().pod_sandbox_stats(request).await?.into_inner().stats.context("statistics")?;
    let linux = stats.linux.context("statistics of Linux")?;
    story.record("cpu", linux.cpu.is_some());
    story.record("memory", linux.memory.is_some());
    story.record("network", format!("{:?}", linux.network.and_then(|n| n.default_interface).map(|i| (i.name, i.rx_bytes.is_some()))));
    story.record("containers", linux.containers.iter().map(shape).collect::<Vec<_>>().join(", "));
    Ok(())
}

/// Limits as the container's own groups say, on either version of cgroups.
const LIMITS: &str = "cd /sys/fs/cgroup; cat memory.max 2>/dev/null || cat memory/memory.limit_in_bytes; \
    cat cpu.max 2>/dev/null || echo $(cat cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us)";

async fn limits_can_be_changed_while_it_runs(story: Story) -> Result<()> {
    let pod = story.pod("resize").run().await?;
    let container = Container::waiting("c").limited(|limits| {
        limits.memory_limit_in_bytes = 64 << 20;
        limits.cpu_quota = 50_000;
    });
    let container = pod.start(container).await?;
    container.prints(LIMITS, "67108864\n50000 100000\n").await?;
    let limits = v1::LinuxContainerResources {
        memory_limit_in_bytes: 128 << 20,
        cpu_quota: 20_000,
        cpu_period: 100_000,
        cpu_shares: 512,
        ..Default::default()
    };
    let request =
        v1::UpdateContainerResourcesRequest { container_id: container.id().to_owned(), linux: Some(limits), ..Default::default() };
    story.cri().runtime.clone().update_container_resources(request).await.context("UpdateContainerResources")?;
    container.prints(LIMITS, "134217728\n20000 100000\n").await?;
    let told = container.status().await?.resources.and_then(|r| r.linux).map(|l| (l.memory_limit_in_bytes, l.cpu_quota, l.cpu_shares));
    story.record("status", format!("{told:?}"));
    Ok(())
}

async fn cpu_and_memory_limits_are_in_force(story: Story) -> Result<()> {
    let pod = story.pod("limits").run().await?;
    let limited = Container::waiting("limited").limited(|limits| {
        limits.memory_limit_in_bytes = 32 << 20;
        limits.cpu_quota = 25_000;
        limits.cpu_shares = 256;
    });
    pod.start(limited).await?.says(LIMITS).await?;
    let free = pod.start(Container::waiting("free")).await?;
    free.says("cd /sys/fs/cgroup; cat cpu.max 2>/dev/null || cat cpu/cpu.cfs_quota_us").await?;
    Ok(())
}

async fn containers_and_sandboxes_are_listed(story: Story) -> Result<()> {
    let pod = story.pod("list").run().await?;
    pod.start(Container::waiting("running")).await?;
    pod.start(Container::script("ended", "exit 2")).await?.is_over().await?;
    let filter = v1::ContainerFilter { pod_sandbox_id: pod.id().to_owned(), ..Default::default() };
    let listed = story.cri().runtime.clone().list_containers(v1::ListContainersRequest { filter: Some(filter) }).await?.into_inner();
    let mut lines: Vec<String> = listed
        .containers
        .iter()
        .map(|c| format!("{} {:?} {}", c.metadata.as_ref().map_or("", |m| &m.name), c.state(), c.image.as_ref().map_or("", |i| &i.image)))
        .collect();
    lines.sort();
    story.record("containers", lines.join(", "));
    let filter = v1::PodSandboxFilter { id: pod.id().to_owned(), ..Default::default() };
    let listed = story.cri().runtime.clone().list_pod_sandbox(v1::ListPodSandboxRequest { filter: Some(filter) }).await?.into_inner();
    let states: Vec<String> = listed.items.iter().map(|item| format!("{:?}", item.state())).collect();
    story.record("sandboxes", states.join(", "));
    Ok(())
}

async fn events_come_in_runcs_order(story: Story) -> Result<()> {
    // Read from the first to containerd's end, by a task of its own: the call returns with the first event, a new subscriber is told all that
    // nobody heard in the last minutes, and containerd does nothing for anybody while a subscriber's stream is full.
    let (sender, mut events) = tokio::sync::mpsc::unbounded_channel();
    let mut runtime = story.cri().runtime.clone();
    tokio::spawn(async move {
        let mut stream = runtime.get_container_events(v1::GetEventsRequest {}).await?.into_inner();
        while let Some(event) = stream.message().await? {
            let _ = sender.send(event);
        }
        Ok::<(), tonic::Status>(())
    });
    let first = story.pod("first").run().await?;
    let subscribed = async { while events.recv().await.is_some_and(|event| event.container_id != first.id()) {} };
    tokio::time::timeout(Duration::from_secs(20), subscribed).await.context("the first pod is not told of")?;
    let pod = story.pod("events").run().await?;
    let container = pod.start(Container::script("c", "exit 3")).await?;
    container.is_over().await?;
    container.remove().await?;
    pod.stop().await?;
    // Whatever is told of that pod is told before this one is.
    let next = story.pod("next").run().await?;
    let mut seen = Vec::new();
    let collect = async {
        while let Some(event) = events.recv().await {
            let subject = match &event.container_id {
                id if id == container.id() => "container",
                id if id == pod.id() => "sandbox",
                id if id == next.id() => break,
                _ => continue,
            };
            seen.push(format!("{subject} {:?}", event.container_event_type()));
        }
    };
    tokio::time::timeout(Duration::from_secs(20), collect).await.context("the next pod is not told of")?;
    story.record("events", seen.join(", "));
    Ok(())
}

async fn a_missing_image_is_refused(story: Story) -> Result<()> {
    let pod = story.pod("missing").run().await?;
    pod.refuses(Container::of_image("c", "nosuch"), &["not found"]).await?;
    pod.refuses(Container::of_image("host", "10.93.0.1:1/x:1"), &["10.93.0.1:1"]).await
}
