//! A network namespace of the test's own, removed when dropped, also by a panic.

use std::future::Future;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{fs, thread};

use nix::sched::{CloneFlags, setns};
use nix::unistd::Uid;

pub(crate) struct Machine {
    name: String,
}

static COUNT: AtomicU32 = AtomicU32::new(0);

impl Machine {
    pub(crate) fn new(role: &str) -> Self {
        let machine = Self::reserved(role);
        run(Command::new("ip").args(["netns", "add", &machine.name]), "");
        machine.ip("link set lo up");
        machine
    }

    /// Only the name: for a netns that the code under test makes.
    pub(crate) fn reserved(role: &str) -> Self {
        assert!(Uid::effective().is_root(), "these tests make network namespaces: run them as root");
        Self { name: format!("ppn-{}-{}-{role}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)) }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Runs lines of `ip` commands inside; gives what they print, with details.
    pub(crate) fn ip(&self, lines: &str) -> String {
        run(Command::new("ip").args(["-n", &self.name, "-details", "-batch", "-"]), lines)
    }

    /// As [`Machine::ip`], for IPv4 only: addresses of IPv6 come and change by themselves.
    pub(crate) fn ip4(&self, lines: &str) -> String {
        run(Command::new("ip").args(["-4", "-n", &self.name, "-details", "-batch", "-"]), lines)
    }

    /// As [`Machine::ip`], for IPv6 only.
    pub(crate) fn ip6(&self, lines: &str) -> String {
        run(Command::new("ip").args(["-6", "-n", &self.name, "-details", "-batch", "-"]), lines)
    }

    /// Runs one `tc` command inside; gives what it prints.
    pub(crate) fn tc(&self, arguments: &str) -> String {
        run(Command::new("tc").args(["-n", &self.name]).args(arguments.split_whitespace()), "")
    }

    /// Does blocking work inside.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let netns = fs::File::open(self.path()).unwrap();
        let enter = move || {
            setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        thread::scope(|scope| match scope.spawn(enter).join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// Runs a future inside, with a runtime whose every thread is inside.
    pub(crate) fn block_on<F: Future<Output: Send>>(&self, future: impl FnOnce() -> F + Send) -> F::Output {
        self.inside(|| tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future()))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if self.path().exists() {
            let deleted = Command::new("ip").args(["netns", "del", &self.name]).status();
            if !deleted.is_ok_and(|status| status.success()) {
                eprintln!("network namespace {} stays behind", self.name);
            }
        }
    }
}

fn run(command: &mut Command, input: &str) -> String {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{command:?} with {input:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
