//! The process id that containerd knows a container by.
//!
//! The container's own processes are in the pod VM. containerd names the namespaces of a container as `/proc/<pid>/ns/…`, for example those
//! of the target of an ephemeral container, so each container needs a number of its own which nobody else can have meanwhile. A sleeping
//! thread of the shim has one, and costs a few pages; a signal to it is one to the shim.

use std::io;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

/// Enough to sleep on.
const STACK_BYTES: usize = 16 << 10;

/// A thread that sleeps until this is dropped.
#[derive(Debug)]
pub struct StandIn {
    pid: u32,
    wake: Option<mpsc::SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl StandIn {
    /// Starts the thread.
    pub fn start() -> io::Result<Self> {
        let (tell, told) = mpsc::sync_channel(1);
        let (wake, sleep) = mpsc::sync_channel::<()>(0);
        let body = move || {
            let _ = tell.send(rustix::thread::gettid().as_raw_pid().cast_unsigned());
            // Ends when the other end is dropped.
            let _ = sleep.recv();
        };
        let thread = thread::Builder::new().name("container".to_owned()).stack_size(STACK_BYTES).spawn(body)?;
        let pid = told.recv().map_err(io::Error::other)?;
        Ok(Self { pid, wake: Some(wake), thread: Some(thread) })
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.pid
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.wake = None;
        // It has nothing left to do but to end.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_a_number_of_its_own_until_it_is_dropped() {
        let (one, two) = (StandIn::start().unwrap(), StandIn::start().unwrap());
        assert_ne!(one.pid(), two.pid());
        let path = format!("/proc/{}/ns/pid", one.pid());
        assert!(std::fs::read_link(&path).is_ok());
        drop(one);
        assert!(std::fs::read_link(&path).is_err());
    }
}
