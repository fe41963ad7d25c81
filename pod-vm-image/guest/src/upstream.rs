//! The upstream profile: Kata's agent and the guest components of Confidential Containers serve the pod, in place of our own agent.
//!
//! The recipe packs the four programs and a marker, so which profile a machine runs is measured with its image. Everything up to the
//! measurement of initdata stays ours: boot, network, channel, Bind. Then the programs are started one after the other, each when the
//! one before answers at its socket, with upstream's paths and options (kata-agent's `main.rs`, `launch_process`):
//!
//! | program | answers at | is given |
//! |---|---|---|
//! | `attestation-agent` | `/run/confidential-containers/attestation-agent/attestation-agent.sock` | `aa.toml`, if initdata has it |
//! | `confidential-data-hub` | `/run/confidential-containers/cdh.sock` | `cdh.toml`, if initdata has it; keys by itself |
//! | `api-server-rest` | 127.0.0.1:8006 in the pod's network | resources only, unless the policy says `AllowTeeKeypair := true` |
//! | `kata-agent` | a socket that only this program knows | `policy.rego` or one of the image's own; no components of its own |
//!
//! The node's agent streams go to Kata's agent ([`relay`]); requests that must name what only this machine knows are changed on
//! their way ([`requests`]). When one of the four ends, the machine does: nothing is started again, since a pod whose attestation or
//! agent was gone for a while is not the pod that was attested. Each runs in a process group that is killed with its owner.
//!
//! Deliberately absent: output of the programs. They may quote a tenant, and the console is the host's.

mod components;
mod files;
mod relay;
mod requests;
mod supervision;

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

pub(crate) use components::Features;
pub(crate) use files::PodFiles;
pub(crate) use relay::serve;
pub(crate) use supervision::Components;

use components::Component;
use serde::Deserialize;

/// Written by the recipe (`upstream::MARKER` there).
const MARKER: &str = "/etc/peerpods/upstream.toml";

/// Proof that the image is of this profile and has all that it needs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Upstream(());

/// An image that is of the profile, but cannot run it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProfileError {
    /// The marker.
    #[error("read {MARKER}")]
    ReadMarker(#[source] io::Error),
    /// Not the marker's TOML, or more than a version.
    #[error("parse {MARKER}")]
    ParseMarker(#[from] toml::de::Error),
    /// A newer recipe's.
    #[error("{MARKER} has version {0}; this guest knows version 1: build guest and image from the same release")]
    Version(u32),
    /// A program is not there.
    #[error("the upstream profile needs {program}")]
    Program {
        /// Where it should be.
        program: &'static str,
        /// Why not.
        source: io::Error,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Marker {
    version: u32,
}

impl Upstream {
    /// Looks at the image; `None` for one with our own agent.
    pub(crate) fn find() -> Result<Option<Self>, ProfileError> {
        let text = match std::fs::read_to_string(MARKER) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(ProfileError::ReadMarker)?,
        };
        match toml::from_str(&text)? {
            Marker { version: 1 } => {}
            Marker { version } => return Err(ProfileError::Version(version)),
        }
        for component in Component::ALL {
            let program = component.program();
            is_executable(Path::new(program)).map_err(|source| ProfileError::Program { program, source })?;
        }
        Ok(Some(Self(())))
    }
}

fn is_executable(program: &Path) -> io::Result<()> {
    let metadata = std::fs::metadata(program)?;
    if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::PermissionDenied, "not an executable file"))
}
