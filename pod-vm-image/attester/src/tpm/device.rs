//! The way to a TPM: one command, one answer.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

/// Longest command or answer; TPMs have buffers of 4 KiB.
pub(super) const MAX_BYTES: usize = 4096;

/// Carries commands. The kernel's driver has a time limit for each, so there is none here.
pub trait Transport {
    /// Sends a whole command and gives the whole answer, at most 4 KiB.
    fn transmit(&mut self, command: &[u8]) -> io::Result<Vec<u8>>;
}

/// `/dev/tpmrm0`: the kernel keeps this process's keys apart from others'.
pub struct CharacterDevice(File);

impl CharacterDevice {
    /// Opens it.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path);
        file.map(Self).map_err(|error| io::Error::new(error.kind(), format!("open {}: {error}", path.display())))
    }
}

impl Transport for CharacterDevice {
    fn transmit(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        self.0.write_all(command)?;
        // The driver gives a whole answer to one read.
        let mut answer = vec![0; MAX_BYTES];
        let length = self.0.read(&mut answer)?;
        answer.truncate(length);
        Ok(answer)
    }
}
