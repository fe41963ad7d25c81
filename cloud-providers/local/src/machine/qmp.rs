//! The two things that we ask of QEMU's monitor: whether its main loop runs, and to let the guest go.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::MachineError;

/// The socket's name in a machine's folder.
pub(crate) const SOCKET: &str = "qmp.sock";

/// How long QEMU may take to answer a command.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// More than any answer to what we ask.
const ANSWER_BYTES: u64 = 64 << 10;

/// A monitor that has answered once, which QEMU does only when everything of its command line is set up.
pub(crate) struct Monitor {
    stream: BufReader<UnixStream>,
}

impl Monitor {
    /// Connects to the QEMU whose folder this is. A socket that is not there or not listened to is an error.
    pub(crate) fn connect(folder: &Path) -> Result<Self, MachineError> {
        let connect = || -> io::Result<UnixStream> {
            // Through the open folder: a socket's path is limited to 107 bytes, a state folder's is not.
            let folder = File::open(folder)?;
            let stream = UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd()))?;
            stream.set_read_timeout(Some(ANSWER_LIMIT))?;
            stream.set_write_timeout(Some(ANSWER_LIMIT))?;
            Ok(stream)
        };
        let stream = connect().map_err(|error| monitor("answer", &error))?;
        let mut monitor = Self { stream: BufReader::new(stream) };
        monitor.execute("qmp_capabilities")?;
        Ok(monitor)
    }

    /// Lets the guest run; one that runs already goes on.
    pub(crate) fn resume(&mut self) -> Result<(), MachineError> {
        self.execute("cont")
    }

    fn execute(&mut self, command: &'static str) -> Result<(), MachineError> {
        let request = serde_json::json!({ "execute": command }).to_string() + "\r\n";
        self.stream.get_mut().write_all(request.as_bytes()).map_err(|error| monitor(command, &error))?;
        loop {
            let mut line = String::new();
            let length = (&mut self.stream).take(ANSWER_BYTES).read_line(&mut line).map_err(|error| monitor(command, &error))?;
            if length == 0 {
                return Err(monitor(command, &"it has ended"));
            }
            let answer: serde_json::Value = serde_json::from_str(&line).map_err(|error| monitor(command, &error))?;
            // The greeting and events come between.
            if answer.get("return").is_some() {
                return Ok(());
            }
            if let Some(error) = answer.get("error") {
                return Err(monitor(command, &error));
            }
        }
    }
}

fn monitor(operation: &'static str, detail: &dyn std::fmt::Display) -> MachineError {
    MachineError::Monitor { operation, detail: detail.to_string() }
}
