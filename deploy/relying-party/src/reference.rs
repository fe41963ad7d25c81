//! Reference values: what evidence is compared with. Each has a name, a value of any JSON, and twelve months.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use peerpods_key_broker::wire::ReferenceValueMessage;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::admin::seconds;
use crate::error::ApiError;
use crate::policy::References;
use crate::store::{Folder, Store, StoreError};

/// As long as Trustee keeps them.
const LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// The version of messages, and that of what is stored.
const VERSION: &str = "0.1.0";

#[derive(Serialize, Deserialize)]
struct Stored {
    version: String,
    name: String,
    /// Seconds since the epoch.
    expires_unix_secs: u64,
    value: Value,
}

/// Takes a message: its payload is base64 of a JSON object of names and values. Values of other names stay as they are.
pub(crate) fn register(store: &Store, message: &[u8], now: SystemTime) -> Result<(), ApiError> {
    let refused = |reason: &str| ApiError::Rvps(format!("Failed to register reference value: {reason}"));
    let message: ReferenceValueMessage = serde_json::from_slice(message).map_err(|error| refused(&error.to_string()))?;
    if message.version != VERSION {
        return Err(refused(&format!("the message has version {:?}; only {VERSION:?} is known", message.version)));
    }
    if message.message_type != "sample" {
        return Err(refused(&format!("no extractor for {:?}; supported: sample", message.message_type)));
    }
    let payload = STANDARD.decode(&message.payload).map_err(|_| refused("the payload is no base64"))?;
    let values: Map<String, Value> = serde_json::from_slice(&payload).map_err(|_| refused("the payload is no JSON object"))?;
    // All or none: a name that is refused leaves no other behind.
    for name in values.keys() {
        crate::store::checked(name).map_err(|error| refused(&error.to_string()))?;
    }
    let expires_unix_secs = seconds(now + LIFETIME);
    for (name, value) in values {
        let stored = Stored { version: VERSION.to_owned(), name: name.clone(), expires_unix_secs, value };
        let content = serde_json::to_vec(&stored).map_err(|error| refused(&error.to_string()))?;
        store.write(Folder::ReferenceValues, &name, &content).map_err(|error| match error {
            StoreError::Name(_) => refused(&error.to_string()),
            error => ApiError::Storage(error),
        })?;
    }
    Ok(())
}

/// All values that have not expired. One that cannot be read is left out, so that nothing is compared with it.
pub(crate) fn all(store: &Store, now: SystemTime) -> Result<References, StoreError> {
    let mut values = BTreeMap::new();
    for name in store.list(Folder::ReferenceValues)? {
        let Some(content) = store.read(Folder::ReferenceValues, &name)? else { continue };
        match serde_json::from_slice::<Stored>(&content) {
            Ok(stored) if stored.version != VERSION => tracing::warn!(name, version = stored.version, "unknown reference value"),
            Ok(stored) if stored.expires_unix_secs > seconds(now) => drop(values.insert(stored.name, stored.value)),
            Ok(_) => {}
            Err(error) => tracing::warn!(name, %error, "cannot read a reference value"),
        }
    }
    Ok(Arc::new(values))
}
