//! The dialer that real links use.

use std::path::PathBuf;

use async_trait::async_trait;
use peerpods_tunnel::credential::NodeKey;
use peerpods_tunnel::node::{AgentDialer, DialError};
use peerpods_tunnel::{AgentStream, ResumeOptions};

use crate::dialer::{DialFailure, Dialer, Dialled};
use crate::folder::LinkFile;

/// Opens resumable streams to the pod VM that `link.json` names.
#[derive(Debug)]
pub struct TunnelDialer(AgentDialer);

/// Why the node's key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It cannot be read.
    #[error("cannot read the node's key {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: std::io::Error,
    },
    /// It is not a key.
    #[error("{path} is not a P-256 key in PEM")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: peerpods_tunnel::credential::CredentialError,
    },
}

impl TunnelDialer {
    /// What it dials with.
    pub fn agent_dialer(&self) -> &AgentDialer {
        &self.0
    }

    /// A dialer for that pod VM with the key that the file names.
    pub fn new(file: &LinkFile) -> Result<Self, KeyError> {
        let path = &file.node_key;
        let pem = std::fs::read_to_string(path).map_err(|source| KeyError::Read { path: path.clone(), source })?;
        let key = NodeKey::from_pem(&pem).map_err(|source| KeyError::Parse { path: path.clone(), source })?;
        Ok(Self(AgentDialer::new(file.address, key, file.pin, ResumeOptions::default())))
    }
}

#[async_trait]
impl Dialer for TunnelDialer {
    type Stream = AgentStream;

    async fn dial(&self) -> Result<Dialled<AgentStream>, DialFailure> {
        match self.0.connect().await {
            Ok(stream) => {
                let state = stream.state();
                Ok(Dialled { stream, state })
            }
            Err(error) => {
                let is_final = !matches!(error, DialError::NeverAnswered { .. });
                Err(DialFailure { reason: error.to_string(), is_final })
            }
        }
    }
}
