//! What the pause image holds: ends when asked to, and reaps the children of others, which are its own in a shared PID namespace.

use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

fn main() -> anyhow::Result<()> {
    let signals = SigSet::all();
    signals.thread_block()?;
    loop {
        match signals.wait()? {
            Signal::SIGTERM | Signal::SIGINT => return Ok(()),
            Signal::SIGCHLD => while !matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive) | Err(_)) {},
            _ => {}
        }
    }
}
