use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};

use tempfile::TempDir;

use super::*;

fn copier() -> (TempDir, FileCopier) {
    let share = tempfile::tempdir().unwrap();
    let copier = FileCopier::new(share.path());
    copier.prepare().unwrap();
    (share, copier)
}

fn request(copier: &FileCopier, name: &str, mode: u32, data: &[u8]) -> CopyFileRequest {
    let own = fs::metadata(&copier.base).unwrap();
    let mut request = CopyFileRequest::new();
    request.path = format!("{}/{name}", copier.base.display());
    request.file_mode = mode;
    request.file_size = i64::try_from(data.len()).unwrap();
    request.data = data.to_vec();
    request.uid = i32::try_from(own.uid()).unwrap();
    request.gid = i32::try_from(own.gid()).unwrap();
    request
}

fn staged(copier: &FileCopier) -> usize {
    fs::read_dir(&copier.staging).unwrap().count()
}

#[test]
fn file_arrives_with_its_mode() {
    let (_share, copier) = copier();
    copier.copy(&request(&copier, "c-1-hosts", 0o100_640, b"127.0.0.1 x\n")).unwrap();
    let file = copier.base.join("c-1-hosts");
    assert_eq!(fs::read(&file).unwrap(), b"127.0.0.1 x\n");
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o640);
    assert_eq!(staged(&copier), 0);
}

#[test]
fn empty_file_arrives() {
    let (_share, copier) = copier();
    copier.copy(&request(&copier, "termination-log", 0o100_666, b"")).unwrap();
    assert_eq!(fs::metadata(copier.base.join("termination-log")).unwrap().len(), 0);
}

#[test]
fn chunks_appear_only_when_complete() {
    let (_share, copier) = copier();
    let mut chunk = request(&copier, "big", 0o100_644, b"first");
    chunk.file_size = 11;
    copier.copy(&chunk).unwrap();
    assert!(!copier.base.join("big").exists());
    chunk.offset = 5;
    chunk.data = b"-second".to_vec();
    chunk.file_size = 12;
    copier.copy(&chunk).unwrap();
    assert_eq!(fs::read(copier.base.join("big")).unwrap(), b"first-second");
    assert_eq!(staged(&copier), 0);
}

#[test]
fn chunks_out_of_order_are_refused_and_dropped() {
    let (_share, copier) = copier();
    let mut chunk = request(&copier, "big", 0o100_644, b"abc");
    chunk.file_size = 10;
    copier.copy(&chunk).unwrap();
    chunk.offset = 7;
    assert_eq!(copier.copy(&chunk).unwrap_err().to_string(), format!("{}/big: chunks out of order", copier.base.display()));
    chunk.offset = 3;
    assert!(copier.copy(&chunk).is_err(), "the first chunk is gone");
    assert_eq!(staged(&copier), 0);
}

#[test]
fn sizes_are_checked() {
    let (_share, copier) = copier();
    let mut chunk = request(&copier, "f", 0o100_644, b"abc");
    for (size, offset) in [(2, 0), (-1, 0), (3, -1), (i64::MAX, 0), (3, i64::MAX)] {
        chunk.file_size = size;
        chunk.offset = offset;
        assert!(matches!(copier.copy(&chunk), Err(CopyFileError::Chunk { .. })), "{size} {offset}");
    }
}

#[test]
fn paths_outside_are_refused() {
    let (_share, copier) = copier();
    let base = copier.base.display().to_string();
    for path in [
        "/etc/passwd".to_owned(),
        base.clone(),
        format!("{base}/"),
        format!("{base}/../x"),
        format!("{base}/a/../../x"),
        format!("{base}-other/x"),
        "x".to_owned(),
        String::new(),
        format!("{base}/a\0b"),
    ] {
        let mut outside = request(&copier, "x", 0o100_644, b"evil");
        outside.path.clone_from(&path);
        assert!(matches!(copier.copy(&outside), Err(CopyFileError::Outside { .. })), "{path}");
    }
}

#[test]
fn links_are_made_but_never_followed() {
    let (share, copier) = copier();
    let outside = share.path().join("outside");
    fs::create_dir(&outside).unwrap();
    // As a container could, in a volume it may write to.
    symlink(&outside, copier.base.join("evil")).unwrap();
    for kind in [0o100_644, 0o040_755, 0o120_000] {
        assert!(matches!(copier.copy(&request(&copier, "evil/x", kind, b"data")), Err(CopyFileError::Io { .. })), "{kind:o}");
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    // A folder is not made "over" a link, and the link's target keeps its mode.
    let before = fs::metadata(&outside).unwrap().mode();
    assert!(copier.copy(&request(&copier, "evil", 0o040_700, b"")).is_err());
    assert_eq!(fs::metadata(&outside).unwrap().mode(), before);
    // A file replaces a link and does not write through it.
    let target = outside.join("target");
    fs::write(&target, "old").unwrap();
    symlink(&target, copier.base.join("link")).unwrap();
    copier.copy(&request(&copier, "link", 0o100_644, b"new")).unwrap();
    assert_eq!(fs::read_to_string(&target).unwrap(), "old");
    assert!(fs::symlink_metadata(copier.base.join("link")).unwrap().is_file());
}

#[test]
fn devices_pipes_and_sockets_are_refused() {
    let (_share, copier) = copier();
    // A character device without content is a whiteout.
    for (kind, data) in [(0o020_666, &b"x"[..]), (0o060_666, b""), (0o010_666, b""), (0o140_666, b"")] {
        assert!(matches!(copier.copy(&request(&copier, "d", kind, data)), Err(CopyFileError::Type { .. })), "{kind:o}");
    }
}

#[test]
fn watched_folder_switches_atomically() {
    let (_share, copier) = copier();
    let dir = 0o040_755;
    let link = 0o120_000;
    let copy = |name: &str, kind: u32, data: &[u8]| copier.copy(&request(&copier, name, kind, data)).unwrap();
    copy("c-conf", dir, b"");
    copy("c-conf/..v1", dir, b"");
    copy("c-conf/..data", link, b"..v1");
    copy("c-conf/key", link, b"..data/key");
    copy("c-conf/..v1/key", 0o100_644, b"one");
    assert_eq!(fs::read_to_string(copier.base.join("c-conf/key")).unwrap(), "one");
    // The shim switches the link before the new files come.
    copy("c-conf/..v2", dir, b"");
    copy("c-conf/..data", link, b"..v2");
    copy("c-conf/..v2/key", 0o100_644, b"two");
    assert_eq!(fs::read_to_string(copier.base.join("c-conf/key")).unwrap(), "two");
    // Again, as after a second event.
    copy("c-conf", dir, b"");
    copy("c-conf/..v2", dir, b"");
    assert_eq!(fs::read_to_string(copier.base.join("c-conf/..v1/key")).unwrap(), "one");
}

#[test]
fn a_whiteout_takes_away_what_is_there_and_nothing_through_a_link() {
    const WHITEOUT: u32 = 0o020_000;
    let (share, copier) = copier();
    copier.copy(&request(&copier, "volume", 0o040_755, b"")).unwrap();
    copier.copy(&request(&copier, "volume/old", 0o040_755, b"")).unwrap();
    copier.copy(&request(&copier, "volume/old/key", 0o100_644, b"x")).unwrap();
    assert!(copier.copy(&request(&copier, "volume/old", WHITEOUT, b"")).is_err(), "a folder that is not empty");
    for _twice in 0..2 {
        copier.copy(&request(&copier, "volume/old/key", WHITEOUT, b"")).unwrap();
        copier.copy(&request(&copier, "volume/old", WHITEOUT, b"")).unwrap();
    }
    assert!(copier.base.join("volume").exists() && !copier.base.join("volume/old").exists());
    fs::write(share.path().join("outside"), "x").unwrap();
    symlink(share.path(), copier.base.join("evil")).unwrap();
    assert!(copier.copy(&request(&copier, "evil/outside", WHITEOUT, b"")).is_err());
    assert!(copier.copy(&request(&copier, "../outside", WHITEOUT, b"")).is_err());
    copier.copy(&request(&copier, "evil", WHITEOUT, b"")).unwrap();
    assert!(share.path().join("outside").exists());
    assert!(copier.copy(&request(&copier, "volume", WHITEOUT, b"data")).is_err());
}

#[test]
fn copies_are_known_by_their_names() {
    let own = "c-1-0123456789abcdef-token";
    assert!(is_copy(own, Some("c-1")) && is_copy(own, None));
    for id in ["c", "c-1-0123456789abcdef", "c-2", ""] {
        assert!(!is_copy(own, Some(id)), "{id}");
    }
    for name in ["passthrough", "c-1", "c-0123456789abcdef", "c-0123456789abcdef-", "-0123456789abcdef-x", "c-0123456789abcde-x"] {
        assert!(!is_copy(name, None), "{name}");
    }
}
