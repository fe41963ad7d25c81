//! `shim.toml`: what the shim must know of its node. Every key has a default, so the file may be absent.

use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::empty::Empty;
use containerd_shim_protos::protobuf::{Message as _, UnknownValueRef};
use serde::Deserialize;

/// Configuration of the shim.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The node daemon's unix socket.
    pub hypervisor_socket: PathBuf,
    /// The kubelet's root folder; volumes are recognised by their place below it.
    pub kubelet_dir: PathBuf,
    /// How long a sandbox may take from the request to its pod VM's answer, 10 to 600 s.
    pub start_timeout_secs: u64,
    /// The least important log lines that are written: error, warn, info, debug or trace.
    pub log_level: LogLevel,
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Failures only.
    Error,
    /// And what may become one.
    Warn,
    /// And what happens.
    Info,
    /// And why.
    Debug,
    /// And every step.
    Trace,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}, which containerd's runtime option ConfigPath names")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: std::io::Error,
    },
    /// The file is not right.
    #[error("{path} is not a configuration of the shim")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and key.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A value is out of range.
    #[error("{path}: {key} {expected}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// What it must be.
        expected: &'static str,
    },
}

/// Larger files are not configurations.
const MAX_BYTES: u64 = 64 << 10;
/// Fields of `runtimeoptions.v1.Options`, which containerd sends for runtimes that are not runc.
const CONFIG_PATH_FIELD: u32 = 2;

impl Default for Config {
    fn default() -> Self {
        Self {
            hypervisor_socket: "/run/peerpod/hypervisor.sock".into(),
            kubelet_dir: "/var/lib/kubelet".into(),
            start_timeout_secs: 300,
            log_level: LogLevel::Info,
        }
    }
}

impl Config {
    /// The configuration that the runtime's options name, or the default one.
    pub fn from_options(options: Option<&Any>) -> Result<Self, ConfigError> {
        options.and_then(config_path).map_or_else(|| Ok(Self::default()), |path| Self::read(&path))
    }

    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        if std::fs::metadata(path).map_err(read)?.len() > MAX_BYTES {
            return Err(read(std::io::Error::other("larger than 64 KiB")));
        }
        let text = std::fs::read_to_string(path).map_err(read)?;
        let config: Self = toml::from_str(&text).map_err(|source| ConfigError::Parse { path: path.to_owned(), source: source.into() })?;
        if !(10..=600).contains(&config.start_timeout_secs) {
            return Err(ConfigError::Value { path: path.to_owned(), key: "start_timeout_secs", expected: "must be 10 to 600" });
        }
        Ok(config)
    }

    /// [`Config::start_timeout_secs`].
    pub fn start_timeout(&self) -> Duration {
        Duration::from_secs(self.start_timeout_secs)
    }
}

/// The message has three strings; reading them as unknown fields spares a definition of it.
fn config_path(options: &Any) -> Option<PathBuf> {
    if !options.type_url.ends_with("runtimeoptions.v1.Options") {
        return None;
    }
    let fields = Empty::parse_from_bytes(&options.value).ok()?;
    match fields.special_fields.unknown_fields().get(CONFIG_PATH_FIELD)? {
        UnknownValueRef::LengthDelimited(bytes) if !bytes.is_empty() => Some(PathBuf::from(std::str::from_utf8(bytes).ok()?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(path: &str) -> Any {
        let mut value = vec![u8::try_from(CONFIG_PATH_FIELD << 3 | 2).unwrap(), u8::try_from(path.len()).unwrap()];
        value.extend(path.as_bytes());
        Any { type_url: "runtimeoptions.v1.Options".to_owned(), value, ..Default::default() }
    }

    #[test]
    fn no_options_mean_the_defaults() {
        assert_eq!(Config::from_options(None).unwrap(), Config::default());
        assert_eq!(Config::from_options(Some(&options(""))).unwrap(), Config::default());
    }

    #[test]
    fn options_name_a_file_and_its_mistakes_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shim.toml");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Config::from_options(Some(&options(path.to_str().unwrap())))
        };
        assert_eq!(read("kubelet_dir = \"/k\"").unwrap().kubelet_dir, Path::new("/k"));
        assert!(read("start_timeout_secs = 5").unwrap_err().to_string().contains("start_timeout_secs must be 10 to 600"));
        let unknown = read("kubelet = \"/k\"").unwrap_err();
        assert!(std::error::Error::source(&unknown).unwrap().to_string().contains("kubelet"), "{unknown}");
        assert!(Config::from_options(Some(&options("/nowhere/shim.toml"))).unwrap_err().to_string().contains("/nowhere/shim.toml"));
    }
}
