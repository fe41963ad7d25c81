//! From the sandbox to its destruction, with failures on the way.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use peerpods_protos::agent::{GuestDetailsRequest, UpdateInterfaceRequest};
use peerpods_protos::agent_ttrpc::AgentServiceClient;
use peerpods_protos::health::CheckRequest;
use ttrpc::Code;
use ttrpc::context::with_duration;

use crate::world::{Pod, SANDBOX, SHARE, cgroups, connect, container, eventually, pause, rpc, shell};

/// The code and the first line of a refusal.
fn refusal<T>(result: ttrpc::Result<T>) -> Result<(Code, String)> {
    match result {
        Ok(_) => bail!("it worked"),
        Err(ttrpc::Error::RpcStatus(status)) => Ok((status.code.enum_value_or_default(), status.message)),
        Err(other) => bail!("{other}"),
    }
}

pub(crate) async fn pod_runs_from_sandbox_to_destruction() -> Result<()> {
    let pod = Pod::bare(None)?;
    ensure!(pod.health.check(rpc(), &CheckRequest::new()).await?.status.value() == 1);
    ensure!(pod.health.version(rpc(), &CheckRequest::new()).await?.grpc_version == "0.0.1");
    ensure!(pod.create(&pause()).await.is_err(), "no container without a sandbox");
    pod.create_sandbox().await?;
    ensure!(pod.create_sandbox().await.is_err(), "one sandbox at a time");
    let mut details = GuestDetailsRequest::new();
    details.mem_block_size = true;
    let details = pod.rpc.get_guest_details(rpc(), &details).await?;
    ensure!(details.agent_details.storage_handlers.contains(&"image_guest_pull".to_owned()));
    pod.create(&pause()).await?;
    ensure!(pod.create(&pause()).await.is_err(), "one container per id");
    pod.start_container(SANDBOX).await?;

    let ended = pod.script("c1", "hostname; cat /etc/resolv.conf; echo $GREETING; echo oops >&2; exit 3").await?;
    ensure!(ended.stdout == "web-0\nsearch default.svc\nnameserver 10.96.0.10\nhello\n", "{ended:?}");
    ensure!(ended.stderr == "oops\n" && ended.status == 3, "{ended:?}");

    pod.run(&shell("c2", "sleep 1000")).await?;
    pod.run(&shell("c3", "sleep 1000")).await?;
    ensure!(!cgroups(&format!("{}/c2", pod.cgroup))?.is_empty());
    pod.remove("c2").await?;
    ensure!(cgroups(&format!("{}/c2", pod.cgroup))?.is_empty());
    ensure!(!Path::new(SHARE).join("c2").exists());
    pod.destroy().await
}

pub(crate) async fn failed_creations_leave_nothing() -> Result<()> {
    let pod = Pod::start().await?;
    let (code, message) = refusal(pod.rpc.create_container(rpc(), &container("c1", "missing:1", &["/bin/true"])).await)?;
    ensure!(code == Code::INTERNAL && message == "pulling missing:1: manifest unknown", "{code:?} {message}");
    let (code, message) = refusal(pod.rpc.create_container(rpc(), &container("c1", "busybox", &["/no/such/command"])).await)?;
    let expected = "OCI runtime create failed: unable to start container process: \
        exec: \"/no/such/command\": stat /no/such/command: no such file or directory";
    ensure!(code == Code::INTERNAL && message == expected, "{code:?} {message}");
    let (code, _) = refusal(pod.rpc.create_container(rpc(), &container("../c1", "busybox", &["/bin/true"])).await)?;
    ensure!(code == Code::INVALID_ARGUMENT, "{code:?}");
    let mut unknown_driver = shell("c1", "true");
    unknown_driver.storages.push(crate::world::storage("blk", "ext4", "/x", &[]));
    let (code, message) = refusal(pod.rpc.create_container(rpc(), &unknown_driver).await)?;
    ensure!(code == Code::INVALID_ARGUMENT && message == "no storage handler for driver \"blk\"", "{code:?} {message}");

    ensure!(!Path::new(SHARE).join("c1").exists());
    ensure!(cgroups(&format!("{}/c1", pod.cgroup))?.is_empty());
    ensure!(pod.remove("c1").await.is_err(), "there is nothing to remove");
    ensure!(pod.script("c1", "echo ok").await?.stdout == "ok\n", "the id can be used");
    pod.destroy().await
}

pub(crate) async fn creation_is_undone_when_its_client_gives_up() -> Result<()> {
    let pod = Pod::start().await?;
    let slow = container("c1", "slow:1", &["/bin/true"]);
    let (code, _) =
        refusal(pod.rpc.create_container(with_duration(Duration::from_millis(100)), &slow).await).unwrap_or((Code::OK, String::new()));
    ensure!(code == Code::DEADLINE_EXCEEDED || code == Code::OK, "{code:?}");
    eventually("the creation is undone", || {
        ensure!(!Path::new(SHARE).join("c1").exists(), "its folder is there");
        Ok(())
    })
    .await?;
    ensure!(pod.script("c2", "echo ok").await?.stdout == "ok\n");
    pod.destroy().await
}

pub(crate) async fn removal_meets_a_creation() -> Result<()> {
    let pod = Pod::start().await?;
    let (rpc_client, _server) = connect(&pod.agent)?;
    let creating = tokio::spawn(async move {
        AgentServiceClient::new(rpc_client).create_container(rpc(), &container("c1", "slow:1", &["/bin/true"])).await
    });
    eventually("the creation is under way", || {
        ensure!(Path::new(SHARE).join("c1/rootfs").exists());
        Ok(())
    })
    .await?;
    pod.remove("c1").await?;
    let (code, _) = refusal(creating.await?)?;
    ensure!(code == Code::CANCELLED, "{code:?}");
    ensure!(!Path::new(SHARE).join("c1").exists());
    pod.destroy().await
}

pub(crate) async fn containers_outlive_a_connection() -> Result<()> {
    let mut pod = Pod::start().await?;
    pod.run(&shell("c1", "read a; echo got $a")).await?;
    let (client, server) = connect(&pod.agent)?;
    let old = std::mem::replace(&mut pod.rpc, AgentServiceClient::new(client.clone()));
    pod.health = peerpods_protos::health_ttrpc::HealthClient::new(client);
    drop(old);
    tokio::time::timeout(Duration::from_secs(10), &mut pod.server).await.context("the old connection's server ends")??;
    pod.server = server;
    pod.write("c1", "", b"x\n").await?;
    ensure!(pod.finish("c1", "").await?.stdout == "got x\n");
    pod.destroy().await
}

pub(crate) async fn methods_that_are_not_served_say_so() -> Result<()> {
    let pod = Pod::bare(None)?;
    let (code, message) = refusal(pod.rpc.update_interface(rpc(), &UpdateInterfaceRequest::new()).await)?;
    ensure!(code == Code::UNIMPLEMENTED && message == "grpc.AgentService/UpdateInterface is not implemented", "{code:?} {message}");
    Ok(())
}

/// Argument that makes this program an agent which dies while its container runs.
pub(crate) const ABANDON: &str = "abandon";

pub(crate) async fn abandon() -> Result<()> {
    let pod = Pod::start().await?;
    pod.run(&shell("c1", "trap '' TERM INT HUP; sleep 1000; sleep 1000")).await?;
    println!("{}", pod.cgroup);
    std::process::abort()
}

pub(crate) async fn containers_die_with_their_agent() -> Result<()> {
    let program = std::env::current_exe()?;
    let output = tokio::process::Command::new(program).arg(ABANDON).output().await?;
    let cgroup = String::from_utf8(output.stdout)?.trim().to_owned();
    ensure!(cgroup.starts_with("peerpods-test-"), "{cgroup}");
    for id in ["c1", SANDBOX] {
        let groups = cgroups(&format!("{cgroup}/{id}"))?;
        ensure!(!groups.is_empty(), "no group of {id}");
        eventually("its processes are gone", || {
            for group in &groups {
                let left = fs::read_to_string(group.join("cgroup.procs"))?;
                ensure!(left.is_empty(), "{left} in {}", group.display());
            }
            Ok(())
        })
        .await?;
        eventually("its groups can be removed", || {
            groups.iter().filter(|group| group.exists()).try_for_each(|group| Ok(fs::remove_dir(group)?))
        })
        .await?;
    }
    cgroups(&cgroup)?.iter().try_for_each(fs::remove_dir)?;
    Ok(())
}

/// Of v2 this machine may offer the tree without controllers; groups, namespaces, kill and removal work all the same.
pub(crate) async fn pod_runs_with_cgroup_v2() -> Result<()> {
    let root = Path::new("/sys/fs/cgroup");
    nix::mount::mount(Some("cgroup2"), root, Some("cgroup2"), nix::mount::MsFlags::empty(), None::<&str>).context("cgroup2")?;
    let result = run_with_cgroup_v2().await;
    nix::mount::umount2(root, nix::mount::MntFlags::MNT_DETACH)?;
    result
}

async fn run_with_cgroup_v2() -> Result<()> {
    let pod = Pod::start().await?;
    pod.run(&shell(
        "c1",
        "cat /proc/self/cgroup; ls /sys/fs/cgroup; (echo 1 > /sys/fs/cgroup/cgroup.freeze) 2>/dev/null || echo read-only; sleep 1000",
    ))
    .await?;
    let shown = pod.read_until("c1", "", "read-only\n").await?;
    ensure!(shown.contains("0::/\n") && shown.contains("cgroup.procs"), "it sees its own group as the root: {shown}");
    let groups = cgroups(&format!("{}/c1", pod.cgroup))?;
    ensure!(groups == [Path::new("/sys/fs/cgroup").join(&pod.cgroup).join("c1")], "{groups:?}");
    ensure!(fs::read_to_string(groups[0].join("cgroup.procs"))?.lines().count() >= 1);
    ensure!(pod.exec_script("c1", "e1", "echo exec").await?.stdout == "exec\n");
    pod.signal("c1", "", 9).await?;
    ensure!(pod.finish("c1", "").await?.status == 137);
    pod.destroy().await
}
