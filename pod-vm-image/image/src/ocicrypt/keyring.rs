//! The keys of one pull: each wrapping key is asked for once, however many layers it opens.

use std::collections::HashMap;

use tokio::sync::Mutex;
use zeroize::Zeroizing;

use super::packet::Packet;
use super::{DecryptError, Encryption, Key256, PrivateOptions};
use crate::Resources;

/// Asks the key broker and remembers what it said, for as long as the pull takes.
pub(crate) struct KeyRing<'a> {
    resources: &'a Resources,
    /// Held while a key is asked for, so that layers which need the same one ask once.
    known: Mutex<HashMap<String, Key256>>,
}

impl<'a> KeyRing<'a> {
    pub(crate) fn new(resources: &'a Resources) -> Self {
        Self { resources, known: Mutex::default() }
    }

    /// What opens a layer: the first packet that does gives it. If none does the last one's error says why.
    pub(crate) async fn open(&self, encryption: &Encryption) -> Result<PrivateOptions, DecryptError> {
        let mut failure = DecryptError::NoSource;
        for (provider, packet) in &encryption.packets {
            let opened = match Packet::parse(packet) {
                Ok(packet) => self.unwrap(&packet).await,
                Err(reason) => Err(DecryptError::Packet { provider: provider.clone(), reason }),
            };
            match opened {
                Ok(options) => return Ok(options),
                Err(error) => {
                    tracing::debug!(provider, error = &error as &dyn std::error::Error, "key packet does not open");
                    failure = error;
                }
            }
        }
        Err(failure)
    }

    async fn unwrap(&self, packet: &Packet) -> Result<PrivateOptions, DecryptError> {
        let mut known = self.known.lock().await;
        let key = match known.get(&packet.kid) {
            Some(key) => key.clone(),
            None => {
                let source = self.resources.source().ok_or(DecryptError::NoSource)?;
                let bytes = Zeroizing::new(source.get(&packet.kid).await.map_err(DecryptError::Key)?);
                let key = Key256::from_slice(&bytes).map_err(|_| DecryptError::NotAKey { kid: packet.kid.clone() })?;
                known.insert(packet.kid.clone(), key.clone());
                key
            }
        };
        drop(known);
        packet.open(&key)
    }
}
