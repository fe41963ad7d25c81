//! Sealed secrets: values that the node cannot read, in a container's environment and files.
//!
//! Kubernetes hands a secret to the node; a sealed one is only a name, signed by the pod's owner, for which the key broker has the value
//! (coco-guest's "sealed secret": `sealed.` and a JWS). It is opened here, in the guest, when a container is created: an environment
//! variable whose value begins so gets the value, and a mounted file whose content does is replaced in a copy of its folder, which the
//! container sees instead. Such a copy does not follow later changes of the secret. A secret that cannot be opened fails the container.
//!
//! Only files that a shim copied into the pod are looked at. Volumes that containers write to are left alone: what a workload writes
//! there is not its owner's word, and a copy would part containers that share it.
//!
//! Folders are walked from descriptor to descriptor and no link is followed, on threads for blocking work. A creation that is cancelled
//! waits for no broker; what was copied so far goes with its bundle.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags};
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::failure::{Failure, chain};
use crate::{SecretError, SecretSource, copy_file, copy_up};

/// What a sealed secret begins with.
const PREFIX: &str = "sealed.";
/// Longest sealed secret: a JWS of a few hundred bytes.
const MAX_SEALED_BYTES: u64 = 16 << 10;
/// Most files and folders of one mount; a volume of secrets has a handful, and whether a larger one has some must not stay unknown.
const MAX_ENTRIES: usize = 1 << 16;
/// Deepest folder of a mount.
const MAX_DEPTH: usize = 128;
/// The copy of a mount that is a single file.
const SINGLE: &str = "file";
const RESOLVE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// A copy of a mount, and what is sealed in it.
struct Copied {
    /// What the container is to see.
    source: PathBuf,
    /// The folder that the files are in.
    folder: PathBuf,
    files: Vec<SealedFile>,
}

struct SealedFile {
    /// In the copy.
    path: PathBuf,
    /// Where the mount's user finds it, below the mount; empty for the mount itself.
    shown: PathBuf,
    sealed: String,
}

/// Opens the sealed secrets of a container. `copied` is the folder of what shims copied; copies of that go below `folder`.
pub(crate) async fn open(
    spec: &mut Spec,
    copied: &Path,
    folder: &Path,
    source: &dyn SecretSource,
    cancelled: &mut watch::Receiver<bool>,
) -> Result<(), Failure> {
    if let Some(mut process) = spec.process().clone() {
        let mut environment = process.env().clone().unwrap_or_default();
        for variable in &mut environment {
            let Some((name, value)) = variable.split_once('=') else { continue };
            if value.starts_with(PREFIX) {
                let secret = unseal(source, value, &format!("environment variable {name}"), cancelled).await?;
                *variable = format!("{name}={}", text(&secret, name)?);
            }
        }
        process.set_env(Some(environment));
        spec.set_process(Some(process));
    }
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for (number, mount) in mounts.iter_mut().enumerate() {
        let Some(inside) = mount.source().as_deref().and_then(|from| from.strip_prefix(copied).ok()).filter(|inside| is_copied(inside))
        else {
            continue;
        };
        let (base, inside, copy) = (copied.to_owned(), inside.to_owned(), folder.join(number.to_string()));
        let looked = format!("looking for sealed secrets in {}", mount.destination().display());
        let Some(copied) = blocking(&looked, move || copy_if_sealed(&base, &inside, &copy)).await? else { continue };
        let mut opened = Vec::new();
        for file in copied.files {
            let destination = mount.destination();
            let path = if file.shown.as_os_str().is_empty() { destination.clone() } else { destination.join(&file.shown) };
            let what = format!("file {}", path.display());
            opened.push((file.path, unseal(source, file.sealed.trim_end(), &what, cancelled).await?));
        }
        let into = copied.folder;
        blocking("writing secrets", move || opened.iter().try_for_each(|(path, secret)| write(&into, path, secret))).await?;
        mount.set_source(Some(copied.source));
    }
    spec.set_mounts(Some(mounts));
    Ok(())
}

/// Whether a path below the folder of copies is, or is in, such a copy.
fn is_copied(inside: &Path) -> bool {
    let first = inside.components().next().and_then(|name| name.as_os_str().to_str());
    first.is_some_and(|name| copy_file::is_copy(name, None))
}

async fn blocking<T: Send + 'static>(what: &str, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|error| Failure::because(what, &error))?;
    done.map_err(|error| Failure::because(what, &error))
}

async fn unseal(
    source: &dyn SecretSource,
    sealed: &str,
    what: &str,
    cancelled: &mut watch::Receiver<bool>,
) -> Result<Zeroizing<Vec<u8>>, Failure> {
    tokio::select! {
        opened = source.unseal(sealed) => {
            opened.map_err(|error: SecretError| Failure::internal(format!("open the sealed secret in {what}: {}", chain(&error))))
        }
        _ = cancelled.wait_for(|cancelled| *cancelled) => Err(Failure::cancelled()),
    }
}

fn text(secret: &[u8], name: &str) -> Result<String, Failure> {
    let text = std::str::from_utf8(secret).ok().filter(|text| !text.contains('\0'));
    text.map(str::to_owned).ok_or_else(|| Failure::internal(format!("the secret for environment variable {name} is not text")))
}

/// Copies a file or folder below `base` into the new folder `to`, if it has sealed secrets.
fn copy_if_sealed(base: &Path, inside: &Path, to: &Path) -> io::Result<Option<Copied>> {
    let base = rustix::fs::open(base, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let from = rustix::fs::openat2(&base, inside, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty(), RESOLVE)?;
    let stat = rustix::fs::fstat(&from)?;
    let is_folder = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => true,
        FileType::RegularFile => false,
        _ => return Ok(None),
    };
    let is_sealed = if is_folder { !sealed_files(&from)?.is_empty() } else { sealed(&mut File::from(from.try_clone()?))?.is_some() };
    if !is_sealed {
        return Ok(None);
    }
    fs::create_dir_all(to)?;
    let copy = rustix::fs::open(to, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    if is_folder {
        copy_up::copy_folder(&from, &copy, 0)?;
        copy_up::own(&copy, &stat)?;
    } else {
        copy_up::copy_file(from, &copy, SINGLE, &stat)?;
    }
    // The node may have changed the original meanwhile; nobody but this agent reaches the copy.
    let mut files = sealed_files(&copy)?;
    if !is_folder {
        files.iter_mut().for_each(|file| file.shown = PathBuf::new());
    }
    Ok(Some(Copied { source: if is_folder { to.to_owned() } else { to.join(SINGLE) }, folder: to.to_owned(), files }))
}

/// Regular files in a folder that begin as a sealed secret does.
fn sealed_files(folder: &OwnedFd) -> io::Result<Vec<SealedFile>> {
    let (mut found, mut seen) = (Vec::new(), 0);
    walk(folder, Path::new(""), 0, &mut seen, &mut found)?;
    Ok(found)
}

fn walk(folder: &OwnedFd, path: &Path, depth: usize, seen: &mut usize, found: &mut Vec<SealedFile>) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        *seen += 1;
        if *seen > MAX_ENTRIES || depth > MAX_DEPTH {
            let text = format!("it has more than {MAX_ENTRIES} files and folders, or more than {MAX_DEPTH} folders in each other");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
        }
        let path = path.join(std::ffi::OsStr::from_bytes(name.to_bytes()));
        match FileType::from_raw_mode(rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode) {
            FileType::Directory => {
                let inner = rustix::fs::openat(folder, name, flags | OFlags::DIRECTORY, Mode::empty())?;
                walk(&inner, &path, depth + 1, seen, found)?;
            }
            FileType::RegularFile => {
                let file = rustix::fs::openat(folder, name, flags, Mode::empty())?;
                if let Some(sealed) = sealed(&mut File::from(file))? {
                    found.push(SealedFile { shown: path.clone(), path, sealed });
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// The content of a file, if it begins as a sealed secret does and is no longer than one.
fn sealed(file: &mut File) -> io::Result<Option<String>> {
    if file.metadata()?.len() > MAX_SEALED_BYTES {
        return Ok(None);
    }
    let mut content = Vec::new();
    file.take(MAX_SEALED_BYTES).read_to_end(&mut content)?;
    // Whoever copies the file reads it from the same descriptor.
    file.rewind()?;
    Ok(String::from_utf8(content).ok().filter(|text| text.starts_with(PREFIX)))
}

/// Puts a secret in place of its sealed form.
fn write(folder: &Path, path: &Path, secret: &[u8]) -> io::Result<()> {
    let folder = rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let file = rustix::fs::openat2(&folder, path, OFlags::WRONLY | OFlags::TRUNC | OFlags::CLOEXEC, Mode::empty(), RESOLVE)?;
    File::from(file).write_all(secret)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

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

    /// Never answers.
    struct Silent;

    #[async_trait]
    impl SecretSource for Silent {
        async fn unseal(&self, _: &str) -> Result<Zeroizing<Vec<u8>>, SecretError> {
            std::future::pending().await
        }
    }

    const COPY: &str = "c1-0123456789abcdef-v";

    async fn opened(spec: &mut Spec, share: &Path) -> Result<(), Failure> {
        let (_keep, mut cancelled) = watch::channel(false);
        open(spec, share, &share.join("unsealed"), &Names, &mut cancelled).await
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
        let volume = share.path().join(COPY);
        fs::create_dir_all(volume.join("..data")).unwrap();
        fs::write(volume.join("..data/token"), "sealed.a\n").unwrap();
        fs::write(volume.join("..data/plain"), "open").unwrap();
        symlink("..data/token", volume.join("token")).unwrap();
        let mut spec = spec(&["A=sealed.a", "B=b", "C=unsealed.a"], &volume);
        opened(&mut spec, share.path()).await.unwrap();
        let environment = spec.process().as_ref().unwrap().env().clone().unwrap();
        assert_eq!(environment, ["A=plain", "B=b", "C=unsealed.a"]);
        let seen = spec.mounts().as_ref().unwrap()[0].source().clone().unwrap();
        assert!(seen.starts_with(share.path().join("unsealed")));
        assert_eq!(fs::read_to_string(seen.join("token")).unwrap(), "plain");
        assert_eq!(fs::read_to_string(seen.join("..data/plain")).unwrap(), "open");
        assert_eq!(fs::read_to_string(volume.join("token")).unwrap(), "sealed.a\n");
    }

    #[tokio::test]
    async fn single_file_is_opened_too() {
        let share = tempfile::tempdir().unwrap();
        let volume = share.path().join(COPY);
        fs::create_dir(&volume).unwrap();
        fs::write(volume.join("key"), "sealed.a").unwrap();
        let mut spec = spec(&[], &volume.join("key"));
        opened(&mut spec, share.path()).await.unwrap();
        let seen = spec.mounts().as_ref().unwrap()[0].source().clone().unwrap();
        assert_eq!(fs::read_to_string(seen).unwrap(), "plain");
        fs::remove_dir_all(share.path().join("unsealed")).unwrap();
        fs::write(volume.join("key"), "sealed.other").unwrap();
        let failure = opened(&mut self::spec(&[], &volume.join("key")), share.path()).await.unwrap_err();
        assert!(failure.message().contains("file /secret:"), "{}", failure.message());
    }

    #[tokio::test]
    async fn volume_without_sealed_files_stays_the_nodes() {
        let share = tempfile::tempdir().unwrap();
        let volume = share.path().join(COPY);
        fs::create_dir(&volume).unwrap();
        fs::write(volume.join("f"), "seal").unwrap();
        let mut spec = spec(&[], &volume);
        opened(&mut spec, share.path()).await.unwrap();
        assert_eq!(spec.mounts().as_ref().unwrap()[0].source().as_deref(), Some(volume.as_path()));
    }

    #[tokio::test]
    async fn what_containers_write_and_where_links_lead_is_never_opened() {
        let share = tempfile::tempdir().unwrap();
        let cache = share.path().join("passthrough/s/rootfs/local/cache");
        fs::create_dir_all(&cache).unwrap();
        fs::write(cache.join("f"), "sealed.a").unwrap();
        let mut volume = spec(&[], &cache);
        opened(&mut volume, share.path()).await.unwrap();
        assert_eq!(volume.mounts().as_ref().unwrap()[0].source().as_deref(), Some(cache.as_path()));
        // Neither as the mount's source nor on the way to it.
        symlink(&cache, share.path().join(COPY)).unwrap();
        for from in [COPY.to_owned(), format!("{COPY}/f")] {
            assert!(opened(&mut spec(&[], &share.path().join(&from)), share.path()).await.is_err(), "{from}");
        }
        assert_eq!(fs::read_to_string(cache.join("f")).unwrap(), "sealed.a");
    }

    #[tokio::test]
    async fn volume_that_is_too_large_to_be_looked_through_fails() {
        let share = tempfile::tempdir().unwrap();
        let mut folder = share.path().join(COPY);
        for _ in 0..MAX_DEPTH + 2 {
            folder.push("d");
        }
        fs::create_dir_all(&folder).unwrap();
        let failure = opened(&mut spec(&[], &share.path().join(COPY)), share.path()).await.unwrap_err();
        assert!(failure.message().contains("secrets in /secret: it has more than"), "{}", failure.message());
    }

    #[tokio::test]
    async fn cancelled_creation_waits_for_no_broker() {
        let share = tempfile::tempdir().unwrap();
        let (cancel, mut cancelled) = watch::channel(false);
        let (mut spec, folder) = (spec(&["A=sealed.a"], share.path()), share.path().join("unsealed"));
        let opening = open(&mut spec, share.path(), &folder, &Silent, &mut cancelled);
        cancel.send_replace(true);
        let result = tokio::time::timeout(std::time::Duration::from_secs(30), opening).await.expect("it ends");
        assert_eq!(result.unwrap_err().message(), Failure::cancelled().message());
    }

    #[tokio::test]
    async fn secret_that_cannot_be_opened_fails_and_is_named() {
        let share = tempfile::tempdir().unwrap();
        let failure = opened(&mut spec(&["A=sealed.other"], share.path()), share.path()).await.unwrap_err();
        assert!(
            failure.message().contains("environment variable A") && failure.message().contains("no such secret"),
            "{}",
            failure.message()
        );
    }
}
