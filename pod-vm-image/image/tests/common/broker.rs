//! A key broker in this process, and layers encrypted under its key.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use peerpods_image::encrypt::{
    KEY_PACKETS_ANNOTATION, PUBLIC_OPTIONS_ANNOTATION, WrappingKey, encrypt_layer, encrypted_media_type, wrap_key,
};
use peerpods_image::{ResourceError, ResourceSource, Resources};
use serde_json::json;

use super::image::{Blob, digest};

/// Resources by URI, and what was asked for.
#[derive(Default)]
pub struct Broker {
    resources: HashMap<String, Vec<u8>>,
    asked: Mutex<Vec<String>>,
}

impl Broker {
    pub fn of<'a>(resources: impl IntoIterator<Item = (&'a str, Vec<u8>)>) -> Arc<Self> {
        let resources = resources.into_iter().map(|(uri, content)| (uri.to_owned(), content)).collect();
        Arc::new(Self { resources, asked: Mutex::default() })
    }

    pub fn resources(self: &Arc<Self>) -> Resources {
        Resources::from_source(self.clone())
    }

    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

#[async_trait]
impl ResourceSource for Broker {
    async fn get(&self, uri: &str) -> Result<Vec<u8>, ResourceError> {
        self.asked.lock().unwrap().push(uri.to_owned());
        self.resources.get(uri).cloned().ok_or_else(|| ResourceError { uri: uri.to_owned(), source: "the broker refuses".into() })
    }
}

/// A resource that is a key.
pub const KID: &str = "kbs:///default/key/1";
/// Its content.
pub const KEK: [u8; 32] = [7; 32];

/// The layer as it is pushed, its key wrapped with [`KEK`].
pub fn encrypted(blob: &Blob) -> Blob {
    encrypted_with(blob, &KEK, KID)
}

/// The same with another key.
pub fn encrypted_with(blob: &Blob, kek: &[u8], kid: &str) -> Blob {
    let mut bytes = Vec::new();
    let layer = encrypt_layer(blob.bytes.as_slice(), &mut bytes).unwrap();
    assert_eq!(layer.digest.as_str(), digest(&bytes));
    let packet = wrap_key(&layer.options, &WrappingKey::new(kek).unwrap(), kid).unwrap();
    let annotations = json!({PUBLIC_OPTIONS_ANNOTATION: layer.public_options, KEY_PACKETS_ANNOTATION: packet});
    Blob { bytes, media_type: encrypted_media_type(&blob.media_type).unwrap(), annotations, diff_id: blob.diff_id.clone() }
}
