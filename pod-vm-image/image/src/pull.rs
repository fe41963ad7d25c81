//! From a reference to layers in the store.

use std::path::PathBuf;

use oci_spec::distribution::Reference;
use oci_spec::image::ImageConfiguration;
use rustix::io::Errno;
use tokio::sync::{oneshot, watch};

use crate::download::{self, Source};
use crate::manifest::{Blob, Compression, Config, Descriptor, Document, Manifest, Unfit};
use crate::ocicrypt::{DecryptError, KeyRing, Sealed};
use crate::registries::Endpoint;
use crate::signature::{Check, Name, Subject};
use crate::store::{Inner, Temporary};
use crate::transport::{Repository, Transport};
use crate::unpack::{self, Failure, Job, Unpacked};
use crate::{Digest, LayerName, PullError, PullPolicy, Store};

/// An image whose layers are all in the store.
#[derive(Debug, Clone)]
pub struct PulledImage {
    /// As it was asked for.
    pub reference: String,
    /// What the reference resolved to: an index or a manifest.
    pub resolved: Digest,
    /// The manifest for linux/amd64.
    pub manifest: Digest,
    /// The configuration.
    pub config_digest: Digest,
    /// The configuration's content: command, environment, user.
    pub config: ImageConfiguration,
    /// The layers in the store, bottom first.
    pub layers: Vec<LayerName>,
}

/// How far a pull is. Empty until the manifest is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bottom first.
    pub layers: Vec<LayerProgress>,
}

/// How far a layer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerProgress {
    /// Of the layer as the registry holds it.
    pub digest: Digest,
    /// Compressed bytes.
    pub size: u64,
    /// Compressed bytes that came in this pull.
    pub received: u64,
    /// Whether it is in the store.
    pub done: bool,
}

/// What one registry says of the image.
struct Resolved {
    resolved: Digest,
    manifest_digest: Digest,
    config_digest: Digest,
    manifest: Manifest,
    config: Config,
}

/// What the futures of one pull's layers share.
struct Layers<'a> {
    store: &'a Inner,
    repository: &'a Repository,
    diff_ids: &'a [Digest],
    names: &'a [LayerName],
    progress: Option<&'a watch::Sender<Progress>>,
}

impl Store {
    /// Brings an image into the store: safe to repeat, and to drop at any time. Layers that are there are not fetched again.
    ///
    /// A registry that sends nothing fails after [`Limits::read_timeout`](crate::Limits::read_timeout); one that sends slowly does not,
    /// so the caller sets the deadline of the whole.
    pub async fn pull(
        &self,
        reference: &str,
        policy: &PullPolicy,
        progress: Option<&watch::Sender<Progress>>,
    ) -> Result<PulledImage, PullError> {
        let parsed: Reference =
            reference.parse().map_err(|error| PullError::Reference { reference: reference.to_owned(), source: Box::new(error) })?;
        if let Some(uri) = policy.unread_resource() {
            return Err(PullError::Unread { reference: reference.to_owned(), uri: uri.to_owned() });
        }
        let places = policy.registries.endpoints(&parsed).map_err(|_| PullError::Blocked { reference: reference.to_owned() })?;
        let transport = Transport::new(self.inner.limits(), &self.inner.config.root_certificates, policy)
            .map_err(|source| PullError::Client { source })?;
        let _layers_stay = self.inner.layers_in_use.read().await;
        let mut keys = KeyRing::new(&policy.resources, self.inner.limits().keys);
        let mut failure = PullError::Unusable {
            reference: reference.to_owned(),
            what: "the registry configuration",
            reason: "it gives no usable location".to_owned(),
        };
        for place in places {
            let repository = repository(&transport, place, policy, reference);
            match self.inner.pull_from(&repository, &parsed, policy, &mut keys, progress).await {
                Ok(image) => return Ok(image),
                Err(error) if error.is_local() => return Err(error),
                Err(error) => {
                    tracing::info!(
                        image = reference,
                        registry = repository.registry(),
                        error = &error as &dyn std::error::Error,
                        "pull failed here"
                    );
                    failure = error;
                }
            }
        }
        Err(failure)
    }
}

fn repository(transport: &Transport, place: Endpoint, policy: &PullPolicy, asked: &str) -> Repository {
    let basic = policy.auth.find(place.reference.registry(), place.reference.repository()).cloned();
    transport.repository(place, basic, asked)
}

impl Inner {
    async fn pull_from(
        &self,
        repository: &Repository,
        asked: &Reference,
        policy: &PullPolicy,
        keys: &mut KeyRing<'_>,
        progress: Option<&watch::Sender<Progress>>,
    ) -> Result<PulledImage, PullError> {
        let Resolved { resolved, manifest_digest, config_digest, manifest, config } = self.resolve(repository, asked, policy).await?;
        if let Some(progress) = progress {
            let start = |blob: &Blob| LayerProgress { digest: blob.digest.clone(), size: blob.size, received: 0, done: false };
            progress.send_replace(Progress { layers: manifest.layers.iter().map(start).collect() });
        }
        let mut sealed = Vec::with_capacity(manifest.layers.len());
        for (blob, diff_id) in manifest.layers.iter().zip(&config.diff_ids) {
            sealed.push(unseal(repository, keys, blob, diff_id).await?);
        }
        let names = LayerName::of_all(config.diff_ids.iter().zip(sealed.iter().map(Option::as_ref)));
        self.check_space(repository, &manifest.layers, &names)?;
        let layers = Layers { store: self, repository, diff_ids: &config.diff_ids, names: &names, progress };
        // Each layer's future is told when the one below it is in the store.
        let mut below = None;
        let futures = manifest.layers.iter().zip(sealed).enumerate().map(|(index, (blob, sealed))| {
            let (done, next) = oneshot::channel();
            layers.ensure(index, blob, sealed, below.replace(next), done)
        });
        futures::future::try_join_all(futures.collect::<Vec<_>>()).await?;
        Ok(PulledImage {
            reference: repository.asked(),
            resolved,
            manifest: manifest_digest,
            config_digest,
            config: config.config,
            layers: names,
        })
    }

    /// What the registry says the image is. Nothing but the manifest is read, and the store is not looked at, before the policy allows it:
    /// layers that are there do not make an image allowed.
    async fn resolve(&self, repository: &Repository, asked: &Reference, policy: &PullPolicy) -> Result<Resolved, PullError> {
        let reference = &repository.endpoint().reference;
        let (resolved, mut document) = match reference.digest() {
            Some(digest) => {
                let digest: Digest =
                    digest.parse().map_err(|error| PullError::Reference { reference: repository.asked(), source: Box::new(error) })?;
                let document = self.document(repository, digest.as_str(), Some(&digest)).await?;
                (digest, document.1)
            }
            None => self.document(repository, reference.tag().unwrap_or("latest"), None).await?,
        };
        let mut manifest_digest = resolved.clone();
        if let Document::Index(chosen) = document {
            manifest_digest = chosen.digest;
            document = self.document(repository, manifest_digest.as_str(), Some(&manifest_digest)).await?.1;
        }
        let Document::Manifest(manifest) = document else {
            return Err(repository.unusable("the index", "it names another index for linux/amd64".to_owned()));
        };
        let pinned = |what, expected: &Option<Digest>, actual: &Digest| match expected {
            Some(expected) if expected != actual => {
                Err(PullError::NotThePinned { reference: repository.asked(), what, expected: expected.clone(), actual: actual.clone() })
            }
            _ => Ok(()),
        };
        if policy.expected_manifest.as_ref() != Some(&resolved) {
            pinned("manifest", &policy.expected_manifest, &manifest_digest)?;
        }
        pinned("configuration", &policy.expected_config, &manifest.config.digest)?;
        let mut digests = vec![&manifest_digest];
        if resolved != manifest_digest {
            digests.push(&resolved);
        }
        let subject = Subject { name: Name::of(asked), digests, repository };
        let allowed = Check::new(&policy.image_policy, &policy.lookaside, &policy.resources).allows(&subject).await;
        allowed.map_err(|source| PullError::NotAllowed { reference: repository.asked(), source: Box::new(source) })?;
        let config = self.config(repository, &manifest.config, manifest.layers.len()).await?;
        Ok(Resolved { resolved, manifest_digest, config_digest: manifest.config.digest.clone(), manifest, config })
    }

    /// A document and its digest, which must be the expected one.
    async fn document(&self, repository: &Repository, name: &str, expected: Option<&Digest>) -> Result<(Digest, Document), PullError> {
        let bytes = repository.manifest(name, self.limits().manifest_bytes).await?;
        let digest = check_digest(repository, "the manifest", &bytes, expected)?;
        let document = Document::parse(&bytes, self.limits().layers).map_err(|unfit| unfit.of(repository, "the manifest"))?;
        Ok((digest, document))
    }

    async fn config(&self, repository: &Repository, descriptor: &Descriptor, layers: usize) -> Result<Config, PullError> {
        let limit = self.limits().config_bytes.min(descriptor.size);
        let bytes = repository.small_blob(&descriptor.digest, limit, "the configuration").await?;
        check_digest(repository, "the configuration", &bytes, Some(&descriptor.digest))?;
        Config::parse(&bytes, layers).map_err(|unfit| unfit.of(repository, "the configuration"))
    }

    /// Compressed layers are a lower bound of what they need on disk. Beside an encrypted one lies its ciphertext, for a while.
    fn check_space(&self, repository: &Repository, blobs: &[Blob], names: &[LayerName]) -> Result<(), PullError> {
        let missing = blobs.iter().zip(names).filter(|(_, name)| !self.has_layer(name));
        let (needed, spool) = missing.fold((0_u64, 0), |(sum, spool), (blob, _)| {
            let of_this = if blob.encryption.is_some() { blob.size } else { 0 };
            (sum.saturating_add(blob.size), of_this.max(spool))
        });
        let needed = needed.saturating_add(spool);
        let free = self.space().free().map_err(|source| PullError::Store { action: "look at the free space", source })?;
        if needed > free { Err(PullError::NoSpace { reference: repository.asked(), needed, free }) } else { Ok(()) }
    }
}

impl Layers<'_> {
    /// Returns when the layer is in the store, made by this pull or another.
    async fn ensure(
        &self,
        index: usize,
        blob: &Blob,
        sealed: Option<Sealed>,
        below: Option<oneshot::Receiver<()>>,
        done: oneshot::Sender<()>,
    ) -> Result<(), PullError> {
        let name = &self.names[index];
        let flight = self.store.flight(name);
        let _only_maker = flight.lock().await;
        if !self.store.has_layer(name) {
            let unpacked = {
                let _turn = self.store.downloads.acquire().await.map_err(|_| self.interrupted())?;
                self.fetch(index, blob, sealed).await?
            };
            if let Some(below) = below {
                // Its sender goes away only when this pull has failed.
                below.await.map_err(|_| self.interrupted())?;
            }
            self.commit(index, unpacked).await?;
        }
        self.report(index, |layer| layer.done = true);
        // No layer above: nobody listens.
        let _ = done.send(());
        Ok(())
    }

    async fn fetch(&self, index: usize, blob: &Blob, sealed: Option<Sealed>) -> Result<(Temporary, Unpacked), PullError> {
        let what = format!("layer {}", blob.digest);
        let store = |action| move |source| PullError::Store { action, source };
        let temporary = self.store.temporary().map_err(store("make a folder"))?;
        let (feeder, compressed) = download::channel(&blob.digest);
        let job = Job {
            compressed,
            compression: blob.compression,
            digest: blob.digest.clone(),
            diff_id: self.diff_ids[index].clone(),
            sealed,
            limits: self.store.limits().clone(),
            root: temporary.path(),
            space: self.store.space(),
        };
        // The thread ends when the feeder goes away, so it needs no other owner; it has the folder, so that nothing removes that too early.
        let thread = tokio::task::spawn_blocking(move || unpack::unpack(job).map(|unpacked| (temporary, unpacked)));
        let received = |bytes| self.report(index, |layer| layer.received = bytes);
        feeder.feed(&Source { repository: self.repository, digest: &blob.digest, what: &what, size: blob.size }, received).await?;
        let unpacked = thread.await.map_err(|_| self.interrupted())?;
        unpacked.map_err(|failure| self.explain(failure, blob, &what))
    }

    fn explain(&self, failure: Failure, blob: &Blob, what: &str) -> PullError {
        let reference = self.repository.asked();
        let no_space = |reference| {
            let free = self.store.space().free().unwrap_or(0);
            PullError::NoSpace { reference, needed: blob.size.max(free.saturating_add(1)), free }
        };
        match failure {
            Failure::Layer(error) if error.is_no_space() => no_space(reference),
            Failure::Layer(source) => PullError::Layer { reference, digest: blob.digest.clone(), source },
            Failure::Decrypt(error) => undecryptable(self.repository, blob, error),
            Failure::WrongDigest(actual) => self.repository.wrong_digest(what, &blob.digest, actual),
            Failure::GivenUp => PullError::Interrupted { reference },
            Failure::Store(_, source) if source.raw_os_error() == Some(Errno::NOSPC.raw_os_error()) => no_space(reference),
            Failure::Store(action, source) => PullError::Store { action, source },
        }
    }

    /// Completes a layer from those below, which are in the store, and puts it there.
    async fn commit(&self, index: usize, (temporary, unpacked): (Temporary, Unpacked)) -> Result<(), PullError> {
        let below: Vec<PathBuf> = self.names[..index].iter().rev().map(|name| self.store.layer(name)).collect();
        let target = self.store.layer(&self.names[index]);
        let finished = tokio::task::spawn_blocking(move || {
            match std::fs::rename(unpack::finish(unpacked, &below)?, &target) {
                Ok(()) => temporary.keep(),
                // A pull that was dropped at its very end had its thread finish the layer.
                Err(_) if target.is_dir() => {}
                Err(error) => return Err(error),
            }
            Ok(())
        });
        finished.await.map_err(|_| self.interrupted())?.map_err(|source| PullError::Store { action: "finish a layer", source })
    }

    fn report(&self, index: usize, change: impl FnOnce(&mut LayerProgress)) {
        if let Some(progress) = self.progress {
            progress.send_modify(|progress| progress.layers.get_mut(index).map_or((), change));
        }
    }

    fn interrupted(&self) -> PullError {
        PullError::Interrupted { reference: self.repository.asked() }
    }
}

/// What opens the layer, if it is encrypted. Asked for at every pull, before the store is looked at: who may not have the key must not find
/// the layer in a store that is warm.
async fn unseal(repository: &Repository, keys: &mut KeyRing<'_>, blob: &Blob, diff_id: &Digest) -> Result<Option<Sealed>, PullError> {
    let Some(encryption) = &blob.encryption else { return Ok(None) };
    let options = keys.open(encryption).await.map_err(|error| undecryptable(repository, blob, error))?;
    // Both are digests of the archive; of a compressed layer this shows when it is decrypted.
    if blob.compression == Compression::Plain && options.digest() != diff_id {
        let error = DecryptError::Plaintext { expected: diff_id.clone(), actual: options.digest().clone() };
        return Err(undecryptable(repository, blob, error));
    }
    Ok(Some(Sealed { ciphertext: blob.digest.clone(), hmac: encryption.hmac.clone(), options }))
}

fn undecryptable(repository: &Repository, blob: &Blob, source: DecryptError) -> PullError {
    PullError::Decrypt { reference: repository.asked(), digest: blob.digest.clone(), source: Box::new(source) }
}

impl Unfit {
    fn of(self, repository: &Repository, what: &'static str) -> PullError {
        let reference = repository.asked();
        match self {
            Self::Unusable(reason) => PullError::Unusable { reference, what, reason },
            Self::NoPlatform => PullError::NoPlatform { reference },
            Self::UnsupportedLayer { digest, media_type } => PullError::UnsupportedLayer { reference, digest, media_type },
        }
    }
}

impl PullError {
    /// Whether another registry would not help.
    fn is_local(&self) -> bool {
        matches!(self, Self::NoSpace { .. } | Self::Store { .. } | Self::Interrupted { .. } | Self::Client { .. } | Self::Reference { .. })
    }
}

fn check_digest(repository: &Repository, what: &str, bytes: &[u8], expected: Option<&Digest>) -> Result<Digest, PullError> {
    let Some(expected) = expected else { return Ok(Digest::of(bytes)) };
    let mut hasher = expected.hasher();
    hasher.update(bytes);
    let actual = hasher.finish();
    if actual == *expected { Ok(actual) } else { Err(repository.wrong_digest(what, expected, actual)) }
}
