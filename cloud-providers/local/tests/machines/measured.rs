//! Machines with a software TPM: real QEMU, firmware and swtpm; the disk is empty, so that firmware finds nothing to boot.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use peerpods_cloud_api::settings::local::{Firmware, Level, LocalSettings};
use peerpods_cloud_api::{CloudProvider as _, InstanceState, ProviderError};
use peerpods_cloud_local::machine::Host;
use peerpods_cloud_local::{LocalProvider, MACHINE_HELPER};

use crate::crashes::{ROLE, crash_at};
use crate::microvm::make_image;
use crate::world::{self, World, eventually, in_world, names, owner, request};

/// Settings of machines with a TPM.
pub(crate) fn settings(state_dir: &Path) -> LocalSettings {
    LocalSettings { firmware: Firmware::Uefi, measured: true, ..world::settings(state_dir, Level::Qemu) }
}

fn make_disk_image(world: &World) -> Result<()> {
    make_image(world)?;
    Ok(std::fs::write(world.settings().image.join("disk.raw"), vec![0; 1 << 20])?)
}

/// The programs that run in a machine's folder, by name.
fn programs_in(folder: &Path) -> Vec<String> {
    let program = |pid: &String| {
        let process = Path::new("/proc").join(pid);
        let is_here = std::fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd == folder);
        is_here.then(|| std::fs::read_to_string(process.join("comm")).unwrap_or_default().trim().to_owned())
    };
    let mut programs: Vec<String> = names("/proc".as_ref()).iter().filter_map(program).collect();
    programs.sort();
    programs
}

pub(crate) fn machine_has_a_tpm_that_goes_with_it() {
    in_world(Level::Qemu, |world| async move {
        make_disk_image(&world)?;
        let settings = settings(&world.state_dir());
        let provider = LocalProvider::new(settings.clone())?;
        provider.verify().await?;
        let instance = provider.launch(&request("token-1", 1, "words")).await?.instances.pop().context("one instance")?;
        let folder = world.machine_folder(&instance.id);
        ensure!(instance.state == InstanceState::Running, "{}", provider.console_tail(&instance.id).await?);
        ensure!(programs_in(&folder) == ["qemu-system-x86", "swtpm"], "{:?}", programs_in(&folder));
        ensure!(folder.join("tpm/tpm2-00.permall").is_file(), "{:?}", names(&folder.join("tpm")));
        let authority = names(&settings.state_dir.join("tpm-ca"));
        ensure!(authority.iter().any(|name| name == "issuercert.pem"), "{authority:?}");

        let process = Host::new(settings)?.read(&instance.id)?.and_then(|record| record.process).context("a process")?;
        kill(Pid::from_raw(process.pid), Signal::SIGKILL)?;
        eventually("the TPM goes with QEMU", || {
            let left = programs_in(&folder);
            ensure!(left.is_empty(), "{left:?}");
            Ok(())
        })
        .await?;
        ensure!(provider.get(&instance.id).await?.state == InstanceState::Stopped);
        // The second machine's TPM is of the same authority.
        let second = provider.launch(&request("token-2", 1, "words")).await?.instances.pop().context("one instance")?;
        ensure!(programs_in(&world.machine_folder(&second.id)) == ["qemu-system-x86", "swtpm"]);
        world.delete_all(&provider).await
    });
}

pub(crate) fn launch_survives_crashes_while_its_tpm_is_made() {
    in_world(Level::Qemu, |world| async move {
        make_disk_image(&world)?;
        let provider = LocalProvider::new(settings(&world.state_dir()))?;
        let steps = [
            "tpm-authority-begun",
            "tpm-authority-made",
            "tpm-authority-synced",
            "tpm-authority-complete",
            "tpm-made",
            "process-told-to-go",
        ];
        for step in steps {
            let died = crash_at(&world, "measured", step, "launch")?;
            ensure!(died.as_deref() == Some(step), "{died:?} instead of {step}");
            let launched = provider.launch(&request("token-1", 2, "stay")).await.with_context(|| format!("after {step}"))?.instances;
            ensure!(launched.len() == 2, "{launched:?} after {step}");
            for instance in provider.list(&owner()).await? {
                let programs = programs_in(&world.machine_folder(&instance.id));
                ensure!(programs == ["qemu-system-x86", "swtpm"], "{programs:?} after {step}");
            }
            world.delete_all(&provider).await.with_context(|| format!("deleting after {step}"))?;
            // So that the next round makes it anew.
            std::fs::remove_dir_all(world.state_dir().join("tpm-ca"))?;
        }
        Ok(())
    });
}

/// The first process of a namespace cannot see the id of a parent outside, and so cannot tell by it that it came too late.
pub(crate) fn first_process_of_a_namespace_does_nothing_without_its_parent() {
    let first = |stdin: Stdio| {
        let mut command = Command::new("/proc/self/exe");
        command.args([MACHINE_HELPER, "first", "/bin/sh", "-c", "cat; echo it runs"]).stdin(stdin).stdout(Stdio::piped());
        command.spawn().expect("the helper")
    };
    let said = |child: std::process::Child| {
        let out = child.wait_with_output().expect("its end");
        (out.status.success(), String::from_utf8_lossy(&out.stdout).trim().to_owned())
    };
    let (here, parent) = std::io::pipe().expect("a pipe");
    assert_eq!(said(first(here.try_clone().expect("a copy").into())), (true, "it runs".to_owned()), "and reads nothing");
    drop(parent);
    assert_eq!(said(first(here.into())), (false, "error the parent outside of the namespace is gone".to_owned()));
}

/// Killed while `swtpm_setup` runs, here one that never ends and starts others.
pub(crate) fn making_a_tpm_ends_with_the_program() {
    in_world(Level::Qemu, |world| async move {
        make_disk_image(&world)?;
        let bin = world.folder.path().join("bin");
        std::fs::create_dir(&bin)?;
        std::fs::write(bin.join("swtpm_setup"), "#!/bin/sh\nsetsid sleep 1000 &\nsleep 1000\n")?;
        std::fs::set_permissions(bin.join("swtpm_setup"), Permissions::from_mode(0o755))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(ROLE).arg(world.state_dir()).args(["measured", "never", "launch"]);
        command.env("PATH", format!("{}:{}", bin.display(), std::env::var("PATH")?));
        let mut program = command.spawn()?;
        let running = || -> Vec<String> {
            let machines = world.state_dir().join("machines");
            names(&machines).iter().flat_map(|machine| programs_in(&machines.join(machine))).collect()
        };
        let sleeping = || running().iter().filter(|name| *name == "sleep").count();
        eventually("a TPM is being made", || {
            ensure!(sleeping() == 2, "{:?}", running());
            Ok(())
        })
        .await?;
        program.kill()?;
        program.wait()?;
        eventually("nothing goes on", || {
            ensure!(running().is_empty(), "{:?}", running());
            Ok(())
        })
        .await?;
        let provider = LocalProvider::new(settings(&world.state_dir()))?;
        let launched = provider.launch(&request("token-1", 2, "stay")).await?.instances;
        ensure!(launched.len() == 2, "{launched:?}");
        world.delete_all(&provider).await
    });
}

pub(crate) fn settings_without_firmware_are_refused() {
    in_world(Level::Qemu, |world| async move {
        let settings = LocalSettings { firmware: Firmware::None, ..settings(&world.state_dir()) };
        let Err(ProviderError::InvalidRequest { detail }) = LocalProvider::new(settings) else { bail!("accepted") };
        ensure!(detail.contains("provider.local.measured") && detail.contains("firmware = \"uefi\""), "{detail}");
        Ok(())
    });
}
