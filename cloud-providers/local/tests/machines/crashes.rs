//! A provider's program dies right after one side effect, for each of them in turn; another one then finishes or removes the rest.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, ensure};
use peerpods_cloud_api::settings::local::Level;
use peerpods_cloud_api::{CloudProvider as _, InstanceState};
use peerpods_cloud_local::LocalProvider;
use peerpods_cloud_local::machine::CrashPoints;

use crate::measured;
use crate::microvm::make_image;
use crate::world::{World, in_world, names, owner, request, settings, wait_until_gone};

/// The program's first argument that asks for [`die_after`].
pub(crate) const ROLE: &str = "die-after";

/// More steps than any operation has.
const STEPS: u32 = 60;

/// Launches or deletes and aborts after the given number of side effects, or after the one of the given name.
pub(crate) fn die_after(state_dir: &OsStr, level: &OsStr, step: &OsStr, operation: &OsStr) -> ExitCode {
    let (number, name) = (step.to_str().and_then(|step| step.parse::<u32>().ok()), step.to_owned());
    let settings = match level.to_str() {
        Some("qemu") => settings(Path::new(state_dir), Level::Qemu),
        Some("measured") => measured::settings(Path::new(state_dir)),
        _ => settings(Path::new(state_dir), Level::Sandbox),
    };
    let passed = AtomicU32::new(0);
    let crash_points = CrashPoints::new(move |passing| {
        if number == Some(passed.fetch_add(1, Ordering::SeqCst) + 1) || name == passing {
            eprintln!("dying after {passing:?}");
            std::process::abort();
        }
    });
    let provider = LocalProvider::with_crash_points(settings, crash_points).expect("settings");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let done = runtime.block_on(async {
        if operation == "launch" {
            return provider.launch(&request("token-1", 2, "stay")).await.map(drop);
        }
        for instance in provider.list(&owner()).await? {
            provider.delete(&instance.id).await?;
        }
        Ok(())
    });
    done.expect("the operation");
    ExitCode::SUCCESS
}

/// The name of the step after which the program died; `None` when it had fewer.
fn crash(world: &World, step: u32, operation: &str) -> Result<Option<String>> {
    let level = if world.level == Level::Qemu { "qemu" } else { "sandbox" };
    crash_at(world, level, &step.to_string(), operation)
}

/// The same for settings of this name.
pub(crate) fn crash_at(world: &World, level: &str, step: &str, operation: &str) -> Result<Option<String>> {
    let mut command = Command::new(std::env::current_exe()?);
    let out = command.arg(ROLE).arg(world.state_dir()).args([level, step, operation]).output()?;
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    if out.status.success() {
        return Ok(None);
    }
    let name = said.rsplit_once("dying after ").map(|(_, name)| name.trim().trim_matches('"').to_owned());
    name.map(Some).with_context(|| format!("step {step} of {operation}: {}: {said}", out.status))
}

pub(crate) fn sandbox_launch_survives_a_crash_after_every_step() {
    in_world(Level::Sandbox, launch_survives);
}

pub(crate) fn microvm_launch_survives_a_crash_after_every_step() {
    in_world(Level::Qemu, |world| async move {
        make_image(&world)?;
        launch_survives(world).await
    });
}

async fn launch_survives(world: World) -> Result<()> {
    let mut died = Vec::new();
    for step in 1..STEPS {
        // Once the next program launches again, once it only finds and deletes.
        let Some(name) = crash(&world, step, "launch")? else {
            world.delete_all(&world.provider()).await?;
            break;
        };
        launch_again(&world).await.with_context(|| format!("launching again after {name:?} (step {step})"))?;
        crash(&world, step, "launch")?;
        world.delete_all(&world.provider()).await.with_context(|| format!("deleting after {name:?} (step {step})"))?;
        died.push(name);
    }
    println!("  died after: {}", died.join(", "));
    ensure!(died.len() >= 15 && died.len() < 50, "{died:?}");
    Ok(())
}

async fn launch_again(world: &World) -> Result<()> {
    let provider = world.provider();
    let found = provider.list(&owner()).await?;
    let launched = provider.launch(&request("token-1", 2, "stay")).await?.instances;
    // A crash between the two records makes a launch of one, which the contract allows.
    ensure!(launched.len() == if found.is_empty() { 2 } else { found.len() }, "{found:?}, then {launched:?}");
    for instance in &found {
        ensure!(launched.iter().any(|again| again.id == instance.id && again.address == instance.address), "{instance:?} is lost");
    }
    let listed = provider.list(&owner()).await?;
    ensure!(listed.len() == launched.len() && names(&world.state_dir().join("machines")).len() == listed.len(), "{listed:?}");
    for instance in &listed {
        ensure!(instance.state == InstanceState::Running, "{instance:?}: {}", provider.console_tail(&instance.id).await?);
        let processes = processes_of(world, instance.id.as_str())?;
        ensure!(processes == 1, "{processes} machine processes of {}", instance.id);
    }
    world.delete_all(&provider).await
}

/// Processes that a machine's start made: in its cgroup and PID 1 of a namespace, or with its folder as the current one.
fn processes_of(world: &World, id: &str) -> Result<usize> {
    let mut found = 0;
    for pid in names("/proc".as_ref()).iter().filter(|name| name.parse::<u32>().is_ok()) {
        let text = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let is_first = || text("status").lines().any(|line| line.starts_with("NSpid:") && line.ends_with("\t1"));
        let is_ours = match world.level {
            Level::Sandbox => text("cgroup").contains(id) && !text("stat").contains(") Z ") && is_first(),
            Level::Qemu => std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.ends_with(id)),
        };
        found += usize::from(is_ours);
    }
    Ok(found)
}

pub(crate) fn sandbox_delete_survives_a_crash_after_every_step() {
    in_world(Level::Sandbox, |world| async move {
        let mut died = Vec::new();
        for step in 1..STEPS {
            let provider = world.provider();
            let launched = provider.launch(&request("token-1", 2, "stay")).await?.instances;
            let Some(name) = crash(&world, step, "delete")? else { break };
            for instance in &launched {
                // One by `get` alone if it was begun, the others by a second delete.
                match provider.get(&instance.id).await {
                    Ok(found) if found.state != InstanceState::Deleting => provider.delete(&instance.id).await?,
                    _ => {}
                }
                wait_until_gone(&provider, &instance.id).await.with_context(|| format!("after {name:?} (step {step})"))?;
            }
            world.delete_all(&provider).await.with_context(|| format!("after {name:?} (step {step})"))?;
            died.push(name);
        }
        println!("  died after: {}", died.join(", "));
        ensure!(died.len() >= 10, "{died:?}");
        world.delete_all(&world.provider()).await
    });
}
