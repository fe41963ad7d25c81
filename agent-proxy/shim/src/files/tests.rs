//! Copies and their updates against an agent that keeps what it is sent in a folder.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use peerpods_protos::agent::CopyFileRequest;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::{AgentFiles, Watcher, copy};
use crate::plan::Copy;

const TARGET: &str = "/guest/volume";

/// An agent whose guest is a folder.
#[derive(Clone)]
struct Guest {
    root: Arc<TempDir>,
    paths: Arc<Mutex<Vec<String>>>,
    refuses_removals: bool,
}

impl Guest {
    fn new(refuses_removals: bool) -> Self {
        Self { root: Arc::new(tempfile::tempdir().unwrap()), paths: Arc::default(), refuses_removals }
    }

    fn path(&self, guest: &str) -> PathBuf {
        self.root.path().join(guest.trim_start_matches('/'))
    }

    fn read(&self, below: &str) -> Option<String> {
        std::fs::read_to_string(self.path(&format!("{TARGET}/{below}"))).ok()
    }

    /// What was sent since the last call, below the volume.
    fn sent(&self) -> Vec<String> {
        let paths = std::mem::take(&mut *self.paths.lock().unwrap());
        paths.iter().map(|path| path.trim_start_matches(TARGET).trim_start_matches('/').to_owned()).collect()
    }

    fn take(&self, request: &CopyFileRequest) -> std::io::Result<()> {
        let path = self.path(&request.path);
        match request.file_mode & 0o170_000 {
            0o040_000 => std::fs::create_dir_all(path),
            0o120_000 => {
                let new = self.root.path().join("new-link");
                symlink(std::str::from_utf8(&request.data).unwrap(), &new)?;
                std::fs::rename(new, path)
            }
            0o020_000 => std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir(&path)),
            _ => {
                let mut content = if request.offset == 0 { Vec::new() } else { std::fs::read(&path)? };
                assert_eq!(content.len() as i64, request.offset, "pieces come in order");
                content.extend(&request.data);
                std::fs::create_dir_all(path.parent().unwrap())?;
                std::fs::write(path, content)
            }
        }
    }
}

#[async_trait]
impl AgentFiles for Guest {
    async fn copy_file(&self, request: &CopyFileRequest) -> ttrpc::Result<()> {
        assert!(request.data.len() <= 1 << 20, "a piece fits into a frame");
        if self.refuses_removals && request.file_mode & 0o170_000 == 0o020_000 {
            return Err(ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::INVALID_ARGUMENT, "no such type".to_owned())));
        }
        self.paths.lock().unwrap().push(request.path.clone());
        self.take(request).map_err(|error| ttrpc::Error::Others(error.to_string()))
    }
}

fn volume(source: &Path) -> Copy {
    Copy { source: source.to_owned(), target: TARGET.to_owned(), watch: true }
}

/// Writes a volume as the kubelet does: a new folder, then the switch, then the old folder away.
fn write_volume(folder: &Path, revision: &str, files: &[(&str, &str)]) {
    let old = std::fs::read_link(folder.join("..data")).ok();
    let new = folder.join(format!("..{revision}"));
    std::fs::create_dir(&new).unwrap();
    for (name, content) in files {
        std::fs::write(new.join(name), content).unwrap();
    }
    symlink(format!("..{revision}"), folder.join("..data_tmp")).unwrap();
    std::fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
    for (name, _) in files {
        if std::fs::symlink_metadata(folder.join(name)).is_err() {
            symlink(format!("..data/{name}"), folder.join(name)).unwrap();
        }
    }
    if let Some(old) = old {
        let names: Vec<_> = std::fs::read_dir(folder.join(&old)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        for name in names.iter().filter(|name| files.iter().all(|(kept, _)| *kept != name.to_str().unwrap())) {
            std::fs::remove_file(folder.join(name)).unwrap();
        }
        std::fs::remove_dir_all(folder.join(old)).unwrap();
    }
}

async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let limit = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < limit, "{what}");
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn the_switch_comes_after_what_it_switches_to() {
    let (node, guest) = (tempfile::tempdir().unwrap(), Guest::new(false));
    write_volume(node.path(), "1", &[("key", "value"), ("other", "")]);
    copy(&guest, &[volume(node.path())]).await.unwrap();
    assert_eq!(guest.sent(), ["", "..1", "..1/key", "..1/other", "..data", "key", "other"]);
    assert_eq!((guest.read("key").as_deref(), guest.read("other").as_deref()), (Some("value"), Some("")));
}

#[tokio::test]
async fn an_update_sends_what_is_new_and_takes_away_what_is_gone() {
    for refuses_removals in [false, true] {
        let (node, guest) = (tempfile::tempdir().unwrap(), Guest::new(refuses_removals));
        write_volume(node.path(), "1", &[("key", "1"), ("old", "1")]);
        let copied = copy(&guest, &[volume(node.path())]).await.unwrap();
        guest.sent();
        let _watcher = Watcher::start(guest.clone(), copied);
        write_volume(node.path(), "2", &[("key", "2")]);
        eventually("the new value is there", || guest.read("key").as_deref() == Some("2")).await;
        assert_eq!(guest.read("..data/old"), None, "the link no longer leads to it");
        if refuses_removals {
            eventually("what was sent is settled", || guest.sent().is_empty()).await;
            assert!(guest.path(&format!("{TARGET}/..1/old")).exists());
        } else {
            eventually("the old folder is gone", || !guest.path(&format!("{TARGET}/..1")).exists()).await;
            eventually("the old link is gone", || std::fs::symlink_metadata(guest.path(&format!("{TARGET}/old"))).is_err()).await;
        }
    }
}

#[tokio::test]
async fn a_change_between_copy_and_watch_is_not_lost() {
    let (node, guest) = (tempfile::tempdir().unwrap(), Guest::new(false));
    write_volume(node.path(), "1", &[("token", "1")]);
    let copied = copy(&guest, &[volume(node.path())]).await.unwrap();
    write_volume(node.path(), "2", &[("token", "2")]);
    let _watcher = Watcher::start(guest.clone(), copied);
    eventually("the new token is there", || guest.read("token").as_deref() == Some("2")).await;
}

#[tokio::test]
async fn a_large_file_is_sent_in_pieces() {
    let (node, guest) = (tempfile::tempdir().unwrap(), Guest::new(false));
    let content = "0123456789abcdef".repeat((5 << 20) / 16 + 1);
    std::fs::write(node.path().join("large"), &content).unwrap();
    copy(&guest, &[volume(node.path())]).await.unwrap();
    assert_eq!(guest.sent().iter().filter(|path| *path == "large").count(), 6);
    assert_eq!(guest.read("large"), Some(content));
}

#[tokio::test]
async fn what_cannot_be_copied_is_named_or_left_out() {
    let (node, guest) = (tempfile::tempdir().unwrap(), Guest::new(false));
    std::fs::File::create(node.path().join("huge")).unwrap().set_len((16 << 20) + 1).unwrap();
    let error = copy(&guest, &[volume(node.path())]).await.unwrap_err();
    let text = crate::failure::chain(&error);
    assert!(text.contains("huge") && text.contains("16 MiB"), "{text}");
    std::fs::remove_file(node.path().join("huge")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(node.path().join("socket")).unwrap();
    symlink("nowhere", node.path().join("dead")).unwrap();
    copy(&guest, &[volume(node.path())]).await.unwrap();
    assert_eq!(guest.sent(), ["", "dead"]);
    let missing = copy(&guest, &[volume(&node.path().join("missing"))]).await.unwrap_err();
    assert!(crate::failure::chain(&missing).contains("missing"));
}
