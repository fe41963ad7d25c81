//! From the sandbox to its destruction, with failures on the way.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use peerpods_protos::agent::{GuestDetailsRequest, SetPolicyRequest, UpdateInterfaceRequest};
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
    for (program, reason) in [("/no/such/command", "the file /no/such/command was not found"), ("not-executable", "is not executable")] {
        let (code, message) = refusal(pod.rpc.create_container(rpc(), &container("c1", "busybox", &[program])).await)?;
        ensure!(code == Code::INTERNAL && message.contains(reason), "{code:?} {message}");
    }
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
    let (code, message) = refusal(pod.rpc.set_policy(rpc(), &SetPolicyRequest::new()).await)?;
    ensure!(code == Code::UNIMPLEMENTED && message == "grpc.AgentService/SetPolicy is not implemented", "{code:?} {message}");
    let (code, message) = refusal(pod.rpc.update_interface(rpc(), &UpdateInterfaceRequest::new()).await)?;
    ensure!(code == Code::UNIMPLEMENTED && message.contains("UpdateInterface"), "{code:?} {message}");
    Ok(())
}
