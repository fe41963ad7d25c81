//! A machine's software TPM: Debian's `swtpm`, for measured boots without the hardware. The protocol is real, the protection is none:
//! whoever is root here can make it say anything.
//!
//! * Its state is `tpm/` in the machine's folder, made by `swtpm_setup` with certificates of the endorsement keys from the one authority
//!   of the state folder, `<state_dir>/tpm-ca/`. An authority without the file `complete` is half made and is made
//!   anew; that file is written when all others are on the disk.
//! * While it is made, all its processes are in a PID namespace that ends with us: nothing goes on behind the back of whoever tries again.
//! * While it runs it is a child of the machine's process, which becomes QEMU, and the kernel kills it when that ends (`PR_SET_PDEATHSIG`).
//!   So it needs no record of its own, and there is no moment at which it could be lost.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use super::files::{self, create_folder, none_if_missing, sync_files, write_durably};
use super::process::end_within;
use super::{CrashPoints, MachineError, console, helper, spawn};

/// The TPM, package `swtpm`.
pub(crate) const PROGRAM: &str = "swtpm";

/// What makes its state, package `swtpm-tools`.
const SETUP: &str = "swtpm_setup";

/// QEMU's way to it, in the machine's folder; QEMU runs there, so that the length of the folder's path does not matter.
pub(crate) const SOCKET: &str = "tpm.sock";

/// How long making a state may take. Two RSA keys take one second here, the authority's own ones some more.
pub(crate) const SETUP_LIMIT: Duration = Duration::from_secs(40);

/// The end of an authority's making.
const COMPLETE: &str = "complete";

/// What is not installed, in words for the operator.
pub(crate) fn missing() -> Option<String> {
    let needed = [(PROGRAM, "swtpm"), (SETUP, "swtpm-tools")];
    let absent: Vec<_> = needed.iter().filter(|(program, _)| helper::find_program(program).is_none()).collect();
    let (programs, packages): (Vec<&str>, Vec<&str>) = absent.iter().copied().copied().unzip();
    (!absent.is_empty()).then(|| {
        let (programs, packages) = (programs.join(" and "), packages.join(" "));
        format!("provider.local.measured needs {programs}: apt-get install --no-install-recommends {packages}")
    })
}

/// Makes a new TPM in the machine's folder in place of what an earlier try left, and gives the program that runs it.
pub(crate) fn make(state_dir: &Path, folder: &Path, crash_points: &CrashPoints) -> Result<PathBuf, MachineError> {
    let find = |name| helper::find_program(name).ok_or_else(|| MachineError::invalid(missing().unwrap_or_default()));
    let (program, setup) = (find(PROGRAM)?, find(SETUP)?);
    let (state, authority) = (folder.join("tpm"), state_dir.join("tpm-ca"));
    none_if_missing(fs::remove_dir_all(&state)).map_err(MachineError::file("remove", &state))?;
    create_folder(&state)?;
    for (name, text) in configuration(&state, &authority) {
        let path = state.join(name);
        fs::write(&path, text).map_err(MachineError::file("write", &path))?;
    }
    let lock = files::lock(&state_dir.join("tpm-ca.lock"))?;
    let complete = authority.join(COMPLETE);
    if complete.exists() {
        drop(lock);
        run_setup(&setup, folder)?;
    } else {
        none_if_missing(fs::remove_dir_all(&authority)).map_err(MachineError::file("remove", &authority))?;
        create_folder(&authority)?;
        crash_points.pass("tpm-authority-begun");
        run_setup(&setup, folder)?;
        crash_points.pass("tpm-authority-made");
        // Keys first: after a power cut the mark must not stand for files that never reached the disk.
        sync_files(&authority)?;
        crash_points.pass("tpm-authority-synced");
        write_durably(&complete, b"")?;
        crash_points.pass("tpm-authority-complete");
    }
    crash_points.pass("tpm-made");
    Ok(program)
}

/// Starts a machine's TPM in the current folder, which is the machine's. Called by the machine's process before it becomes QEMU.
pub(crate) fn start(program: &Path) -> io::Result<()> {
    none_if_missing(fs::remove_file(SOCKET))?;
    // Ours from the first moment: QEMU finds it whether swtpm has come up yet or not, and is refused once swtpm is gone.
    let listener = UnixListener::bind(SOCKET)?;
    let mut command = spawn::bound_helper("bound");
    command.current_dir(".").arg(program).args(["socket", "--tpm2", "--tpmstate", "dir=tpm", "--ctrl", "type=unixio,fd=0"]);
    command.args(["--flags", "startup-clear", "--terminate"]).stdin(OwnedFd::from(listener));
    // Nobody waits for it: it ends with this process, and init reaps it.
    command.spawn().map(drop)
}

/// Files for `swtpm_setup`: without them it writes to `/var` or to its caller's home.
fn configuration(state: &Path, authority: &Path) -> [(&'static str, String); 3] {
    let (state, authority) = (state.display(), authority.display());
    let setup = format!(
        "create_certs_tool = swtpm_localca\ncreate_certs_tool_config = {state}/localca.conf\ncreate_certs_tool_options = {state}/localca.options\n"
    );
    let local_ca = format!(
        "statedir = {authority}\nsigningkey = {authority}/signkey.pem\nissuercert = {authority}/issuercert.pem\ncertserial = {authority}/certserial\n"
    );
    [("setup.conf", setup), ("localca.conf", local_ca), ("localca.options", String::new())]
}

fn run_setup(program: &Path, folder: &Path) -> Result<(), MachineError> {
    let log = folder.join("tpm-setup.log");
    let run = || -> io::Result<Option<String>> {
        let output = File::create(&log)?;
        let mut command = spawn::bound_helper("contained");
        command.arg(program).args(["--tpm2", "--tpmstate", "tpm", "--config", "tpm/setup.conf"]);
        command.args(["--create-ek-cert", "--lock-nvram", "--pcr-banks", "sha256", "--overwrite"]);
        // Its own files, too, are the machine's.
        command.current_dir(folder).env("TMPDIR", ".");
        let mut child = command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).spawn()?;
        let why = match end_within(&mut child, SETUP_LIMIT)? {
            Some(status) if status.success() => return Ok(None),
            Some(status) => format!("it ended with {status}"),
            None => format!("no end within {SETUP_LIMIT:?}"),
        };
        Ok(Some(format!("{why}: {}", console::tail(&log)?)))
    };
    match run().map_err(MachineError::file("run swtpm_setup in", folder))? {
        None => Ok(()),
        Some(detail) => Err(MachineError::MakeTpm { detail }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_names_the_authority_and_no_other_folder() {
        let files = configuration(Path::new("/state/machines/local-1/tpm"), Path::new("/state/tpm-ca"));
        let text = files.map(|(_, text)| text).concat();
        for path in text.split_whitespace().filter(|word| word.starts_with('/')) {
            assert!(path.starts_with("/state/tpm-ca") || path.starts_with("/state/machines/local-1/tpm/localca."), "{path}");
        }
        assert!(text.contains("statedir = /state/tpm-ca\n") && text.contains("create_certs_tool = swtpm_localca\n"), "{text}");
    }
}
