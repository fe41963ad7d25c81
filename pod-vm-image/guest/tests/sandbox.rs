//! The guest as PID 1 of namespaces: from boot configuration to the channel's port, and to the last line of its console.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const USER_DATA: &str =
    r#"{"version":1,"binder_ca_sha256":"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef","tee":"sample"}"#;
const NETWORK: &str = r#"{"address":"10.93.0.5/24","gateway":"10.93.0.1","dns":["10.93.0.1"],"mtu":1400}"#;
/// Far more than a boot takes, on a busy machine too.
const LIMIT: Duration = Duration::from_secs(60);

/// A guest in PID, mount and network namespaces of its own, with a root folder of its own.
struct Sandbox {
    root: tempfile::TempDir,
    process: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Sandbox {
    fn start(user_data: &str) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "namespaces need root");
        let root = tempfile::tempdir().expect("folder");
        for folder in ["proc", "etc", "tmp", "run/peerpods/boot", "run/peerpods/scratch"] {
            std::fs::create_dir_all(root.path().join(folder)).expect("folder");
        }
        std::fs::copy(env!("CARGO_BIN_EXE_peerpods-guest"), root.path().join("init")).expect("copy the guest");
        let boot = root.path().join("run/peerpods/boot");
        for (name, content) in [("sandbox", ""), ("user-data", user_data), ("instance-id", "i-1"), ("network", NETWORK)] {
            std::fs::write(boot.join(name), content).expect("boot file");
        }
        let script =
            "mount -t proc proc \"$1/proc\" && ip link add eth0 type veth peer name far && ip link set far up && exec chroot \"$1\" /init";
        let mut process = Command::new("unshare")
            .args(["--pid", "--fork", "--mount", "--net", "--kill-child=KILL", "sh", "-c", script, "sh"])
            .arg(root.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("run unshare");
        let output = BufReader::new(process.stdout.take().expect("stdout"));
        let (sender, lines) = channel();
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { root, process, lines, seen: Vec::new() }
    }

    /// Waits for a line that contains this.
    fn wait_for(&mut self, what: &str) -> String {
        loop {
            match self.lines.recv_timeout(LIMIT) {
                Ok(line) => self.seen.push(line),
                Err(error) => panic!("no line with {what:?} ({error}), but {:#?}", self.seen),
            }
            match self.seen.last() {
                Some(line) if line.contains(what) => return line.clone(),
                _ => {}
            }
        }
    }

    /// PID 1's id outside of its namespace: the only child of `unshare`.
    fn init(&self) -> Pid {
        let id = self.process.id();
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).expect("children");
        Pid::from_raw(children.trim().parse().expect("one child"))
    }

    fn wait(mut self) -> (ExitStatus, Vec<String>) {
        let status = self.process.wait().expect("wait");
        while let Ok(line) = self.lines.recv_timeout(LIMIT) {
            self.seen.push(line);
        }
        (status, std::mem::take(&mut self.seen))
    }

    fn root(&self) -> &Path {
        self.root.path()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // `--kill-child` ends the namespace with it.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn machine_listens_and_ends_when_asked() {
    let mut sandbox = Sandbox::start(USER_DATA);
    sandbox.wait_for("peerpods: listening 15150 ");
    let resolver = std::fs::read_to_string(sandbox.root().join("etc/resolv.conf")).expect("resolv.conf");
    assert_eq!(resolver, "nameserver 10.93.0.1\n");
    kill(sandbox.init(), Signal::SIGTERM).expect("ask");
    let last = sandbox.wait_for("peerpods: stopped: ");
    assert_eq!(last, "peerpods: stopped: terminated");
    let (status, _) = sandbox.wait();
    assert!(status.success(), "{status}");
}

#[test]
fn machine_ends_with_its_agent_and_says_so_last() {
    let sandbox = Sandbox::start(r#"{"version":7}"#);
    let (status, lines) = sandbox.wait();
    assert!(!status.success());
    assert_eq!(lines.last().map(String::as_str), Some("peerpods: stopped: agent exited with code 1"), "{lines:#?}");
    assert!(lines.iter().any(|line| line.contains("user data has version 7")), "{lines:#?}");
}

#[test]
fn killed_agent_ends_the_machine() {
    let mut sandbox = Sandbox::start(USER_DATA);
    sandbox.wait_for("peerpods: listening ");
    let init = sandbox.init();
    let children = std::fs::read_to_string(format!("/proc/{init}/task/{init}/children")).expect("children");
    kill(Pid::from_raw(children.trim().parse().expect("the agent")), Signal::SIGKILL).expect("kill");
    let (status, lines) = sandbox.wait();
    assert!(!status.success());
    assert_eq!(lines.last().map(String::as_str), Some("peerpods: stopped: agent killed by SIGKILL"), "{lines:#?}");
}
