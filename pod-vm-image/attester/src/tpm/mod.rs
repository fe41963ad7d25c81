//! The machine's TPM: commands, and evidence of the `tpm` kind.
//!
//! Two keys are made from the TPM's own seed at start, the same at every boot of that TPM: the endorsement key by the TCG's template, which
//! its maker's certificate is for, and an attestation key that signs only what the TPM itself made.

mod commands;
mod device;
mod templates;

use peerpods_evidence::eventlog::EventLog;
use peerpods_evidence::register::INITDATA_PCR;
use peerpods_evidence::tpm::credential::Challenge;
use peerpods_evidence::tpm::{REPORT_DATA_BYTES, TpmEvidence, rsa_of};

pub use commands::{ALL_PCRS, Quote, Tpm};
pub use device::{CharacterDevice, Transport};

/// Where makers put the RSA endorsement key's certificate ("TCG EK Credential Profile" 2.5, section 2.2.1.4).
const EK_CERTIFICATE: u32 = 0x01c0_0002;

/// Tries of a quote whose PCRs change meanwhile.
const TRIES: usize = 3;

/// What an activated credential holds.
pub type Activation = Vec<u8>;

/// The TPM did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum TpmError {
    /// Its device.
    #[error("{action}")]
    Device {
        /// What was done.
        action: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// It refused a command.
    #[error("{command} failed with response code {code:#x}")]
    Refused {
        /// The command.
        command: &'static str,
        /// TPM_RC, part 2 section 6.6.
        code: u32,
    },
    /// Its answer, or our command, is not a structure of the specification.
    #[error("{command}: {detail}")]
    Structure {
        /// The command.
        command: &'static str,
        /// What.
        detail: String,
    },
    /// Its registers do not stand still.
    #[error("the PCRs changed during each of {TRIES} quotes")]
    Unstable,
}

/// Makes evidence with keys of its own.
pub struct TpmAttester<T> {
    tpm: Tpm<T>,
    ak: Key,
    ek: Key,
    ek_certificate: Option<Vec<u8>>,
    event_log: Option<Vec<u8>>,
}

/// A loaded key.
struct Key {
    handle: u32,
    /// Marshalled TPMT_PUBLIC.
    public: Vec<u8>,
}

impl<T: Transport> TpmAttester<T> {
    /// Makes the keys. `event_log` is the firmware's; one that cannot be read is left out, and so is one of the older format.
    pub fn new(mut tpm: Tpm<T>, event_log: Option<Vec<u8>>) -> Result<Self, TpmError> {
        let (handle, public) = tpm.create_primary(templates::endorsement_key())?;
        let ek = Key { handle, public };
        let (handle, public) = tpm.create_primary(templates::attestation_key())?;
        let ak = Key { handle, public };
        // A TPM without one is a TPM whose maker vouches in another way.
        let ek_certificate = tpm.nv_read(EK_CERTIFICATE).ok();
        let event_log = event_log.filter(|log| EventLog::parse(log).is_ok());
        Ok(Self { tpm, ak, ek, ek_certificate, event_log })
    }

    /// A quote of all PCRs with this report data.
    pub fn evidence(&mut self, report_data: &[u8; 48]) -> Result<TpmEvidence, TpmError> {
        let mut extra = [0; REPORT_DATA_BYTES];
        extra[..report_data.len()].copy_from_slice(report_data);
        let quote = self.tpm.quote(self.ak.handle, &extra, ALL_PCRS)?;
        let structure = |error: &dyn std::fmt::Display| TpmError::Structure { command: "CreatePrimary", detail: error.to_string() };
        let ak_public = rsa_of(&self.ak.public).map_err(|error| structure(&error))?.to_spki();
        Ok(TpmEvidence {
            signature: quote.signature,
            message: quote.message,
            pcrs: quote.pcrs,
            ak_public,
            event_log: self.event_log.clone(),
            ak: Some(self.ak.public.clone()),
            ek: Some(self.ek.public.clone()),
            ek_certificate: self.ek_certificate.clone(),
        })
    }

    /// Extends PCR 8 with a SHA-256 digest.
    pub fn extend_initdata(&mut self, digest: &[u8]) -> Result<(), TpmError> {
        self.tpm.extend(u32::try_from(INITDATA_PCR).unwrap_or(u32::MAX), digest)
    }

    /// Opens a credential that was made for these two keys.
    pub fn activate(&mut self, challenge: &Challenge) -> Result<Activation, TpmError> {
        self.tpm.activate(self.ak.handle, self.ek.handle, challenge)
    }
}
