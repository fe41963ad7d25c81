//! One reader of configuration for all daemons, and the controller's own configuration.
//!
//! Three layers, later ones win: the TOML file, environment variables `PEERPODS_…` (`__` separates levels, names are lower-cased:
//! `PEERPODS_PROVIDER__LOCAL__LEVEL` is `provider.local.level`), `--set key.path=value`. Text of the last two is read as the key's
//! type wants it. Unknown keys and bad values are errors that name the key, where it came from and what is allowed; no value is ever
//! replaced by a default because it was wrong. Read once, at start; nothing is written back to the environment.

mod controller;
mod de;
mod reference;
mod tree;

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use controller::{ControllerConfig, ProviderConfig, ProviderKind};
pub use peerpods_cloud_api::settings::Secret;
pub use reference::reference;

/// Environment variables with our prefix that are not configuration: tools and tests read them, and daemons inherit them.
const RESERVED_VARIABLES: [&str; 8] = [
    "PEERPODS_AWS_ACCOUNT",
    "PEERPODS_BINARIES",
    "PEERPODS_CONTAINERD",
    "PEERPODS_DEBIAN_ARCHIVE",
    "PEERPODS_IMAGE",
    "PEERPODS_MOTO",
    "PEERPODS_TRIXIE",
    "PEERPODS_VECTORS",
];

/// A file larger than this is not a configuration.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// What may be loaded: a tree of fields, and rules that span several of them.
pub trait Configuration: DeserializeOwned + Serialize + schemars::JsonSchema {
    /// Rules that no single field can check. The error is the key and what is wrong with it.
    fn check(&self) -> Result<(), (&'static str, String)> {
        Ok(())
    }
}

/// Log lines for people or for machines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// One readable line an event.
    #[default]
    Human,
    /// One JSON object an event.
    Json,
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read configuration {}", path.display())]
    ReadFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{origin} is not TOML: {detail}")]
    ParseToml {
        /// The file.
        origin: String,
        /// Where and why; never the line itself, which may hold a secret.
        detail: String,
    },
    /// A `--set` argument without `=`, or with an empty part in its path.
    #[error("--set {argument:?} is not key.path=value")]
    SetArgument {
        /// The part before `=`, or all of it.
        argument: String,
    },
    /// A key is unknown, missing, or has a bad value.
    #[error("{key} ({origin}): {problem}")]
    Key {
        /// The key's whole path.
        key: String,
        /// The file, the environment variable or `--set`.
        origin: String,
        /// What is wrong and what is allowed.
        problem: String,
    },
}

/// Reads `file`, then the environment, then `sets` (`key.path=value`).
pub fn load<T: Configuration>(file: &Path, env_prefix: &str, sets: &[String]) -> Result<T, ConfigError> {
    let read = |source| ConfigError::ReadFile { path: file.to_owned(), source };
    if std::fs::metadata(file).map_err(read)?.len() > MAX_FILE_BYTES {
        return Err(read(std::io::Error::new(std::io::ErrorKind::FileTooLarge, "larger than 1 MiB")));
    }
    let text = std::fs::read_to_string(file).map_err(read)?;
    let is_ours = |name: &str| name.starts_with(env_prefix) && !RESERVED_VARIABLES.contains(&name);
    let variables = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
    let mut environment = Vec::new();
    for (name, value) in variables.filter(|(name, _)| is_ours(name)) {
        let problem = || ConfigError::Key { key: name.to_lowercase(), origin: name.clone(), problem: "is not UTF-8".to_owned() };
        environment.push((name.clone(), value.into_string().map_err(|_| problem())?));
    }
    environment.sort();
    load_from(&text, &file.display().to_string(), env_prefix, &environment, sets)
}

/// [`load`] without IO: the file's text and name, the variables and the `--set` arguments.
pub fn load_from<T: Configuration>(
    text: &str,
    name: &str,
    env_prefix: &str,
    environment: &[(String, String)],
    sets: &[String],
) -> Result<T, ConfigError> {
    let mut tree = tree::Tree::parse(text, name)?;
    for (variable, value) in environment {
        if let Some(path) = variable.strip_prefix(env_prefix) {
            let path: Vec<String> = path.to_lowercase().split("__").map(str::to_owned).collect();
            tree.set(&path, value, variable)?;
        }
    }
    for argument in sets {
        let problem = |part: &str| ConfigError::SetArgument { argument: part.to_owned() };
        let (path, value) = argument.split_once('=').ok_or_else(|| problem(argument))?;
        let path: Vec<String> = path.split('.').map(|part| part.trim().to_owned()).collect();
        if path.iter().any(String::is_empty) {
            return Err(problem(&path.join(".")));
        }
        tree.set(&path, value, "--set")?;
    }
    let origin_of = |path: &[String]| tree.origin(path).to_owned();
    let config: T = de::from_tree(&tree).map_err(|fault| ConfigError::Key {
        origin: origin_of(&fault.path),
        key: fault.key(),
        problem: fault.problem,
    })?;
    config.check().map_err(|(key, problem)| {
        let path: Vec<String> = key.split('.').map(str::to_owned).collect();
        ConfigError::Key { key: key.to_owned(), origin: origin_of(&path), problem }
    })?;
    Ok(config)
}

/// The configuration as TOML, with secrets hidden: what `config show` prints.
pub fn show<T: Configuration>(config: &T) -> Result<String, toml::ser::Error> {
    toml::to_string(config)
}

#[cfg(test)]
mod tests;
