//! What can go wrong, in words for the person who reads the pod's events. No error carries a credential or a URL's query.

use std::io;
use std::path::PathBuf;

use crate::{DecryptError, Digest, DigestError, LayerName, SignatureError};

/// A source error of another library.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why an image could not be pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The reference does not parse.
    #[error("{reference:?} is not an image reference")]
    Reference {
        /// What was asked for.
        reference: String,
        /// What is wrong with it.
        #[source]
        source: BoxError,
    },
    /// The policy names a resource that was not read, so what it demands is not known.
    #[error("{reference} is not pulled: {uri}, which the policy names, was not read yet")]
    Unread {
        /// What was asked for.
        reference: String,
        /// The resource.
        uri: String,
    },
    /// The registry configuration forbids this image.
    #[error("the registry configuration blocks {reference}")]
    Blocked {
        /// What was asked for.
        reference: String,
    },
    /// The extra root certificates do not parse, or the HTTP client cannot be made.
    #[error("cannot set up the registry client: check extra_root_certificates")]
    Client {
        /// What the TLS library says.
        #[source]
        source: BoxError,
    },
    /// No answer from the registry.
    #[error("cannot reach registry {registry} to pull {reference}")]
    Unreachable {
        /// What was asked for.
        reference: String,
        /// Host and port.
        registry: String,
        /// What the network says.
        #[source]
        source: BoxError,
    },
    /// The registry knows no such image, or hides it.
    #[error("registry {registry} has no image {reference}")]
    NotFound {
        /// What was asked for.
        reference: String,
        /// Host and port.
        registry: String,
    },
    /// The registry wants credentials and none are configured for it.
    #[error("registry {registry} needs credentials for {reference} and none are configured")]
    NeedsAuth {
        /// What was asked for.
        reference: String,
        /// Host and port.
        registry: String,
    },
    /// The registry refuses the configured credentials.
    #[error("registry {registry} refused the configured credentials for {reference}")]
    AuthRefused {
        /// What was asked for.
        reference: String,
        /// Host and port.
        registry: String,
    },
    /// The registry is busy for longer than this pull waits.
    #[error("registry {registry} is too busy for {what} of {reference}{}{reason}; next: try later, name credentials or a mirror", asked(*wait))]
    RateLimited {
        /// What was asked for.
        reference: String,
        /// Host and port.
        registry: String,
        /// Manifest, configuration or a layer.
        what: String,
        /// How long the registry asks to wait, if it says so.
        wait: Option<std::time::Duration>,
        /// What the registry says, with a colon before it; empty when it says nothing short.
        reason: String,
    },
    /// Any other answer than success.
    #[error("registry {registry} answered {status} for {what} of {reference}")]
    Status {
        /// What was asked for.
        reference: String,
        /// Host and port.
        registry: String,
        /// Manifest, configuration or a layer.
        what: String,
        /// HTTP status.
        status: u16,
    },
    /// Content that does not have the digest it was asked for by.
    #[error("{what} of {reference} from registry {registry} has digest {actual} and not {expected}")]
    WrongDigest {
        /// What was asked for.
        reference: String,
        /// Host and port.
        registry: String,
        /// Manifest, configuration or a layer.
        what: String,
        /// What was promised.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
    /// The image is not the one that was pinned.
    #[error("{reference} now has {what} {actual}, but {expected} was decided on")]
    NotThePinned {
        /// What was asked for.
        reference: String,
        /// Manifest or configuration.
        what: &'static str,
        /// The digest in the policy.
        expected: Digest,
        /// The digest that the registry serves.
        actual: Digest,
    },
    /// Fewer bytes than announced.
    #[error("registry {registry} sent {got} of {expected} bytes of {what} of {reference}")]
    Truncated {
        /// What was asked for.
        reference: String,
        /// Host and port.
        registry: String,
        /// Manifest, configuration or a layer.
        what: String,
        /// Bytes announced.
        expected: u64,
        /// Bytes that came.
        got: u64,
        /// What the network says.
        #[source]
        source: Option<BoxError>,
    },
    /// A manifest, index or configuration that is not one, or that this version cannot use.
    #[error("{what} of {reference} is not usable: {reason}")]
    Unusable {
        /// What was asked for.
        reference: String,
        /// Manifest, index or configuration.
        what: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// An index without this platform.
    #[error("{reference} has no image for linux/amd64")]
    NoPlatform {
        /// What was asked for.
        reference: String,
    },
    /// The image policy does not let it be used.
    #[error("{reference} is not allowed")]
    NotAllowed {
        /// What was asked for.
        reference: String,
        /// Why.
        #[source]
        source: Box<SignatureError>,
    },
    /// A layer's format is not supported.
    #[error("layer {digest} of {reference} is {media_type}: this version reads plain, gzip and zstd tar layers only")]
    UnsupportedLayer {
        /// What was asked for.
        reference: String,
        /// The layer.
        digest: Digest,
        /// Its media type.
        media_type: String,
    },
    /// A layer's content was refused.
    #[error("layer {digest} of {reference} was refused")]
    Layer {
        /// What was asked for.
        reference: String,
        /// The layer.
        digest: Digest,
        /// Why.
        #[source]
        source: LayerError,
    },
    /// An encrypted layer does not open.
    #[error("encrypted layer {digest} of {reference} cannot be opened")]
    Decrypt {
        /// What was asked for.
        reference: String,
        /// The layer as the registry holds it.
        digest: Digest,
        /// Why.
        #[source]
        source: Box<DecryptError>,
    },
    /// Not enough room on the scratch disk.
    #[error("no space for {reference}: at least {needed} bytes needed, {free} free on the scratch disk")]
    NoSpace {
        /// What was asked for.
        reference: String,
        /// Bytes that are still to be written, as far as known; a lower bound.
        needed: u64,
        /// Bytes free, less the reserve for containers.
        free: u64,
    },
    /// The store's own files.
    #[error("cannot {action} in the image store")]
    Store {
        /// What was being done.
        action: &'static str,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// The unpacking thread is gone.
    #[error("the unpacking of {reference} was interrupted")]
    Interrupted {
        /// What was asked for.
        reference: String,
    },
}

fn asked(wait: Option<std::time::Duration>) -> String {
    wait.map_or_else(String::new, |wait| format!(" and asks to wait {} s", wait.as_secs()))
}

/// Why a layer was refused. Paths are as in the archive, escaped.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The compressed stream or the archive is damaged.
    #[error("the archive is damaged")]
    Damaged {
        /// What the decoder says.
        #[source]
        source: io::Error,
    },
    /// A path that leaves the root or cannot exist.
    #[error("entry {path}: {reason}")]
    Path {
        /// The entry.
        path: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A hard link to something that this layer does not hold.
    #[error("hard link {path} to {target}, which is not a file of this layer")]
    HardLink {
        /// The entry.
        path: String,
        /// What it names.
        target: String,
    },
    /// A device node outside `dev/`.
    #[error("entry {path} is a device")]
    Device {
        /// The entry.
        path: String,
    },
    /// A whiteout that names nothing.
    #[error("whiteout {path} names nothing that can be removed")]
    Whiteout {
        /// The entry.
        path: String,
    },
    /// An entry type that is not a file, folder, link, fifo or whiteout.
    #[error("entry {path} has the unsupported type {kind:?}")]
    Kind {
        /// The entry.
        path: String,
        /// The type byte.
        kind: char,
    },
    /// A limit was passed.
    #[error("more than {limit} {what}")]
    Limit {
        /// What is limited.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The content does not have the digest that the configuration names.
    #[error("the content's digest is {actual}, the configuration says {expected}")]
    DiffId {
        /// From the configuration.
        expected: Digest,
        /// From the content.
        actual: Digest,
    },
    /// The disk refused an entry.
    #[error("cannot {action} {path}")]
    Write {
        /// What was being done.
        action: &'static str,
        /// The entry.
        path: String,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
}

impl LayerError {
    /// Whether the disk is full.
    pub(crate) fn is_no_space(&self) -> bool {
        let (Self::Write { source, .. } | Self::Damaged { source }) = self else { return false };
        source
            .raw_os_error()
            .is_some_and(|code| code == rustix::io::Errno::NOSPC.raw_os_error() || code == rustix::io::Errno::DQUOT.raw_os_error())
    }
}

/// Why the store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("image store {path} is in use by another process")]
    InUse {
        /// The store.
        path: PathBuf,
    },
    /// Written by another version.
    #[error("image store {path} has format {found:?}, this version reads \"2\": remove the folder, images are pulled again")]
    Version {
        /// The store.
        path: PathBuf,
        /// What its version file says.
        found: String,
    },
    /// The folder cannot be used.
    #[error("cannot {action} image store {path}")]
    Prepare {
        /// What was being done.
        action: &'static str,
        /// The store.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
}

/// Why an image cannot be mounted, unmounted or removed.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// A layer is no longer in the store.
    #[error("layer {layer} of {reference} is not in the store: pull the image again")]
    MissingLayer {
        /// The image.
        reference: String,
        /// The layer's name in the store.
        layer: LayerName,
    },
    /// Something is mounted there by this store already.
    #[error("{target} already holds an image")]
    Busy {
        /// The folder.
        target: PathBuf,
    },
    /// Nothing was mounted there by this store.
    #[error("{target} holds no image")]
    NotMounted {
        /// The folder.
        target: PathBuf,
    },
    /// The kernel refuses.
    #[error("cannot {action} {target}")]
    Kernel {
        /// What was being done.
        action: &'static str,
        /// The folder.
        target: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
}

impl From<DigestError> for io::Error {
    fn from(error: DigestError) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}
