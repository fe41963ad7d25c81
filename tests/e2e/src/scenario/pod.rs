//! A pod as a kubelet asks for it, and one that runs.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use base64::Engine as _;

use super::story::RUNTIME_HANDLER;
use super::{Container, Running, Story};
use crate::{Volume, eventually_async, v1};

/// The annotation for initdata.
const INITDATA: &str = "io.katacontainers.config.hypervisor.cc_init_data";

/// A pod yet to be run.
pub struct Pod {
    story: Story,
    /// The request's own form.
    pub config: v1::PodSandboxConfig,
}

impl Pod {
    pub(super) fn new(story: &Story, name: &str) -> Self {
        let uid = story.uid(name);
        story.call(&uid, &format!("uid of {name}"));
        let linux = v1::LinuxPodSandboxConfig {
            cgroup_parent: format!("{}/pod{uid}", story.rig().cgroup_parent()),
            security_context: Some(v1::LinuxSandboxSecurityContext {
                namespace_options: Some(v1::NamespaceOption { pid: v1::NamespaceMode::Container.into(), ..Default::default() }),
                seccomp: Some(v1::SecurityProfile::default()),
                ..Default::default()
            }),
            ..Default::default()
        };
        let annotations = [
            (RUNTIME_HANDLER.to_owned(), story.handler().name().to_owned()),
            (INITDATA.to_owned(), initdata(&story.rig().world().initdata())),
        ];
        let labels = [
            ("io.kubernetes.pod.name".to_owned(), name.to_owned()),
            ("io.kubernetes.pod.namespace".to_owned(), "default".to_owned()),
            ("io.kubernetes.pod.uid".to_owned(), uid.clone()),
        ];
        let config = v1::PodSandboxConfig {
            // Two pods of one namespace and name cannot be told apart, and both tellings have one of this name.
            metadata: Some(v1::PodSandboxMetadata { name: name.to_owned(), uid, namespace: "default".to_owned(), attempt: 0 }),
            hostname: name.to_owned(),
            dns_config: Some(v1::DnsConfig {
                servers: vec!["10.96.0.10".to_owned()],
                searches: vec!["default.svc.cluster.local".to_owned(), "svc.cluster.local".to_owned()],
                options: vec!["ndots:5".to_owned()],
            }),
            annotations: annotations.into(),
            labels: labels.into(),
            linux: Some(linux),
            ..Default::default()
        };
        Self { story: story.clone(), config }
    }

    /// Changes whatever has no word of its own.
    pub fn with(mut self, change: impl FnOnce(&mut v1::PodSandboxConfig)) -> Self {
        change(&mut self.config);
        self
    }

    /// Brings initdata of its own.
    pub fn initdata(mut self, text: &str) -> Self {
        self.config.annotations.insert(INITDATA.to_owned(), initdata(text));
        self
    }

    /// Changes the security context.
    pub fn secured(mut self, change: impl FnOnce(&mut v1::LinuxSandboxSecurityContext)) -> Self {
        change(self.config.linux.get_or_insert_default().security_context.get_or_insert_default());
        self
    }

    /// All containers see each other's processes.
    pub fn sharing_processes(self) -> Self {
        self.secured(|security| security.namespace_options.get_or_insert_default().pid = v1::NamespaceMode::Pod.into())
    }

    /// Sets a kernel parameter.
    pub fn sysctl(mut self, name: &str, value: &str) -> Self {
        self.config.linux.get_or_insert_default().sysctls.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Runs it; the step `sandbox` of the transcript.
    pub async fn run(self) -> Result<RunningPod> {
        let story = self.story.clone();
        let pod = self.try_run().await.map_err(|status| anyhow::anyhow!("RunPodSandbox: {status}"))?;
        story.record("sandbox", "ready");
        Ok(pod)
    }

    /// Runs it if containerd does.
    pub async fn try_run(mut self) -> Result<RunningPod, tonic::Status> {
        let uid = self.uid().to_owned();
        let internal = |error: anyhow::Error| tonic::Status::internal(format!("the kubelet's part: {error:#}"));
        let logs = self.story.kubelet().logs(&uid).map_err(internal)?;
        self.config.log_directory = logs.display().to_string();
        let hosts = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";
        self.story.kubelet().file(&uid, "etc-hosts", hosts.as_bytes()).map_err(internal)?;
        let request =
            v1::RunPodSandboxRequest { config: Some(self.config.clone()), runtime_handler: self.story.handler().name().to_owned() };
        let answer = self.story.cri().runtime.clone().run_pod_sandbox(request).await?;
        let id = answer.into_inner().pod_sandbox_id;
        self.story.made(&id, &uid);
        let name = self.config.metadata.as_ref().map(|m| m.name.clone()).unwrap_or_default();
        self.story.call(&id, &format!("sandbox of {name}"));
        let pod = RunningPod { story: self.story, config: self.config, id };
        // The kubelet writes the pod's own address once it knows it.
        let addresses = pod.addresses().await.map_err(internal)?;
        for (address, ordinal) in addresses.iter().zip(["", "second "]) {
            pod.story.call(&address.to_string(), &format!("{ordinal}address of {name}"));
        }
        if let Some(address) = addresses.first() {
            let hosts = format!("{hosts}{address}\t{name}\n");
            pod.story.kubelet().file(&uid, "etc-hosts", hosts.as_bytes()).map_err(internal)?;
        }
        Ok(pod)
    }

    /// Its uid, which folders of volumes are named after.
    pub fn uid(&self) -> &str {
        self.config.metadata.as_ref().map_or("", |metadata| &metadata.uid)
    }
}

/// A pod whose sandbox is ready.
pub struct RunningPod {
    pub(super) story: Story,
    config: v1::PodSandboxConfig,
    id: String,
}

impl RunningPod {
    /// The sandbox's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What it was run with.
    pub fn config(&self) -> &v1::PodSandboxConfig {
        &self.config
    }

    /// Its uid.
    pub fn uid(&self) -> &str {
        self.config.metadata.as_ref().map_or("", |metadata| &metadata.uid)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.config.metadata.as_ref().map_or("", |metadata| &metadata.name)
    }

    /// Its addresses, the first first.
    pub async fn addresses(&self) -> Result<Vec<IpAddr>> {
        let Some(network) = self.status().await?.network else { return Ok(Vec::new()) };
        let texts = std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|ip| ip.ip)).filter(|ip| !ip.is_empty());
        texts.map(|text| text.parse().with_context(|| format!("address {text}"))).collect()
    }

    /// What containerd says of the sandbox.
    pub async fn status(&self) -> Result<v1::PodSandboxStatus> {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: self.id.clone(), verbose: false };
        self.story.cri().runtime.clone().pod_sandbox_status(request).await?.into_inner().status.context("no status")
    }

    /// Writes down the sandbox's state.
    pub async fn shows_state(&self) -> Result<()> {
        let status = self.status().await?;
        self.story.record("sandbox state", format!("{:?}", status.state()));
        Ok(())
    }

    /// An emptyDir of this pod.
    pub fn empty_dir(&self, name: &str) -> Result<Volume> {
        self.story.kubelet().empty_dir(self.uid(), name)
    }

    /// A ConfigMap of this pod.
    pub fn config_map(&self, name: &str, files: &[(&str, &str)]) -> Result<Volume> {
        self.story.kubelet().config_map(self.uid(), name, files)
    }

    /// A Secret of this pod.
    pub fn secret(&self, name: &str, files: &[(&str, &str)]) -> Result<Volume> {
        self.story.kubelet().secret(self.uid(), "kubernetes.io~secret", name, files)
    }

    /// Creates and starts a container.
    pub async fn start(&self, container: Container) -> Result<Running> {
        let name = container.name().to_owned();
        self.try_start(container).await.map_err(|status| anyhow::anyhow!("starting {name}: {status}"))
    }

    /// Creates and starts a container that must fail with an error of these phrases; its status is written down too, if it has one.
    pub async fn refuses(&self, container: Container, phrases: &[&str]) -> Result<()> {
        let name = container.name().to_owned();
        let created = self.try_create(container).await;
        let step = format!("{name} starts");
        let running = match created {
            Ok(running) => running,
            Err(status) => {
                self.story.record_error(&step, &status, phrases);
                return Ok(());
            }
        };
        match running.try_start().await {
            Ok(()) => self.story.record(&step, "yes"),
            Err(status) => self.story.record_error(&step, &status, phrases),
        }
        running.shows_exit().await
    }

    /// Creates and starts a container if containerd does.
    pub async fn try_start(&self, container: Container) -> Result<Running, tonic::Status> {
        let running = self.try_create(container).await?;
        running.try_start().await?;
        Ok(running)
    }

    /// Creates a container if containerd does, with the mounts that a kubelet adds.
    pub async fn try_create(&self, container: Container) -> Result<Running, tonic::Status> {
        let internal = |error: anyhow::Error| tonic::Status::internal(format!("the kubelet's part: {error:#}"));
        let image = if container.image.contains('/') { container.image.clone() } else { self.story.rig().image(&container.image) };
        self.story.pull(&image, &self.config).await?;
        let name = container.name().to_owned();
        let mut config = container.config;
        let attempt = config.metadata.as_ref().map_or(0, |metadata| metadata.attempt);
        config.image = Some(self.story.image_spec(&image));
        config.log_path = format!("{name}-{attempt}.log");
        let termination = format!("containers/{name}/{attempt}");
        let termination = self.story.kubelet().file(self.uid(), &termination, b"").map_err(internal)?;
        let hosts = termination.ancestors().nth(3).unwrap_or(&termination).join("etc-hosts");
        for (host_path, container_path) in [(hosts, "/etc/hosts"), (termination.clone(), "/dev/termination-log")] {
            if !config.mounts.iter().any(|mount| mount.container_path == container_path) {
                config.mounts.push(v1::Mount {
                    container_path: container_path.to_owned(),
                    host_path: host_path.display().to_string(),
                    ..Default::default()
                });
            }
        }
        let log = std::path::Path::new(&self.config.log_directory).join(&config.log_path);
        let request =
            v1::CreateContainerRequest { pod_sandbox_id: self.id.clone(), config: Some(config), sandbox_config: Some(self.config.clone()) };
        let id = self.story.cri().runtime.clone().create_container(request).await?.into_inner().container_id;
        self.story.call(&id, &name);
        Ok(Running::new(&self.story, &name, id, log, termination))
    }

    /// Stops the sandbox and all in it.
    pub async fn stop(&self) -> Result<()> {
        let request = v1::StopPodSandboxRequest { pod_sandbox_id: self.id.clone() };
        self.story.cri().runtime.clone().stop_pod_sandbox(request).await.context("StopPodSandbox")?;
        Ok(())
    }

    /// Removes the sandbox and all in it.
    pub async fn remove(&self) -> Result<()> {
        let request = v1::RemovePodSandboxRequest { pod_sandbox_id: self.id.clone() };
        self.story.cri().runtime.clone().remove_pod_sandbox(request).await.context("RemovePodSandbox")?;
        Ok(())
    }

    /// Stops and removes a sandbox, trying again as a kubelet does; one that is gone already is no error.
    pub(super) async fn delete(story: &Story, sandbox: &str) -> Result<()> {
        eventually_async("the pod is removed", Duration::from_secs(60), || async {
            let mut runtime = story.cri().runtime.clone();
            let stop = v1::StopPodSandboxRequest { pod_sandbox_id: sandbox.to_owned() };
            runtime.stop_pod_sandbox(stop).await.context("StopPodSandbox")?;
            let remove = v1::RemovePodSandboxRequest { pod_sandbox_id: sandbox.to_owned() };
            runtime.remove_pod_sandbox(remove).await.context("RemovePodSandbox")?;
            Ok(())
        })
        .await
    }
}

/// Initdata as an annotation carries it.
fn initdata(text: &str) -> String {
    use std::io::Write as _;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    // Writing to memory does not fail.
    let _ = gzip.write_all(text.as_bytes());
    base64::engine::general_purpose::STANDARD.encode(gzip.finish().unwrap_or_default())
}
