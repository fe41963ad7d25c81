//! Links as the daemon handles them, with the real `peerpods-link`.

use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use peerpods_link::folder::LinkStatus;
use peerpods_node::id::SandboxId;
use peerpods_node::ports::{LinkProcesses, LinkReport, LinkSpec, Links as _};
use peerpods_tunnel::credential::NodeKey;
use peerpods_tunnel::node::Pin;
use tokio::time::{Instant, sleep};

/// The program beside this test's; built if it is not there.
fn program() -> PathBuf {
    let own = std::env::current_exe().expect("this test");
    let path = own.ancestors().nth(2).expect("target/debug").join("peerpods-link");
    if !path.is_file() {
        let built = Command::new(env!("CARGO")).args(["build", "--quiet", "--package", "peerpods-link"]).status().expect("cargo");
        assert!(built.success(), "peerpods-link does not build");
    }
    path
}

fn links(dir: &Path) -> LinkProcesses {
    let key = dir.join("node-key.pem");
    if !key.exists() {
        std::fs::write(&key, NodeKey::generate().expect("a key").to_pem()).expect("written");
    }
    LinkProcesses::new(Some(program()), dir.join("pods"), key).expect("the program is there")
}

fn spec() -> LinkSpec {
    LinkSpec {
        sandbox_id: SandboxId::new("s1").expect("valid"),
        instance_id: "i-1".to_owned(),
        address: IpAddr::from([127, 0, 0, 1]),
        pin: Pin([7; 32]),
        netns: None,
    }
}

fn status(dir: &Path) -> LinkStatus {
    LinkStatus::read(&dir.join("pods/s1")).expect("readable").expect("written")
}

#[tokio::test]
async fn link_is_started_once_found_again_and_stopped() {
    let dir = tempfile::tempdir().expect("tempdir");
    let spec = spec();
    let first = links(dir.path());
    assert_eq!(first.report(&spec.sandbox_id).await, LinkReport::Absent);
    first.ensure(&spec).await.expect("started");
    let process = status(dir.path()).process;
    first.ensure(&spec).await.expect("found");
    // The daemon is restarted.
    let second = links(dir.path());
    second.ensure(&spec).await.expect("found again");
    assert_eq!(status(dir.path()).process, process, "not doubled");
    let socket = second.socket(&spec.sandbox_id);
    let connection = UnixStream::connect(&socket).expect("listens");
    let limit = Instant::now() + Duration::from_secs(10);
    while second.report(&spec.sandbox_id).await != (LinkReport::Running { connections: 1, accepted: 1 }) {
        assert!(Instant::now() < limit, "the connection is not seen");
        sleep(Duration::from_millis(1)).await;
    }
    second.stop(&spec.sandbox_id).await.expect("stopped");
    assert!(!process.is_alive());
    drop(connection);
    second.stop(&spec.sandbox_id).await.expect("again");
    second.remove_folder(&spec.sandbox_id).await.expect("removed");
    assert!(!dir.path().join("pods/s1").exists());
    second.stop(&spec.sandbox_id).await.expect("and without a folder");
}

#[tokio::test]
async fn two_daemons_at_once_start_one_link() {
    let dir = tempfile::tempdir().expect("tempdir");
    let spec = spec();
    let (a, b) = (links(dir.path()), links(dir.path()));
    let (first, second) = tokio::join!(a.ensure(&spec), b.ensure(&spec));
    first.expect("started");
    second.expect("started");
    let process = status(dir.path()).process;
    assert!(process.is_alive());
    a.stop(&spec.sandbox_id).await.expect("stopped");
    assert!(!process.is_alive());
}

#[tokio::test]
async fn link_that_was_killed_is_started_again() {
    let dir = tempfile::tempdir().expect("tempdir");
    let spec = spec();
    let links = links(dir.path());
    links.ensure(&spec).await.expect("started");
    let first = status(dir.path()).process;
    let pid = nix::unistd::Pid::from_raw(i32::try_from(first.pid).expect("a pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("sent");
    let limit = Instant::now() + Duration::from_secs(10);
    while links.report(&spec.sandbox_id).await != LinkReport::Absent {
        assert!(Instant::now() < limit, "it is still there");
        sleep(Duration::from_millis(1)).await;
    }
    links.ensure(&spec).await.expect("started");
    assert_ne!(status(dir.path()).process, first);
    links.stop(&spec.sandbox_id).await.expect("stopped");
}

#[tokio::test]
async fn link_that_cannot_start_gives_its_own_reason() {
    let dir = tempfile::tempdir().expect("tempdir");
    let links = links(dir.path());
    std::fs::write(dir.path().join("node-key.pem"), "not a key").expect("written");
    let error = links.ensure(&spec()).await.expect_err("no key");
    assert!(error.to_string().contains("is not a P-256 key"), "{error}");
}

#[test]
fn missing_program_is_named() {
    let error = LinkProcesses::new(Some("/nonexistent/peerpods-link".into()), "/run/p".into(), "/run/k".into()).expect_err("missing");
    assert!(error.to_string().contains("/nonexistent/peerpods-link") && error.to_string().contains("`link`"), "{error}");
}
