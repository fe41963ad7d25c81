//! Pull, verify, decrypt and unpack OCI images within a memory budget; takes a ResourceSource, knows no broker.
//!
//! The registry, the network and every byte of an image are hostile until a digest says otherwise. What this crate owns:
//!
//! * [`Store`]: a folder on the scratch disk. A layer is unpacked in `tmp/` and renamed into `layers/` only after the digest of
//!   its compressed stream *and* its diff_id matched. A process that dies half way leaves something in `tmp/` only, which the next
//!   [`Store::open`] throws away.
//! * [`Store::pull`]: reference -> manifest -> configuration -> layers. Bytes go from the socket through a bounded channel to a
//!   blocking thread that inflates, hashes and writes; no buffer grows with the image.
//! * The image policy ([`ImagePolicy`]) is applied to every pull as soon as the manifest is known, whatever the store holds.
//! * Encrypted layers are spooled as ciphertext, and decrypted only when all of it is there and authentic; [`encrypt`] makes such layers.
//!   In the store they are found again only by who has their key ([`LayerName`]).
//! * [`Store::mount`]: an overlay of an image's layers with an upper folder on the scratch disk.
//!
//! Concurrent pulls that need the same layer wait for one download. Dropping a pull's future stops its download, and the
//! unpacking thread then removes what it wrote.
//!
//! A download that breaks is continued where it broke, and a registry that is busy is waited for, both within limits.
//!
//! What it does not do: keys of layers that are wrapped for a person (JWE, PGP, PKCS #7), keyless signatures of sigstore.

mod auth;
mod challenge;
mod digest;
mod download;
pub mod encrypt;
mod error;
mod layer_name;
mod limits;
mod manifest;
mod mount;
mod ocicrypt;
mod patience;
mod policy;
mod proxies;
mod pull;
mod registries;
mod resource;
mod signature;
mod store;
mod transport;
mod unpack;

pub use auth::{AuthError, RegistryAuths};
pub use digest::{Digest, DigestError};
pub use error::{LayerError, MountError, OpenError, PullError};
pub use layer_name::LayerName;
pub use limits::Limits;
pub use ocicrypt::DecryptError;
pub use policy::{PolicyError, PullPolicy};
pub use proxies::{Proxies, ProxyError};
pub use pull::{LayerProgress, Progress, PulledImage};
pub use registries::{Registries, RegistriesError};
pub use resource::{ResourceError, ResourceSource, Resources};
pub use signature::{GpgKeys, ImagePolicy, ImagePolicyError, Lookaside, LookasideError, SignatureError};
pub use store::{Store, StoreConfig};
