//! Which images may be used: `policy.json` of containers-policy.json(5), and the signatures that it asks for.
//!
//! The policy is the workload owner's and trusted; everything that a registry or a look-aside server sends is not. A signature counts only
//! if its bytes verify under a key of the policy, it names the digest of the manifest (or of the index that led to it), and the reference
//! it names is one that the policy takes for the image's. Scopes and identities are those of the image as it was asked for, whichever mirror
//! serves it; cosign's signatures are looked for where the image is fetched.
//!
//! What is deliberately absent: certificates and logs of sigstore (Fulcio, Rekor), which need a clock that the host cannot set.

mod check;
mod cosign;
mod identity;
mod key;
mod lookaside;
mod name;
mod openpgp;
mod payload;
mod policy;
mod yaml;

pub use lookaside::{Lookaside, LookasideError};
pub use openpgp::GpgKeys;
pub use policy::{ImagePolicy, ImagePolicyError};

pub(crate) use check::{Check, Subject};
pub(crate) use name::Name;

use crate::{PullError, ResourceError};

/// Why an image may not be used.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// The policy says so.
    #[error("the image policy rejects {scope}")]
    Rejected {
        /// The part of the policy that decided.
        scope: String,
    },
    /// No signature was found.
    #[error("the image policy wants a signature for {scope} and there is none at {place}")]
    Unsigned {
        /// The part of the policy that decided.
        scope: String,
        /// Where signatures were looked for.
        place: String,
    },
    /// There are signatures, none of which satisfies the policy.
    #[error("the image policy wants a signature for {scope} and none of the {count} at {place} will do; the last one: {reason}")]
    NotSatisfied {
        /// The part of the policy that decided.
        scope: String,
        /// Where signatures were looked for.
        place: String,
        /// Signatures found.
        count: usize,
        /// What is wrong with the last one.
        reason: String,
    },
    /// The key of a requirement cannot be had.
    #[error("cannot get the key of the image policy's {scope}")]
    Key {
        /// The part of the policy that decided.
        scope: String,
        /// Why.
        #[source]
        source: ResourceError,
    },
    /// The key of a requirement cannot be used.
    #[error("the key {uri} of the image policy: {reason}")]
    BadKey {
        /// The resource.
        uri: String,
        /// What is wrong.
        reason: String,
    },
    /// The key of a requirement is a resource, and nothing could give it.
    #[error("the key {uri} of the image policy is to be had from a key broker, and there is none to ask")]
    NoSource {
        /// The resource.
        uri: String,
    },
    /// `signedBy` without a place for signatures.
    #[error("the image policy wants a GPG signature for {scope} and the signature store configuration names no server for it")]
    NoLookaside {
        /// The part of the policy that decided.
        scope: String,
    },
    /// Signatures could not be fetched.
    #[error("cannot fetch the signatures")]
    Fetch(#[source] Box<PullError>),
}
