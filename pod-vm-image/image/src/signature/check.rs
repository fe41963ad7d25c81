//! Holds an image against the policy.

use tokio::sync::OnceCell;

use super::cosign::{self, Signed};
use super::identity::Rule;
use super::key::PublicKey;
use super::name::Name;
use super::openpgp::GpgKeys;
use super::payload::{ATOMIC, COSIGN, Claim};
use super::policy::{KeySource, Requirement};
use super::{ImagePolicy, Lookaside, SignatureError};
use crate::transport::Repository;
use crate::{Digest, PullError, Resources};

/// The image that is to be used.
pub(crate) struct Subject<'a> {
    /// As it was asked for.
    pub(crate) name: Name,
    /// A signature of any of these is one of the image: its manifest, and the index that led to it.
    pub(crate) digests: Vec<&'a Digest>,
    /// Where it is fetched.
    pub(crate) repository: &'a Repository,
}

/// The policy with all that it takes to apply it.
pub(crate) struct Check<'a> {
    policy: &'a ImagePolicy,
    lookaside: &'a Lookaside,
    resources: &'a Resources,
}

/// Signatures, fetched when the first requirement wants them.
#[derive(Default)]
struct Found {
    cosign: OnceCell<Vec<Signed>>,
    gpg: OnceCell<Vec<Vec<u8>>>,
}

impl<'a> Check<'a> {
    pub(crate) fn new(policy: &'a ImagePolicy, lookaside: &'a Lookaside, resources: &'a Resources) -> Self {
        Self { policy, lookaside, resources }
    }

    /// Succeeds if every requirement of the scope holds.
    pub(crate) async fn allows(&self, subject: &Subject<'_>) -> Result<(), SignatureError> {
        let (scope, requirements) = self.policy.requirements(&subject.name);
        let found = Found::default();
        for requirement in requirements {
            match requirement {
                Requirement::AcceptAnything => {}
                Requirement::Reject => return Err(SignatureError::Rejected { scope }),
                Requirement::Cosign { key, rule } => {
                    let key = self.key(key, &scope, PublicKey::from_pem).await?;
                    let signed = found.cosign.get_or_try_init(|| all_cosign(subject)).await?;
                    let place = format!("{}/{}", subject.repository.registry(), subject.repository.endpoint().reference.repository());
                    let claims = signed.iter().map(|signed| {
                        let payload = signed.verified_by(&key).ok_or("it was not made with the policy's key")?;
                        Claim::parse(payload, COSIGN)
                    });
                    satisfy(subject, rule, claims, &scope, place)?;
                }
                Requirement::Gpg { keys, rule } => {
                    let keys = self.key(keys, &scope, GpgKeys::parse).await?;
                    let base = self.lookaside.base(&subject.name).ok_or_else(|| SignatureError::NoLookaside { scope: scope.clone() })?;
                    let messages = found.gpg.get_or_try_init(|| all_gpg(subject, base)).await?;
                    let claims = messages.iter().map(|message| Claim::parse(&keys.open(message)?, ATOMIC));
                    satisfy(subject, rule, claims, &scope, base.to_owned())?;
                }
            }
        }
        Ok(())
    }

    async fn key<K: Clone>(&self, key: &KeySource<K>, scope: &str, read: fn(&[u8]) -> Result<K, String>) -> Result<K, SignatureError> {
        match key {
            KeySource::Inline(key) => Ok(key.clone()),
            KeySource::Resource(uri) => {
                let source = self.resources.source().ok_or_else(|| SignatureError::NoSource { uri: uri.clone() })?;
                let bytes = source.get(uri).await.map_err(|source| SignatureError::Key { scope: scope.to_owned(), source })?;
                read(&bytes).map_err(|reason| SignatureError::BadKey { uri: uri.clone(), reason })
            }
        }
    }
}

async fn all_cosign(subject: &Subject<'_>) -> Result<Vec<Signed>, SignatureError> {
    let mut all = Vec::new();
    for digest in &subject.digests {
        all.extend(cosign::fetch(subject.repository, digest).await.map_err(unfetched)?);
    }
    Ok(all)
}

async fn all_gpg(subject: &Subject<'_>, base: &str) -> Result<Vec<Vec<u8>>, SignatureError> {
    let mut all = Vec::new();
    for digest in &subject.digests {
        all.extend(super::lookaside::fetch(subject, base, digest).await.map_err(unfetched)?);
    }
    Ok(all)
}

fn unfetched(error: PullError) -> SignatureError {
    SignatureError::Fetch(Box::new(error))
}

/// One claim that speaks of the image is enough.
fn satisfy(
    subject: &Subject<'_>,
    rule: &Rule,
    claims: impl Iterator<Item = Result<Claim, String>>,
    scope: &str,
    place: String,
) -> Result<(), SignatureError> {
    let (mut count, mut last) = (0, String::new());
    for claim in claims {
        count += 1;
        match claim.and_then(|claim| speaks_of(&claim, subject, rule)) {
            Ok(()) => return Ok(()),
            Err(reason) => last = reason,
        }
    }
    let scope = scope.to_owned();
    if count == 0 {
        Err(SignatureError::Unsigned { scope, place })
    } else {
        Err(SignatureError::NotSatisfied { scope, place, count, reason: last })
    }
}

fn speaks_of(claim: &Claim, subject: &Subject<'_>, rule: &Rule) -> Result<(), String> {
    if !subject.digests.contains(&&claim.manifest) {
        return Err(format!("it is of manifest {}", claim.manifest));
    }
    if !rule.accepts(&claim.name, &subject.name) {
        return Err(format!("it is of {}, which the policy's signedIdentity does not take for this image", claim.name.repository));
    }
    Ok(())
}
