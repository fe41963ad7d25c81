//! What an image may cost. Every limit is checked before or while reading, never after.

use std::time::Duration;

/// Bounds on one pull.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of a manifest or index.
    pub manifest_bytes: u64,
    /// Bytes of an image configuration.
    pub config_bytes: u64,
    /// Layers of one image. Overlayfs stacks at most 500.
    pub layers: usize,
    /// Different keys that the key broker is asked for: some tools take a new one for each layer.
    pub keys: usize,
    /// Bytes of one layer after decompression.
    pub layer_bytes: u64,
    /// Entries of one layer.
    pub layer_entries: u64,
    /// Bytes of an entry's headers, extended ones (pax, GNU long names) and padding included.
    pub header_bytes: u64,
    /// Folders above an entry.
    pub path_depth: usize,
    /// How many times larger than its compressed form a layer may be, once it is past [`Limits::ratio_free_bytes`].
    pub ratio: u64,
    /// Bytes that a layer may decompress to before its ratio counts.
    pub ratio_free_bytes: u64,
    /// Bytes of the scratch disk that a pull leaves free for the containers.
    pub reserve_bytes: u64,
    /// Layers downloaded and unpacked at once.
    pub concurrent_layers: usize,
    /// How long a registry may take to accept a connection.
    pub connect_timeout: Duration,
    /// How long a registry may send nothing.
    pub read_timeout: Duration,
    /// Tries after the first one that may come to nothing, one after the other: of a request that the registry cannot serve now, or of
    /// a layer whose download breaks.
    pub retries: u32,
    /// How often a layer's download may be continued in all.
    pub resumes: u32,
    /// Before the first of the tries; doubles with each.
    pub retry_pause: Duration,
    /// How long one request may wait for a registry in all. One that asks for more is given up.
    pub retry_within: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            manifest_bytes: 4 << 20,
            config_bytes: 4 << 20,
            layers: 128,
            keys: 128,
            layer_bytes: 64 << 30,
            layer_entries: 1_000_000,
            header_bytes: 1 << 20,
            path_depth: 256,
            ratio: 200,
            ratio_free_bytes: 256 << 20,
            reserve_bytes: 16 << 20,
            concurrent_layers: 3,
            connect_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(30),
            retries: 4,
            resumes: 64,
            retry_pause: Duration::from_millis(500),
            retry_within: Duration::from_secs(60),
        }
    }
}
