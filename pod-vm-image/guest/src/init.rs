//! PID 1: makes a machine out of a kernel, then waits for its end.
//!
//! Single-threaded and small, because it must outlive everything: it touches no byte from the network. Steps in order, each with a
//! fixed name that the console's last line carries when it fails: `mounts`, `modules`, `scratch`, `agent`.
//!
//! The machine ends when the agent ends, whatever the cause: a pod VM without its agent is of no use to anybody, and nothing in it
//! survives. SIGTERM (a sandbox's way to say power button) asks the agent first and gives it [`GRACE`].

mod modules;
mod mounts;
mod processes;

use std::process::{Command, ExitCode};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use rustix::system::{RebootCommand, reboot};

use crate::boot::Level;
use crate::console;
use crate::scratch::{self, Scratch};
use processes::{Ended, Processes};

/// How long the agent may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(3);

/// glibc's allocator for the agent: one arena instead of eight a processor, and freed memory goes back to the kernel at once.
/// A pod VM's memory is the tenant's; an idle agent held about 10 MiB of freed heap without this.
const ALLOCATOR: [(&str, &str); 2] = [("MALLOC_ARENA_MAX", "1"), ("MALLOC_TRIM_THRESHOLD_", "131072")];

/// Why the machine stops.
#[derive(Debug, thiserror::Error)]
enum Stop {
    /// Somebody asked for it.
    #[error("terminated")]
    Terminated,
    /// The agent ended by itself.
    #[error("agent {0}")]
    Agent(Ended),
    /// A step of the boot did not work.
    #[error("{step} failed: {what} errno {errno}")]
    Step {
        /// The step's name.
        step: &'static str,
        /// Which part of it: a path or name from this crate's source or the measured image.
        what: String,
        /// What the kernel said.
        errno: i32,
    },
}

/// A step failed on something.
fn failed(step: &'static str, what: impl Into<String>, error: &std::io::Error) -> Stop {
    Stop::Step { step, what: what.into(), errno: error.raw_os_error().unwrap_or(0) }
}

/// Runs until the machine stops.
pub(crate) fn main() -> ExitCode {
    console::event("init");
    let level = Level::detect();
    let stop = run(level).unwrap_or_else(|stop| stop);
    console::stopped(&stop);
    match level {
        // The kernel ends every process of the namespace with its PID 1.
        Level::Sandbox => {
            if matches!(stop, Stop::Terminated) {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Level::Machine => {
            rustix::fs::sync();
            let error = reboot(RebootCommand::PowerOff);
            // Only without ACPI or the right to do so: panic=-1 makes the kernel end the machine when PID 1 ends.
            console::stopped(format_args!("power-off failed: {error:?}"));
            ExitCode::FAILURE
        }
    }
}

fn run(level: Level) -> Result<Stop, Stop> {
    // From here on signals wait in a queue instead of being lost; PID 1 has no default actions to lose.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGCHLD);
    let processes = Processes::watch(&signals).map_err(|e| failed("signals", "signalfd", &e))?;
    if level == Level::Machine {
        mounts::mount_all()?;
        modules::load_all()?;
        console::event("modules");
        match scratch::prepare().map_err(|e| failed("scratch", e.what, &e.source))? {
            Scratch::Encrypted { device_bytes } => {
                console::event("scratch-encrypted");
                console::event_with("scratch-mib", device_bytes >> 20);
            }
            Scratch::Memory => console::event("scratch-in-memory"),
        }
    }
    let agent = Command::new("/proc/self/exe").arg("agent").envs(ALLOCATOR).spawn().map_err(|e| failed("agent", "spawn", &e))?;
    wait(&processes, agent.id()).map_err(|e| failed("wait", "signalfd", &e))
}

/// Reaps until the agent has ended.
fn wait(processes: &Processes, agent: u32) -> std::io::Result<Stop> {
    loop {
        if let Some(ended) = processes.reap(agent)? {
            return Ok(Stop::Agent(ended));
        }
        match processes.next_signal(None)? {
            Some(Signal::SIGTERM | Signal::SIGINT) => break,
            _ => continue,
        }
    }
    processes::terminate(agent)?;
    let deadline = processes::Deadline::after(GRACE);
    while let Some(left) = deadline.left() {
        processes.next_signal(Some(left))?;
        if processes.reap(agent)?.is_some() {
            break;
        }
    }
    Ok(Stop::Terminated)
}
