//! What layers become on disk, and what hostile ones are refused or confined to.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use common::{Image, Layer, Registry, chain, limits, names, pull, settled, store, store_with};
use peerpods_image::{LayerError, Limits, PullError, PulledImage};
use rustix::fs::{CWD, OFlags};
use tar::EntryType;

/// Pulls an image and gives the folder of each of its layers, bottom first.
async fn layers(folder: &Path, image: &Image) -> Vec<PathBuf> {
    let pulled: PulledImage = pull(&store(folder), &Registry::start(), image).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    pulled.layers.iter().map(|layer| folder.join("store/layers").join(layer.as_str().trim_start_matches("sha256:"))).collect()
}

async fn layer(folder: &Path, layer: Layer) -> PathBuf {
    layers(folder, &Image::of([layer.gzip()])).await.remove(0)
}

/// Pulls an image of one layer that has to be refused, and sees that nothing is left of it.
async fn refused(layer: Layer) -> LayerError {
    refused_with(layer, limits()).await
}

async fn refused_with(layer: Layer, limits: Limits) -> LayerError {
    let folder = tempfile::tempdir().unwrap();
    let error = pull(&store_with(folder.path(), limits), &Registry::start(), &Image::of([layer.gzip()])).await.unwrap_err();
    settled(folder.path()).await;
    assert!(names(&folder.path().join("store/layers")).is_empty());
    match error {
        PullError::Layer { source, .. } => source,
        other => panic!("{}", chain(&other)),
    }
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let file = rustix::fs::openat(CWD, path, OFlags::RDONLY, rustix::fs::Mode::empty()).unwrap();
    let mut value = vec![0; 256];
    let length = rustix::fs::fgetxattr(&file, name, &mut value).ok()?;
    value.truncate(length);
    Some(value)
}

fn is_whiteout(path: &Path) -> bool {
    let stat = path.symlink_metadata().unwrap();
    stat.file_type().is_char_device() && stat.rdev() == 0
}

#[tokio::test]
async fn ownership_modes_times_links_and_xattrs_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let capability = b"\x01\x00\x00\x02\x00\x04\x00\x0a\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    let root = layer(
        folder.path(),
        Layer::new()
            .entry("./", EntryType::Directory, "", b"", |header| header.set_mode(0o750))
            .entry("d/", EntryType::Directory, "", b"", |header| {
                header.set_mode(0o2771);
                header.set_uid(12);
            })
            .entry("d/setuid", EntryType::Regular, "", b"x", |header| {
                header.set_mode(0o4755);
                header.set_uid(1000);
                header.set_gid(1001);
            })
            .hard_link("d/hard", "d/setuid")
            .hard_link("d/again", "/d/hard")
            .symlink("d/soft", "/etc/../passwd")
            .hard_link("d/hard-soft", "d/soft")
            .entry("d/pipe", EntryType::Fifo, "", b"", |header| header.set_mode(0o622))
            .pax(&[
                ("SCHILY.xattr.security.capability", capability),
                ("SCHILY.xattr.user.note", b"n"),
                ("mtime", b"5.5"),
                ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ])
            .file("capable", b"c"),
    )
    .await;
    let stat = |path: &str| root.join(path).symlink_metadata().unwrap();
    assert_eq!(
        (stat("").mode() & 0o7777, stat("d").mode() & 0o7777, stat("d").uid(), stat("d").mtime()),
        (0o750, 0o2771, 12, 1_000_000_000)
    );
    let set_id = stat("d/setuid");
    assert_eq!((set_id.mode() & 0o7777, set_id.uid(), set_id.gid(), set_id.nlink()), (0o4755, 1000, 1001, 3));
    assert_eq!(stat("d/again").ino(), set_id.ino());
    assert_eq!(std::fs::read_link(root.join("d/soft")).unwrap(), Path::new("/etc/../passwd"));
    assert_eq!((stat("d/soft").mtime(), stat("d/soft").nlink()), (1_000_000_000, 2));
    assert!(stat("d/pipe").file_type().is_fifo() && stat("d/pipe").mode() & 0o777 == 0o622);
    assert_eq!(xattr(&root.join("capable"), "security.capability").unwrap(), capability);
    assert_eq!(xattr(&root.join("capable"), "user.note").unwrap(), b"n");
    assert_eq!(xattr(&root.join("capable"), "trusted.overlay.redirect"), None);
    assert_eq!((stat("capable").mtime(), stat("capable").mtime_nsec()), (5, 500_000_000));
}

#[tokio::test]
async fn whiteouts_take_overlay_form() {
    let folder = tempfile::tempdir().unwrap();
    let root = layer(
        folder.path(),
        Layer::new()
            .file("d/.wh.gone", b"")
            .folder("opaque/")
            .file("opaque/.wh..wh..opq", b"")
            .file("opaque/kept", b"k")
            // Removed below and made anew here, in both orders.
            .file(".wh.file", b"")
            .file("file", b"new")
            .folder("folder/")
            .file("folder/new", b"n")
            .file(".wh.folder", b"")
            .file(".wh.deep", b"")
            .file("deep/new", b"n")
            .file(".wh..wh.plnk", b""),
    )
    .await;
    assert!(is_whiteout(&root.join("d/gone")));
    for opaque in ["opaque", "folder", "deep"] {
        assert_eq!(xattr(&root.join(opaque), "trusted.overlay.opaque").as_deref(), Some(&b"y"[..]), "{opaque}");
    }
    assert_eq!(std::fs::read(root.join("opaque/kept")).unwrap(), b"k");
    assert_eq!(std::fs::read(root.join("file")).unwrap(), b"new");
    assert_eq!(names(&root), ["d", "deep", "file", "folder", "opaque"]);
    assert_eq!(xattr(&root.join("d"), "trusted.peerpods.implied"), None);
}

#[tokio::test]
async fn implied_folders_look_like_those_below() {
    let folder = tempfile::tempdir().unwrap();
    let bottom = Layer::new().entry("./", EntryType::Directory, "", b"", |header| header.set_mode(0o751)).entry(
        "tmp/",
        EntryType::Directory,
        "",
        b"",
        |header| {
            header.set_mode(0o1777);
            header.set_uid(7);
        },
    );
    let image = Image::of([bottom.gzip(), Layer::new().file("other", b"").gzip(), Layer::new().file("tmp/new/f", b"").gzip()]);
    let roots = layers(folder.path(), &image).await;
    let stat = |path: &str| roots[2].join(path).metadata().unwrap();
    assert_eq!((stat("tmp").mode() & 0o7777, stat("tmp").uid(), stat("tmp").mtime()), (0o1777, 7, 1_000_000_000));
    assert_eq!((stat("").mode() & 0o7777, stat("tmp/new").mode() & 0o7777, stat("tmp/new").uid()), (0o751, 0o755, 0));
}

#[tokio::test]
async fn later_entries_replace_earlier_ones() {
    let folder = tempfile::tempdir().unwrap();
    // A file is no folder for what follows.
    let error = refused(Layer::new().file("x", b"1").file("x/y", b"never")).await;
    assert!(matches!(error, LayerError::Path { reason: "a part of its path is a file or a link to nothing", .. }), "{error}");

    let root = layer(
        folder.path(),
        Layer::new()
            .file("a/b/c", b"1")
            .file("a", b"file over folder")
            .file("b", b"1")
            .hard_link("b2", "b")
            .file("b", b"22")
            .symlink("l", "b")
            .file("l", b"over the link")
            .symlink("s", "b2")
            .folder("s/")
            .file("s/in", b""),
    )
    .await;
    assert_eq!(std::fs::read(root.join("a")).unwrap(), b"file over folder");
    assert_eq!((std::fs::read(root.join("b")).unwrap(), std::fs::read(root.join("b2")).unwrap()), (b"22".to_vec(), b"1".to_vec()));
    assert_eq!(std::fs::read(root.join("l")).unwrap(), b"over the link");
    assert!(root.join("s").symlink_metadata().unwrap().is_dir());
}

#[tokio::test]
async fn absolute_paths_and_links_stay_inside() {
    let outside = tempfile::tempdir().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let target = outside.path().to_str().unwrap().to_owned();
    let up = "../".repeat(20);
    let root = layer(
        folder.path(),
        Layer::new()
            .file("/abs/file", b"1")
            .folder(&target)
            .symlink("out", &target)
            .file("out/evil", b"2")
            .symlink("up", &format!("{up}{}", target.trim_start_matches('/')))
            .file("up/evil2", b"3")
            .file("out/.wh.whiteout", b"")
            .hard_link("stolen", "out/evil"),
    )
    .await;
    assert!(names(outside.path()).is_empty());
    assert_eq!(std::fs::read(root.join("abs/file")).unwrap(), b"1");
    let inside = root.join(target.trim_start_matches('/'));
    assert_eq!(names(&inside), ["evil", "evil2", "whiteout"]);
    assert_eq!(std::fs::read(root.join("stolen")).unwrap(), b"2");
}

#[tokio::test]
async fn paths_that_leave_are_refused() {
    let secret = tempfile::tempdir().unwrap();
    std::fs::write(secret.path().join("secret"), b"s").unwrap();
    let secret = secret.path().join("secret").to_str().unwrap().to_owned();
    for path in ["../x", "a/../../x", "a/..", "/../x", ".."] {
        let error = refused(Layer::new().file(path, b"")).await;
        assert!(matches!(error, LayerError::Path { reason: "it goes up with ..", .. }), "{path}: {error}");
    }
    for target in [secret.as_str(), "../../../../etc/passwd", "", "/", "missing", "d", "dangling/x"] {
        let layer = Layer::new().folder("d").symlink("dangling", &secret).hard_link("h", target);
        let error = refused(layer).await;
        assert!(matches!(error, LayerError::HardLink { .. }), "{target}: {error}");
    }
    for path in ["proc", "/proc/self/fd/9/x", "."] {
        // Nothing is mounted inside a layer's folder, and the root is no file.
        let layer = Layer::new().symlink("l", "/proc/self/fd/0").file(path, b"");
        if path == "." {
            assert!(matches!(refused(layer).await, LayerError::Path { reason: "the root is not a folder", .. }));
        } else {
            pull(&store(tempfile::tempdir().unwrap().path()), &Registry::start(), &Image::of([layer.gzip()])).await.unwrap();
        }
    }
    assert!(matches!(refused(Layer::new().symlink("loop", "loop").file("loop/x", b"")).await, LayerError::Path { .. }));
    assert!(matches!(refused(Layer::new().symlink("gone", "nowhere").file("gone/x", b"")).await, LayerError::Path { .. }));
    assert!(matches!(refused(Layer::new().file(&"n".repeat(300), b"")).await, LayerError::Path { .. }));
    assert!(matches!(refused(Layer::new().pax(&[("path", b"a\0b")]).file("a", b"")).await, LayerError::Path { .. }));
}

#[tokio::test]
async fn depth_is_limited_through_links_too() {
    let error = refused(Layer::new().file(&("d/".repeat(300) + "f"), b"")).await;
    assert!(matches!(error, LayerError::Path { reason: "too many folders deep", .. }), "{error}");
    let error = refused(Layer::new().folder(&"d/".repeat(257)).file("x", b"")).await;
    assert!(matches!(error, LayerError::Path { .. }), "{error}");
    let deep = "d/".repeat(200);
    let error = refused(Layer::new().folder(&deep).symlink("l", &deep).folder(&format!("l/{}", "e/".repeat(100)))).await;
    assert!(matches!(error, LayerError::Path { reason: "too many folders deep", .. }), "{error}");
}

#[tokio::test]
async fn devices_are_refused_outside_dev_and_skipped_in_it() {
    for kind in [EntryType::Char, EntryType::Block] {
        let device = |path: &str| Layer::new().entry(path, kind, "", b"", |header| header.set_device_major(8).unwrap());
        assert!(matches!(refused(device("sda")).await, LayerError::Device { .. }));
        let folder = tempfile::tempdir().unwrap();
        assert!(names(&layer(folder.path(), device("./dev/sda")).await).is_empty());
    }
    // A device 0/0 would be a whiteout without the name of one.
    let zero = Layer::new().entry("x", EntryType::Char, "", b"", |header| {
        header.set_device_major(0).unwrap();
        header.set_device_minor(0).unwrap();
    });
    assert!(matches!(refused(zero).await, LayerError::Device { .. }));
    let sparse = Layer::new().entry("x", EntryType::GNUSparse, "", b"", |_| ());
    assert!(matches!(refused(sparse).await, LayerError::Kind { kind: 'S', .. }));
    for name in [".wh.", ".wh..", ".wh...", "d/.wh."] {
        assert!(matches!(refused(Layer::new().file(name, b"")).await, LayerError::Whiteout { .. }), "{name}");
    }
    let owner = Layer::new().pax(&[("uid", b"4294967295")]).file("x", b"");
    assert!(matches!(refused(owner).await, LayerError::Path { .. }));
}

#[tokio::test]
async fn bombs_are_stopped_by_ratio_size_entries_and_headers() {
    let zeros = vec![0; 8 << 20];
    let what = |error: LayerError| match error {
        LayerError::Limit { what, .. } => what,
        other => panic!("{other}"),
    };
    let by_ratio = Limits { ratio_free_bytes: 1 << 20, ratio: 20, ..limits() };
    assert_eq!(what(refused_with(Layer::new().file("z", &zeros), by_ratio).await), "times the compressed size after decompression");
    let by_size = Limits { layer_bytes: 1 << 20, ..limits() };
    assert_eq!(what(refused_with(Layer::new().file("z", &zeros), by_size).await), "bytes after decompression");
    let by_entries = Limits { layer_entries: 10, ..limits() };
    let many = (0..20).fold(Layer::new(), |layer, number| layer.file(&number.to_string(), b""));
    assert_eq!(what(refused_with(many, by_entries.clone()).await), "entries in the layer");
    assert_eq!(what(refused_with(Layer::new().file("1/2/3/4/5/6/7/8/9/10/11", b""), by_entries).await), "entries in the layer");
    let long = vec![b'x'; 2 << 20];
    assert_eq!(what(refused(Layer::new().pax(&[("comment", &long)]).file("x", b"")).await), "bytes of headers of one entry");
    // Zeros after the archive's end count as well.
    let mut tar = Layer::new().file("x", b"").tar();
    tar.resize(4 << 20, 0);
    let folder = tempfile::tempdir().unwrap();
    let store = store_with(folder.path(), Limits { layer_bytes: 1 << 20, ..limits() });
    let error = pull(&store, &Registry::start(), &Image::of([common::image::gzip_of(&tar)])).await.unwrap_err();
    assert!(chain(&error).contains("bytes after decompression"), "{}", chain(&error));
}

#[tokio::test]
async fn oversized_attributes_are_not_taken_for_a_full_disk() {
    let error = refused(Layer::new().pax(&[("SCHILY.xattr.user.large", &[b'x'; 60_000])]).file("x", b"")).await;
    assert!(matches!(error, LayerError::Path { reason: "its extended attributes are too large", .. }), "{error}");
}

#[tokio::test]
async fn cut_archives_are_damaged() {
    let whole = Layer::new().file("x", &[7; 3000]).tar();
    for length in [100, 512, 1000, 3000] {
        let folder = tempfile::tempdir().unwrap();
        let image = Image::of([common::image::gzip_of(&whole[..length])]);
        let error = pull(&store(folder.path()), &Registry::start(), &image).await.unwrap_err();
        assert!(matches!(error, PullError::Layer { source: LayerError::Damaged { .. }, .. }), "{length}: {}", chain(&error));
    }
}
