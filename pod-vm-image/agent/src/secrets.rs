//! Sealed secrets: values that the node cannot read, in a container's environment and files.
//!
//! Kubernetes hands a secret to the node; a sealed one is only a name, signed by the pod's owner, for which the key broker has the value
//! (coco-guest's "sealed secret": `sealed.` and a JWS). It is opened here, in the guest, when a container is created: an environment
//! variable whose value begins so gets the value, and a mounted file whose content does is replaced in a copy of its folder, which the
//! container sees instead. Such a copy does not follow later changes of the secret. A secret that cannot be opened fails the container.

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown, symlink};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use zeroize::Zeroizing;

use crate::failure::{Failure, chain};
use crate::{SecretError, SecretSource};

/// What a sealed secret begins with.
const PREFIX: &str = "sealed.";
/// Longest sealed secret: a JWS of a few hundred bytes.
const MAX_SEALED_BYTES: u64 = 16 << 10;
/// Most files and folders of one mount that are looked at; a volume with more holds no secrets.
const MAX_ENTRIES: usize = 4096;

/// Opens the sealed secrets of a container; copies go below `folder`.
pub(crate) async fn open(spec: &mut Spec, share: &Path, folder: &Path, source: &dyn SecretSource) -> Result<(), Failure> {
    if let Some(mut process) = spec.process().clone() {
        let mut environment = process.env().clone().unwrap_or_default();
        for variable in &mut environment {
            let Some((name, value)) = variable.split_once('=') else { continue };
            if value.starts_with(PREFIX) {
                let secret = unseal(source, value, &format!("environment variable {name}")).await?;
                *variable = format!("{name}={}", text(&secret, name)?);
            }
        }
        process.set_env(Some(environment));
        spec.set_process(Some(process));
    }
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for (number, mount) in mounts.iter_mut().enumerate() {
        let Some(from) = mount.source().clone().filter(|from| from.starts_with(share)) else { continue };
        let found = sealed_files(&from).map_err(|error| Failure::because("looking for sealed secrets", &error))?;
        if found.is_empty() {
            continue;
        }
        let copy = folder.join(number.to_string());
        copy_tree(&from, &copy).map_err(|error| Failure::because("copying a volume with sealed secrets", &error))?;
        for file in found {
            let inside = file.strip_prefix(&from).unwrap_or(Path::new(""));
            let target = if inside.as_os_str().is_empty() { copy.clone() } else { copy.join(inside) };
            let what = format!("file {}", mount.destination().join(inside).display());
            let sealed = fs::read_to_string(&target).map_err(|error| Failure::because("reading a sealed secret", &error))?;
            let secret = unseal(source, sealed.trim_end(), &what).await?;
            fs::write(&target, &*secret).map_err(|error| Failure::because("writing a secret", &error))?;
        }
        mount.set_source(Some(copy));
    }
    spec.set_mounts(Some(mounts));
    Ok(())
}

async fn unseal(source: &dyn SecretSource, sealed: &str, what: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let opened = source.unseal(sealed).await;
    opened.map_err(|error: SecretError| Failure::internal(format!("open the sealed secret in {what}: {}", chain(&error))))
}

fn text(secret: &[u8], name: &str) -> Result<String, Failure> {
    let text = std::str::from_utf8(secret).ok().filter(|text| !text.contains('\0'));
    text.map(str::to_owned).ok_or_else(|| Failure::internal(format!("the secret for environment variable {name} is not text")))
}

/// Regular files below a path, or the path itself, that begin as a sealed secret does. Links are not followed.
fn sealed_files(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (mut found, mut waiting, mut seen) = (Vec::new(), vec![path.to_owned()], 0);
    while let Some(path) = waiting.pop() {
        seen += 1;
        let metadata = fs::symlink_metadata(&path)?;
        if seen > MAX_ENTRIES {
            return Ok(Vec::new());
        }
        if metadata.is_dir() {
            for entry in fs::read_dir(&path)? {
                waiting.push(entry?.path());
            }
        } else if metadata.is_file() && (PREFIX.len() as u64..=MAX_SEALED_BYTES).contains(&metadata.len()) {
            let mut begin = [0; PREFIX.len()];
            fs::File::open(&path)?.read_exact(&mut begin)?;
            if begin == *PREFIX.as_bytes() {
                found.push(path);
            }
        }
    }
    Ok(found)
}

/// Copies files, folders and links with owners and modes.
fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(from)?;
    if metadata.is_dir() {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy_tree(&entry.path(), &to.join(entry.file_name()))?;
        }
    } else if metadata.is_symlink() {
        symlink(fs::read_link(from)?, to)?;
    } else {
        fs::create_dir_all(to.parent().unwrap_or(Path::new("/")))?;
        fs::copy(from, to)?;
    }
    lchown(to, Some(metadata.uid()), Some(metadata.gid()))?;
    if metadata.is_symlink() { Ok(()) } else { fs::set_permissions(to, fs::Permissions::from_mode(metadata.mode() & 0o7777)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_trait::async_trait;
    use oci_spec::runtime::{MountBuilder, ProcessBuilder, SpecBuilder};

    struct Names;

    #[async_trait]
    impl SecretSource for Names {
        async fn unseal(&self, sealed: &str) -> Result<Zeroizing<Vec<u8>>, SecretError> {
            match sealed {
                "sealed.a" => Ok(Zeroizing::new(b"plain".to_vec())),
                other => Err(SecretError::new(format!("no such secret {other}"))),
            }
        }
    }

    fn spec(environment: &[&str], mounted: &Path) -> Spec {
        let environment: Vec<String> = environment.iter().map(|text| (*text).to_owned()).collect();
        let process = ProcessBuilder::default().env(environment).build().unwrap();
        let mount = MountBuilder::default().destination("/secret").source(mounted).typ("bind").build().unwrap();
        SpecBuilder::default().process(process).mounts(vec![mount]).build().unwrap()
    }

    #[tokio::test]
    async fn values_and_files_are_opened_and_the_originals_left() {
        let share = tempfile::tempdir().unwrap();
        let (volume, folder) = (share.path().join("v"), share.path().join("unsealed"));
        fs::create_dir_all(volume.join("..data")).unwrap();
        fs::write(volume.join("..data/token"), "sealed.a\n").unwrap();
        fs::write(volume.join("..data/plain"), "open").unwrap();
        symlink("..data/token", volume.join("token")).unwrap();
        let mut spec = spec(&["A=sealed.a", "B=b", "C=unsealed.a"], &volume);
        open(&mut spec, share.path(), &folder, &Names).await.unwrap();
        let environment = spec.process().as_ref().unwrap().env().clone().unwrap();
        assert_eq!(environment, ["A=plain", "B=b", "C=unsealed.a"]);
        let seen = spec.mounts().as_ref().unwrap()[0].source().clone().unwrap();
        assert!(seen.starts_with(&folder));
        assert_eq!(fs::read_to_string(seen.join("token")).unwrap(), "plain");
        assert_eq!(fs::read_to_string(seen.join("..data/plain")).unwrap(), "open");
        assert_eq!(fs::read_to_string(volume.join("token")).unwrap(), "sealed.a\n");
    }

    #[tokio::test]
    async fn volume_without_sealed_files_stays_the_nodes() {
        let share = tempfile::tempdir().unwrap();
        let volume = share.path().join("v");
        fs::create_dir(&volume).unwrap();
        fs::write(volume.join("f"), "seal").unwrap();
        let mut spec = spec(&[], &volume);
        open(&mut spec, share.path(), &share.path().join("unsealed"), &Names).await.unwrap();
        assert_eq!(spec.mounts().as_ref().unwrap()[0].source().as_deref(), Some(volume.as_path()));
    }

    #[tokio::test]
    async fn secret_that_cannot_be_opened_fails_and_is_named() {
        let share = tempfile::tempdir().unwrap();
        let mut spec = spec(&["A=sealed.other"], share.path());
        let failure = open(&mut spec, share.path(), share.path(), &Names).await.unwrap_err();
        assert!(
            failure.message().contains("environment variable A") && failure.message().contains("no such secret"),
            "{}",
            failure.message()
        );
    }
}
