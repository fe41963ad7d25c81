//! `tdx`: a quote by configfs-tsm, the firmware's log, and RTMR 3 for initdata.
//!
//! RTMR 3 is extended through the kernel's measurement registers (Documentation/ABI/testing/sysfs-devices-virtual-misc-tdx_guest). The
//! event that says so is added to the log that is sent: the firmware's own table does not know of it.

use std::path::PathBuf;

use peerpods_evidence::eventlog::MAX_LOG_BYTES;
use peerpods_evidence::register;
use peerpods_evidence::tdx::TdxEvidence;

use crate::tsm::Tsm;
use crate::{AttesterError, Paths, read_limited};

/// The register's number in logs: 0 is MRTD.
const RTMR_3: u32 = 4;
/// What the event is: text in a tagged structure, as EV_EVENT_TAG has it.
const EV_EVENT_TAG: u32 = 6;
const SHA384: u16 = 0x000c;
/// The event's text.
const LABEL: &[u8] = b"peerpods initdata";

pub(crate) struct TrustDomain {
    tsm: Tsm,
    ccel: PathBuf,
    rtmr: PathBuf,
    extended: Option<[u8; 48]>,
}

impl TrustDomain {
    pub(crate) fn new(tsm: Tsm, paths: &Paths) -> Self {
        Self { tsm, ccel: paths.ccel.clone(), rtmr: paths.rtmr.clone(), extended: None }
    }

    pub(crate) fn evidence(&self, report_data: &[u8; 48]) -> Result<TdxEvidence, AttesterError> {
        let quote = self.tsm.report(report_data)?.outblob;
        let log = read_limited(&self.ccel, MAX_LOG_BYTES as u64).ok();
        let cc_eventlog = log.map(|log| self.with_own_event(&log));
        Ok(TdxEvidence { quote, cc_eventlog })
    }

    pub(crate) fn extend_initdata(&mut self, digest: &[u8]) -> Result<(), AttesterError> {
        let input = register::rtmr_input(digest)?;
        std::fs::write(&self.rtmr, input).map_err(|source| AttesterError::File { action: "extend", path: self.rtmr.clone(), source })?;
        self.extended = Some(input);
        Ok(())
    }

    fn with_own_event(&self, log: &[u8]) -> Vec<u8> {
        let mut log = without_padding(log).to_vec();
        if let Some(digest) = &self.extended {
            log.extend_from_slice(&RTMR_3.to_le_bytes());
            log.extend_from_slice(&EV_EVENT_TAG.to_le_bytes());
            log.extend_from_slice(&1u32.to_le_bytes());
            log.extend_from_slice(&SHA384.to_le_bytes());
            log.extend_from_slice(digest);
            // TCG_PCClientTaggedEvent: a number, a length, the text.
            let length = u32::try_from(LABEL.len()).unwrap_or(0);
            log.extend_from_slice(&(length + 8).to_le_bytes());
            log.extend_from_slice(&0u32.to_le_bytes());
            log.extend_from_slice(&length.to_le_bytes());
            log.extend_from_slice(LABEL);
        }
        log
    }
}

/// The table is larger than its events; its space is filled with zeros or ones.
fn without_padding(log: &[u8]) -> &[u8] {
    let Some(last) = log.last().filter(|byte| matches!(byte, 0 | 0xff)) else { return log };
    let used = log.len() - log.iter().rev().take_while(|byte| *byte == last).count();
    // An event's data may itself end in such bytes: find the first cut after which the rest parses as padding.
    let cuts = used..log.len().min(used + (64 << 10));
    let is_whole = |cut: &usize| peerpods_evidence::eventlog::EventLog::parse(&log[..*cut]).is_ok();
    cuts.clone().find(is_whole).map_or(log, |cut| &log[..cut])
}

#[cfg(test)]
mod tests {
    use super::*;
    use peerpods_evidence::eventlog::{Algorithm, EventLog};

    /// A log with one event of zeros in register 1, and padding.
    fn log() -> Vec<u8> {
        let mut log = Vec::new();
        let mut header = b"Spec ID Event03\0\0\0\0\0\0\x02\0\x02".to_vec();
        header.extend_from_slice(&1u32.to_le_bytes());
        header.extend_from_slice(&[0x0c, 0, 48, 0, 0]);
        log.extend_from_slice(&[0, 0, 0, 0, 3, 0, 0, 0]);
        log.extend_from_slice(&[0; 20]);
        log.extend_from_slice(&u32::try_from(header.len()).unwrap().to_le_bytes());
        log.extend_from_slice(&header);
        log.extend_from_slice(&[1, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0, 0x0c, 0]);
        log.extend_from_slice(&[5; 48]);
        log.extend_from_slice(&[4, 0, 0, 0, 0, 0, 0, 0]);
        log.extend_from_slice(&[0; 1000]);
        log
    }

    #[test]
    fn own_event_follows_the_firmwares_and_leads_to_the_register() {
        let folder = tempfile::tempdir().unwrap();
        let rtmr = folder.path().join("rtmr3");
        let entry = folder.path().join("peerpods");
        std::fs::create_dir(&entry).unwrap();
        std::fs::write(entry.join("provider"), "tdx_guest").unwrap();
        let tsm = Tsm::open(folder.path(), "tdx_guest").unwrap();
        let mut domain = TrustDomain { tsm, ccel: folder.path().join("ccel"), rtmr: rtmr.clone(), extended: None };
        assert!(!EventLog::parse(&domain.with_own_event(&log())).unwrap().replay(Algorithm::Sha384).unwrap().contains_key(&RTMR_3));
        domain.extend_initdata(&[7; 48]).unwrap();
        assert_eq!(std::fs::read(rtmr).unwrap(), [7; 48]);
        let parsed = EventLog::parse(&domain.with_own_event(&log())).unwrap();
        assert_eq!(parsed.replay(Algorithm::Sha384).unwrap()[&RTMR_3], register::rtmr_after(&[7; 48]).unwrap());
        assert_eq!(parsed.claims(Algorithm::Sha384, |_| true)[1]["details"]["string"], "peerpods initdata");
        assert_eq!(parsed.events.len(), 2);
    }
}
