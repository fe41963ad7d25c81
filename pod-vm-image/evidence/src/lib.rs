//! Evidence formats, initdata and verifiers.
//!
//! Pure: no clock (time is an argument), no IO, no key of its own. Everything that is decoded here comes from the other side of
//! the TEE line and is limited in size before it is looked at.
//! The only format so far is `sample`, which protects nothing: see [`sample`].

pub mod initdata;
pub mod sample;
mod verify;

pub use initdata::{Algorithm, Initdata, InitdataError};
pub use verify::{Expected, InitdataState, MAX_EVIDENCE_BYTES, Verified, VerifyError, verify};
