//! One node on this machine: its namespace, registry, controller and node daemon, with files in a folder of its own.

mod config;
mod sandbox;

use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use config::{controller_config, machine_image, node_config};

use crate::{KataShim, MockCloud, Netns, PodNetns, Process, Registry, binaries_folder, eventually};

/// How pod VMs are made in a world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// QEMU boots the pod VM image.
    Qemu,
    /// Namespaces of this kernel run the guest binary.
    Sandbox,
}

/// Where pod VMs come from in a world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cloud {
    /// The local provider makes them.
    Local,
    /// The AWS provider asks a mock cloud's EC2 for them.
    MockAws,
}

/// What a world is made of.
#[derive(Debug, Clone)]
pub struct WorldOptions {
    /// How pod VMs are made.
    pub level: Level,
    /// Where they come from.
    pub cloud: Cloud,
    /// More arguments of the mock cloud.
    pub mock_extra: Vec<String>,
    /// What a sandbox runs as PID 1 in place of the guest.
    pub guest: Option<PathBuf>,
    /// The TEE of the class `default` and, in lines of TOML, more about that class.
    pub class: (&'static str, String),
    /// Extra lines for the controller's configuration.
    pub controller_extra: String,
    /// Extra lines for the local provider's table.
    pub provider_extra: String,
    /// Extra lines for the node's configuration.
    pub node_extra: String,
    /// Whether the node's programs have mounts of their own, as containerd needs: what they mount ends with them.
    pub own_mounts: bool,
}

impl WorldOptions {
    /// A world at this level with nothing unusual.
    pub fn new(level: Level) -> Self {
        Self {
            level,
            cloud: Cloud::Local,
            mock_extra: Vec::new(),
            guest: None,
            class: ("sample", String::new()),
            controller_extra: String::new(),
            provider_extra: String::new(),
            node_extra: String::new(),
            own_mounts: false,
        }
    }
}

/// A running node.
pub struct World {
    // Order matters: fields are dropped from the top, the namespace last but the folder.
    // Behind locks, so that a story may be told while another hand kills them.
    node: Mutex<Option<Process>>,
    controller: Mutex<Option<Process>>,
    mock: Option<MockCloud>,
    registry: Registry,
    pods: Vec<PodNetns>,
    // Holds the namespace of mounts; no more than that.
    mounts: Option<Process>,
    netns: Netns,
    folder: tempfile::TempDir,
    next_pod: u16,
}

/// The agent policy of pods whose story is not about policies.
pub(crate) const ALLOW_ALL: &str = include_str!("../../../pod-vm-image/agent/src/policy/built_in_default.rego");

/// The bridge's address in every world; each has a namespace of its own.
const VM_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 93, 0, 1);

static NEXT_WORLD: AtomicU32 = AtomicU32::new(0);

impl World {
    /// Starts everything and waits until it serves.
    pub fn start(options: &WorldOptions) -> Result<Self> {
        let mut netns = Netns::create(&format!("pp{}-{}", std::process::id(), NEXT_WORLD.fetch_add(1, Ordering::Relaxed)))?;
        PodNetns::prepare_node(&netns)?;
        let folder = tempfile::Builder::new().prefix("pp").tempdir()?;
        let mounts = if options.own_mounts { Some(hold_mounts(folder.path())?) } else { None };
        if let Some(holder) = &mounts {
            netns.use_mounts_of(holder.pid());
        }
        let registry = Registry::start(&netns, folder.path())?;
        let mock = match options.cloud {
            Cloud::Local => None,
            Cloud::MockAws => Some(MockCloud::start(&netns, folder.path(), options.level, &machine_image(options)?, &options.mock_extra)?),
        };
        std::fs::write(folder.path().join("controller.toml"), controller_config(folder.path(), options, mock.as_ref())?)?;
        std::fs::write(folder.path().join("node.toml"), node_config(folder.path(), options))?;
        let world = Self {
            node: Mutex::default(),
            controller: Mutex::default(),
            mock,
            registry,
            pods: Vec::new(),
            mounts,
            netns,
            folder,
            next_pod: 2,
        };
        world.start_controller()?;
        world.start_node()?;
        Ok(world)
    }

    /// The node's namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The mock cloud of a world that has one.
    pub fn mock(&self) -> Option<&MockCloud> {
        self.mock.as_ref()
    }

    /// The registry.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// How pod VMs name the registry.
    pub fn registry_host(&self) -> String {
        format!("{VM_GATEWAY}:{}", self.registry.port())
    }

    /// Initdata that lets the guest pull from the world's registry without TLS and the node do whatever it likes.
    pub fn initdata(&self) -> String {
        format!(
            "algorithm = \"sha256\"\nversion = \"0.1.0\"\n\n[data]\n\"cdh.toml\" = '''\n[image]\n[[image.registry_config.registry]]\nlocation = \"{}\"\ninsecure = true\n'''\n\"policy.rego\" = '''\n{}'''\n",
            self.registry_host(),
            ALLOW_ALL,
        )
    }

    /// The folder of logs, sockets and state.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The hypervisor service's socket.
    pub fn hypervisor_socket(&self) -> PathBuf {
        self.folder.path().join("hypervisor.sock")
    }

    /// Attaches one more pod's namespace to the node, as CNI does before the shim is asked for a sandbox.
    pub fn add_pod(&mut self) -> Result<&PodNetns> {
        let pod = PodNetns::create(&self.netns, self.next_pod)?;
        self.next_pod += 1;
        self.pods.push(pod);
        self.pods.last().context("just pushed")
    }

    /// The pod with that address.
    pub fn pod(&self, address: Ipv4Addr) -> Result<&PodNetns> {
        self.pods.iter().find(|pod| pod.address() == address).with_context(|| format!("no pod has {address}"))
    }

    /// Removes a pod's namespace, as CNI does after the sandbox is gone.
    pub fn remove_pod(&mut self, address: Ipv4Addr) {
        self.pods.retain(|pod| pod.address() != address);
    }

    /// A shim for a new sandbox.
    pub fn shim(&self, name: &str, seed: u64) -> KataShim {
        KataShim::new(&self.hypervisor_socket(), name, seed)
    }

    /// Starts the controller and waits for its socket.
    pub fn start_controller(&self) -> Result<()> {
        let binary = binaries_folder()?.join("peerpods-controller");
        let mut command = self.netns.command(binary);
        command.args(["run", "--config"]).arg(self.folder.path().join("controller.toml"));
        let mut process = Process::start("controller", self.folder.path(), &mut command)?;
        wait_for_socket(&mut process, &self.folder.path().join("claims.sock"), "the controller serves")?;
        *lock(&self.controller) = Some(process);
        Ok(())
    }

    /// Starts the node daemon and waits for its socket.
    pub fn start_node(&self) -> Result<()> {
        let binary = binaries_folder()?.join("peerpods-node");
        let mut command = self.netns.command(binary);
        command.args(["run", "--config"]).arg(self.folder.path().join("node.toml"));
        let mut process = Process::start("node", self.folder.path(), &mut command)?;
        wait_for_socket(&mut process, &self.hypervisor_socket(), "the node daemon serves")?;
        *lock(&self.node) = Some(process);
        Ok(())
    }

    /// `kill -9` of the controller, if it runs.
    pub fn kill_controller(&self) -> Result<()> {
        lock(&self.controller).take().map_or(Ok(()), Process::kill)
    }

    /// `kill -9` of the node daemon, if it runs.
    pub fn kill_node(&self) -> Result<()> {
        lock(&self.node).take().map_or(Ok(()), Process::kill)
    }

    /// The node daemon's process, if it runs.
    pub fn node_pid(&self) -> Option<u32> {
        lock(&self.node).as_ref().map(Process::pid)
    }

    /// The controller's process, if it runs.
    pub fn controller_pid(&self) -> Option<u32> {
        lock(&self.controller).as_ref().map(Process::pid)
    }

    /// What `peerpods-controller` prints; an error is what it says.
    pub fn controller_says(&self, args: &[&str]) -> Result<String> {
        let out = std::process::Command::new(binaries_folder()?.join("peerpods-controller")).args(args).output()?;
        if !out.status.success() {
            bail!("{}", String::from_utf8_lossy(&out.stderr));
        }
        Ok(String::from_utf8(out.stdout)?)
    }

    /// Fails with a log's end when a service has died.
    pub fn check_alive(&mut self) -> Result<()> {
        self.registry.check_alive()?;
        self.mock.as_mut().map_or(Ok(()), MockCloud::check_alive)?;
        self.check_daemons()
    }

    /// Fails with a log's end when a daemon has died.
    pub fn check_daemons(&self) -> Result<()> {
        for process in [&self.node, &self.controller] {
            lock(process).as_mut().map_or(Ok(()), Process::check_alive)?;
        }
        Ok(())
    }

    /// The ends of the daemons' logs, for a failing test.
    pub fn logs(&self) -> String {
        let tail = |name: &str, process: &Mutex<Option<Process>>| match &*lock(process) {
            Some(process) => format!("--- {name}\n{}\n", process.log_tail()),
            None => format!("--- {name} is not running\n"),
        };
        tail("controller", &self.controller) + &tail("node", &self.node)
    }

    /// Folders of machines that exist.
    pub fn machines(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.folder.path().join("machines/machines")).into_iter().flatten().flatten();
        entries.map(|e| e.path()).filter(|p| p.is_dir()).collect()
    }

    /// `peerpods-node list --json`: every sandbox with its phases.
    pub fn node_list(&self) -> Result<serde_json::Value> {
        let mut command = self.netns.command(binaries_folder()?.join("peerpods-node"));
        let out = command.args(["list", "--json", "--config"]).arg(self.folder.path().join("node.toml")).output()?;
        if !out.status.success() {
            bail!("peerpods-node list: {}", String::from_utf8_lossy(&out.stderr));
        }
        Ok(serde_json::from_slice(&out.stdout)?)
    }

    /// What `peerpodctl` prints; an error is what it says.
    pub fn peerpodctl(&self, args: &[&str]) -> Result<String> {
        let socket = self.folder.path().join("controller/admin.sock");
        let out = std::process::Command::new(binaries_folder()?.join("peerpodctl")).arg("--socket").arg(socket).args(args).output()?;
        if !out.status.success() {
            bail!("{}", String::from_utf8_lossy(&out.stderr));
        }
        Ok(String::from_utf8(out.stdout)?)
    }

    /// Waits until no pod VM is left.
    pub fn wait_for_no_machines(&self, limit: Duration) -> Result<()> {
        eventually("all pod VMs are deleted", limit, || match self.machines().as_slice() {
            [] => Ok(()),
            left => bail!("{left:?}"),
        })
    }

    /// Stops the daemons and deletes whatever the controller owns; what remains in the namespace is killed.
    pub fn shut_down(&mut self) -> Result<()> {
        for process in [&self.node, &self.controller] {
            let taken = lock(process).take();
            taken.map_or(Ok(()), Process::terminate)?;
        }
        let mut command = self.netns.command(binaries_folder()?.join("peerpods-controller"));
        let out = command.args(["cleanup", "--config"]).arg(self.folder.path().join("controller.toml")).output()?;
        if !out.status.success() {
            bail!("peerpods-controller cleanup: {}", String::from_utf8_lossy(&out.stderr));
        }
        self.mock.take().map_or(Ok(()), MockCloud::terminate)
    }

    /// Kills every process of this world, by what it sees and not by name.
    fn sweep(&self) {
        let namespaces: Vec<u64> = std::iter::once(&self.netns)
            .chain(self.pods.iter().map(PodNetns::netns))
            .filter_map(|netns| Some(std::fs::metadata(netns.path()).ok()?.ino()))
            .collect();
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
            let Ok(found) = std::fs::metadata(entry.path().join("ns/net")) else { continue };
            if namespaces.contains(&found.ino()) || self.has_our_mounts(&entry.path()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}

impl World {
    /// Whether a process sees a mount that only programs with this world's own mounts see: containers in namespaces of their own do.
    fn has_our_mounts(&self, process: &Path) -> bool {
        let Some(holder) = &self.mounts else { return false };
        let pid = process.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse().ok());
        let mounts = std::fs::read(process.join("mountinfo")).unwrap_or_default();
        let folder = self.folder.path().as_os_str().as_encoded_bytes();
        pid != Some(holder.pid()) && mounts.windows(folder.len()).any(|part| part == folder)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        if let Err(error) = self.shut_down() {
            eprintln!("the world did not stop cleanly: {error:#}");
        }
        self.sweep();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A process with mounts of its own and an empty folder in place of each that containerd shares with others of its kind.
fn hold_mounts(folder: &Path) -> Result<Process> {
    const SHARED: [&str; 2] = ["/run/containerd", "/var/lib/cni"];
    for shared in SHARED {
        std::fs::create_dir_all(shared).with_context(|| shared.to_owned())?;
    }
    let script = SHARED.map(|shared| format!("mount -t tmpfs tmpfs {shared}")).join(" && ");
    let ready = folder.join("mounts-ready");
    let script = format!("{script} && : > {} && exec sleep infinity", ready.display());
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "--", "sh", "-c", &script]);
    let mut process = Process::start("mounts", folder, &mut command)?;
    eventually("mounts of its own", Duration::from_secs(10), || {
        process.check_alive()?;
        std::fs::metadata(&ready).map(|_| ()).context("not yet")
    })?;
    Ok(process)
}

fn wait_for_socket(process: &mut Process, socket: &Path, what: &str) -> Result<()> {
    eventually(what, Duration::from_secs(30), || {
        process.check_alive()?;
        std::os::unix::net::UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
        Ok(())
    })
}
