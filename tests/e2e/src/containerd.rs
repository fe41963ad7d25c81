//! A containerd of Debian, unmodified, on a world's node: handlers `runc` and `peer-pods`, CNI, a kubelet's folder.
//!
//! Everything of it is in the world's folder and namespaces, so several run at once. A [`Rig`] that is dropped leaves nothing:
//! its processes are killed, their mounts end with them, and its groups of processes are removed.

mod config;
mod gate;
mod kubelet;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::{Cri, Image, Process, World, WorldOptions, eventually};

pub use gate::Gate;
pub use kubelet::{Kubelet, Volume};

/// Which containerd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// 1.7, of Debian's stable release.
    V1,
    /// Any 2.x that Debian has.
    V2,
}

impl Version {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V1, Self::V2];

    /// The folder of its files below `PEERPODS_CONTAINERD`, which is also how people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::V1 => "1.7",
            Self::V2 => "2",
        }
    }

    /// The folder of its programs.
    pub fn programs(self) -> Result<PathBuf> {
        let folder = std::env::var_os("PEERPODS_CONTAINERD").map(PathBuf::from);
        let folder = folder.context("set PEERPODS_CONTAINERD to the folder with containerd 1.7 and 2, as cargo xtask does")?;
        Ok(folder.join(self.name()).join("usr/bin"))
    }
}

/// Which runtime a pod is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Handler {
    /// Containers of this kernel, by Debian's runc: the baseline.
    Runc,
    /// Ours.
    PeerPods,
}

impl Handler {
    /// Its name in containerd's configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::PeerPods => "peer-pods",
        }
    }
}

/// What a rig is made of.
#[derive(Debug, Clone)]
pub struct RigOptions {
    /// Which containerd.
    pub version: Version,
    /// The world around it.
    pub world: WorldOptions,
    /// Whether pods have IPv6 addresses too.
    pub is_dual_stack: bool,
}

impl RigOptions {
    /// A rig with nothing unusual.
    pub fn new(version: Version, world: WorldOptions) -> Self {
        Self { version, world, is_dual_stack: false }
    }
}

/// A world with a containerd.
pub struct Rig {
    containerd: Mutex<Option<Process>>,
    options: RigOptions,
    kubelet: Kubelet,
    gate: Gate,
    world: World,
    // Dropped last: groups can be removed once nobody is in them.
    cgroups: CgroupParent,
}

impl Rig {
    /// Starts everything, pushes the images that scenarios use, and waits until containerd answers.
    pub fn start(options: &RigOptions) -> Result<Self> {
        let mut world_options = options.world.clone();
        world_options.own_mounts = true;
        world_options.node_extra = format!("{}\n{}", world_options.node_extra, config::NODE_EXTRA);
        let world = World::start(&world_options)?;
        let cgroups = CgroupParent(world.netns().name().to_owned());
        let kubelet = Kubelet::new(&world)?;
        let gate = Gate::open(world.netns(), world.registry().port())?;
        let rig = Self { containerd: Mutex::default(), options: options.clone(), kubelet, gate, world, cgroups };
        let zstd = Image::busybox(&[("of", b"zstd\n")])?.as_zstd()?;
        let images = [("pause", Image::pause()?), ("busybox", Image::busybox(&[])?), ("configured", Image::configured()?), ("zstd", zstd)];
        for (name, image) in images {
            rig.world.registry().push(rig.world.netns(), name, "1", &image)?;
        }
        config::write(&rig)?;
        rig.start_containerd()?;
        rig.pull_pause()?;
        Ok(rig)
    }

    /// The node.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// What it was made of.
    pub fn options(&self) -> &RigOptions {
        &self.options
    }

    /// The kubelet's folder.
    pub fn kubelet(&self) -> &Kubelet {
        &self.kubelet
    }

    /// What containerd fetches from the registry goes through here.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// The name of an image of the registry.
    pub fn image(&self, name: &str) -> String {
        format!("{}/{name}:1", self.world.registry_host())
    }

    /// What a pod's `cgroup_parent` is below.
    pub fn cgroup_parent(&self) -> String {
        format!("/{}", self.cgroups.0)
    }

    /// containerd's socket.
    pub fn socket(&self) -> PathBuf {
        self.folder().join("c.sock")
    }

    /// A client of its CRI.
    pub async fn cri(&self) -> Result<Cri> {
        Cri::connect(&self.socket(), &self.world.netns().path()).await
    }

    /// Its `ctr`.
    pub fn ctr(&self) -> Result<std::process::Command> {
        let mut command = self.world.netns().command(self.options.version.programs()?.join("ctr"));
        command.arg("--address").arg(self.socket()).args(["--namespace", "k8s.io"]);
        Ok(command)
    }

    /// Starts containerd and waits until it answers.
    pub fn start_containerd(&self) -> Result<()> {
        let programs = self.options.version.programs()?;
        let mut command = self.world.netns().command(programs.join("containerd"));
        let path = format!("{}:{}:/usr/sbin:/usr/bin:/sbin:/bin", crate::binaries_folder()?.display(), programs.display());
        command.arg("--config").arg(self.folder().join("containerd.toml")).env("PATH", path);
        let mut process = Process::start("containerd", self.folder(), &mut command)?;
        let socket = self.socket();
        let netns = self.world.netns().path();
        let answered = eventually("containerd answers", Duration::from_secs(60), || {
            process.check_alive()?;
            block_on(async { Cri::connect(&socket, &netns).await?.version().await })
        });
        let found = answered.with_context(|| process.log_tail())?;
        eprintln!("containerd {found}");
        *self.process() = Some(process);
        Ok(())
    }

    /// Fetches the pause image whole. containerd does so on first use, but without its layers if a peer pod is first, and then has
    /// nothing to run for others.
    fn pull_pause(&self) -> Result<()> {
        block_on(async {
            let image = crate::v1::ImageSpec { image: self.image("pause"), ..Default::default() };
            let request = crate::v1::PullImageRequest { image: Some(image), ..Default::default() };
            self.cri().await?.images.pull_image(request).await.context("pulling the pause image")?;
            Ok(())
        })
    }

    /// `kill -9` of containerd, if it runs.
    pub fn kill_containerd(&self) -> Result<()> {
        self.process().take().map_or(Ok(()), Process::kill)
    }

    /// The ends of all logs, for a failing test.
    pub fn logs(&self) -> String {
        let containerd = self.process().as_ref().map(Process::log_tail).unwrap_or_default();
        format!("{}--- containerd\n{containerd}\n", self.world.logs())
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.containerd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn folder(&self) -> &Path {
        self.world.folder()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.process().as_ref().map(Process::log_tail).unwrap_or_default();
            eprintln!("--- containerd\n{log}");
        }
        if let Err(error) = self.kill_containerd() {
            eprintln!("containerd did not end: {error:#}");
        }
    }
}

/// The group that all of a rig's groups of processes are in; removed with all below when dropped.
struct CgroupParent(String);

impl Drop for CgroupParent {
    fn drop(&mut self) {
        let root = Path::new("/sys/fs/cgroup");
        let hierarchies = std::fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
        for hierarchy in hierarchies.chain(std::iter::once(root.to_owned())) {
            let top = hierarchy.join(&self.0);
            if !top.is_dir() {
                continue;
            }
            // What was killed a moment ago leaves its group a moment later.
            let removed = eventually("cgroups are removed", Duration::from_secs(10), || Ok(remove_groups(&top)?));
            if let Err(error) = removed {
                eprintln!("{} stays behind: {error:#}", top.display());
            }
        }
    }
}

fn remove_groups(group: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(group)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_groups(&entry.path())?;
        }
    }
    std::fs::remove_dir(group)
}

/// Waits for a future from blocking code, in a runtime or outside of one.
fn block_on<T: Send>(future: impl Future<Output = Result<T>> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future));
        thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?
    })
}
