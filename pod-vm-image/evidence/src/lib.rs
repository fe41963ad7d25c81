//! Evidence formats, initdata and verifiers.
//!
//! Pure: no clock (time is an argument), no IO, no key of its own. Everything that is decoded here comes from the other side of
//! the TEE line and is limited in size before it is looked at. A byte that no signature or hash covers has one accepted value, or
//! stands in the format's list of tolerated bytes (`tests/vectors`) and becomes no claim.
//!
//! | module | format | root |
//! |---|---|---|
//! | [`snp`] | `snp` | AMD's ARKs, built in |
//! | [`tdx`] | `tdx` | Intel's root by its digest; TCB status from collateral |
//! | [`azure`] | `az-snp-vtpm`, `az-tdx-vtpm` | the above, which vouch for the vTPM's key |
//! | [`tpm`] | `tpm` | whoever knows the TPM's key |
//! | [`snp_tpm`] | `snp-tpm` | AMD for the VM, the cloud's TPM for what booted in it |
//! | [`sample`] | `sample` | nothing |

pub mod azure;
mod bytes;
mod der;
mod endorsement;
pub mod eventlog;
pub mod initdata;
pub mod register;
pub mod sample;
pub mod snp;
pub mod snp_tpm;
pub mod tdx;
pub mod tpm;
mod verify;
mod x509;

pub use bytes::Malformed;
pub use endorsement::Endorsement;
pub use initdata::{Algorithm, Initdata, InitdataError};
pub use register::{InitdataState, Register, WrongRegister};
pub use verify::{Appraisal, Expected, MAX_EVIDENCE_BYTES, ReferenceValues, RootOfTrust, TEES, Trust, VerifyError, appraise, verify};
pub use x509::CertificateError;
