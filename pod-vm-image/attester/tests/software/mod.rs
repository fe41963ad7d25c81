//! A software TPM; also for the tests of crates that ask one.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use peerpods_attester::tpm::Transport;
use peerpods_evidence::snp::REPORT_BYTES;

/// An SNP report of the oldest version that is read, with its signature's algorithm and nothing else.
pub(crate) fn unsigned_report() -> Vec<u8> {
    let mut report = vec![0; REPORT_BYTES];
    (report[0], report[0x34]) = (2, 1);
    report
}

/// A TPM in a process of its own, which ends with it.
pub(crate) struct Swtpm {
    process: Child,
    socket: UnixStream,
    _folder: tempfile::TempDir,
}

impl Swtpm {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("s");
        let process = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "startup-clear,not-need-init", "--server"])
            .arg(format!("type=unixio,path={}", path.display()))
            .arg("--tpmstate")
            .arg(format!("dir={}", folder.path().display()))
            .stdin(Stdio::null())
            .spawn()
            .expect("swtpm: install Debian's package swtpm");
        Self { process, socket: connect(&path), _folder: folder }
    }
}

/// Waits until the socket is there.
fn connect(path: &Path) -> UnixStream {
    let mut last = None;
    for _ in 0..1000 {
        match UnixStream::connect(path) {
            Ok(socket) => {
                socket.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
                return socket;
            }
            Err(error) => last = Some(error),
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
    panic!("swtpm does not listen: {last:?}");
}

impl Transport for Swtpm {
    fn transmit(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        self.socket.write_all(command)?;
        let mut answer = vec![0; 10];
        self.socket.read_exact(&mut answer)?;
        let length = u32::from_be_bytes([answer[2], answer[3], answer[4], answer[5]]);
        answer.resize(usize::try_from(length).unwrap_or(usize::MAX).min(4096), 0);
        self.socket.read_exact(&mut answer[10..])?;
        Ok(answer)
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
