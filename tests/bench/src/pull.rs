//! Pulling a large image inside a pod VM: how much memory it takes above idle, and how fast it is.

use std::io::Read as _;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use peerpods_e2e::{ContainerRequest, Image, Level, World, WorldOptions};

use crate::figure::{Budget, Figure};

/// The image's size: one file that does not compress.
const MIB: usize = 1024;

/// How a pull went.
pub(crate) struct Pull {
    /// Until the container is there.
    pub(crate) secs: f64,
    /// Anonymous and shared memory of the guest before, in MiB.
    pub(crate) idle: f64,
    /// At its highest.
    pub(crate) peak: f64,
    /// What the file system of the scratch folder held more at its fullest than before, in MiB.
    pub(crate) disk: f64,
}

/// Pulls it once on a sandbox machine, whose cgroup holds the guest and nothing else.
pub(crate) async fn run() -> Result<Vec<Figure>> {
    let mut world = World::start(&WorldOptions::new(Level::Sandbox))?;
    let bulky = Image::bulky(MIB << 20)?;
    world.registry().push(world.netns(), "bulky", "1", &bulky)?;
    let blob = format!("/v2/bulky/blobs/{}", bulky.layers.last().context("no layer")?.digest());
    drop(bulky);
    let initdata = world.initdata();
    let Pull { secs, idle, peak, .. } = pull(&mut world, &initdata, "bulky", 1).await?;
    let download = download_secs(&world, blob)?;
    #[allow(clippy::cast_precision_loss)]
    let size = MIB as f64;
    Ok(vec![
        Figure {
            name: "pull of a 1 GiB image, peak above idle".to_owned(),
            value: peak - idle,
            unit: "MiB",
            baseline: "anon + shmem of the idle guest's cgroup".to_owned(),
            baseline_value: idle,
            budget: Budget::AtMost(64.0),
        },
        Figure {
            name: "pull of a 1 GiB image, verified and unpacked".to_owned(),
            value: size / secs,
            unit: "MiB/s",
            baseline: "the layer's bytes over plain HTTP, thrown away".to_owned(),
            baseline_value: size / download,
            budget: Budget::None,
        },
    ])
}

/// Pulls an image in a pod VM of its own, which has nothing in its store; `seed` makes the sandbox's id, so it must be new.
pub(crate) async fn pull(world: &mut World, initdata: &str, image: &str, seed: u64) -> Result<Pull> {
    let netns = world.add_pod()?.netns().path();
    let mut shim = world.shim(image, seed);
    let socket = shim.create_vm(&netns, &[("cc_init_data", initdata)]).await?;
    shim.start_vm(&socket).await?;
    shim.create_sandbox().await?;
    let groups = memory_groups(world)?;
    let idle = used_mib(&groups)?;
    let folder = world.folder().to_owned();
    let before = held_mib(&folder)?;
    let is_over = Arc::new(AtomicBool::new(false));
    let watcher = {
        let is_over = Arc::clone(&is_over);
        std::thread::spawn(move || {
            let (mut peak, mut disk) = (0.0_f64, 0.0_f64);
            while !is_over.load(Ordering::Relaxed) {
                peak = peak.max(used_mib(&groups).unwrap_or(0.0));
                disk = disk.max(held_mib(&folder).unwrap_or(0.0) - before);
                std::thread::sleep(Duration::from_millis(5));
            }
            (peak, disk)
        })
    };
    let begin = Instant::now();
    let image = format!("{}/{image}:1", world.registry_host());
    let id = "d".repeat(64);
    let pulled = shim.create_container(&ContainerRequest::new(&id, &image, &["/bin/true"])).await.with_context(|| world.logs());
    let secs = begin.elapsed().as_secs_f64();
    is_over.store(true, Ordering::Relaxed);
    let (peak, disk) = watcher.join().map_err(|_| anyhow::anyhow!("the watcher died"))?;
    pulled?;
    shim.stop_vm().await?;
    world.wait_for_no_machines(Duration::from_secs(30))?;
    Ok(Pull { secs, idle, peak, disk })
}

/// What a folder's file system holds, files without a name too.
fn held_mib(folder: &Path) -> Result<f64> {
    let system = rustix::fs::statvfs(folder)?;
    let bytes = (system.f_blocks - system.f_bfree) * system.f_frsize;
    #[allow(clippy::cast_precision_loss)]
    Ok(bytes as f64 / f64::from(1 << 20))
}

/// The memory cgroups of the one machine, with those below.
fn memory_groups(world: &World) -> Result<PathBuf> {
    let machine = world.machines().first().cloned().context("no machine")?;
    let record: serde_json::Value = serde_json::from_slice(&std::fs::read(machine.join("machine.json"))?)?;
    let pid = record["process"]["pid"].as_u64().context("machine.json names no process")?;
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next(), parts.next().unwrap_or(""), parts.next().unwrap_or(""));
        let path = path.trim_start_matches('/');
        if controllers == "memory" {
            return Ok(Path::new("/sys/fs/cgroup/memory").join(path));
        }
    }
    let path = groups.lines().find_map(|line| line.strip_prefix("0::")).context("no cgroup")?;
    Ok(Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/')))
}

/// Anonymous and shared memory of a group and all below it.
fn used_mib(group: &Path) -> Result<f64> {
    let stat = std::fs::read_to_string(group.join("memory.stat"))?;
    // Version 1 prefixes what includes the groups below; version 2 always includes them.
    let value = |names: &[&str]| -> f64 {
        stat.lines()
            .filter_map(|line| line.split_once(' '))
            .filter(|(name, _)| names.contains(name))
            .filter_map(|(_, value)| value.parse::<f64>().ok())
            .sum()
    };
    let bytes = if stat.contains("total_rss ") { value(&["total_rss", "total_shmem"]) } else { value(&["anon", "shmem"]) };
    Ok(bytes / f64::from(1 << 20))
}

fn download_secs(world: &World, path: String) -> Result<f64> {
    let port = world.registry().port();
    world.netns().run(move || -> Result<f64> {
        use std::io::Write as _;
        let begin = Instant::now();
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
        let mut block = vec![0; 256 << 10];
        while stream.read(&mut block)? > 0 {}
        Ok(begin.elapsed().as_secs_f64())
    })?
}
