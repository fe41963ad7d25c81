//! OCI specs and storages as containerd and the shim make them.

use peerpods_protos::agent::{CreateContainerRequest, Storage};
use peerpods_protos::oci;

const CAPABILITIES: &[&str] = &[
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// A container as a pod's author would describe it.
#[derive(Debug, Clone)]
pub struct ContainerRequest {
    /// 64 hexadecimal digits; the sandbox's own id for the pause container.
    pub id: String,
    /// Image reference, or `pause`.
    pub image: String,
    /// Command and arguments.
    pub args: Vec<String>,
    /// `NAME=value` pairs beside PATH.
    pub env: Vec<String>,
    /// Bind mounts: destination in the container, source in the guest.
    pub binds: Vec<(String, String)>,
    /// Memory limit in bytes.
    pub memory_limit: Option<i64>,
    /// More storages, such as emptyDirs.
    pub storages: Vec<Storage>,
}

impl ContainerRequest {
    /// A workload container.
    pub fn new(id: &str, image: &str, args: &[&str]) -> Self {
        Self {
            id: id.to_owned(),
            image: image.to_owned(),
            args: args.iter().map(|a| (*a).to_owned()).collect(),
            env: Vec::new(),
            binds: Vec::new(),
            memory_limit: None,
            storages: Vec::new(),
        }
    }

    /// The sandbox's pause container.
    pub fn pause(sandbox_id: &str) -> Self {
        Self::new(sandbox_id, "pause", &["/pause"])
    }

    pub(super) fn to_request(&self, sandbox_id: &str, pod: &str) -> CreateContainerRequest {
        let is_pause = self.image == "pause";
        let rootfs = format!("/run/kata-containers/{}/rootfs", self.id);
        let mut annotations = vec![
            ("io.kubernetes.cri.container-type", if is_pause { "sandbox" } else { "container" }),
            ("io.katacontainers.pkg.oci.container_type", if is_pause { "pod_sandbox" } else { "pod_container" }),
            ("io.kubernetes.cri.sandbox-id", sandbox_id),
            ("io.kubernetes.cri.sandbox-name", pod),
            ("io.kubernetes.cri.sandbox-namespace", "default"),
        ];
        if !is_pause {
            annotations.push(("io.kubernetes.cri.image-name", &self.image));
        }
        let metadata: serde_json::Map<String, serde_json::Value> =
            annotations.iter().map(|(k, v)| ((*k).to_owned(), serde_json::Value::from(*v))).collect();

        let mut spec = oci::Spec::new();
        spec.Version = "1.2.1".to_owned();
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        let env: Vec<&str> = self.env.iter().map(String::as_str).collect();
        spec.Process = Some(process(&args, &env)).into();
        let mut root = oci::Root::new();
        root.Path = rootfs.clone();
        root.Readonly = is_pause;
        spec.Root = Some(root).into();
        if is_pause {
            spec.Hostname = pod.to_owned();
        }
        spec.Mounts = mounts();
        spec.Mounts.extend(self.binds.iter().map(|(to, from)| mount(to, from, "bind", &["rbind", "rprivate", "rw"])));
        spec.Annotations = annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        spec.Linux = Some(linux(&self.id, self.memory_limit)).into();

        let mut storage = Storage::new();
        storage.driver = "image_guest_pull".to_owned();
        storage.driver_options = vec![format!("image_guest_pull={}", serde_json::json!({ "metadata": metadata }))];
        storage.source = self.image.clone();
        storage.fstype = "overlay".to_owned();
        storage.mount_point = rootfs;

        let mut request = CreateContainerRequest::new();
        request.container_id = self.id.clone();
        request.exec_id = self.id.clone();
        request.storages = self.storages.iter().cloned().chain([storage]).collect();
        request.OCI = Some(spec).into();
        request
    }
}

/// A process with the default capabilities of containerd.
pub(super) fn process(args: &[&str], env: &[&str]) -> oci::Process {
    let all: Vec<String> = CAPABILITIES.iter().map(|c| (*c).to_owned()).collect();
    let mut capabilities = oci::LinuxCapabilities::new();
    capabilities.Bounding = all.clone();
    capabilities.Effective = all.clone();
    capabilities.Permitted = all;
    let mut process = oci::Process::new();
    process.User = Some(oci::User::new()).into();
    process.Args = args.iter().map(|a| (*a).to_owned()).collect();
    process.Env = std::iter::once("PATH=/bin:/sbin:/usr/bin:/usr/sbin").chain(env.iter().copied()).map(str::to_owned).collect();
    process.Cwd = "/".to_owned();
    process.Capabilities = Some(capabilities).into();
    process
}

/// The sandbox's shared memory.
pub(super) fn shm_storage() -> Storage {
    let mut storage = Storage::new();
    storage.driver = "ephemeral".to_owned();
    storage.source = "shm".to_owned();
    storage.fstype = "tmpfs".to_owned();
    storage.options = ["noexec", "nosuid", "nodev", "mode=1777", "size=67108864"].map(str::to_owned).to_vec();
    storage.mount_point = "/run/kata-containers/sandbox/shm".to_owned();
    storage
}

fn mounts() -> Vec<oci::Mount> {
    vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/dev/shm", "/run/kata-containers/sandbox/shm", "bind", &["rbind"]),
    ]
}

fn mount(destination: &str, source: &str, kind: &str, options: &[&str]) -> oci::Mount {
    let mut mount = oci::Mount::new();
    mount.destination = destination.to_owned();
    mount.source = source.to_owned();
    mount.type_ = kind.to_owned();
    mount.options = options.iter().map(|o| (*o).to_owned()).collect();
    mount
}

fn linux(id: &str, memory_limit: Option<i64>) -> oci::Linux {
    let mut cpu = oci::LinuxCPU::new();
    cpu.Shares = 2;
    let mut resources = oci::LinuxResources::new();
    resources.CPU = Some(cpu).into();
    if let Some(limit) = memory_limit {
        let mut memory = oci::LinuxMemory::new();
        memory.Limit = limit;
        resources.Memory = Some(memory).into();
    }
    let mut linux = oci::Linux::new();
    linux.Resources = Some(resources).into();
    linux.CgroupsPath = format!("/pods/{id}");
    linux.Namespaces = ["ipc", "uts", "mnt"]
        .map(|kind| {
            let mut namespace = oci::LinuxNamespace::new();
            namespace.Type = kind.to_owned();
            namespace
        })
        .to_vec();
    linux
}
