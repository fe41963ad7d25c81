//! The initdata register: where a TEE or TPM keeps what a pod VM was bound to.
//!
//! | register | of | empty | after binding |
//! |---|---|---|---|
//! | PCR 8, 32 bytes | TPM, SHA-256 bank | zeros | SHA-256(zeros, digest); the digest is a SHA-256 |
//! | RTMR 3, 48 bytes | TDX | zeros | SHA-384(zeros, digest); shorter digests are filled up with zeros |
//! | HOSTDATA 32, MRCONFIGID 48 bytes | SNP, TDX: set by the host at launch | zeros | the digest itself |
//! | sample | nothing | absent | the digest |

use std::fmt;

use sha2::{Digest as _, Sha256, Sha384};

/// Index of the PCR for initdata, as in cloud-api-adaptor's images and Trustee's verifiers.
pub const INITDATA_PCR: usize = 8;

/// What the initdata register must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InitdataState {
    /// The value after boot: no workload ever ran.
    Reset,
    /// Extended once, with this digest.
    Extended(Vec<u8>),
    /// Either. For a Bind that may have been sent before without its answer having arrived: the VM may be bound by this very
    /// request already. A VM bound by another one can look the same, but being the measured image it refuses the Bind.
    ResetOrExtended(Vec<u8>),
}

/// What a register was found to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Register {
    /// Of the sample format: `None` while it holds its reset value.
    Sample(Option<Vec<u8>>),
    /// PCR 8 of a TPM's SHA-256 bank.
    Pcr([u8; 32]),
    /// RTMR 3 of a trust domain.
    Rtmr([u8; 48]),
    /// A field that the host sets at launch, where the initdata of other deployments is.
    HostField(Vec<u8>),
}

/// The register does not hold what it must.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("initdata register is {found}; expected {expected}")]
pub struct WrongRegister {
    /// What must be.
    pub expected: String,
    /// What is.
    pub found: String,
}

/// A digest that a register cannot take whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an initdata digest of {digest} bytes does not fit the register of {register}: use algorithm = {use_instead:?} in the initdata")]
pub struct DigestTooLong {
    /// Length of the digest.
    pub digest: usize,
    /// The register.
    pub register: &'static str,
    /// An algorithm that fits.
    pub use_instead: &'static str,
}

/// The value of PCR 8 after one extension from its reset value.
pub fn pcr_after(digest: &[u8]) -> Result<[u8; 32], DigestTooLong> {
    let digest: &[u8; 32] =
        digest.try_into().map_err(|_| DigestTooLong { digest: digest.len(), register: "a TPM (32 bytes)", use_instead: "sha256" })?;
    Ok(Sha256::new().chain_update([0; 32]).chain_update(digest).finalize().into())
}

/// What is extended into RTMR 3.
pub fn rtmr_input(digest: &[u8]) -> Result<[u8; 48], DigestTooLong> {
    let mut input = [0; 48];
    let place = input.get_mut(..digest.len());
    place
        .ok_or(DigestTooLong { digest: digest.len(), register: "a trust domain (48 bytes)", use_instead: "sha384" })?
        .copy_from_slice(digest);
    Ok(input)
}

/// The value of RTMR 3 after one extension from its reset value.
pub fn rtmr_after(digest: &[u8]) -> Result<[u8; 48], DigestTooLong> {
    Ok(Sha384::new().chain_update([0; 48]).chain_update(rtmr_input(digest)?).finalize().into())
}

impl Register {
    /// Whether nothing was measured.
    pub fn is_reset(&self) -> bool {
        match self {
            Self::Sample(digest) => digest.is_none(),
            Self::Pcr(value) => *value == [0; 32],
            Self::Rtmr(value) => *value == [0; 48],
            Self::HostField(value) => value.iter().all(|byte| *byte == 0),
        }
    }

    /// Whether it holds this digest, and nothing else was ever measured.
    pub fn holds(&self, digest: &[u8]) -> bool {
        match self {
            Self::Sample(found) => found.as_deref() == Some(digest),
            Self::Pcr(value) => pcr_after(digest).is_ok_and(|after| after == *value),
            Self::Rtmr(value) => rtmr_after(digest).is_ok_and(|after| after == *value),
            Self::HostField(value) => {
                digest.len() <= value.len() && value.starts_with(digest) && value[digest.len()..].iter().all(|b| *b == 0)
            }
        }
    }

    /// Compares with what must be.
    pub fn check(&self, expected: &InitdataState) -> Result<(), WrongRegister> {
        let holds = match expected {
            InitdataState::Reset => self.is_reset(),
            InitdataState::Extended(digest) => self.holds(digest),
            InitdataState::ResetOrExtended(digest) => self.is_reset() || self.holds(digest),
        };
        if holds { Ok(()) } else { Err(WrongRegister { expected: expected.to_string(), found: self.to_string() }) }
    }
}

impl fmt::Display for InitdataState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reset => f.write_str("reset"),
            Self::Extended(digest) => write!(f, "extended with {}", hex::encode(digest)),
            Self::ResetOrExtended(digest) => write!(f, "reset or extended with {}", hex::encode(digest)),
        }
    }
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_reset() {
            return f.write_str("reset");
        }
        match self {
            Self::Sample(None) => f.write_str("reset"),
            Self::Sample(Some(digest)) => write!(f, "extended with {}", hex::encode(digest)),
            Self::Pcr(value) => write!(f, "PCR {INITDATA_PCR} = {}", hex::encode(value)),
            Self::Rtmr(value) => write!(f, "RTMR 3 = {}", hex::encode(value)),
            Self::HostField(value) => write!(f, "set at launch to {}", hex::encode(value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_tell_reset_from_this_digest_and_from_another() {
        let (digest, other) = (vec![7; 32], vec![8; 32]);
        for register in [
            Register::Sample(Some(digest.clone())),
            Register::Pcr(pcr_after(&digest).unwrap()),
            Register::Rtmr(rtmr_after(&digest).unwrap()),
            Register::HostField(digest.clone()),
            Register::HostField([digest.clone(), vec![0; 16]].concat()),
        ] {
            assert!(register.check(&InitdataState::Extended(digest.clone())).is_ok(), "{register}");
            assert!(register.check(&InitdataState::ResetOrExtended(digest.clone())).is_ok(), "{register}");
            assert!(register.check(&InitdataState::Extended(other.clone())).is_err(), "{register}");
            assert!(register.check(&InitdataState::Reset).is_err(), "{register}");
        }
        for register in [Register::Sample(None), Register::Pcr([0; 32]), Register::Rtmr([0; 48]), Register::HostField(vec![0; 48])] {
            assert!(register.check(&InitdataState::Reset).is_ok(), "{register}");
            assert!(register.check(&InitdataState::Extended(digest.clone())).is_err(), "{register}");
        }
    }

    #[test]
    fn digests_that_do_not_fit_are_refused_with_one_that_does() {
        assert_eq!(
            pcr_after(&[1; 48]).unwrap_err().to_string(),
            "an initdata digest of 48 bytes does not fit the register of a TPM (32 bytes): use algorithm = \"sha256\" in the initdata"
        );
        assert!(rtmr_after(&[1; 64]).unwrap_err().to_string().contains("sha384"));
        assert!(rtmr_after(&[1; 32]).is_ok());
    }

    #[test]
    fn value_of_pcr_8_is_the_documented_hash() {
        // (head -c 32 /dev/zero; 32 times 07) | sha256sum
        let expected = "daf6d3e6ad66990aba2fae6e6c61f18b2d48f0ca6c29d2cfa19ab41f5a865231";
        assert_eq!(hex::encode(pcr_after(&[7; 32]).unwrap()), expected);
    }
}
