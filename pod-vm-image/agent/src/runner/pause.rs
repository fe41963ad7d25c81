//! The pod's pause process: keeps the first container alive and reaps orphans of a shared pid namespace.

use std::process::ExitCode;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

/// Waits for SIGTERM or SIGINT.
pub(super) fn main() -> ExitCode {
    let mut awaited = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
        awaited.add(signal);
    }
    if awaited.thread_block().is_err() {
        return ExitCode::FAILURE;
    }
    loop {
        match awaited.wait() {
            Ok(Signal::SIGCHLD) => while waitpid(None, Some(WaitPidFlag::WNOHANG)).is_ok_and(|status| status != WaitStatus::StillAlive) {},
            Ok(_) => return ExitCode::SUCCESS,
            Err(nix::errno::Errno::EINTR) => {}
            Err(_) => return ExitCode::FAILURE,
        }
    }
}
