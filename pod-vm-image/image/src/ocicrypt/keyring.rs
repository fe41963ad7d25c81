//! The keys of one pull: each wrapping key is asked for once, however many layers it opens and whatever the answer is.

use std::collections::HashMap;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::packet::Packet;
use super::{DecryptError, Encryption, Key256, PrivateOptions};
use crate::{ResourceError, Resources};

/// Asks the key broker and remembers what it said, for as long as the pull takes.
pub(crate) struct KeyRing<'a> {
    resources: &'a Resources,
    /// Different keys that may be asked for.
    limit: usize,
    known: HashMap<String, Answer>,
}

/// What the key broker said.
enum Answer {
    Key(Key256),
    NotAKey,
    None(Arc<ResourceError>),
}

impl<'a> KeyRing<'a> {
    pub(crate) fn new(resources: &'a Resources, limit: usize) -> Self {
        Self { resources, limit, known: HashMap::new() }
    }

    /// What opens a layer: the first packet that does gives it. If none does the last one's error says why.
    pub(crate) async fn open(&mut self, encryption: &Encryption) -> Result<PrivateOptions, DecryptError> {
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

    async fn unwrap(&mut self, packet: &Packet) -> Result<PrivateOptions, DecryptError> {
        if !self.known.contains_key(&packet.kid) {
            let source = self.resources.source().ok_or(DecryptError::NoSource)?;
            if self.known.len() >= self.limit {
                return Err(DecryptError::TooManyKeys { limit: self.limit });
            }
            let answer = match source.get(&packet.kid).await.map(Zeroizing::new) {
                Ok(bytes) => Key256::from_slice(&bytes).map_or(Answer::NotAKey, Answer::Key),
                Err(error) => Answer::None(Arc::new(error)),
            };
            self.known.insert(packet.kid.clone(), answer);
        }
        match self.known.get(&packet.kid) {
            Some(Answer::Key(key)) => packet.open(key),
            Some(Answer::None(error)) => Err(DecryptError::Key(error.clone())),
            Some(Answer::NotAKey) | None => Err(DecryptError::NotAKey { kid: packet.kid.clone() }),
        }
    }
}
