//! Configuration of `peerpods-controller`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use peerpods_cloud_api::settings::aws::AwsSettings;
use peerpods_cloud_api::settings::local::{Level, LocalSettings};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Configuration, LogFormat};
use crate::{Class, ClassName};

/// `controller.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ControllerConfig {
    /// Where the controller keeps its Journal, its owner tag and the binder CA.
    pub state_dir: PathBuf,
    /// The unix socket that nodes of this machine call.
    pub claims_socket: PathBuf,
    /// The unix socket for operators; `None` means `admin.sock` in `state_dir`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub admin_socket: Option<PathBuf>,
    /// Where metrics are served, as `address:port`; `None` serves none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub metrics: Option<SocketAddr>,
    /// How log lines look.
    #[serde(default)]
    pub log: LogFormat,
    /// The cloud.
    pub provider: ProviderConfig,
    /// What pods may ask for by name; `default` is for those that ask for nothing.
    pub class: BTreeMap<ClassName, Class>,
}

/// Which cloud, and its settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProviderConfig {
    /// Which cloud.
    pub kind: ProviderKind,
    /// Settings when `kind = "local"`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub local: Option<LocalSettings>,
    /// Settings when `kind = "aws"`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub aws: Option<AwsSettings>,
}

/// The clouds that there are providers for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ProviderKind {
    /// Machines on this host.
    Local,
    /// Amazon EC2.
    Aws,
}

impl ControllerConfig {
    /// Where operators reach the controller.
    pub fn admin_socket(&self) -> PathBuf {
        self.admin_socket.clone().unwrap_or_else(|| self.state_dir.join("admin.sock"))
    }
}

impl Configuration for ControllerConfig {
    fn check(&self) -> Result<(), (&'static str, String)> {
        check_socket("claims_socket", &self.claims_socket)?;
        check_socket("admin_socket", &self.admin_socket())?;
        if self.class.is_empty() {
            return Err(("class", "needs at least one class, such as [class.default]".to_owned()));
        }
        self.provider.check()
    }
}

impl ProviderConfig {
    fn check(&self) -> Result<(), (&'static str, String)> {
        match (self.kind, &self.local, &self.aws) {
            (ProviderKind::Local, None, _) => Err(("provider.local", "is required for provider.kind = \"local\"".to_owned())),
            (ProviderKind::Local, Some(local), _) if local.level == Level::Sandbox && !local.insecure_sandbox => Err((
                "provider.local.insecure_sandbox",
                "must be true for level = \"sandbox\": such a machine shares the host's kernel and isolates nothing".to_owned(),
            )),
            (ProviderKind::Local, Some(_), _) => Ok(()),
            (ProviderKind::Aws, _, None) => Err(("provider.aws", "is required for provider.kind = \"aws\"".to_owned())),
            (ProviderKind::Aws, _, Some(aws)) => aws.check().map_err(|(key, problem)| ("provider.aws", format!("{key}: {problem}"))),
        }
    }
}

/// The kernel's limit on a unix socket's path (107 bytes and a zero), less the four of the suffix that a socket has until its mode is set.
const MAX_SOCKET_PATH: usize = 103;

fn check_socket(key: &'static str, path: &Path) -> Result<(), (&'static str, String)> {
    match path.as_os_str().len() {
        1..=MAX_SOCKET_PATH => Ok(()),
        len => Err((key, format!("a socket's path has 1 to {MAX_SOCKET_PATH} bytes, this one {len}"))),
    }
}
