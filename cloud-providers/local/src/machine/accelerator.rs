//! KVM or software emulation. That `/dev/kvm` opens says little: some hosts emulate it so slowly or so incompletely that no stock
//! kernel boots. So the image's own kernel is booted once, without an initrd, and must get as far as missing its root.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use peerpods_cloud_api::settings::local::{Accelerator, LocalSettings};

use super::facts::{Canary, Facts};
use super::process::end_within;
use super::qemu::{self, Executor, Image};
use super::{MachineError, console, spawn, tsc};

/// A kernel on working KVM takes less than a second.
pub(crate) const CANARY_LIMIT: Duration = Duration::from_secs(15);

/// Chooses by the settings and, for KVM, by a canary, whose result lasts until the next boot or kernel.
pub(crate) fn choose(settings: &LocalSettings, image: &Image) -> Result<Executor, MachineError> {
    let failure = match settings.accelerator {
        Accelerator::Tcg => Some(String::new()),
        Accelerator::Auto | Accelerator::Kvm => kvm_failure(&settings.state_dir, image)?,
    };
    match (settings.accelerator, failure) {
        (_, None) => Ok(Executor::Kvm),
        (Accelerator::Kvm, Some(failure)) => Err(MachineError::invalid(format!("KVM does not work: {failure}"))),
        (Accelerator::Auto | Accelerator::Tcg, Some(_)) => Ok(Executor::Tcg { tsc_khz: tsc::khz(settings)? }),
    }
}

/// Why KVM does not work; `None` when it does.
fn kvm_failure(state_dir: &Path, image: &Image) -> Result<Option<String>, MachineError> {
    if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
        return Ok(Some(format!("/dev/kvm: {error}")));
    }
    let metadata = std::fs::metadata(&image.kernel).map_err(MachineError::file("look at", &image.kernel))?;
    let kernel = format!("{} bytes of {}", metadata.size(), metadata.mtime());
    let (_lock, mut facts) = Facts::lock(state_dir)?;
    if let Some(canary) = facts.kvm.as_ref().filter(|canary| canary.kernel == kernel) {
        return Ok(canary.failure.clone());
    }
    let failure = boot_canary(state_dir, image)?;
    match &failure {
        Some(failure) => tracing::info!(failure, "KVM does not boot the image's kernel"),
        None => tracing::info!("KVM boots the image's kernel"),
    }
    facts.kvm = Some(Canary { kernel, failure: failure.clone() });
    facts.write(state_dir)?;
    Ok(failure)
}

fn boot_canary(state_dir: &Path, image: &Image) -> Result<Option<String>, MachineError> {
    let Some(program) = qemu::find_program() else { return Ok(Some(format!("{} is not installed", qemu::PROGRAM))) };
    let (console_log, errors_log) = (state_dir.join("canary-console.log"), state_dir.join("canary.log"));
    let errors = File::create(&errors_log).map_err(MachineError::file("create", &errors_log))?;
    File::create(&console_log).map_err(MachineError::file("create", &console_log))?;
    let run = || -> io::Result<Option<String>> {
        let mut command = spawn::bound_helper("bound");
        command
            .arg(program)
            .args(Executor::Kvm.options().concat())
            .args(["-M", "microvm,acpi=on", "-m", "256M", "-kernel"])
            .arg(&image.kernel);
        command.args(["-append", "console=ttyS0 panic=-1 reboot=t", "-serial"]).arg(format!("file:{}", console_log.display()));
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        let mut child = command.stdin(Stdio::null()).stdout(errors.try_clone()?).stderr(errors).spawn()?;
        let ended = end_within(&mut child, CANARY_LIMIT)?;
        let said = console::tail(&console_log)?;
        let why = match ended {
            Some(status) if status.success() && said.contains("Kernel panic") => return Ok(None),
            Some(status) => format!("QEMU ended with {status}"),
            None => format!("no end within {CANARY_LIMIT:?}"),
        };
        Ok(Some(format!("{why}; it said {:?}, the guest {said:?}", console::tail(&errors_log)?)))
    };
    let failure = run().map_err(MachineError::file("run canary in", state_dir));
    let _ = std::fs::remove_file(&console_log);
    let _ = std::fs::remove_file(&errors_log);
    failure
}
