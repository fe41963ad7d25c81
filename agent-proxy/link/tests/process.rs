//! The real program: one a folder, out of its parent's session, gone when told or when its folder is.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use peerpods_link::folder::{self, LinkFile, LinkStatus};
use peerpods_tunnel::credential::NodeKey;
use peerpods_tunnel::node::Pin;

fn link_file(dir: &Path) -> LinkFile {
    LinkFile {
        version: folder::VERSION,
        sandbox_id: "0123456789abcdef".repeat(4),
        instance_id: "i-0123".to_owned(),
        address: "10.93.0.5:15150".parse().expect("valid"),
        pin: Pin([0xab; 32]),
        node_key: dir.join("node-key.pem"),
        socket: dir.join(folder::SOCKET),
        netns: None,
    }
}

fn prepare(dir: &Path) {
    std::fs::write(dir.join("node-key.pem"), NodeKey::generate().expect("a key").to_pem()).expect("written");
    link_file(dir).write(dir).expect("written");
}

fn start(dir: &Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_peerpods-link"));
    command.arg("--dir").arg(dir).stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("started")
}

fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let limit = SystemTime::now() + Duration::from_secs(20);
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(SystemTime::now() < limit, "{what}");
        std::thread::yield_now();
    }
}

fn listening(dir: &Path) -> LinkStatus {
    eventually("the link listens", || LinkStatus::read(dir).expect("readable").filter(|status| status.process.is_alive()))
}

fn terminate(child: &Child) {
    let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("sent");
}

#[test]
fn link_leaves_its_parents_session_and_ends_on_sigterm() {
    let dir = tempfile::tempdir().expect("tempdir");
    prepare(dir.path());
    let mut child = start(dir.path());
    let status = listening(dir.path());
    assert_eq!(status.process.pid, child.id());
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).expect("alive");
    let session: u32 =
        stat.rsplit_once(')').expect("a name").1.split_ascii_whitespace().nth(3).expect("a session").parse().expect("a number");
    assert_eq!(session, child.id(), "its own session");
    let socket = dir.path().join(folder::SOCKET);
    let mode = std::fs::metadata(&socket).expect("listens").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let _connection = std::os::unix::net::UnixStream::connect(&socket).expect("accepts");
    eventually("the connection is counted", || LinkStatus::read(dir.path()).expect("readable").filter(|s| s.connections == 1));
    terminate(&child);
    assert!(child.wait().expect("waited").success());
    assert!(!socket.exists());
}

#[test]
fn second_link_for_a_folder_ends_at_once_and_a_dead_ones_socket_is_replaced() {
    let dir = tempfile::tempdir().expect("tempdir");
    prepare(dir.path());
    let mut first = start(dir.path());
    let status = listening(dir.path());
    assert!(start(dir.path()).wait().expect("waited").success());
    assert_eq!(listening(dir.path()), status, "the first one serves");
    first.kill().expect("killed");
    first.wait().expect("waited");
    assert!(dir.path().join(folder::SOCKET).exists(), "left behind");
    let mut third = start(dir.path());
    let status = listening(dir.path());
    assert_eq!(status.process.pid, third.id());
    std::os::unix::net::UnixStream::connect(dir.path().join(folder::SOCKET)).expect("accepts");
    terminate(&third);
    third.wait().expect("waited");
}

#[test]
fn link_ends_when_its_folder_is_removed() {
    let dir = tempfile::tempdir().expect("tempdir");
    prepare(dir.path());
    let mut child = start(dir.path());
    listening(dir.path());
    dir.close().expect("removed");
    assert!(child.wait().expect("waited").success());
}

#[test]
fn link_file_of_version_1_is_read_and_written_as_ever() {
    let golden = include_str!("../../../tests/compat/link/v1/link.json");
    let dir = tempfile::tempdir().expect("tempdir");
    let file = link_file(Path::new("/run/peerpods/pods/s"));
    file.write(dir.path()).expect("written");
    assert_eq!(std::fs::read_to_string(dir.path().join("link.json")).expect("there"), golden);
    let mode = std::fs::metadata(dir.path().join("link.json")).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    std::fs::write(dir.path().join("link.json"), golden).expect("written");
    assert_eq!(LinkFile::read(dir.path()).expect("read"), file);
}
