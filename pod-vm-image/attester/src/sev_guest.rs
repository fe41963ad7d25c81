//! SNP reports: from configfs-tsm, or on kernels without it (before 6.7) from `/dev/sev-guest`, the older interface to the same firmware.
//!
//! Which of them is decided once, when the attester is made. Both show the same report of the same TEE, so nothing is weakened by it;
//! where configfs-tsm is another TEE's, the device is not even looked for. The device is asked by ioctl, which only the guest's crate may
//! do: it brings the device as [`SevGuest`], and what the firmware answers is taken apart here.

use std::io;

use peerpods_evidence::snp::REPORT_BYTES;

use crate::tsm::{Report, Tsm, TsmError};
use crate::{AttesterError, Paths, chain, missing};

/// The provider of configfs-tsm.
const PROVIDER: &str = "sev_guest";

/// `MSG_REPORT_RSP` of the SNP firmware ABI (56860, table "MSG_REPORT_RSP Message Structure"): a status, the report's size, and after
/// reserved bytes the report.
const SIZE_AT: usize = 4;
const REPORT_AT: usize = 32;
/// Where a report has its report data.
const REPORT_DATA_AT: usize = 0x50;

/// `/dev/sev-guest`.
pub trait SevGuest: Send {
    /// Asks the firmware for a report with this report data, and the host for its certificates.
    fn report(&mut self, report_data: &[u8; 64]) -> io::Result<SevGuestAnswer>;
}

/// Opens the device, and says so in the log: it is called where configfs-tsm has no reports.
pub type OpenSevGuest<'a> = &'a dyn Fn() -> io::Result<Box<dyn SevGuest>>;

/// What the device gives.
pub struct SevGuestAnswer {
    /// The firmware's message, as in `struct snp_report_resp`.
    pub message: Vec<u8>,
    /// The table of certificates; zeros or nothing if the host has none.
    pub certificates: Vec<u8>,
}

/// Where reports come from.
pub(crate) enum SnpReports {
    Tsm(Tsm),
    Device(Box<dyn SevGuest>),
}

impl SnpReports {
    /// Finds the kernel's interface.
    pub(crate) fn open(tee: &'static str, paths: &Paths, open: OpenSevGuest<'_>) -> Result<Self, AttesterError> {
        match Tsm::open(&paths.tsm, PROVIDER) {
            Ok(tsm) => Ok(Self::Tsm(tsm)),
            Err(error @ TsmError::File { .. }) => match open() {
                Ok(device) => Ok(Self::Device(device)),
                Err(device) => Err(AttesterError::NotThisTee { tee, detail: format!("{}; and {device}", chain(&error)) }),
            },
            Err(error) => Err(missing(tee, &error)),
        }
    }

    /// A report with this report data, filled up with zeros to 64 bytes.
    pub(crate) fn report(&mut self, report_data: &[u8; 48]) -> Result<Report, AttesterError> {
        let device = match self {
            Self::Tsm(tsm) => return Ok(tsm.report(report_data)?),
            Self::Device(device) => device,
        };
        let mut data = [0; 64];
        data[..report_data.len()].copy_from_slice(report_data);
        let answer = device.report(&data).map_err(AttesterError::SevGuest)?;
        let report = report_of(&answer.message)?;
        if report.get(REPORT_DATA_AT..REPORT_DATA_AT + data.len()) != Some(&data[..]) {
            return Err(unusable("the report is of another request"));
        }
        Ok(Report { outblob: report.to_vec(), auxblob: Some(answer.certificates).filter(|table| !table.is_empty()) })
    }
}

fn unusable(what: &str) -> AttesterError {
    AttesterError::Unusable(format!("sev-guest: {what}"))
}

/// The report in the firmware's message.
fn report_of(message: &[u8]) -> Result<&[u8], AttesterError> {
    let number = |at: usize| message.get(at..at + 4)?.try_into().map(u32::from_le_bytes).ok();
    let (Some(status), Some(size)) = (number(0), number(SIZE_AT)) else { return Err(unusable("the message is short")) };
    if status != 0 {
        return Err(unusable(&format!("the firmware refuses with status {status:#x}")));
    }
    if usize::try_from(size) != Ok(REPORT_BYTES) {
        return Err(unusable(&format!("a report of {size} bytes instead of {REPORT_BYTES}")));
    }
    message.get(REPORT_AT..REPORT_AT + REPORT_BYTES).ok_or_else(|| unusable("the message is short"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// A device whose firmware answers with this status, size and report data.
    struct Fake {
        status: u32,
        size: u32,
        report_data: Option<[u8; 64]>,
    }

    impl SevGuest for Fake {
        fn report(&mut self, report_data: &[u8; 64]) -> io::Result<SevGuestAnswer> {
            let mut message = vec![0; 4000];
            message[..4].copy_from_slice(&self.status.to_le_bytes());
            message[4..8].copy_from_slice(&self.size.to_le_bytes());
            message[32..36].copy_from_slice(&[2, 0, 0, 0]);
            message[32 + 0x50..32 + 0x90].copy_from_slice(&self.report_data.unwrap_or(*report_data));
            Ok(SevGuestAnswer { message, certificates: vec![0; 4096] })
        }
    }

    fn paths(folder: &Path) -> Paths {
        let path = |name: &str| folder.join(name);
        Paths { tsm: path("tsm"), tpm: path("tpm"), tpm_log: path("log"), ccel: path("ccel"), rtmr: path("rtmr") }
    }

    fn asked(fake: Fake) -> Result<Report, AttesterError> {
        SnpReports::Device(Box::new(fake)).report(&[7; 48])
    }

    #[test]
    fn report_is_taken_out_of_the_firmwares_message() {
        let report = asked(Fake { status: 0, size: 1184, report_data: None }).unwrap();
        assert_eq!((report.outblob.len(), &report.outblob[..4]), (1184, &[2, 0, 0, 0][..]));
        assert_eq!(report.outblob[0x50..0x90], [[7; 48].as_slice(), &[0; 16]].concat());
        assert!(crate::tsm::certificates(report.auxblob.as_deref()).is_empty());
    }

    #[test]
    fn other_messages_are_refused() {
        let refused = |fake| asked(fake).map(drop).unwrap_err().to_string();
        assert!(refused(Fake { status: 0x16, size: 1184, report_data: None }).contains("status 0x16"));
        assert!(refused(Fake { status: 0, size: 1185, report_data: None }).contains("1185 bytes"));
        assert!(refused(Fake { status: 0, size: u32::MAX, report_data: None }).contains("bytes instead"));
        assert!(refused(Fake { status: 0, size: 1184, report_data: Some([7; 64]) }).contains("another request"));
        for length in [0, 7, 32, 32 + 1183] {
            let mut message = vec![0; length];
            message.iter_mut().skip(4).zip(1184_u32.to_le_bytes()).for_each(|(byte, value)| *byte = value);
            assert!(report_of(&message).is_err(), "{length}");
        }
    }

    #[test]
    fn device_is_for_kernels_without_configfs_tsm_only() {
        let folder = tempfile::tempdir().unwrap();
        let fake = || -> io::Result<Box<dyn SevGuest>> { Ok(Box::new(Fake { status: 0, size: 1184, report_data: None })) };
        let none = || -> io::Result<Box<dyn SevGuest>> { Err(io::Error::other("no device")) };
        assert!(matches!(SnpReports::open("snp", &paths(folder.path()), &fake), Ok(SnpReports::Device(_))));
        let error = SnpReports::open("snp", &paths(folder.path()), &none).map(drop).unwrap_err();
        assert!(error.to_string().ends_with("; and no device") && error.to_string().contains("tsm/peerpods"), "{error}");
        // Of SNP: the device is not needed. Of another TEE: it is not looked for.
        let entry = folder.path().join("tsm/peerpods");
        std::fs::create_dir_all(&entry).unwrap();
        std::fs::write(entry.join("provider"), "sev_guest\n").unwrap();
        assert!(matches!(SnpReports::open("snp", &paths(folder.path()), &none), Ok(SnpReports::Tsm(_))));
        std::fs::write(entry.join("provider"), "tdx_guest\n").unwrap();
        let error = SnpReports::open("snp", &paths(folder.path()), &fake).map(drop).unwrap_err();
        assert!(matches!(&error, AttesterError::NotThisTee { tee: "snp", .. }), "{error}");
    }
}
