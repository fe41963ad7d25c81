//! What is true of this host until it boots again, kept in `host.json` because finding it out is slow or works only early.

use std::fs::File;
use std::io;
use std::path::Path;

use nix::fcntl::Flock;
use serde::{Deserialize, Serialize};

use super::MachineError;
use super::files::{self, read_if_there, write_durably};

/// `<state_dir>/host.json`. A cache: one that cannot be read or is of another boot is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Facts {
    /// The boot that they are true of.
    pub(crate) boot_id: String,
    /// TSC frequency; `None` when not yet asked for.
    #[serde(default)]
    pub(crate) tsc_khz: Option<u32>,
    /// How the KVM canary went; `None` when not yet tried.
    #[serde(default)]
    pub(crate) kvm: Option<Canary>,
}

/// One try to boot the image's kernel with KVM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Canary {
    /// The kernel that was tried, by size and time: another one may do better.
    pub(crate) kernel: String,
    /// `None` when it booted, else why not.
    pub(crate) failure: Option<String>,
}

impl Facts {
    /// For who may add to them: machines that start at once find a fact out once, and nobody's finding is lost.
    pub(crate) fn lock(state_dir: &Path) -> Result<(Flock<File>, Self), MachineError> {
        let lock = files::lock(&state_dir.join("host.lock"))?;
        Ok((lock, Self::read(state_dir)))
    }

    pub(crate) fn read(state_dir: &Path) -> Self {
        let boot_id = boot_id().unwrap_or_default();
        let text = read_if_there(&state_dir.join("host.json")).ok().flatten().unwrap_or_default();
        let facts = serde_json::from_slice(&text).ok().filter(|facts: &Self| facts.boot_id == boot_id);
        facts.unwrap_or(Self { boot_id, ..Self::default() })
    }

    pub(crate) fn write(&self, state_dir: &Path) -> Result<(), MachineError> {
        let path = state_dir.join("host.json");
        let text = serde_json::to_vec_pretty(self).map_err(io::Error::from).map_err(MachineError::file("write", &path))?;
        write_durably(&path, &text)
    }
}

/// A name of this boot.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}
