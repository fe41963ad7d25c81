//! A pod with an agent of its own, and a client that asks as Kata's Rust shim does.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use async_trait::async_trait;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use peerpods_agent::{Agent, AgentConfig, AgentPolicy, ImageInfo, ImageRequest, RootfsError, RootfsSource, SecretError, SecretSource};
use peerpods_protos::agent::{
    CopyFileRequest, CreateContainerRequest, CreateSandboxRequest, ExecProcessRequest, ReadStreamRequest, RemoveContainerRequest,
    SignalProcessRequest, StartContainerRequest, Storage, WaitProcessRequest, WriteStreamRequest,
};
use peerpods_protos::agent_ttrpc::AgentServiceClient;
use peerpods_protos::health_ttrpc::HealthClient;
use peerpods_protos::oci;
use tokio::net::UnixStream;
use ttrpc::r#async::transport::Socket;
use ttrpc::asynchronous::Client;
use ttrpc::context::{Context, with_duration};
use zeroize::Zeroizing;

pub(crate) const TEST_DEADLINE: Duration = Duration::from_secs(60);
pub(crate) const SHARE: &str = "/run/kata-containers";
pub(crate) const SANDBOX: &str = "22bace78a91cda605a8df5dc4e4be497bd38df8c633a49b001162ad3b9ee6493";
const RPC: Duration = Duration::from_secs(30);
const BUSYBOX: &str = "/usr/bin/busybox";
const CAPABILITIES: &[&str] = &["CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SYS_RESOURCE"];

/// A pod VM's agent under test.
pub(crate) struct Pod {
    pub(crate) agent: Arc<Agent>,
    pub(crate) rpc: AgentServiceClient,
    pub(crate) health: HealthClient,
    pub(crate) server: tokio::task::JoinHandle<()>,
    pub(crate) cgroup: String,
    before: HashSet<String>,
}

/// What a process printed and how it ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) status: i32,
}

/// Busybox on a tmpfs. Image names choose a behaviour: those with `missing` fail, `slow…` never ends.
struct Busybox;

#[async_trait]
impl RootfsSource for Busybox {
    async fn pull(&self, image: &ImageRequest, _: &str, target: &Path) -> Result<ImageInfo, RootfsError> {
        let image = &image.reference;
        if image.contains("missing") {
            return Err(RootfsError::new(format!("pulling {image}"), "manifest unknown"));
        }
        if image.starts_with("slow") {
            std::future::pending::<()>().await;
        }
        fill(target).map_err(|error| RootfsError::message(format!("{error:#}")))?;
        Ok(ImageInfo::default())
    }

    async fn remove(&self, _: &str, target: &Path) -> Result<(), RootfsError> {
        let _ = umount2(target, MntFlags::MNT_DETACH);
        Ok(())
    }
}

#[async_trait]
impl SecretSource for Busybox {
    async fn unseal(&self, sealed: &str) -> Result<Zeroizing<Vec<u8>>, SecretError> {
        match sealed.strip_prefix("sealed.") {
            Some(name) => Ok(Zeroizing::new(format!("opened {name}").into_bytes())),
            None => Err(SecretError::new("not sealed")),
        }
    }
}

fn fill(target: &Path) -> Result<()> {
    mount(Some("rootfs"), target, Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
    for folder in ["bin", "etc", "tmp", "root"] {
        fs::create_dir(target.join(folder))?;
    }
    fs::copy(BUSYBOX, target.join("bin/busybox")).context("busybox")?;
    for applet in [
        "cat", "dd", "echo", "head", "hostname", "id", "ls", "mount", "ps", "readlink", "sh", "sleep", "stat", "stty", "tail", "test",
        "touch", "tr", "true", "wc", "yes",
    ] {
        symlink("busybox", target.join("bin").join(applet))?;
    }
    fs::write(target.join("bin/not-executable"), "")?;
    Ok(())
}

impl Pod {
    /// An agent with a connection and a sandbox with its pause container.
    pub(crate) async fn start() -> Result<Self> {
        let pod = Self::bare(None)?;
        pod.create_sandbox().await?;
        pod.create(&pause()).await?;
        pod.start_container(SANDBOX).await?;
        Ok(pod)
    }

    /// An agent with a connection only.
    pub(crate) fn bare(pod_netns: Option<PathBuf>) -> Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let cgroup = format!("peerpods-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let config = AgentConfig {
            share_dir: SHARE.into(),
            run_dir: "/run/peerpods/agent".into(),
            pod_netns,
            runner: vec![std::env::current_exe()?.into_os_string(), OsString::from("runner")],
            cgroup_parent: cgroup.clone(),
            policy: AgentPolicy::built_in_default()?,
        };
        let agent = Agent::new(config, Arc::new(Busybox), Arc::new(Busybox))?;
        let (client, server) = connect(&agent)?;
        let before = mounts()?;
        Ok(Self { agent, rpc: AgentServiceClient::new(client.clone()), health: HealthClient::new(client), server, cgroup, before })
    }

    pub(crate) async fn create_sandbox(&self) -> Result<()> {
        let mut request = CreateSandboxRequest::new();
        request.hostname = "web-0".to_owned();
        request.dns = vec!["search default.svc".to_owned(), "nameserver 10.96.0.10".to_owned(), String::new()];
        request.storages = vec![storage(
            "ephemeral",
            "tmpfs",
            &format!("{SHARE}/sandbox/shm"),
            &["noexec", "nosuid", "nodev", "mode=1777", "size=67108864"],
        )];
        request.sandbox_id = SANDBOX.to_owned();
        self.rpc.create_sandbox(rpc(), &request).await.context("CreateSandbox")?;
        Ok(())
    }

    pub(crate) async fn create(&self, request: &CreateContainerRequest) -> Result<()> {
        self.rpc.create_container(rpc(), request).await.with_context(|| format!("CreateContainer {}", request.container_id))?;
        Ok(())
    }

    pub(crate) async fn start_container(&self, id: &str) -> Result<()> {
        let mut request = StartContainerRequest::new();
        request.container_id = id.to_owned();
        self.rpc.start_container(rpc(), &request).await.context("StartContainer")?;
        Ok(())
    }

    /// Creates and starts.
    pub(crate) async fn run(&self, request: &CreateContainerRequest) -> Result<()> {
        self.create(request).await?;
        self.start_container(&request.container_id).await
    }

    /// Runs a shell script in a container of its own, to its end.
    pub(crate) async fn script(&self, id: &str, script: &str) -> Result<Ended> {
        self.run(&shell(id, script)).await?;
        let ended = self.finish(id, "").await?;
        self.remove(id).await?;
        Ok(ended)
    }

    pub(crate) async fn exec(&self, id: &str, exec_id: &str, process: oci::Process) -> ttrpc::Result<()> {
        let mut request = ExecProcessRequest::new();
        request.container_id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        request.process = Some(process).into();
        self.rpc.exec_process(rpc(), &request).await.map(drop)
    }

    /// An exec's output and end.
    pub(crate) async fn exec_script(&self, id: &str, exec_id: &str, script: &str) -> Result<Ended> {
        self.exec(id, exec_id, process(&["/bin/sh", "-c", script])).await.context("ExecProcess")?;
        self.finish(id, exec_id).await
    }

    pub(crate) async fn read(&self, id: &str, exec_id: &str) -> Result<Vec<u8>> {
        Ok(self.rpc.read_stdout(Context::default(), &read_request(id, exec_id)).await.context("ReadStdout")?.data)
    }

    /// Reads standard output until it contains a text.
    pub(crate) async fn read_until(&self, id: &str, exec_id: &str, text: &str) -> Result<String> {
        let mut all = String::new();
        while !all.contains(text) {
            let data = self.read(id, exec_id).await?;
            ensure!(!data.is_empty(), "output ended without {text:?}: {all:?}");
            all.push_str(&String::from_utf8_lossy(&data));
        }
        Ok(all)
    }

    pub(crate) async fn write(&self, id: &str, exec_id: &str, data: &[u8]) -> ttrpc::Result<u32> {
        let mut request = WriteStreamRequest::new();
        request.container_id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        request.data = data.to_vec();
        Ok(self.rpc.write_stdin(Context::default(), &request).await?.len)
    }

    pub(crate) async fn wait(&self, id: &str, exec_id: &str) -> Result<i32> {
        let mut request = WaitProcessRequest::new();
        request.container_id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        Ok(self.rpc.wait_process(Context::default(), &request).await.context("WaitProcess")?.status)
    }

    /// Both streams to their ends, then the status, as the shim does.
    pub(crate) async fn finish(&self, id: &str, exec_id: &str) -> Result<Ended> {
        let request = read_request(id, exec_id);
        let stderr = async {
            let mut all = Vec::new();
            loop {
                let data = self.rpc.read_stderr(Context::default(), &request).await.context("ReadStderr")?.data;
                if data.is_empty() {
                    return Ok::<_, anyhow::Error>(all);
                }
                all.extend(data);
            }
        };
        let stdout = async {
            let mut all = Vec::new();
            loop {
                let data = self.read(id, exec_id).await?;
                if data.is_empty() {
                    return Ok::<_, anyhow::Error>(all);
                }
                all.extend(data);
            }
        };
        let (stdout, stderr) = tokio::try_join!(stdout, stderr)?;
        let status = self.wait(id, exec_id).await?;
        Ok(Ended { stdout: String::from_utf8(stdout)?, stderr: String::from_utf8(stderr)?, status })
    }

    pub(crate) async fn signal(&self, id: &str, exec_id: &str, signal: u32) -> ttrpc::Result<()> {
        let mut request = SignalProcessRequest::new();
        request.container_id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        request.signal = signal;
        self.rpc.signal_process(rpc(), &request).await.map(drop)
    }

    pub(crate) async fn remove(&self, id: &str) -> Result<()> {
        let mut request = RemoveContainerRequest::new();
        request.container_id = id.to_owned();
        request.timeout = 10;
        self.rpc.remove_container(rpc(), &request).await.context("RemoveContainer")?;
        Ok(())
    }

    /// Copies a file; gives its path in the guest.
    pub(crate) async fn copy(&self, name: &str, mode: u32, data: &[u8]) -> Result<String> {
        let mut request = CopyFileRequest::new();
        request.path = format!("{SHARE}/shared/containers/{name}");
        request.file_mode = mode;
        request.file_size = i64::try_from(data.len())?;
        request.data = data.to_vec();
        self.rpc.copy_file(rpc(), &request).await.with_context(|| format!("CopyFile {name}"))?;
        Ok(request.path)
    }

    /// Destroys the sandbox and finds nothing left of it.
    pub(crate) async fn destroy(self) -> Result<()> {
        self.rpc.destroy_sandbox(rpc(), &peerpods_protos::agent::DestroySandboxRequest::new()).await.context("DestroySandbox")?;
        self.nothing_is_left().await
    }

    /// No mount, cgroup or process that was not there before.
    pub(crate) async fn nothing_is_left(&self) -> Result<()> {
        let now = mounts()?;
        let more: Vec<_> = now.difference(&self.before).collect();
        ensure!(more.is_empty(), "mounts are left: {more:?}");
        let groups = cgroups(&self.cgroup)?;
        ensure!(groups.is_empty(), "cgroups are left: {groups:?}");
        let left: Vec<_> = fs::read_dir("/run/peerpods/agent/bundles")?.chain(fs::read_dir("/run/peerpods/agent/containers")?).collect();
        ensure!(left.is_empty(), "files are left: {left:?}");
        eventually("all runners and containers are gone", || {
            let children = children()?;
            ensure!(children.is_empty(), "processes are left: {children:?}");
            Ok(())
        })
        .await
    }
}

/// Another connection to the same agent.
pub(crate) fn connect(agent: &Arc<Agent>) -> Result<(Client, tokio::task::JoinHandle<()>)> {
    let (ours, theirs) = UnixStream::pair()?;
    let agent = agent.clone();
    let server = tokio::spawn(async move { peerpods_agent::serve(&agent, theirs).await });
    Ok((Client::new(Socket::new(ours)), server))
}

/// The deadline of most calls.
pub(crate) fn rpc() -> Context {
    with_duration(RPC)
}

/// Tries until it works; the last error tells why it did not.
pub(crate) async fn eventually(what: &str, mut check: impl FnMut() -> Result<()>) -> Result<()> {
    let mut last = None;
    for _ in 0..500 {
        match check() {
            Ok(()) => return Ok(()),
            Err(error) => last = Some(error),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bail!("never: {what}: {:#}", last.unwrap_or_else(|| anyhow::anyhow!("not tried")))
}

fn mounts() -> Result<HashSet<String>> {
    Ok(fs::read_to_string("/proc/self/mounts")?.lines().map(str::to_owned).collect())
}

/// Folders of a cgroup in all hierarchies.
pub(crate) fn cgroups(path: &str) -> Result<Vec<PathBuf>> {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(root)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>()?;
    Ok(std::iter::once(root.to_owned()).chain(hierarchies).map(|hierarchy| hierarchy.join(path)).filter(|folder| folder.exists()).collect())
}

fn children() -> Result<Vec<String>> {
    let own = std::process::id().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(stat) = fs::read_to_string(entry?.path().join("stat")) else { continue };
        // pid (name) state ppid …
        if let Some((head, rest)) = stat.rsplit_once(") ")
            && rest.split(' ').nth(1) == Some(&own)
        {
            found.push(head.to_owned());
        }
    }
    Ok(found)
}

pub(crate) fn storage(driver: &str, fstype: &str, mount_point: &str, options: &[&str]) -> Storage {
    let mut storage = Storage::new();
    storage.driver = driver.to_owned();
    storage.source = fstype.to_owned();
    storage.fstype = fstype.to_owned();
    storage.options = options.iter().map(|option| (*option).to_owned()).collect();
    storage.mount_point = mount_point.to_owned();
    storage
}

pub(crate) fn process(args: &[&str]) -> oci::Process {
    let mut process = oci::Process::new();
    process.User = Some(oci::User::new()).into();
    process.Args = args.iter().map(|arg| (*arg).to_owned()).collect();
    process.Env = vec!["PATH=/bin".to_owned(), "GREETING=hello".to_owned()];
    process.Cwd = "/".to_owned();
    process
}

pub(crate) fn mount_entry(destination: &str, source: &str, kind: &str, options: &[&str]) -> oci::Mount {
    let mut mount = oci::Mount::new();
    mount.destination = destination.to_owned();
    mount.source = source.to_owned();
    mount.type_ = kind.to_owned();
    mount.options = options.iter().map(|option| (*option).to_owned()).collect();
    mount
}

/// A container that runs a shell script.
pub(crate) fn shell(id: &str, script: &str) -> CreateContainerRequest {
    container(id, "busybox", &["/bin/sh", "-c", script])
}

/// The pause container.
pub(crate) fn pause() -> CreateContainerRequest {
    container(SANDBOX, "pause", &["/pause"])
}

/// A container as containerd and the shim describe it.
pub(crate) fn container(id: &str, image: &str, args: &[&str]) -> CreateContainerRequest {
    let rootfs = format!("{SHARE}/{id}/rootfs");
    let capabilities: Vec<String> = CAPABILITIES.iter().map(|name| (*name).to_owned()).collect();
    let mut sets = oci::LinuxCapabilities::new();
    sets.Bounding.clone_from(&capabilities);
    sets.Effective.clone_from(&capabilities);
    sets.Permitted = capabilities;
    let mut process = process(args);
    process.Capabilities = Some(sets).into();
    let mut root = oci::Root::new();
    root.Path.clone_from(&rootfs);
    root.Readonly = image == "pause";
    let mut linux = oci::Linux::new();
    linux.Resources = Some(oci::LinuxResources::new()).into();
    linux.CgroupsPath = format!("/pods/{id}");
    let mut spec = oci::Spec::new();
    spec.Version = "1.2.1".to_owned();
    spec.Process = Some(process).into();
    spec.Root = Some(root).into();
    spec.Linux = Some(linux).into();
    spec.Mounts = vec![
        mount_entry("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount_entry("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount_entry("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        mount_entry("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount_entry("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount_entry("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
        mount_entry("/dev/shm", &format!("{SHARE}/sandbox/shm"), "bind", &["rbind"]),
    ];
    let mut root_storage = storage("image_guest_pull", "overlay", &rootfs, &[]);
    root_storage.source = image.to_owned();
    let mut request = CreateContainerRequest::new();
    request.container_id = id.to_owned();
    request.exec_id = id.to_owned();
    request.storages = vec![root_storage];
    request.OCI = Some(spec).into();
    request
}

fn read_request(id: &str, exec_id: &str) -> ReadStreamRequest {
    let mut request = ReadStreamRequest::new();
    request.container_id = id.to_owned();
    request.exec_id = exec_id.to_owned();
    request.len = 8192;
    request
}
