//! The store's folder over processes and full disks, and overlays of what is in it. Runs as root.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use common::broker::{Broker, KEK, KID, encrypted};
use common::image::zstd_of;
use common::{Image, Layer, Registry, chain, limits, names, policy, pull, settled, store, store_with};
use peerpods_image::{Limits, MountError, OpenError, PullError, PullPolicy, Store, StoreConfig};
use rustix::mount::{MountFlags, UnmountFlags};
use tar::EntryType;

/// Mounts need root, and CI runs these as root.
fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("not checked: mounting needs root");
    }
    root
}

/// A file system of a few MiB.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(bytes: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = std::ffi::CString::new(format!("size={bytes}")).unwrap();
        rustix::mount::mount("tmpfs", folder.path(), "tmpfs", MountFlags::empty(), Some(options.as_c_str())).unwrap();
        Self(folder)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.path(), UnmountFlags::DETACH);
    }
}

#[test]
fn store_belongs_to_one_process_and_one_version() {
    let folder = tempfile::tempdir().unwrap();
    let open = || Store::open(StoreConfig::new(folder.path().join("store")));
    let first = open().unwrap();
    assert!(matches!(open(), Err(OpenError::InUse { .. })));
    drop(first);
    drop(open().unwrap());
    // Version 1 gave decrypted layers to whoever named them.
    for version in ["1", "7"] {
        std::fs::write(folder.path().join("store/version"), format!("{version}\n")).unwrap();
        let Err(error) = open() else { panic!() };
        let expected = format!("has format \"{version}\", this version reads \"2\": remove the folder");
        assert!(error.to_string().contains(&expected), "{error}");
    }
    std::fs::write(folder.path().join("file"), "").unwrap();
    assert!(matches!(Store::open(StoreConfig::new(folder.path().join("file"))), Err(OpenError::Prepare { .. })));
}

#[tokio::test]
async fn leftovers_of_a_dead_process_are_thrown_away() {
    let folder = tempfile::tempdir().unwrap();
    let image = Image::of([Layer::new().file("f", b"x").gzip()]);
    pull(&store(folder.path()), &Registry::start(), &image).await.unwrap();
    let half = folder.path().join("store/tmp/0/a/b");
    std::fs::create_dir_all(&half).unwrap();
    std::os::unix::fs::symlink("/etc", half.join("etc")).unwrap();
    std::fs::write(folder.path().join("store/tmp/0.pending"), b"x").unwrap();
    let store = store(folder.path());
    assert!(names(&folder.path().join("store/tmp")).is_empty());
    assert!(Path::new("/etc/passwd").exists());
    let registry = Registry::start();
    pull(&store, &registry, &image).await.unwrap();
    assert_eq!(registry.fetches(&image.layers[0].bytes), 0);
}

#[tokio::test]
async fn full_disk_is_named_before_and_while_unpacking() {
    if !root() {
        return;
    }
    let disk = SmallDisk::new(4 << 20);
    let registry = Registry::start();
    // Incompressible: known before the download.
    let mut noise = vec![0; 6 << 20];
    noise.iter_mut().fold(1_u32, |state, byte| {
        let next = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = next.to_be_bytes()[0];
        next
    });
    let image = Image::of([Layer::new().file("noise", &noise).gzip()]);
    let error = pull(&store(disk.0.path()), &registry, &image).await.unwrap_err();
    assert!(matches!(error, PullError::NoSpace { needed, free, .. } if needed > 5 << 20 && free < 5 << 20), "{}", chain(&error));
    assert_eq!(registry.fetches(&image.layers[0].bytes), 0);

    // Beside what is unpacked lies the ciphertext.
    let image = Image::of([encrypted(&Layer::new().file("noise", &noise[..3 << 20]).plain())]);
    registry.push("app", "1", &image);
    let pulling = PullPolicy { resources: Broker::of([(KID, KEK.to_vec())]).resources(), ..policy(&registry) };
    let name = format!("{}/app:1", registry.host());
    let error = store(disk.0.path()).pull(&name, &pulling, None).await.unwrap_err();
    assert!(matches!(error, PullError::NoSpace { needed, free, .. } if needed > 6 << 20 && free < 5 << 20), "{}", chain(&error));
    assert_eq!(registry.fetches(&image.layers[0].bytes), 0);
    // One that fits so far as can be known, and does not fit.
    let zeros = zstd_of(&Layer::new().file("zeros", &[&noise[..1 << 20], &vec![0; 6 << 20][..]].concat()).tar(), 3);
    registry.push("app", "1", &Image::of([encrypted(&zeros)]));
    let error = store(disk.0.path()).pull(&name, &pulling, None).await.unwrap_err();
    assert!(matches!(error, PullError::NoSpace { .. }), "{}", chain(&error));
    settled(disk.0.path()).await;

    // Compressible: known when the disk says so, or when the reserve is reached.
    let image = Image::of([Layer::new().file("zeros", &vec![0; 6 << 20]).gzip()]);
    for reserve_bytes in [0, 1 << 20] {
        let store = store_with(disk.0.path(), Limits { reserve_bytes, ..limits() });
        let error = pull(&store, &registry, &image).await.unwrap_err();
        assert!(matches!(error, PullError::NoSpace { needed, free, .. } if needed > free), "{}", chain(&error));
        assert!(error.to_string().starts_with(&format!("no space for {}/app:1: at least ", registry.host())), "{error}");
        settled(disk.0.path()).await;
    }
    let small = Image::of([Layer::new().file("f", b"x").gzip()]);
    pull(&store(disk.0.path()), &registry, &small).await.unwrap();
}

#[tokio::test]
async fn overlay_shows_the_image_and_forgets_what_is_written() {
    if !root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let bottom = Layer::new()
        .entry("./", EntryType::Directory, "", b"", |header| header.set_mode(0o751))
        .file("gone", b"1")
        .file("hidden/old", b"1")
        .file("kept/old", b"1");
    let top = Layer::new().file(".wh.gone", b"").file("hidden/.wh..wh..opq", b"").file("hidden/new", b"2").file("kept/new", b"2");
    let pulled = pull(&store, &Registry::start(), &Image::of([bottom.gzip(), top.gzip()])).await.unwrap();
    let (one, two) = (folder.path().join("one,:\\"), folder.path().join("two"));
    for target in [&one, &two] {
        std::fs::create_dir(target).unwrap();
        store.mount(&pulled, target).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert_eq!(names(target), ["hidden", "kept"]);
        assert_eq!(names(&target.join("hidden")), ["new"]);
        assert_eq!(names(&target.join("kept")), ["new", "old"]);
        assert_eq!(target.metadata().unwrap().mode() & 0o7777, 0o751);
    }
    std::fs::write(one.join("kept/old"), "changed").unwrap();
    std::fs::remove_file(one.join("kept/new")).unwrap();
    assert_eq!(std::fs::read(two.join("kept/old")).unwrap(), b"1");
    assert!(matches!(store.mount(&pulled, &one).await, Err(MountError::Busy { .. })));

    store.unmount(&one).await.unwrap();
    assert!(names(&one).is_empty());
    assert!(matches!(store.unmount(&one).await, Err(MountError::NotMounted { .. })));
    store.mount(&pulled, &one).await.unwrap();
    assert_eq!(std::fs::read(one.join("kept/old")).unwrap(), b"1");

    // Another process's mounts can be taken away, and its half-made ones do not stand in the way.
    drop(store);
    let store = common::store(folder.path());
    assert!(matches!(store.mount(&pulled, &one).await, Err(MountError::Busy { .. })));
    store.unmount(&two).await.unwrap();
    rustix::mount::unmount(&one, UnmountFlags::empty()).unwrap();
    store.mount(&pulled, &one).await.unwrap();

    // Still open: detached.
    let file = std::fs::File::open(one.join("kept/old")).unwrap();
    store.unmount(&one).await.unwrap();
    drop(file);
    assert!(names(&folder.path().join("store/mounts")).is_empty());
    assert!(matches!(store.mount(&pulled, &folder.path().join("missing")).await, Err(MountError::Kernel { .. })));
    assert!(names(&folder.path().join("store/mounts")).is_empty());
}

#[tokio::test]
async fn images_of_no_and_of_many_layers_mount() {
    if !root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (store, registry) = (store(folder.path()), Registry::start());
    let target = folder.path().join("target");
    std::fs::create_dir(&target).unwrap();
    for count in [0_usize, 128] {
        let image = Image::of((0..count).map(|number| Layer::new().file(&format!("f{number}"), b"").gzip()));
        let pulled = pull(&store, &registry, &image).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
        store.mount(&pulled, &target).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert_eq!(names(&target).len(), count);
        std::fs::write(target.join("new"), "").unwrap();
        store.unmount(&target).await.unwrap();
    }
    let image = Image::of((0..129).map(|number| Layer::new().file(&format!("f{number}"), b"").gzip()));
    assert!(chain(&pull(&store, &registry, &image).await.unwrap_err()).contains("129 layers; at most 128"));
}

#[tokio::test]
async fn unused_layers_are_removed_and_mounted_ones_stay() {
    if !root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (store, registry) = (store(folder.path()), Registry::start());
    let used = pull(&store, &registry, &Image::of([Layer::new().file("used", b"").gzip()])).await.unwrap();
    let unused = pull(&store, &registry, &Image::of([Layer::new().file("unused", b"").gzip()])).await.unwrap();
    let target = folder.path().join("target");
    std::fs::create_dir(&target).unwrap();
    store.mount(&used, &target).await.unwrap();
    assert_eq!(store.remove_unused_layers().await.unwrap(), 1);
    let error = store.mount(&unused, &folder.path().join("other")).await.unwrap_err();
    assert!(matches!(error, MountError::MissingLayer { .. }));
    assert_eq!(names(&target), ["used"]);
    store.unmount(&target).await.unwrap();
    assert_eq!(store.remove_unused_layers().await.unwrap(), 1);
    settled(folder.path()).await;
    store.pull(&format!("{}/app:1", registry.host()), &policy(&registry), None).await.unwrap();
}

#[tokio::test]
async fn capabilities_work_in_a_mounted_image() {
    if !root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let capability = b"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    let layer = Layer::new().pax(&[("SCHILY.xattr.security.capability", capability)]).file("bin/tool", b"#!");
    let store = store(folder.path());
    let pulled = pull(&store, &Registry::start(), &Image::of([layer.gzip()])).await.unwrap();
    let target = folder.path().join("target");
    std::fs::create_dir(&target).unwrap();
    store.mount(&pulled, &target).await.unwrap();
    let mut value = vec![0; 64];
    let length = rustix::fs::lgetxattr(target.join("bin/tool"), "security.capability", &mut value).unwrap();
    assert_eq!(&value[..length], capability);
    let listed = Command::new("stat").arg("-f").arg("-c").arg("%T").arg(&target).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&listed.stdout).trim(), "overlayfs");
    store.unmount(&target).await.unwrap();
}
