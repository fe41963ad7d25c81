//! Writes a copy of a layout with encrypted layers. A layer that several images share is encrypted once.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, BufReader, BufWriter, Read};
use std::path::{Path, PathBuf};

use peerpods_image::Digest;
use peerpods_image::encrypt::{
    EncryptError, KEY_PACKETS_ANNOTATION, PUBLIC_OPTIONS_ANNOTATION, WrappingKey, encrypt_layer, encrypted_media_type, wrap_key,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::layout::{Descriptor, Layout, LayoutError, io_error};
use crate::key_file::{self, KeyFileError, KeyId};

/// What was done.
#[derive(Debug)]
pub(crate) struct Encrypted {
    /// The layout or archive.
    target: PathBuf,
    /// Where the key is, and whether it was made for this.
    key: PathBuf,
    is_new_key: bool,
    key_id: KeyId,
    /// Images before and after.
    images: Vec<(Digest, Digest)>,
    /// Distinct layers.
    layers: usize,
    /// Signatures and the like, which belong to the image as it was.
    left_out: Vec<Digest>,
}

/// Why there is no encrypted image.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EncryptImageError {
    /// Either layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The key.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// A layer.
    #[error("layer {digest} is not encrypted")]
    Layer {
        /// The layer.
        digest: Digest,
        /// Why.
        #[source]
        source: EncryptError,
    },
    /// A layer whose content is not what its digest says.
    #[error("layer {0} has another digest than its content; was it changed?")]
    Changed(Digest),
    /// A layer is encrypted as it is.
    #[error("layer {0} is encrypted already; next: begin with the image in clear")]
    Already(Digest),
    /// There is nothing to encrypt.
    #[error("there is no image in {}", .0.display())]
    NoImage(PathBuf),
}

/// A layer's entry in the new manifest, without what only the old one says.
type NewLayer = (Digest, Value);

struct Run<'a> {
    from: &'a Layout,
    to: &'a Layout,
    key: &'a WrappingKey,
    key_id: &'a KeyId,
    layers: HashMap<Digest, NewLayer>,
    images: Vec<(Digest, Digest)>,
    left_out: Vec<Digest>,
}

/// Writes `target`; nothing is left of it after a failure. The key, if one is made, is made first and stays.
pub(crate) fn encrypt(source: &Path, target: &Path, key_id: &KeyId, key: Option<&Path>) -> Result<Encrypted, EncryptImageError> {
    if target.symlink_metadata().is_ok() {
        return Err(LayoutError::Exists { path: target.to_owned() }.into());
    }
    let from = Layout::open(source)?;
    let (key_path, bytes) = match key {
        Some(path) => (path.to_owned(), key_file::read(path)?),
        None => {
            let mut path = OsString::from(target);
            path.push(".key");
            let path = PathBuf::from(path);
            let bytes = key_file::create(&path)?;
            (path, bytes)
        }
    };
    let wrapping = WrappingKey::new(&bytes).map_err(|_| KeyFileError::NotAKey { path: key_path.clone() })?;
    let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let staging = tempfile::Builder::new().prefix(".peerpodctl-").tempdir_in(parent).map_err(io_error("write into", parent))?;
    let folder = staging.path().join("layout");
    let to = Layout::create(&folder)?;
    let mut run = Run { from: &from, to: &to, key: &wrapping, key_id, layers: HashMap::new(), images: Vec::new(), left_out: Vec::new() };
    run.all()?;
    if run.images.is_empty() {
        return Err(EncryptImageError::NoImage(source.to_owned()));
    }
    let (images, left_out, layers) = (run.images, run.left_out, run.layers.len());
    if target.extension().is_some_and(|extension| extension == "tar") {
        let archive = staging.path().join("layout.tar");
        to.archive(&archive)?;
        // Nor is one taken away that came since.
        let archive = tempfile::TempPath::try_from_path(archive).map_err(io_error("write", target))?;
        archive.persist_noclobber(target).map_err(|error| match error.error.kind() {
            std::io::ErrorKind::AlreadyExists => LayoutError::Exists { path: target.to_owned() },
            _ => io_error("write", target)(error.error),
        })?;
    } else {
        std::fs::rename(&folder, target).map_err(io_error("write", target))?;
    }
    key_file::sync_folder_of(target).map_err(io_error("write", target))?;
    let is_new_key = key.is_none();
    Ok(Encrypted { target: target.to_owned(), key: key_path, is_new_key, key_id: key_id.clone(), images, layers, left_out })
}

impl Run<'_> {
    fn all(&mut self) -> Result<(), EncryptImageError> {
        let mut entries = Vec::new();
        for entry in self.from.entries()? {
            entries.extend(self.entry(&entry)?);
        }
        Ok(self.to.set_entries(&entries)?)
    }

    /// The new entry for one of an index; none for what is left out.
    fn entry(&mut self, entry: &Value) -> Result<Option<Value>, EncryptImageError> {
        let descriptor = Descriptor::parse(entry)?;
        let mut document = self.from.document("manifest", &descriptor.digest)?;
        let is_kept = if let Some(manifests) = document["manifests"].as_array().cloned() {
            let mut kept = Vec::new();
            for entry in &manifests {
                // An index in an index would be of no use to any reader of ours.
                kept.extend(if entry["mediaType"].as_str().is_some_and(is_index) { None } else { self.entry(entry)? });
            }
            document["manifests"] = json!(kept);
            !kept.is_empty()
        } else {
            self.manifest(&mut document)?
        };
        if !is_kept {
            self.left_out.push(descriptor.digest);
            return Ok(None);
        }
        let bytes = document.to_string().into_bytes();
        let digest = self.to.add(&bytes)?;
        self.images.push((descriptor.digest, digest.clone()));
        let mut entry = entry.clone();
        entry["digest"] = json!(digest);
        entry["size"] = json!(bytes.len());
        Ok(Some(entry))
    }

    /// Changes a manifest; false leaves it out, since it is no image.
    fn manifest(&mut self, manifest: &mut Value) -> Result<bool, EncryptImageError> {
        let mut layers = manifest["layers"].as_array().cloned().unwrap_or_default();
        let mut new = Vec::new();
        for layer in &layers {
            let Descriptor { media_type, digest } = Descriptor::parse(layer)?;
            match encrypted_media_type(&media_type) {
                Some(media_type) => new.push((digest, media_type)),
                None if media_type.ends_with("+encrypted") => return Err(EncryptImageError::Already(digest)),
                None => return Ok(false),
            }
        }
        for (layer, (digest, media_type)) in layers.iter_mut().zip(new) {
            let (new_digest, new) = self.layer(&digest)?;
            layer["mediaType"] = json!(media_type);
            layer["digest"] = json!(new_digest);
            layer["size"] = new["size"].clone();
            for name in [PUBLIC_OPTIONS_ANNOTATION, KEY_PACKETS_ANNOTATION] {
                layer["annotations"][name] = new[name].clone();
            }
        }
        manifest["layers"] = json!(layers);
        let config = Descriptor::parse(&manifest["config"])?;
        self.to.copy_document(self.from, "configuration", &config.digest)?;
        Ok(true)
    }

    fn layer(&mut self, digest: &Digest) -> Result<NewLayer, EncryptImageError> {
        if let Some(known) = self.layers.get(digest) {
            return Ok(known.clone());
        }
        let failed = |source| EncryptImageError::Layer { digest: digest.clone(), source };
        let mut plain = Hashing { from: BufReader::new(self.from.open_blob(digest)?), hasher: Sha256::new() };
        let (new_digest, (size, public_options, packet)) = self.to.add_with(|file| {
            let layer = encrypt_layer(&mut plain, BufWriter::new(file)).map_err(failed)?;
            let packet = wrap_key(&layer.options, self.key, self.key_id.as_str()).map_err(failed)?;
            Ok::<_, EncryptImageError>((layer.digest, (layer.size, layer.public_options, packet)))
        })?;
        if format!("sha256:{}", hex::encode(plain.hasher.finalize())) != digest.as_str() {
            return Err(EncryptImageError::Changed(digest.clone()));
        }
        let new = json!({"size": size, PUBLIC_OPTIONS_ANNOTATION: public_options, KEY_PACKETS_ANNOTATION: packet});
        self.layers.insert(digest.clone(), (new_digest.clone(), new.clone()));
        Ok((new_digest, new))
    }
}

struct Hashing<R> {
    from: R,
    hasher: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}

pub(super) fn is_index(media_type: &str) -> bool {
    media_type == "application/vnd.oci.image.index.v1+json" || media_type == "application/vnd.docker.distribution.manifest.list.v2+json"
}

impl Encrypted {
    /// JSON for programs.
    pub(crate) fn to_json(&self) -> String {
        let images: Vec<Value> = self.images.iter().map(|(old, new)| json!({"from": old, "to": new})).collect();
        let all = json!({
            "target": self.target, "keyId": self.key_id.as_str(), "key": self.key, "isNewKey": self.is_new_key, "images": images,
            "layers": self.layers, "leftOut": self.left_out,
        });
        format!("{all:#}\n")
    }

    /// What was done and what is to be done.
    pub(crate) fn for_people(&self) -> String {
        let mut text = format!("{} distinct layers are encrypted with {}\n", self.layers, self.key_id.as_str());
        for (old, new) in &self.images {
            let _ = writeln!(text, "  {old}\n  is now {new}");
        }
        for digest in &self.left_out {
            let _ = writeln!(text, "left out, since it is no image or belongs to the one in clear: {digest}");
        }
        let (key, path) = (self.key.display(), self.key_id.resource_path());
        let made = if self.is_new_key { "A new key was made" } else { "The key is" };
        let _ = write!(
            text,
            "\n{made}: {key}\nGive it to your key broker, and then keep it nowhere else:\n  \
             kbs-client --url URL config --auth-private-key ADMIN_KEY set-resource --path {path} --resource-file {key}\n\
             or to one for trials:\n  peerpods-relying-party set-resource --state STATE --url URL {path} {key}\n"
        );
        text
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::cipher::{AES_256, DecryptingKey, DecryptionContext, UnboundCipherKey};
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::super::{inspect, layout::hex_of, layout::tests::sample};
    use super::*;

    const ID: &str = "kbs:///default/key/1";

    fn id() -> KeyId {
        KeyId::parse(ID).unwrap()
    }

    /// As another reader of ocicrypt does it: the packet's options, then AES-256-CTR.
    fn decrypted(layout: &Layout, layer: &Value, key: &[u8]) -> Vec<u8> {
        let packet = STANDARD.decode(layer["annotations"][KEY_PACKETS_ANNOTATION].as_str().unwrap()).unwrap();
        let options: Value = serde_json::from_slice(&crate::keyprovider::opened(&packet, key)).unwrap();
        let bytes = |value: &Value| STANDARD.decode(value.as_str().unwrap()).unwrap();
        let mut content = Vec::new();
        layout.open_blob(&Descriptor::parse(layer).unwrap().digest).unwrap().read_to_end(&mut content).unwrap();
        let cipher = DecryptingKey::ctr(UnboundCipherKey::new(&AES_256, &bytes(&options["symkey"])).unwrap()).unwrap();
        let iv: [u8; 16] = bytes(&options["cipheroptions"]["nonce"]).try_into().unwrap();
        cipher.decrypt(&mut content, DecryptionContext::Iv128(iv.into())).unwrap().to_vec()
    }

    #[test]
    fn layers_come_back_with_the_key_and_the_rest_stays() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("clear");
        let old = sample(&source, &[b"one", &[7; 300_000], b"one"]);
        for target in ["encrypted", "encrypted.tar"] {
            let target = folder.path().join(target);
            let done = encrypt(&source, &target, &id(), None).unwrap();
            assert_eq!((done.layers, done.is_new_key, &done.images[0].0), (2, true, &old));
            let key = key_file::read(&done.key).unwrap();
            let (from, to) = (Layout::open(&source).unwrap(), Layout::open(&target).unwrap());
            let before = from.document("manifest", &old).unwrap();
            let after = to.document("manifest", &done.images[0].1).unwrap();
            assert_eq!(before["config"], after["config"]);
            assert_eq!(to.entries().unwrap()[0]["annotations"], from.entries().unwrap()[0]["annotations"]);
            let layers = after["layers"].as_array().unwrap();
            let contents: Vec<Vec<u8>> = layers.iter().map(|layer| decrypted(&to, layer, &key)).collect();
            assert_eq!(contents, [b"one".to_vec(), vec![7; 300_000], b"one".to_vec()]);
            assert_eq!(layers[0], layers[2]);
            assert!(layers.iter().all(|layer| layer["mediaType"] == "application/vnd.oci.image.layer.v1.tar+encrypted"));
            let text = inspect::for_people(&inspect::inspect(&to).unwrap());
            assert!(text.contains(ID), "{text}");
            let text = done.for_people();
            assert!(text.contains("set-resource --path default/key/1") && text.contains("A new key was made"), "{text}");
            assert!(serde_json::from_str::<Value>(&done.to_json()).is_ok());
        }
        assert!(matches!(
            encrypt(&folder.path().join("encrypted"), &folder.path().join("twice"), &id(), None),
            Err(EncryptImageError::Already(_))
        ));
        assert!(!folder.path().join("twice").exists());
        let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| !name.to_string_lossy().starts_with('.')), "{left:?}");
    }

    #[test]
    fn existing_targets_and_changed_layers_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (source, key) = (folder.path().join("clear"), folder.path().join("key"));
        let digest = sample(&source, &[b"one"]);
        std::fs::write(&key, [7; 32]).unwrap();
        let run = |target: &str| encrypt(&source, &folder.path().join(target), &id(), Some(&key));
        assert!(matches!(run("clear"), Err(EncryptImageError::Layout(LayoutError::Exists { .. }))));
        assert!(!run("other").unwrap().is_new_key);
        let manifest = Layout::open(&source).unwrap().document("manifest", &digest).unwrap();
        let layer = Descriptor::parse(&manifest["layers"][0]).unwrap().digest;
        std::fs::write(source.join("blobs/sha256").join(hex_of(&layer)), "two").unwrap();
        assert!(matches!(run("third"), Err(EncryptImageError::Changed(changed)) if changed == layer));
        std::fs::write(&key, [7; 31]).unwrap();
        assert!(matches!(run("fourth"), Err(EncryptImageError::Key(KeyFileError::NotAKey { .. }))));
    }
}
