//! A machine with an image of the upstream profile, and a node that binds it.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, SystemTime};

use nix::sched::{CloneFlags, setns};
use nix::unistd::Pid;
use peerpods_tunnel::credential::{BinderCa, Credential, NodeKey};
use peerpods_tunnel::node::{AgentDialer, BindError, Bound, Verdict, bind};
use peerpods_tunnel::{BIND_VERSION, BindRequest, Pod, ResumeOptions};

use crate::stand_in::NAMES;

const INSTANCE: &str = "i-1";
const ADDRESS: &str = "10.93.0.5:15150";
const NETWORK: &str = r#"{"address":"10.93.0.5/24","gateway":"10.93.0.1","dns":["10.93.0.1"],"mtu":1400}"#;
/// Far more than anything takes, on a busy machine too.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// A guest in namespaces of its own, with a root folder of its own.
pub(crate) struct Machine {
    root: tempfile::TempDir,
    ca: BinderCa,
    key: NodeKey,
    process: Child,
    lines: Receiver<String>,
    pub(crate) seen: Vec<String>,
}

impl Machine {
    /// With stand-ins that behave in these ways.
    pub(crate) fn boot(ways: &[(&str, &str)]) -> Self {
        Self::boot_with(|root| {
            for (name, way) in ways {
                std::fs::write(root.join("stand-in").join(name), way).expect("way");
            }
        })
    }

    /// With changes to the image.
    pub(crate) fn boot_with(change: impl FnOnce(&Path)) -> Self {
        let root = tempfile::tempdir().expect("folder");
        let at = |path: &str| root.path().join(path);
        for folder in ["proc", "etc/peerpods", "tmp", "dev", "run/peerpods/boot", "run/peerpods/scratch", "usr/local/bin", "stand-in"] {
            std::fs::create_dir_all(at(folder)).expect("folder");
        }
        std::fs::copy(env!("CARGO_BIN_EXE_peerpods-guest"), at("init")).expect("copy the guest");
        std::fs::write(at("etc/peerpods/upstream.toml"), "version = 1\n").expect("marker");
        std::fs::write(at("dev/null"), "").expect("file");
        let own = std::env::current_exe().expect("this program");
        std::fs::copy(own, at("usr/local/bin/kata-agent")).expect("copy the stand-ins");
        for name in NAMES.iter().filter(|name| **name != "kata-agent") {
            std::fs::hard_link(at("usr/local/bin/kata-agent"), at("usr/local/bin").join(name)).expect("link");
        }
        std::fs::set_permissions(at("usr/local/bin/kata-agent"), std::fs::Permissions::from_mode(0o755)).expect("mode");
        let ca = BinderCa::generate().expect("CA");
        let user_data = format!(r#"{{"version":1,"binder_ca_sha256":"{}","tee":"sample"}}"#, ca.spki_sha256_hex());
        for (name, content) in [("sandbox", ""), ("user-data", &user_data), ("instance-id", INSTANCE), ("network", NETWORK)] {
            std::fs::write(at("run/peerpods/boot").join(name), content).expect("boot file");
        }
        change(root.path());
        let script = "mount -t proc proc \"$1/proc\" && mount --bind /dev/null \"$1/dev/null\" && ip link set lo up && \
            ip link add eth0 type veth peer name far && ip link set far up && exec chroot \"$1\" /init";
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
        Self { root, ca, key: NodeKey::generate().expect("key"), process, lines, seen: Vec::new() }
    }

    /// Waits for a line that contains this.
    pub(crate) fn wait_for(&mut self, what: &str) -> String {
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

    /// Waits for the end; the last line.
    pub(crate) fn end(&mut self) -> String {
        self.wait_for("peerpods: stopped: ")
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path.trim_start_matches('/'))
    }

    /// What a stand-in wrote of itself.
    pub(crate) fn told(&self, name: &str) -> serde_json::Value {
        let path = self.path("stand-in").join(format!("{name}.json"));
        serde_json::from_slice(&std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))).expect("JSON")
    }

    /// Processes of this machine whose program has this name, as the test sees them.
    pub(crate) fn processes(&self, name: &str) -> Vec<Pid> {
        let entries = std::fs::read_dir("/proc").expect("processes").filter_map(Result::ok);
        let is_it = |folder: &Path| {
            std::fs::read_link(folder.join("root")).is_ok_and(|root| root == self.root.path())
                && std::fs::read(folder.join("cmdline"))
                    .is_ok_and(|line| line.split(|b| *b == 0).next().is_some_and(|p| p.ends_with(name.as_bytes())))
        };
        entries
            .filter(|entry| is_it(&entry.path()))
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid::from_raw))
            .collect()
    }

    /// PID 1, as the test sees it: the only child of `unshare`.
    pub(crate) fn init(&self) -> Pid {
        let id = self.process.id();
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).expect("children");
        Pid::from_raw(children.trim().parse().expect("one child"))
    }

    /// Binds the machine, as soon as it listens.
    pub(crate) fn bind(&mut self, initdata: Option<&str>) -> Result<Node, BindError> {
        self.wait_for("peerpods: listening ");
        let request = BindRequest {
            version: BIND_VERSION,
            sandbox_id: "sandbox-1".to_owned(),
            pod: Pod { namespace: "default".to_owned(), name: "web".to_owned(), uid: None },
            network: serde_json::Value::Null,
            initdata: initdata.map(str::to_owned),
            agent_keys: vec![self.key.spki_sha256_hex()],
        };
        let valid = Duration::from_secs(600);
        let chain = self.ca.issue(self.key.spki_der(), INSTANCE, "node-1", SystemTime::now(), valid).expect("certificate");
        let credential = Credential { chain, key: self.key.clone() };
        let address = ADDRESS.parse().expect("address");
        let bound =
            inside(
                self.init(),
                move || async move { bind(address, INSTANCE, &credential, &request, |_| Ok(Verdict::Trusted), LIMIT).await },
            );
        bound.map(|Bound { pin, .. }| Node {
            init: self.init(),
            dialer: AgentDialer::new(address, self.key.clone(), pin, ResumeOptions::default()),
        })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // `--kill-child` ends the namespaces with it.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The node of a bound machine.
pub(crate) struct Node {
    init: Pid,
    dialer: AgentDialer,
}

impl Node {
    /// Runs something with a dialer.
    pub(crate) fn run<F: Future<Output: Send + 'static>>(&self, work: impl FnOnce(AgentDialer) -> F + Send + 'static) -> F::Output {
        let dialer = self.dialer.clone();
        inside(self.init, move || work(dialer))
    }
}

/// Runs something in the network of a process, on a thread of its own.
pub(crate) fn inside<F: Future<Output: Send + 'static>>(process: Pid, work: impl FnOnce() -> F + Send + 'static) -> F::Output {
    let thread = std::thread::spawn(move || {
        let network = File::open(format!("/proc/{process}/ns/net")).expect("network");
        setns(network, CloneFlags::CLONE_NEWNET).expect("enter the network");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async { tokio::time::timeout(LIMIT, work()).await.expect("in time") })
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
