//! Machines of level `qemu`, with a kernel that only says that it is there: real QEMU, tap and bridge, no guest.

use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use peerpods_cloud_api::settings::local::{Accelerator, Level};
use peerpods_cloud_api::{CloudProvider as _, InstanceState, ProviderError};
use peerpods_cloud_local::LocalProvider;
use peerpods_cloud_local::machine::Host;

use crate::kernel;
use crate::world::{World, eventually, in_world, links, owner, request};

/// An image that boots, in the folder of the world's settings.
pub(crate) fn make_image(world: &World) -> Result<()> {
    let folder = world.settings().image;
    std::fs::create_dir(&folder)?;
    std::fs::write(folder.join("vmlinux"), kernel::elf())?;
    std::fs::write(folder.join("initrd"), "an initrd")?;
    std::fs::write(folder.join("manifest.json"), r#"{"cmdline": "console=ttyS0 quiet", "kernel": "tiny"}"#)?;
    Ok(())
}

pub(crate) fn boots_and_is_deleted_without_trace() {
    in_world(Level::Qemu, |world| async move {
        make_image(&world)?;
        let provider = world.provider();
        provider.verify().await?;
        let instance = provider.launch(&request("token-1", 1, "words")).await?.instances.pop().context("one instance")?;
        ensure!(instance.state == InstanceState::Running);
        let console = world.machine_folder(&instance.id).join("console.log");
        eventually("the kernel speaks", || {
            let text = std::fs::read_to_string(&console)?;
            ensure!(text.contains(kernel::LINE), "{text:?}");
            Ok(())
        })
        .await?;
        let link = format!("pp{}", instance.id.as_str().trim_start_matches("local-"));
        let out = Command::new("ip").args(["-d", "link", "show", "dev", &link]).output()?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        ensure!(text.contains("master peerpods0") && text.contains("tun type tap") && text.contains("isolated on"), "{text}");
        ensure!(text.contains(",UP"), "{text}");

        let second = world.provider();
        ensure!(second.list(&owner()).await? == std::slice::from_ref(&instance));
        let process = Host::new(world.settings())?.read(&instance.id)?.and_then(|record| record.process).context("a process")?;
        let open = std::fs::read_dir(format!("/proc/{}/fd", process.pid))?.flatten();
        let open: Vec<String> = open.filter_map(|fd| Some(std::fs::read_link(fd.path()).ok()?.display().to_string())).collect();
        let kept = open.iter().find(|path| path.ends_with("/lock") || path.ends_with("machine.json"));
        ensure!(kept.is_none(), "{kept:?}");

        kill(Pid::from_raw(process.pid), Signal::SIGTERM)?;
        eventually("QEMU ends", || {
            ensure!(!process.is_alive());
            Ok(())
        })
        .await?;
        ensure!(second.get(&instance.id).await?.state == InstanceState::Stopped);
        ensure!(second.console_tail(&instance.id).await? == kernel::LINE);
        ensure!(!links()?.contains(&link), "the tap outlives QEMU");
        world.delete_all(&second).await
    });
}

pub(crate) fn with_a_bogus_kernel_fails_with_qemus_own_words() {
    in_world(Level::Qemu, |world| async move {
        let provider = world.provider();
        let Err(ProviderError::InvalidRequest { detail }) = provider.verify().await else { bail!("verify finds nothing wrong") };
        ensure!(detail.contains("provider.local.image is not a pod VM image") && detail.contains("vmlinux"), "{detail}");
        make_image(&world)?;
        std::fs::write(world.settings().image.join("vmlinux"), "not a kernel")?;
        let error = provider.launch(&request("token-1", 1, "")).await.err().context("it starts")?;
        let ProviderError::Internal { detail } = &error else { bail!("{error:?}") };
        ensure!(detail.contains("qemu-system-x86_64 ended at once"), "{detail}");
        // QEMU 7.2: "qemu: error reading initrd" or "invalid kernel header", by version.
        ensure!(detail.to_lowercase().contains("kernel"), "{detail}");
        eventually("nothing is left", || world.check_nothing_is_left()).await?;

        let mut settings = world.settings();
        settings.accelerator = Accelerator::Kvm;
        let error = LocalProvider::new(settings.clone())?.launch(&request("token-2", 1, "")).await.err().context("it starts")?;
        let ProviderError::InvalidRequest { detail } = &error else { bail!("{error:?}") };
        ensure!(detail.starts_with("KVM does not work: "), "{detail}");
        let facts = std::fs::read_to_string(settings.state_dir.join("host.json"));
        ensure!(!std::path::Path::new("/dev/kvm").exists() || facts?.contains("failure"));
        world.delete_all(&world.provider()).await
    });
}
