//! The Kata agent protocol and the container runner.
//!
//! Owns what happens inside a pod VM once its agent connection is open: the sandbox's namespaces and storages, the files copied
//! from the node, the containers with their processes, output, limits and statistics. Serves `grpc.AgentService` and
//! `grpc.Health` as Kata's shims speak them, over any byte stream; several connections share one [`Agent`].
//!
//! Each container's first process and each exec belongs to a *runner*: a single-threaded process of its own ([`runner::main`])
//! that builds the container with libcontainer, stays the parent and reports how the process ended. The agent only moves bytes.
//! When the agent dies its runners see the control socket close, kill what they run and exit; nothing is recovered after that.
//!
//! Deliberately absent: networks (the guest joins the pod's network before the agent starts and only names the namespace in
//! [`AgentConfig::pod_netns`]), images (a [`RootfsSource`] brings root filesystems), and block devices. Each request is put to the
//! [`policy`] before anything is done about it.

mod agent;
mod cgroup;
mod confine;
mod container;
mod control;
mod copy_file;
mod copy_up;
mod error;
mod failure;
mod launch;
mod network;
mod oom;
mod process;
mod sandbox;
mod secrets;
mod service;
mod storage;
mod termination_log;
mod translate;
mod users;

pub mod policy;
pub mod runner;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use zeroize::Zeroizing;

pub use agent::{Agent, serve};
pub use error::{AgentError, RootfsError, SecretError};
pub use policy::AgentPolicy;

/// What the guest decides for its agent.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// Kata's folder in the guest, `/run/kata-containers`; requests name paths below it.
    pub share_dir: PathBuf,
    /// Where the agent keeps bundles, runtime state and namespaces, `/run/peerpods/agent`. Emptied by [`Agent::new`].
    pub run_dir: PathBuf,
    /// The network namespace all containers join. `None`: containers stay in the agent's own.
    pub pod_netns: Option<PathBuf>,
    /// Command that starts the runner role ([`runner::main`]), such as `["/init", "runner"]`; arguments are appended.
    pub runner: Vec<OsString>,
    /// Parent of the containers' cgroups, relative to the cgroup root, such as `peerpods`.
    pub cgroup_parent: String,
    /// What the node may ask for.
    pub policy: AgentPolicy,
}

/// Which image a container is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRequest {
    /// As the shim names it.
    pub reference: String,
    /// `sha256:<hex>` of the configuration that it must have; `None` where the shim does not say.
    pub config_digest: Option<String>,
}

/// What is known of an image once it is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageInfo {
    /// `config.User`: empty, `user`, or `user:group`, by name or number.
    pub user: String,
}

/// Brings the root filesystems of containers; the built-in pause container does not need it.
#[async_trait]
pub trait RootfsSource: Send + Sync {
    /// Makes the image's root filesystem appear, writable, at `target`. The folder exists and is empty. A failed pull leaves nothing there.
    async fn pull(&self, image: &ImageRequest, container_id: &str, target: &Path) -> Result<ImageInfo, RootfsError>;

    /// Takes it away again. Idempotent: a target that holds nothing is fine.
    async fn remove(&self, container_id: &str, target: &Path) -> Result<(), RootfsError>;
}

/// Opens sealed secrets.
///
/// `unseal` is idempotent, has its own deadline, and an error tells nothing of the secret.
#[async_trait]
pub trait SecretSource: Send + Sync {
    /// The value of a secret that begins with `sealed.`.
    async fn unseal(&self, sealed: &str) -> Result<Zeroizing<Vec<u8>>, SecretError>;
}
