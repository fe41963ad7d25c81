//! Configuration of `peerpods-node`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Configuration, LogFormat};
use crate::NodeName;

/// `node.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// The node's name, as certificates and claims carry it.
    pub node: NodeName,
    /// Where the daemon keeps one file a sandbox.
    pub state_dir: PathBuf,
    /// Where each sandbox has a folder with its agent socket.
    pub pods_dir: PathBuf,
    /// The unix socket that shims call.
    pub hypervisor_socket: PathBuf,
    /// The controller's unix socket.
    pub claims_socket: PathBuf,
    /// Where metrics are served, as `address:port`; `None` serves none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub metrics: Option<SocketAddr>,
    /// How log lines look.
    #[serde(default)]
    pub log: LogFormat,
}

impl Configuration for NodeConfig {
    fn check(&self) -> Result<(), (&'static str, String)> {
        check_socket("hypervisor_socket", &self.hypervisor_socket)?;
        check_socket("claims_socket", &self.claims_socket)
    }
}

/// The kernel's limit on a unix socket's path (107 bytes and a zero), less the four of the suffix that a socket has until its mode is set.
const MAX_SOCKET_PATH: usize = 103;

pub(super) fn check_socket(key: &'static str, path: &Path) -> Result<(), (&'static str, String)> {
    match path.as_os_str().len() {
        1..=MAX_SOCKET_PATH => Ok(()),
        len => Err((key, format!("a socket's path has 1 to {MAX_SOCKET_PATH} bytes, this one {len}"))),
    }
}
