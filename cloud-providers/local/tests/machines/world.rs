//! A host of its own for each test: a network namespace, a state folder, and the proof that nothing is left of it.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sched::{CloneFlags, unshare};
use peerpods_cloud_api::settings::local::{Accelerator, Firmware, Level, LocalSettings};
use peerpods_cloud_api::{
    CloudProvider as _, Instance, InstanceId, InstanceState, LaunchRequest, LaunchToken, Mib, OwnerTag, ProviderError, Tee,
};
use peerpods_cloud_local::LocalProvider;
use peerpods_cloud_local::machine::Host;

/// More than anything here takes on a loaded host.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// One test's host.
pub(crate) struct World {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) level: Level,
    /// What a new namespace has.
    links: Vec<String>,
}

/// Runs a test on a thread in a new network namespace, which its tasks, blocking threads and children inherit.
pub(crate) fn in_world<F: Future<Output = Result<()>>>(level: Level, test: impl FnOnce(World) -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        let folder = tempfile::Builder::new().prefix("pp-local-").tempdir().expect("a folder");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(test(World { folder, level, links: links().expect("ip") })).map_err(|error| format!("{error:?}"))
    });
    match thread.join() {
        Ok(Ok(())) => {}
        Ok(Err(error)) => panic!("{error}"),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

impl World {
    pub(crate) fn state_dir(&self) -> PathBuf {
        self.folder.path().join("machines")
    }

    pub(crate) fn settings(&self) -> LocalSettings {
        settings(&self.state_dir(), self.level)
    }

    pub(crate) fn provider(&self) -> LocalProvider {
        LocalProvider::new(self.settings()).expect("settings")
    }

    pub(crate) fn machine_folder(&self, id: &InstanceId) -> PathBuf {
        self.state_dir().join("machines").join(id.as_str())
    }

    /// Deletes everything of the owner and checks that nothing is left.
    pub(crate) async fn delete_all(&self, provider: &LocalProvider) -> Result<()> {
        let instances = provider.list(&owner()).await?;
        for instance in &instances {
            match provider.delete(&instance.id).await {
                Ok(()) | Err(ProviderError::NotFound) => {}
                Err(error) => return Err(error).context("deleting"),
            }
        }
        for instance in &instances {
            wait_until_gone(provider, &instance.id).await?;
        }
        ensure!(provider.list(&owner()).await?.is_empty());
        eventually("nothing is left", || self.check_nothing_is_left()).await
    }

    /// No link, mount, process, cgroup or folder of this world.
    pub(crate) fn check_nothing_is_left(&self) -> Result<()> {
        ensure!(links()? == self.links, "links {:?}", links()?);
        let state_dir = self.state_dir().display().to_string();
        ensure!(!std::fs::read_to_string("/proc/self/mountinfo")?.contains(&state_dir), "a mount is left");
        let left: Vec<String> = names(&self.state_dir())
            .into_iter()
            .filter(|name| !["lock", "machines", "host.json", "host.lock", "tpm-ca", "tpm-ca.lock"].contains(&name.as_str()))
            .collect();
        ensure!(left.is_empty(), "files {left:?}");
        let machines = names(&self.state_dir().join("machines"));
        ensure!(machines.is_empty(), "machines {machines:?}");
        let own = std::fs::read_link("/proc/thread-self/ns/net")?;
        for pid in names("/proc".as_ref()).iter().filter(|name| name.parse::<u32>().is_ok_and(|pid| pid != std::process::id())) {
            let text = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let is_ours = String::from_utf8_lossy(&text).contains(&state_dir);
            let is_here = std::fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|netns| netns == own);
            ensure!(!is_ours && !is_here, "process {pid}: {}", String::from_utf8_lossy(&text).replace('\0', " "));
        }
        Ok(())
    }
}

pub(crate) fn settings(state_dir: &Path, level: Level) -> LocalSettings {
    let image = match level {
        Level::Sandbox => std::env::current_exe().expect("own path"),
        Level::Qemu => state_dir.with_file_name("image"),
    };
    LocalSettings {
        level,
        insecure_sandbox: true,
        image,
        state_dir: state_dir.to_owned(),
        bridge: "peerpods0".to_owned(),
        gateway: [10, 93, 0, 1].into(),
        scratch_mib: Mib(64),
        accelerator: Accelerator::Tcg,
        firmware: Firmware::None,
        measured: false,
        tsc_khz: None,
    }
}

pub(crate) fn owner() -> OwnerTag {
    OwnerTag::new("test/owner").expect("tag")
}

pub(crate) fn request(token: &str, count: u32, user_data: &str) -> LaunchRequest {
    LaunchRequest {
        token: LaunchToken::new(token).expect("token"),
        owner: owner(),
        instance_type: "local.small".to_owned(),
        zone: None,
        image: None,
        tee: Tee::Sample,
        count,
        user_data: user_data.as_bytes().to_vec(),
    }
}

impl Drop for World {
    /// What a failed test leaves must not outlive it: its folder, which goes next, is all that is known of its machines.
    fn drop(&mut self) {
        let Ok(host) = Host::new(self.settings()) else { return };
        for record in host.all().into_iter().flatten() {
            if let Err(error) = host.delete(&record.id) {
                eprintln!("machine {} stays behind: {error}", record.id);
            }
        }
    }
}

/// No process and no group of this machine.
pub(crate) fn check_no_cgroup(id: &InstanceId) -> Result<()> {
    for entry in names("/proc".as_ref()) {
        let text = std::fs::read_to_string(format!("/proc/{entry}/cgroup")).unwrap_or_default();
        let stat = std::fs::read_to_string(format!("/proc/{entry}/stat")).unwrap_or_default();
        // One that has ended and awaits init is in no group but named there.
        ensure!(!text.contains(id.as_str()) || stat.contains(") Z "), "process {stat} is in {text}");
    }
    for hierarchy in names("/sys/fs/cgroup".as_ref()) {
        let group = Path::new("/sys/fs/cgroup").join(hierarchy).join("peerpods").join(id.as_str());
        ensure!(!group.exists(), "{}", group.display());
    }
    ensure!(!Path::new("/sys/fs/cgroup/peerpods").join(id.as_str()).exists());
    Ok(())
}

/// Names of the links of this namespace, by Debian's `ip`.
pub(crate) fn links() -> Result<Vec<String>> {
    let out = std::process::Command::new("ip").args(["-o", "link"]).output().context("starting ip (Debian package iproute2)")?;
    let text = String::from_utf8(out.stdout)?;
    let name = |line: &str| line.split(": ").nth(1).map(|name| name.split('@').next().unwrap_or(name).to_owned());
    Ok(text.lines().filter_map(name).collect())
}

pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

pub(crate) async fn wait_until_gone(provider: &LocalProvider, id: &InstanceId) -> Result<()> {
    let begin = Instant::now();
    loop {
        match provider.get(id).await {
            Err(ProviderError::NotFound) => return check_no_cgroup(id),
            Ok(Instance { state: InstanceState::Deleting, .. }) if begin.elapsed() < LIMIT => {}
            other => bail!("{id} is not being deleted: {other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Tries until it works; an error says what was last seen.
pub(crate) async fn eventually<T>(what: &str, mut probe: impl FnMut() -> Result<T>) -> Result<T> {
    let begin = Instant::now();
    loop {
        match probe() {
            Ok(value) => return Ok(value),
            Err(last) if begin.elapsed() > LIMIT => return Err(last.context(format!("{what}: not within {LIMIT:?}"))),
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}
