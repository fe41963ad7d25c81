//! A container as a kubelet asks for it.

use std::path::Path;

use crate::{Volume, v1};

/// What a kubelet would send for a container of a pod's specification.
#[derive(Debug, Clone)]
pub struct Container {
    /// The request's own form, for what is too rare to have a word here.
    pub config: v1::ContainerConfig,
    pub(super) image: String,
}

/// The paths that Kubernetes' default proc mount hides.
const MASKED: [&str; 10] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
/// And those that it makes read-only.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

impl Container {
    /// A busybox that runs a script.
    pub fn script(name: &str, script: &str) -> Self {
        Self::new(name, &["/bin/sh", "-c", script])
    }

    /// A busybox that waits to be asked.
    pub fn waiting(name: &str) -> Self {
        Self::script(name, "trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done")
    }

    /// A busybox that runs a command.
    pub fn new(name: &str, command: &[&str]) -> Self {
        let mut container = Self::of_image(name, "busybox");
        container.config.command = command.iter().map(|&word| word.to_owned()).collect();
        container
    }

    /// What an image of the registry says.
    pub fn of_image(name: &str, image: &str) -> Self {
        let owned = |paths: &[&str]| paths.iter().map(|&path| path.to_owned()).collect();
        let security = v1::LinuxContainerSecurityContext {
            namespace_options: Some(v1::NamespaceOption { pid: v1::NamespaceMode::Container.into(), ..Default::default() }),
            masked_paths: owned(&MASKED),
            readonly_paths: owned(&READ_ONLY),
            seccomp: Some(v1::SecurityProfile { profile_type: v1::security_profile::ProfileType::Unconfined.into(), ..Default::default() }),
            ..Default::default()
        };
        let resources = v1::LinuxContainerResources { cpu_shares: 2, oom_score_adj: 1000, cpu_period: 100_000, ..Default::default() };
        let config = v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            labels: [("io.kubernetes.container.name".to_owned(), name.to_owned())].into(),
            linux: Some(v1::LinuxContainerConfig { resources: Some(resources), security_context: Some(security) }),
            ..Default::default()
        };
        Self { config, image: image.to_owned() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.config.metadata.as_ref().map_or("", |metadata| &metadata.name)
    }

    /// Changes whatever has no word of its own.
    pub fn with(mut self, change: impl FnOnce(&mut v1::ContainerConfig)) -> Self {
        change(&mut self.config);
        self
    }

    /// Changes the security context.
    pub fn secured(mut self, change: impl FnOnce(&mut v1::LinuxContainerSecurityContext)) -> Self {
        change(self.config.linux.get_or_insert_default().security_context.get_or_insert_default());
        self
    }

    /// Changes limits.
    pub fn limited(mut self, change: impl FnOnce(&mut v1::LinuxContainerResources)) -> Self {
        change(self.config.linux.get_or_insert_default().resources.get_or_insert_default());
        self
    }

    /// Arguments.
    pub fn args(mut self, args: &[&str]) -> Self {
        self.config.args = args.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// A variable.
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.config.envs.push(v1::KeyValue { key: key.to_owned(), value: value.to_owned() });
        self
    }

    /// Runs as this user, and group if given.
    pub fn user(self, user: i64, group: Option<i64>) -> Self {
        self.secured(|security| {
            security.run_as_user = Some(v1::Int64Value { value: user });
            security.run_as_group = group.map(|value| v1::Int64Value { value });
        })
    }

    /// Mounts a volume.
    pub fn mount(self, volume: &Volume, at: &str) -> Self {
        self.bind(&volume.path, at, false)
    }

    /// Mounts a volume that cannot be written.
    pub fn mount_read_only(self, volume: &Volume, at: &str) -> Self {
        self.bind(&volume.path, at, true)
    }

    /// Mounts any path of the node.
    pub fn bind(mut self, path: &Path, at: &str, readonly: bool) -> Self {
        self.config.mounts.push(v1::Mount {
            container_path: at.to_owned(),
            host_path: path.display().to_string(),
            readonly,
            ..Default::default()
        });
        self
    }

    /// Has a standard input; `once` closes it after the first attach.
    pub fn stdin(mut self, once: bool) -> Self {
        self.config.stdin = true;
        self.config.stdin_once = once;
        self
    }

    /// Has a terminal.
    pub fn tty(mut self) -> Self {
        self.config.tty = true;
        self
    }
}
