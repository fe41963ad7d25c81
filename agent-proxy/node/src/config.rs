//! `node.toml`.

use std::fs::File;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use peerpods_controller_api::NodeName;
use peerpods_controller_api::config::{Configuration, LogFormat};
use peerpods_evidence::Trust;
use peerpods_evidence::tdx::Collateral;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Configuration of `peerpods-node`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The node's name, as certificates and claims carry it.
    pub node: NodeName,
    /// Where the daemon keeps its key and one file a sandbox; on a tmpfs, because it is of no use after a boot.
    pub state_dir: PathBuf,
    /// Where each sandbox has a folder with its agent socket.
    pub pods_dir: PathBuf,
    /// The unix socket that shims call.
    pub hypervisor_socket: PathBuf,
    /// The controller's unix socket.
    pub claims_socket: PathBuf,
    /// The `peerpods-link` program; `None` means the one beside this program.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub link: Option<PathBuf>,
    /// How long StartVM waits and a pod VM may take to boot and be bound, 10 to 590 s: Kata's Go shim waits 600 s.
    #[serde(default = "start_timeout_secs")]
    pub start_timeout_secs: u64,
    /// How long the coming pod VM of a stopped sandbox waits for the kubelet's next try of the same pod, 0 to 300 s.
    #[serde(default = "takeover_secs")]
    pub takeover_secs: u64,
    /// Where metrics are served, as `address:port`; `None` serves none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub metrics: Option<SocketAddr>,
    /// How log lines look.
    #[serde(default)]
    pub log: LogFormat,
    /// containerd's own socket: it is asked what a container's image is, for pods of our own shim.
    #[serde(default = "containerd_socket")]
    pub containerd_socket: PathBuf,
    /// The image-skipping snapshotter; `None` serves none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub snapshotter: Option<SnapshotterConfig>,
    /// What evidence is judged by, beside the roots that are built in.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub trust: Option<TrustConfig>,
}

/// Table `[trust]`: files, read when the daemon starts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrustConfig {
    /// VCEK or VLEK certificates (DER) of SNP hosts that hand over none.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    #[schemars(default)]
    pub snp_certificates: Vec<PathBuf>,
    /// What Intel says of TDX platforms, as `peerpods-relying-party serve --tdx-collateral` reads it; without it their status is unknown.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tdx_collateral: Option<PathBuf>,
    /// Keys (DER SubjectPublicKeyInfo) of TPMs that the cloud vouches for: without one, `snp-tpm` is as good as insecure. Attestation keys
    /// count as they are; of a TPM whose endorsement key is listed, Bind has it prove that the attestation key is its own.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    #[schemars(default)]
    pub tpm_keys: Vec<PathBuf>,
}

/// Table `[snapshotter]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotterConfig {
    /// The unix socket that containerd calls, as `proxy_plugins.peerpods.address` of its configuration says.
    pub socket: PathBuf,
    /// Where snapshots are recorded. Containers and images outlive a boot in containerd, so this must too: not below `/run`.
    pub state_dir: PathBuf,
}

fn containerd_socket() -> PathBuf {
    PathBuf::from("/run/containerd/containerd.sock")
}

/// The kubelet tries a failed sandbox again after 10 s, with up to half of that added at random.
fn takeover_secs() -> u64 {
    15
}

fn start_timeout_secs() -> u64 {
    300
}

impl Configuration for Config {
    fn check(&self) -> Result<(), (&'static str, String)> {
        check_socket("hypervisor_socket", &self.hypervisor_socket)?;
        check_socket("claims_socket", &self.claims_socket)?;
        check_socket("containerd_socket", &self.containerd_socket)?;
        if let Some(snapshotter) = &self.snapshotter {
            check_socket("snapshotter.socket", &snapshotter.socket)?;
            if !snapshotter.state_dir.is_absolute() {
                return Err(("snapshotter.state_dir", "must be an absolute path".to_owned()));
            }
        }
        // A sandbox id has 64 digits and the socket's name 11.
        let longest = self.pods_dir.as_os_str().len() + 1 + 64 + 1 + peerpods_link::folder::SOCKET.len();
        if longest > MAX_SOCKET_PATH {
            return Err((
                "pods_dir",
                format!("is too long: agent sockets in it would have {longest} bytes, the kernel allows {MAX_SOCKET_PATH}"),
            ));
        }
        for (key, path) in [("state_dir", &self.state_dir), ("pods_dir", &self.pods_dir)] {
            if !path.is_absolute() {
                return Err((key, "must be an absolute path".to_owned()));
            }
        }
        if !(10..=590).contains(&self.start_timeout_secs) {
            return Err(("start_timeout_secs", "must be 10 to 590".to_owned()));
        }
        if self.takeover_secs > 300 {
            return Err(("takeover_secs", "must be 0 to 300".to_owned()));
        }
        Ok(())
    }
}

impl TrustConfig {
    /// Reads the files; the error names the key and the file.
    pub fn read(&self) -> Result<Trust> {
        fn file(key: &str, path: &Path) -> Result<Vec<u8>> {
            let bytes = File::open(path).and_then(|file| {
                let mut bytes = Vec::new();
                file.take(MAX_TRUST_BYTES + 1).read_to_end(&mut bytes).map(|_| bytes)
            });
            let bytes = bytes.with_context(|| format!("{key}: cannot read {}", path.display()))?;
            ensure!(bytes.len() as u64 <= MAX_TRUST_BYTES, "{key}: {} has more than {MAX_TRUST_BYTES} bytes", path.display());
            Ok(bytes)
        }
        let all = |key: &str, paths: &[PathBuf]| paths.iter().map(|path| file(key, path)).collect::<Result<Vec<_>>>();
        let collateral = |path: &PathBuf| {
            let key = "trust.tdx_collateral";
            Collateral::from_json(&file(key, path)?).with_context(|| format!("{key}: {}", path.display()))
        };
        Ok(Trust {
            snp_certificates: all("trust.snp_certificates", &self.snp_certificates)?,
            tdx_collateral: self.tdx_collateral.as_ref().map(collateral).transpose()?,
            tpm_keys: all("trust.tpm_keys", &self.tpm_keys)?,
            ..Trust::default()
        })
    }
}

/// Intel's files for one platform have some 30 KiB.
const MAX_TRUST_BYTES: u64 = 1 << 20;

impl Config {
    /// [`Config::start_timeout_secs`].
    pub fn start_timeout(&self) -> Duration {
        Duration::from_secs(self.start_timeout_secs)
    }

    /// [`Config::takeover_secs`].
    pub fn takeover(&self) -> Duration {
        Duration::from_secs(self.takeover_secs)
    }
}

/// The kernel's limit on a unix socket's path, without the final zero.
pub(crate) const MAX_SOCKET_PATH: usize = 107;

fn check_socket(key: &'static str, path: &Path) -> Result<(), (&'static str, String)> {
    match path.as_os_str().len() {
        1..=MAX_SOCKET_PATH => Ok(()),
        len => Err((key, format!("a socket's path has 1 to {MAX_SOCKET_PATH} bytes, this one {len}"))),
    }
}

#[cfg(test)]
mod tests {
    use peerpods_controller_api::config::load_from;

    use super::*;

    const TEXT: &str = "node = \"node-1\"\nstate_dir = \"/run/n\"\npods_dir = \"/run/p\"\nhypervisor_socket = \"/run/h.sock\"\nclaims_socket = \"/run/c.sock\"\n";

    fn load(extra: &str) -> Result<Config, String> {
        load_from(&format!("{TEXT}{extra}"), "node.toml", "PEERPODS_", &[], &[]).map_err(|e| e.to_string())
    }

    #[test]
    fn five_keys_are_enough() {
        let config = load("").expect("valid");
        assert_eq!((config.start_timeout(), config.takeover()), (Duration::from_secs(300), Duration::from_secs(15)));
        assert_eq!((config.containerd_socket.to_str(), config.snapshotter), (Some("/run/containerd/containerd.sock"), None));
    }

    #[test]
    fn bad_values_name_their_key() {
        let long = format!("pods_dir = \"/{}\"", "x".repeat(60));
        for (extra, key) in [
            ("start_timeout_secs = 600", "start_timeout_secs"),
            ("takeover_secs = 301", "takeover_secs"),
            ("colour = 1", "colour"),
            ("containerd_socket = \"\"", "containerd_socket"),
            ("[snapshotter]\nsocket = \"/run/s.sock\"", "state_dir"),
            ("[snapshotter]\nsocket = \"/run/s.sock\"\nstate_dir = \"s\"", "snapshotter.state_dir"),
            ("[snapshotter]\nsocket = \"\"\nstate_dir = \"/s\"", "snapshotter.socket"),
        ] {
            assert!(load(extra).expect_err(extra).contains(key));
        }
        let text = TEXT.replace("pods_dir = \"/run/p\"", &long);
        let error = load_from::<Config>(&text, "node.toml", "PEERPODS_", &[], &[]).expect_err("too long");
        assert!(error.to_string().contains("pods_dir"), "{error}");
    }
}
