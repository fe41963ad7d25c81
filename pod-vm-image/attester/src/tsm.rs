//! configfs-tsm: the kernel's one interface to the reports of all TEEs (Documentation/ABI/testing/configfs-tsm-report).
//!
//! A folder is made, report data written to `inblob`, and the report read from `outblob`; `generation` tells whether somebody else wrote in
//! between. Nobody else is in this VM to do so, but a changed generation is an error all the same.

use std::io::Read as _;
use std::path::{Path, PathBuf};

/// Longest blob that is read: a quote, or a table of certificates.
const MAX_BLOB: u64 = 256 << 10;

/// Longest certificate that is taken from the table; a VCEK's has some 1.5 KiB.
const MAX_CERTIFICATE: usize = 8 << 10;

/// The entry that is made in configfs.
const ENTRY: &str = "peerpods";

/// GUIDs of a VCEK and a VLEK in the table of certificates (56860, "SNP_EXT_CONFIG"), as bytes.
const CERTIFICATES: [[u8; 16]; 2] = [
    [0x63, 0xda, 0x75, 0x8d, 0xe6, 0x64, 0x45, 0x64, 0xad, 0xc5, 0xf4, 0xb9, 0x3b, 0xe8, 0xac, 0xcd],
    [0xa8, 0x07, 0x4b, 0xc2, 0xa2, 0x5a, 0x48, 0x3e, 0xaa, 0xe6, 0x39, 0xc0, 0x45, 0xa0, 0xb8, 0xa1],
];

/// The interface of one TEE.
pub(crate) struct Tsm {
    entry: PathBuf,
}

/// What the kernel gives.
pub(crate) struct Report {
    /// The report.
    pub(crate) outblob: Vec<u8>,
    /// What the host handed over with it: for SNP a table of certificates.
    pub(crate) auxblob: Option<Vec<u8>>,
}

/// A step did not work.
#[derive(Debug, thiserror::Error)]
pub enum TsmError {
    /// A file.
    #[error("{action} {path}")]
    File {
        /// What was done.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Another TEE's interface.
    #[error("its provider is {found:?}, not {expected:?}")]
    Provider {
        /// What is there.
        found: String,
        /// What should be.
        expected: &'static str,
    },
    /// Somebody wrote in between.
    #[error("the report is of another request: somebody else in this machine asks for reports")]
    Raced,
}

impl Tsm {
    /// Makes the entry; the kernel must be of this provider's kind.
    pub(crate) fn open(folder: &Path, provider: &'static str) -> Result<Self, TsmError> {
        let entry = folder.join(ENTRY);
        match std::fs::create_dir(&entry) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(TsmError::File { action: "make", path: entry, source: error });
            }
            _ => {}
        }
        let tsm = Self { entry };
        let found = String::from_utf8_lossy(&tsm.read("provider")?).trim().to_owned();
        if found == provider { Ok(tsm) } else { Err(TsmError::Provider { found, expected: provider }) }
    }

    /// A report with this report data, filled up with zeros to 64 bytes.
    pub(crate) fn report(&self, report_data: &[u8; 48]) -> Result<Report, TsmError> {
        let before = self.generation()?;
        let mut inblob = [0; 64];
        inblob[..report_data.len()].copy_from_slice(report_data);
        let path = self.entry.join("inblob");
        std::fs::write(&path, inblob).map_err(|source| TsmError::File { action: "write", path, source })?;
        let outblob = self.read("outblob")?;
        let auxblob = self.read("auxblob").ok().filter(|blob| !blob.is_empty());
        if self.generation()? == before + 1 { Ok(Report { outblob, auxblob }) } else { Err(TsmError::Raced) }
    }

    fn generation(&self) -> Result<u64, TsmError> {
        let text = self.read("generation")?;
        Ok(String::from_utf8_lossy(&text).trim().parse().unwrap_or(0))
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, TsmError> {
        let path = self.entry.join(name);
        let mut bytes = Vec::new();
        match std::fs::File::open(&path).and_then(|file| file.take(MAX_BLOB).read_to_end(&mut bytes)) {
            Ok(_) => Ok(bytes),
            Err(source) => Err(TsmError::File { action: "read", path, source }),
        }
    }
}

/// The endorsement certificates in an SNP table: entries of GUID, offset, length, closed by zeros. A damaged table has none; the verifier
/// then needs certificates of its own. The host has made the table, so what is taken is limited: one of each kind, no longer than any is.
pub(crate) fn certificates(table: Option<&[u8]>) -> Vec<Vec<u8>> {
    let Some(table) = table else { return Vec::new() };
    let number = |at: &[u8]| at.try_into().map(u32::from_le_bytes).ok().and_then(|number| usize::try_from(number).ok());
    let mut found = [const { None }; CERTIFICATES.len()];
    for entry in table.chunks_exact(24).take(64) {
        if entry[..16] == [0; 16] {
            break;
        }
        let (Some(offset), Some(length)) = (number(&entry[16..20]), number(&entry[20..24])) else { break };
        let certificate = offset.checked_add(length).and_then(|end| table.get(offset..end));
        let certificate = certificate.filter(|_| (1..=MAX_CERTIFICATE).contains(&length));
        if let (Some(certificate), Some(kind)) = (certificate, CERTIFICATES.iter().position(|guid| entry[..16] == *guid)) {
            found[kind].get_or_insert_with(|| certificate.to_vec());
        }
    }
    found.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_taken_from_the_table_by_their_guid() {
        let mut table = Vec::new();
        for (guid, offset, length) in [([9; 16], 96, 1), (CERTIFICATES[0], 97, 3), (CERTIFICATES[1], 95, 900), ([0; 16], 0, 0)] {
            table.extend_from_slice(&guid);
            table.extend_from_slice(&u32::to_le_bytes(offset));
            table.extend_from_slice(&u32::to_le_bytes(length));
        }
        table.extend_from_slice(b"Xabc");
        assert_eq!(certificates(Some(&table)), [b"abc".to_vec()]);
        assert!(certificates(Some(&table[..30])).is_empty() && certificates(None).is_empty());
    }

    #[test]
    fn what_a_table_can_name_is_limited() {
        let table = |entries: &[([u8; 16], u32, u32)]| {
            let mut table: Vec<u8> = entries
                .iter()
                .flat_map(|(guid, offset, length)| [&guid[..], &offset.to_le_bytes(), &length.to_le_bytes()].concat())
                .collect();
            table.resize(16 << 10, 0x30);
            certificates(Some(&table))
        };
        let vcek = CERTIFICATES[0];
        assert_eq!(table(&[(vcek, 4096, 1500); 60]).len(), 1, "one of each kind");
        assert_eq!(table(&[(vcek, 4096, 1500), (CERTIFICATES[1], 4096, 10)]).len(), 2);
        assert!(table(&[(vcek, 0, 8193), (vcek, 4096, 0), (vcek, u32::MAX, 1), (vcek, 1, u32::MAX)]).is_empty());
        assert!(table(&[([0; 16], 0, 0), (vcek, 4096, 1500)]).is_empty(), "after the end");
    }

    #[test]
    fn interface_of_another_tee_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let entry = folder.path().join(ENTRY);
        std::fs::create_dir(&entry).unwrap();
        std::fs::write(entry.join("provider"), "tdx_guest\n").unwrap();
        let error = Tsm::open(folder.path(), "sev_guest").map(drop).unwrap_err().to_string();
        assert_eq!(error, "its provider is \"tdx_guest\", not \"sev_guest\"");
        assert!(Tsm::open(folder.path(), "tdx_guest").is_ok());
    }
}
