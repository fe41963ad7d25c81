//! The role in which a fresh copy of the running program makes a machine's process.
//!
//! `start DIR` makes the process and says its pid; it is single-threaded because a PID namespace can only be made so.
//! `run DIR` is that process: it waits for one byte, then does what `DIR/start.json` says and becomes the machine by `exec`.
//! `bound PARENT PROGRAM ...` becomes a program that cannot outlive its parent, the process of that id.
//! `contained PARENT PROGRAM ...` runs one in a PID namespace, so that what it starts cannot outlive the parent either.
//! `first PROGRAM ...` becomes the program as the first process of that namespace.
//!
//! Both of the first two answer on standard output: `pid N` or `error TEXT`. End-of-file without an error means that `exec` went well.

use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

/// The program's first argument that asks for this role.
pub const MACHINE_HELPER: &str = "machine-helper";

/// All of the environment that a machine's process gets.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// `start.json`: what a machine's process becomes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Start {
    /// A program of the host, run in the machine's folder.
    Program {
        /// Absolute.
        program: PathBuf,
        /// Without the program's name.
        arguments: Vec<String>,
        /// The machine's software TPM, which runs beside the program.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tpm: Option<PathBuf>,
    },
    /// The guest binary in namespaces of its own.
    #[cfg(feature = "sandbox")]
    Sandbox(super::sandbox::SandboxStart),
}

/// The helper role's `main`, called with what follows [`MACHINE_HELPER`] before any thread or descriptor is made.
pub fn machine_helper_main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    close_inherited();
    let args: Vec<OsString> = args.into_iter().collect();
    let done = match args.as_slice() {
        [role, folder] if role == "start" => start(Path::new(folder)),
        [role, folder] if role == "run" => run(Path::new(folder)),
        [role, parent, program, rest @ ..] if role == "bound" => bind(parent).and_then(|()| bound_exec(program, rest)),
        [role, program, rest @ ..] if role == "first" => bind_from_inside().and_then(|()| bound_exec(program, rest)),
        [role, parent, program, rest @ ..] if role == "contained" => bind(parent).and_then(|()| contained(program, rest)),
        _ => Err(format!("{MACHINE_HELPER} is started by this program alone")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(detail) => {
            say(std::io::stdout(), &format!("error {}", detail.replace('\n', " ")));
            ExitCode::FAILURE
        }
    }
}

/// Closes whatever the parent leaked: a machine must not hold a socket or lock of the controller for days.
fn close_inherited() {
    let entries = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let inherited: Vec<i32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(|fd| *fd > 2).collect();
    for fd in inherited {
        // The folder that was just read is among them and closed already.
        let _ = nix::unistd::close(fd);
    }
}

/// Tells the other end, which may be gone; the process made then reads end-of-file and exits.
fn say(mut to: impl Write, line: &str) {
    let _ = writeln!(to, "{line}").and_then(|()| to.flush());
}

fn start(folder: &Path) -> Result<(), String> {
    let start = read_start(folder)?;
    #[cfg(feature = "sandbox")]
    if let Start::Sandbox(_) = start {
        super::sandbox::enter_pid_namespace()?;
    }
    let _ = start;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("peerpods-machine").args([MACHINE_HELPER, "run"]).arg(folder);
    let child = command.spawn().map_err(|error| format!("spawning the machine's process: {error}"))?;
    say(std::io::stdout(), &format!("pid {}", child.id()));
    Ok(())
}

fn run(folder: &Path) -> Result<(), String> {
    // The copy is closed by `exec`, which is how the other end learns that it went well.
    let report = std::io::stdout().as_fd().try_clone_to_owned().map_err(|error| format!("copying standard output: {error}"))?;
    let Err(detail) = prepare_and_exec(folder) else { return Ok(()) };
    say(File::from(report), &format!("error {}", detail.replace('\n', " ")));
    Ok(())
}

/// Gives `Ok` when it was not told to go on.
fn prepare_and_exec(folder: &Path) -> Result<(), String> {
    nix::unistd::setsid().map_err(|error| format!("making a session: {error}"))?;
    let mut go = [0];
    if std::io::stdin().read(&mut go).unwrap_or(0) == 0 {
        return Ok(());
    }
    std::env::set_current_dir(folder).map_err(|error| format!("entering {}: {error}", folder.display()))?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let never = match read_start(folder)? {
        Start::Program { program, arguments, tpm } => {
            redirect("process.log")?;
            if let Some(tpm) = tpm {
                super::tpm::start(&tpm).map_err(|error| format!("starting {}: {error}", tpm.display()))?;
            }
            exec(&program, &arguments)?
        }
        #[cfg(feature = "sandbox")]
        Start::Sandbox(sandbox) => {
            redirect("console.log")?;
            super::sandbox::become_machine(folder, &sandbox)?;
            exec(Path::new("/init"), &[])?
        }
    };
    match never {}
}

/// Standard input from nowhere, the two outputs to the end of a file of the current folder.
fn redirect(log: &str) -> Result<(), String> {
    let open = || -> std::io::Result<(OwnedFd, OwnedFd)> {
        let log = OpenOptions::new().create(true).append(true).open(log)?;
        Ok((File::open("/dev/null")?.into(), log.into()))
    };
    let (null, log) = open().map_err(|error| format!("opening {log}: {error}"))?;
    let redirect = || -> nix::Result<()> {
        nix::unistd::dup2_stdin(&null)?;
        nix::unistd::dup2_stdout(&log)?;
        nix::unistd::dup2_stderr(&log)
    };
    redirect().map_err(|error| format!("redirecting output: {error}"))
}

fn exec(program: &Path, arguments: &[String]) -> Result<Infallible, String> {
    let text = |bytes: &[u8]| CString::new(bytes).map_err(|error| error.to_string());
    let path = text(program.as_os_str().as_bytes())?;
    let mut argv = vec![path.clone()];
    for argument in arguments {
        argv.push(text(argument.as_bytes())?);
    }
    let environment = [text(format!("PATH={PATH}").as_bytes())?];
    nix::unistd::execve(&path, &argv, &environment).map_err(|error| format!("running {}: {error}", program.display()))
}

/// Dies with the parent, which may have died already.
fn bind(parent: &OsString) -> Result<(), String> {
    die_with_parent()?;
    let now = nix::unistd::getppid();
    if parent.to_str() == Some(&now.to_string()) { Ok(()) } else { Err(format!("parent {parent:?} is gone")) }
}

/// Dies with a parent outside of this PID namespace. Its id is 0 here whether it lives or not, but standard input is a pipe whose other end
/// it alone holds and writes nothing to: that is closed before the kernel looks for whom to signal.
fn bind_from_inside() -> Result<(), String> {
    die_with_parent()?;
    let stdin = std::io::stdin();
    match poll(&mut [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO) {
        Ok(0) => {}
        Ok(_) => return Err("the parent outside of the namespace is gone".to_owned()),
        Err(error) => return Err(format!("looking at standard input: {error}")),
    }
    let null = File::open("/dev/null").map_err(|error| format!("opening /dev/null: {error}"))?;
    nix::unistd::dup2_stdin(null).map_err(|error| format!("redirecting standard input: {error}"))
}

fn die_with_parent() -> Result<(), String> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(|error| format!("binding the process to its parent: {error}"))
}

fn bound_exec(program: &OsString, arguments: &[OsString]) -> Result<(), String> {
    Err(format!("running {}: {}", program.display(), Command::new(program).args(arguments).exec()))
}

fn contained(program: &OsString, arguments: &[OsString]) -> Result<(), String> {
    unshare(CloneFlags::CLONE_NEWPID).map_err(|error| format!("making a PID namespace: {error}"))?;
    let mut command = Command::new("/proc/self/exe");
    // The program is PID 1 of the new namespace, and all others there end with it.
    command.args([MACHINE_HELPER, "first"]).arg(program).args(arguments).stdin(Stdio::piped());
    let failed = |error| format!("running {}: {error}", program.display());
    let mut child = command.spawn().map_err(failed)?;
    // Taken, as waiting would close it, and held until the child's end.
    let _held = child.stdin.take();
    let status = child.wait().map_err(failed)?;
    if status.success() { Ok(()) } else { Err(format!("{} ended with {status}", program.display())) }
}

/// Where a program of the host is.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(std::env::split_paths(PATH));
    folders.map(|folder| folder.join(name)).find(|file| file.is_absolute() && file.is_file())
}

fn read_start(folder: &Path) -> Result<Start, String> {
    let path = folder.join("start.json");
    let text = std::fs::read(&path).map_err(|error| format!("reading {}: {error}", path.display()))?;
    serde_json::from_slice(&text).map_err(|error| format!("understanding {}: {error}", path.display()))
}
