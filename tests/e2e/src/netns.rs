//! Network namespaces of a node and its pods, set up with Debian's `ip`: an independent hand beside our netlink code.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

/// A named network namespace, removed on drop.
pub struct Netns {
    name: String,
    /// A process whose mounts programs in here see; `None`: those of this program.
    mounts_of: Option<u32>,
}

impl Netns {
    /// Creates it with `lo` up.
    pub fn create(name: &str) -> Result<Self> {
        ip(&["netns", "add", name])?;
        let netns = Self { name: name.to_owned(), mounts_of: None };
        netns.ip(&["link", "set", "lo", "up"])?;
        Ok(netns)
    }

    /// Its name under `/run/netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its path.
    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Lets programs in here see the mounts of this process, which must outlive them.
    pub(crate) fn use_mounts_of(&mut self, process: u32) {
        self.mounts_of = Some(process);
    }

    /// Where a path of a program in here is for this program.
    pub fn inside(&self, path: &Path) -> PathBuf {
        match (self.mounts_of, path.strip_prefix("/")) {
            (Some(process), Ok(path)) => Path::new("/proc").join(process.to_string()).join("root").join(path),
            _ => path.to_owned(),
        }
    }

    /// A command that runs inside; without mounts of its own it keeps the caller's, unlike `ip netns exec`.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        if let Some(process) = self.mounts_of {
            command.arg(format!("--mount=/proc/{process}/ns/mnt"));
        }
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        // Our daemons read their settings from variables of this prefix, and this one is not theirs.
        command.env_remove("PEERPODS_CONTAINERD");
        command
    }

    /// Runs `ip` inside.
    pub fn ip(&self, args: &[&str]) -> Result<String> {
        let mut all = vec!["-n", &self.name];
        all.extend(args);
        ip(&all)
    }

    /// Starts a thread inside; threads that it starts are inside too.
    pub fn spawn(&self, work: impl FnOnce() + Send + 'static) -> Result<std::thread::JoinHandle<()>> {
        let file = std::fs::File::open(self.path()).with_context(|| format!("netns {}", self.name))?;
        let (entered, outcome) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let result = setns(file, CloneFlags::CLONE_NEWNET);
            let is_inside = result.is_ok();
            let _ = entered.send(result);
            if is_inside {
                work();
            }
        });
        outcome.recv()?.context("entering the netns")?;
        Ok(thread)
    }

    /// Does blocking work inside, on a thread of its own.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let file = std::fs::File::open(self.path()).with_context(|| format!("netns {}", self.name))?;
        let thread = std::thread::spawn(move || -> Result<T> {
            setns(file, CloneFlags::CLONE_NEWNET).context("entering the netns")?;
            Ok(work())
        });
        thread.join().map_err(|_| anyhow::anyhow!("the thread in netns {} panicked", self.name))?
    }

    /// One HTTP/1.0 GET from inside; gives the whole answer.
    pub fn http_get(&self, to: SocketAddr, path: &str) -> Result<String> {
        let request = format!("GET {path} HTTP/1.0\r\nHost: {to}\r\n\r\n");
        self.run(move || -> Result<String> {
            use std::io::{Read as _, Write as _};
            let mut stream =
                std::net::TcpStream::connect_timeout(&to, Duration::from_secs(5)).with_context(|| format!("connecting to {to}"))?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            stream.write_all(request.as_bytes())?;
            let mut answer = String::new();
            stream.take(1 << 20).read_to_string(&mut answer)?;
            Ok(answer)
        })?
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if let Err(error) = ip(&["netns", "del", &self.name]) {
            eprintln!("netns {} stays behind: {error:#}", self.name);
        }
    }
}

/// A pod's namespace as the bridge CNI plugin leaves it: `eth0` on the node's `cni0`, an address, a default route.
pub struct PodNetns {
    netns: Netns,
    address: Ipv4Addr,
}

impl PodNetns {
    /// The node's end of the pod network.
    pub const GATEWAY: &str = "10.88.0.1";

    /// Creates the bridge in the node's namespace.
    pub fn prepare_node(node: &Netns) -> Result<()> {
        node.ip(&["link", "add", "cni0", "type", "bridge"])?;
        node.ip(&["address", "add", &format!("{}/16", Self::GATEWAY), "dev", "cni0"])?;
        node.ip(&["link", "set", "cni0", "up"])?;
        Ok(())
    }

    /// Attaches pod number `index` (from 2) to the node.
    pub fn create(node: &Netns, index: u16) -> Result<Self> {
        let [high, low] = index.to_be_bytes();
        let address = Ipv4Addr::new(10, 88, high, low);
        let netns = Netns::create(&format!("{}-p{index}", node.name()))?;
        let outer = format!("veth{index}");
        node.ip(&["link", "add", &outer, "type", "veth", "peer", "name", "eth0", "netns", netns.name()])?;
        node.ip(&["link", "set", &outer, "master", "cni0", "up"])?;
        netns.ip(&["address", "add", &format!("{address}/16"), "dev", "eth0"])?;
        for link in ["lo", "eth0"] {
            netns.ip(&["link", "set", link, "up"])?;
        }
        netns.ip(&["route", "add", "default", "via", Self::GATEWAY])?;
        Ok(Self { netns, address })
    }

    /// The namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The pod's address.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }
}

fn ip(args: &[&str]) -> Result<String> {
    let out = Command::new("ip").args(args).output().context("starting ip (Debian package iproute2)")?;
    if !out.status.success() {
        bail!("ip {}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}
