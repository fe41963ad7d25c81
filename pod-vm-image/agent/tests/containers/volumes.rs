//! Copied files and the pod's volumes as containers see them.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use peerpods_protos::agent::{CreateContainerRequest, GetDiagnosticDataRequest};
use ttrpc::Code;

use crate::world::{Pod, SANDBOX, SHARE, mount_entry, rpc, shell, storage};

fn with_mount(mut request: CreateContainerRequest, to: &str, from: &str, kind: &str, options: &[&str]) -> Result<CreateContainerRequest> {
    request.OCI.as_mut().context("spec")?.Mounts.push(mount_entry(to, from, kind, options));
    Ok(request)
}

pub(crate) async fn copied_files_appear_and_change() -> Result<()> {
    let pod = Pod::start().await?;
    let hosts = pod.copy("c1-0123456789abcdef-hosts", 0o100_644, b"10.0.0.1 web-0\n").await?;
    let conf = pod.copy("c1-0123456789abcdef-conf", 0o040_755, b"").await?;
    let name = |rest: &str| format!("c1-0123456789abcdef-conf/{rest}");
    pod.copy(&name("..v1"), 0o040_755, b"").await?;
    pod.copy(&name("..data"), 0o120_000, b"..v1").await?;
    pod.copy(&name("key"), 0o120_000, b"..data/key").await?;
    pod.copy(&name("..v1/key"), 0o100_644, b"one").await?;

    let request = shell("c1", "cat /etc/hosts /conf/key; echo; read a; cat /conf/key; (echo x > /conf/key) 2>/dev/null || echo read-only");
    let request = with_mount(request, "/etc/hosts", &hosts, "bind", &["rbind", "rprivate", "rw"])?;
    let request = with_mount(request, "/conf", &conf, "bind", &["rbind", "rprivate", "ro"])?;
    pod.run(&request).await?;
    ensure!(pod.read_until("c1", "", "one\n").await? == "10.0.0.1 web-0\none\n");
    pod.copy(&name("..v2"), 0o040_755, b"").await?;
    pod.copy(&name("..data"), 0o120_000, b"..v2").await?;
    pod.copy(&name("..v2/key"), 0o100_644, b"two").await?;
    pod.write("c1", "", b"\n").await?;
    let ended = pod.finish("c1", "").await?;
    ensure!(ended.stdout == "tworead-only\n", "{ended:?}");
    pod.remove("c1").await?;
    ensure!(!Path::new(&hosts).exists() && !Path::new(&conf).exists(), "files go with their container");
    pod.destroy().await
}

pub(crate) async fn volumes_are_shared_and_last() -> Result<()> {
    let pod = Pod::start().await?;
    let cache = format!("{SHARE}/shared/containers/passthrough/{SANDBOX}/rootfs/local/cache");
    let memory = format!("{SHARE}/sandbox/ephemeral/mem");
    let request = |id: &str, script: &str| -> Result<CreateContainerRequest> {
        let mut request = shell(id, script);
        request.storages.push(storage("local", "local", &cache, &["mode=0777", "fsgid=2000"]));
        request.storages.push(storage("ephemeral", "tmpfs", &memory, &[]));
        let request = with_mount(request, "/cache", &cache, "local", &["rbind", "rprivate", "rw"])?;
        with_mount(request, "/mem", &memory, "bind", &["rbind", "rprivate", "rw"])
    };
    pod.run(&request("c1", "stat -c '%a %g' /cache; echo a > /cache/f; echo b > /mem/f; echo c > /dev/shm/f; stat -f -c %T /mem; exit 0")?)
        .await?;
    let ended = pod.finish("c1", "").await?;
    ensure!(ended.stdout == "2777 2000\ntmpfs\n", "{ended:?}");
    pod.remove("c1").await?;
    pod.run(&request("c2", "cat /cache/f /mem/f /dev/shm/f; stat -c %g /cache/f")?).await?;
    let ended = pod.finish("c2", "").await?;
    ensure!(ended.stdout == "a\nb\nc\n2000\n", "{ended:?}");
    pod.destroy().await
}

pub(crate) async fn termination_message_is_told() -> Result<()> {
    let pod = Pod::start().await?;
    let log = pod.copy("c1-0123456789abcdef-termination-log", 0o100_666, b"").await?;
    let request = shell("c1", "printf 'the disk is on fire' > /dev/termination-log; exit 3");
    pod.run(&with_mount(request, "/dev/termination-log", &log, "bind", &["rbind", "rprivate", "rw"])?).await?;
    ensure!(pod.finish("c1", "").await?.status == 3);
    let mut asked = GetDiagnosticDataRequest::new();
    (asked.log_type, asked.container_id) = ("termination_log".to_owned(), "c1".to_owned());
    ensure!(pod.rpc.get_diagnostic_data(rpc(), &asked).await?.data == b"the disk is on fire");
    asked.container_id = SANDBOX.to_owned();
    ensure!(pod.rpc.get_diagnostic_data(rpc(), &asked).await?.data.is_empty(), "the pause container has none");
    asked.log_type = "else".to_owned();
    ensure!(pod.rpc.get_diagnostic_data(rpc(), &asked).await.is_err());
    pod.destroy().await
}

pub(crate) async fn mounts_from_elsewhere_are_refused() -> Result<()> {
    let pod = Pod::start().await?;
    let volume = format!("{SHARE}/shared/containers/passthrough/{SANDBOX}/rootfs/local/v");
    let mut evil = shell("c1", "busybox ln -s / /v/evil");
    evil.storages.push(storage("local", "local", &volume, &["mode=0777"]));
    let evil = with_mount(evil, "/v", &volume, "local", &["rbind"])?;
    pod.run(&evil).await?;
    ensure!(pod.finish("c1", "").await?.status == 0);
    for source in ["/etc".to_owned(), "/run/peerpods".to_owned(), format!("{volume}/evil/etc"), format!("{SHARE}/../../etc")] {
        match pod.rpc.create_container(rpc(), &with_mount(shell("c2", "true"), "/x", &source, "bind", &["rbind"])?).await {
            Err(ttrpc::Error::RpcStatus(status)) => {
                ensure!(status.code.enum_value_or_default() == Code::PERMISSION_DENIED, "{source}: {}", status.message);
            }
            other => bail!("{source}: {other:?}"),
        }
    }
    pod.destroy().await
}

pub(crate) async fn bind_mounts_are_not_called_otherwise() -> Result<()> {
    let pod = Pod::start().await?;
    let request = with_mount(shell("c1", "true"), "/x", "/", "tmpfs", &["rbind"])?;
    match pod.rpc.create_container(rpc(), &request).await {
        Err(ttrpc::Error::RpcStatus(status)) => {
            ensure!(status.code.enum_value_or_default() == Code::INVALID_ARGUMENT, "{}", status.message);
            ensure!(status.message.contains("the mount at /x is of type \"tmpfs\""), "{}", status.message);
        }
        other => bail!("{other:?}"),
    }
    pod.destroy().await
}
