//! What the containers of a pod, and pods of a node, share.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use peerpods_e2e::{Container, Pod, RunningPod, Scenario, Story, Version, eventually, eventually_async, scenarios, v1};
use tokio::task::block_in_place;

const PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn scenarios() -> Vec<Scenario> {
    scenarios![
        init_containers_run_before_the_others,
        containers_of_a_pod_share_the_network,
        every_container_has_processes_of_its_own,
        a_shared_process_namespace_shows_all_and_reaps_orphans,
        an_ephemeral_container_sees_its_target,
        ipc_is_shared_by_the_pod,
        the_pods_address_answers_and_it_reaches_others,
        a_pod_of_two_families_is_reached_on_both.only(Version::V2),
        a_host_port_reaches_the_pod,
        a_pod_of_the_nodes_network_is_refused.differs(
            "sandbox",
            "network",
            "a pod VM has no part in the node's network, so pretending to would give such a pod nothing it asks for"
        ),
        a_privileged_container_is_refused.differs(
            "c starts",
            "privileged",
            "privileged means the node's devices and kernel; a class may allow it for those of the pod VM"
        ),
        a_pod_of_the_nodes_processes_is_refused.differs("sandbox", "namespace", "the node's processes are not the pod VM's"),
        a_path_of_the_node_is_refused.differs(
            "c starts",
            "host",
            "the files of the node are not the pod VM's, and copying them would pretend that they are shared"
        ),
        a_class_lets_a_pod_copy_paths_of_the_node,
        a_class_lets_a_container_be_privileged,
        a_class_that_is_not_offered_is_refused.differs("sandbox", "offered: default, open", "classes are of pod VMs"),
        a_device_of_the_node_is_refused.differs("c starts", "device", "the node's devices are not in the pod VM"),
    ]
}

async fn init_containers_run_before_the_others(story: Story) -> Result<()> {
    let pod = story.pod("init").run().await?;
    let scratch = pod.empty_dir("scratch")?;
    for name in ["first", "second"] {
        let status =
            pod.start(Container::script(name, &format!("echo {name} >> /work/order")).mount(&scratch, "/work")).await?.ends().await?;
        ensure!(status.exit_code == 0);
    }
    let container = pod.start(Container::script("main", "cat /work/order").mount(&scratch, "/work")).await?;
    container.ends().await?;
    ensure!(container.output("stdout")? == b"first\nsecond\n");
    Ok(())
}

async fn containers_of_a_pod_share_the_network(story: Story) -> Result<()> {
    let pod = story.pod("network").run().await?;
    let web = pod.start(Container::script("web", "echo hi > /www/index.html; exec httpd -f -p 127.0.0.1:8080 -h /www")).await?;
    let client = pod.start(Container::waiting("client")).await?;
    eventually_async("the other container answers", Duration::from_secs(20), || async {
        let answer = client.exec(&["wget", "-q", "-O", "-", "http://127.0.0.1:8080/"], 10).await?;
        ensure!(answer.stdout == b"hi\n", "{answer:?}");
        Ok(())
    })
    .await?;
    client.prints("ls /www", "").await?;
    client.says("ip -o -4 addr | awk '{ print $2, $4 }'; ip route; cat /sys/class/net/eth0/mtu >/dev/null && echo mtu").await?;
    web.says("ip -o link | wc -l").await?;
    Ok(())
}

async fn every_container_has_processes_of_its_own(story: Story) -> Result<()> {
    let pod = story.pod("processes").run().await?;
    let one = pod.start(Container::new("one", &["/bin/sleep", "1000"])).await?;
    let two = pod.start(Container::new("two", &["/bin/sleep", "2000"])).await?;
    // Who came to start the exec is gone after a moment.
    super::files::comes_to_print(&one, "ps -o pid,args | grep -v ps", "PID   COMMAND\n    1 /bin/sleep 1000\n").await?;
    two.prints("ps -o args | grep -c '[s]leep'", "1\n").await?;
    Ok(())
}

async fn a_shared_process_namespace_shows_all_and_reaps_orphans(story: Story) -> Result<()> {
    let pod = story.pod("shared").sharing_processes().run().await?;
    let shared = |name, seconds: &str| {
        Container::new(name, &["/bin/sleep", seconds])
            .secured(|security| security.namespace_options.get_or_insert_default().pid = v1::NamespaceMode::Pod.into())
    };
    let one = pod.start(shared("one", "1000")).await?;
    pod.start(shared("two", "2000")).await?;
    one.prints("ps -o args | grep '^/bin/sleep' | sort", "/bin/sleep 1000\n/bin/sleep 2000\n").await?;
    one.prints("cat /proc/1/comm", "pause\n").await?;
    // The middle process ends at once, so its child becomes an orphan of the pod's first process.
    one.prints("sh -c 'sh -c \"usleep 100000; exit 3\" & exit 0'; usleep 400000; ps -o stat,args | grep -c '^Z'", "0\n").await?;
    one.prints("kill -9 $(ps -o pid,args | awk '$3 == 2000 { print $1 }'); usleep 200000; ps -o args | grep -c '^/bin/sleep'", "1\n")
        .await?;
    Ok(())
}

async fn an_ephemeral_container_sees_its_target(story: Story) -> Result<()> {
    let pod = story.pod("debugged").run().await?;
    let target = pod.start(Container::new("target", &["/bin/sleep", "1000"])).await?;
    let debugger = Container::waiting("debugger").secured(|security| {
        let options = security.namespace_options.get_or_insert_default();
        options.pid = v1::NamespaceMode::Target.into();
        options.target_id = target.id().to_owned();
    });
    let debugger = pod.start(debugger).await?;
    debugger.prints("cat /proc/1/comm; tr '\\0' ' ' < /proc/1/cmdline", "sleep\n/bin/sleep 1000 ").await?;
    debugger.prints("echo seen > /proc/1/root/tmp/seen; ls /tmp", "").await?;
    target.prints("cat /tmp/seen", "seen\n").await?;
    debugger.prints("kill -9 1; echo alive", "alive\n").await
}

async fn ipc_is_shared_by_the_pod(story: Story) -> Result<()> {
    let pod = story.pod("ipc").run().await?;
    let one = pod.start(Container::waiting("one")).await?;
    let two = pod.start(Container::waiting("two")).await?;
    let script = "for n in ipc net uts; do readlink /proc/self/ns/$n; done";
    let (a, b) = (one.exec(&["/bin/sh", "-c", script], 10).await?, two.exec(&["/bin/sh", "-c", script], 10).await?);
    story.record("namespaces of the pod are shared", a.stdout == b.stdout);
    let script = "for n in pid mnt cgroup; do readlink /proc/self/ns/$n; done | grep -v 'cgroup:'";
    let (a, b) = (one.exec(&["/bin/sh", "-c", script], 10).await?, two.exec(&["/bin/sh", "-c", script], 10).await?);
    story.record("namespaces of containers are shared", a.stdout == b.stdout);
    Ok(())
}

async fn the_pods_address_answers_and_it_reaches_others(story: Story) -> Result<()> {
    let pod = story.pod("web").run().await?;
    let address = *pod.addresses().await?.first().context("an address")?;
    let web = Container::script("web", "mkdir -p /www; echo from the pod > /www/index.html; exec httpd -f -p 8080 -h /www");
    pod.start(web).await?;
    let netns = story.rig().world().netns();
    let answer = block_in_place(|| eventually("the pod answers the node", PATIENCE, || netns.http_get((address, 8080).into(), "/")))?;
    story.record("the node hears", answer.lines().last().unwrap_or_default());
    let other = story.pod("client").run().await?;
    let client = other.start(Container::waiting("client")).await?;
    client.prints(&format!("wget -q -O - http://{address}:8080/"), "from the pod\n").await?;
    client.prints("ping -c 1 -W 5 10.89.0.1 | grep -c ' 0% packet loss'", "1\n").await?;
    client.prints("wget -q -O - http://10.89.0.1:5000/v2/ && echo reached", "{}reached\n").await?;
    client.says(&format!("wget -q -T 3 -O - http://{address}:8081/")).await?;
    Ok(())
}

async fn a_pod_of_two_families_is_reached_on_both(story: Story) -> Result<()> {
    let pod = story.pod("dual").run().await?;
    let addresses = pod.addresses().await?;
    let families: Vec<&str> = addresses.iter().map(|address| if address.is_ipv4() { "IPv4" } else { "IPv6" }).collect();
    story.record("addresses", families.join(", "));
    let web = pod.start(Container::script("web", "echo both > /www/index.html; exec httpd -f -p '[::]:8080' -h /www")).await?;
    let netns = story.rig().world().netns();
    for (address, family) in addresses.iter().zip(families) {
        let answer = block_in_place(|| eventually(&format!("{family} answers"), PATIENCE, || netns.http_get((*address, 8080).into(), "/")));
        story.record(family, answer.map_or_else(|error| format!("{error:#}"), |a| a.lines().last().unwrap_or_default().to_owned()));
    }
    web.says("ip -6 -o addr show eth0 scope global | wc -l; ping -6 -c 1 -W 5 fd00:89::1 | grep -c ' 0% packet loss'; ip -6 route | grep -c default").await?;
    Ok(())
}

async fn a_host_port_reaches_the_pod(story: Story) -> Result<()> {
    // The node has one of each port, and the story is told twice at once.
    let port = match story.handler() {
        peerpods_e2e::Handler::Runc => 18080,
        peerpods_e2e::Handler::PeerPods => 18081,
    };
    let pod = story
        .pod("hostport")
        .with(|config| {
            config.port_mappings =
                vec![v1::PortMapping { container_port: 8080, host_port: port, protocol: v1::Protocol::Tcp.into(), host_ip: String::new() }];
        })
        .run()
        .await?;
    pod.start(Container::script("web", "echo hi > /www/index.html; exec httpd -f -p 8080 -h /www")).await?;
    let netns = story.rig().world().netns();
    let to = std::net::SocketAddr::from(([10, 89, 0, 1], u16::try_from(port)?));
    let answer = block_in_place(|| eventually("the node's port answers", PATIENCE, || netns.http_get(to, "/")))?;
    story.record("the node's port", answer.lines().last().unwrap_or_default());
    Ok(())
}

async fn is_run(story: &Story, pod: Pod) -> Result<()> {
    match pod.try_run().await {
        Ok(_) => story.record("sandbox", "ready"),
        Err(status) => story.record_error("sandbox", &status, &[]),
    }
    Ok(())
}

async fn a_pod_of_the_nodes_network_is_refused(story: Story) -> Result<()> {
    let pod = story.pod("host").secured(|security| {
        security.namespace_options.get_or_insert_default().network = v1::NamespaceMode::Node.into();
    });
    is_run(&story, pod).await
}

async fn a_pod_of_the_nodes_processes_is_refused(story: Story) -> Result<()> {
    let pod = story.pod("host").secured(|security| {
        security.namespace_options.get_or_insert_default().pid = v1::NamespaceMode::Node.into();
    });
    is_run(&story, pod).await
}

/// Writes down whether a container starts, and nothing of what it does then.
async fn starts(story: &Story, pod: &RunningPod, container: Container) -> Result<()> {
    match pod.try_start(container).await {
        Ok(_) => story.record("c starts", "yes"),
        Err(status) => story.record_error("c starts", &status, &[]),
    }
    Ok(())
}

async fn a_privileged_container_is_refused(story: Story) -> Result<()> {
    // containerd 1.7 says of the container alone that it is privileged, 2.x of the sandbox too.
    let container = Container::waiting("c").secured(|security| security.privileged = true);
    let run = async { story.pod("privileged").secured(|security| security.privileged = true).try_run().await?.try_start(container).await };
    match run.await {
        Ok(_) => story.record("c starts", "yes"),
        Err(status) => story.record_error("c starts", &status, &[]),
    }
    Ok(())
}

async fn a_path_of_the_node_is_refused(story: Story) -> Result<()> {
    let pod = story.pod("hostpath").run().await?;
    starts(&story, &pod, Container::waiting("c").bind(std::path::Path::new("/usr/share"), "/node", true)).await
}

async fn a_device_of_the_node_is_refused(story: Story) -> Result<()> {
    let pod = story.pod("device").run().await?;
    let container = Container::waiting("c").with(|config| {
        config.devices.push(v1::Device {
            container_path: "/dev/mine".to_owned(),
            host_path: "/dev/kmsg".to_owned(),
            permissions: "r".to_owned(),
        });
    });
    starts(&story, &pod, container).await
}

/// The class that this annotation names lets its pods use the node, as far as a pod VM can.
fn of_class(config: &mut v1::PodSandboxConfig, class: &str) {
    config.annotations.insert("peerpods.io/class".to_owned(), class.to_owned());
}

async fn a_class_lets_a_pod_copy_paths_of_the_node(story: Story) -> Result<()> {
    let folder = tempfile::tempdir()?;
    std::fs::create_dir(folder.path().join("sub"))?;
    std::fs::write(folder.path().join("sub/file"), "of the node\n")?;
    let pod = story.pod("hostpath").with(|config| of_class(config, "open")).run().await?;
    let script = "cat /node/sub/file; touch /node/mine 2>&1 | sed 's/.*: //'; ls -R /node";
    let container = pod.start(Container::script("c", script).bind(folder.path(), "/node", true)).await?;
    container.ends().await?;
    ensure!(container.output("stdout")?.starts_with(b"of the node\n"));
    Ok(())
}

async fn a_class_lets_a_container_be_privileged(story: Story) -> Result<()> {
    let pod = story.pod("privileged").with(|config| of_class(config, "open")).secured(|security| security.privileged = true).run().await?;
    let script = "grep -c 1ff /proc/self/status; mkdir /t && mount -t tmpfs none /t && grep ' /t ' /proc/mounts; test -w /sys && echo sys";
    let container = pod.start(Container::script("c", script).secured(|security| security.privileged = true)).await?;
    container.ends().await?;
    Ok(())
}

async fn a_class_that_is_not_offered_is_refused(story: Story) -> Result<()> {
    let pod = story.pod("class").with(|config| of_class(config, "golden")).try_run().await;
    match pod {
        Ok(_) => story.record("sandbox", "yes"),
        Err(status) => story.record_error("sandbox", &status, &[]),
    }
    Ok(())
}
