//! Logs of measured boot in the TCG2 crypto-agile format: `binary_bios_measurements` of a TPM, the CCEL table of a trust domain.
//!
//! A log proves nothing by itself: [`EventLog::replay`] says to which registers it leads, and the caller compares them with quoted ones.
//! The data of an event is as good as its digest only where it is what was hashed ([`Event::is_data_measured`]); claims say which.
//! Source: "TCG PC Client Platform Firmware Profile" 1.06, section 10; "Guest Hypervisor Communication Interface for TDX", appendix B.

mod describe;

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256, Sha384};

use crate::bytes::{Malformed, Reader};

/// Longest log that is read; a CCEL area has 64 KiB to 1 MiB.
pub const MAX_LOG_BYTES: usize = 1 << 20;
/// Most events that are read; a boot has some fifty.
pub const MAX_EVENTS: usize = 4096;

const EV_NO_ACTION: u32 = 3;
/// First event of a crypto-agile log.
const SPEC_ID: &[u8; 16] = b"Spec ID Event03\0";
/// Sets the locality that TPM2_Startup was called from, which PCR 0 begins with.
const STARTUP_LOCALITY: &[u8; 16] = b"StartupLocality\0";

/// Hash algorithms that registers are extended with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Algorithm {
    /// TPM_ALG_SHA256.
    Sha256,
    /// TPM_ALG_SHA384.
    Sha384,
}

/// An event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// PCR of a TPM; measurement register of a trust domain, where 0 is MRTD and 1 to 4 are RTMR 0 to 3.
    pub register: u32,
    /// See the profile, table 14.
    pub kind: u32,
    /// What was extended, by algorithm identifier.
    pub digests: Vec<(u16, Vec<u8>)>,
    /// What the event says of itself.
    pub data: Vec<u8>,
}

/// A parsed log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventLog {
    /// In order, without the header.
    pub events: Vec<Event>,
    locality: u8,
}

/// A log cannot be read or replayed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// More than [`MAX_LOG_BYTES`] or [`MAX_EVENTS`].
    #[error("it is longer than {MAX_LOG_BYTES} bytes or {MAX_EVENTS} events")]
    TooLong,
    /// Not the format.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The log has no digests of this algorithm.
    #[error("event {0} has no {1:?} digest")]
    NoDigest(usize, Algorithm),
}

impl EventLog {
    /// Reads a log. What follows the last event must be all zeros or all ones: tables are larger than their content.
    pub fn parse(bytes: &[u8]) -> Result<Self, LogError> {
        if bytes.len() > MAX_LOG_BYTES {
            return Err(LogError::TooLong);
        }
        let mut reader = Reader::new(bytes);
        let sizes = header(&mut reader)?;
        let (mut events, mut locality) = (Vec::new(), 0);
        // Counted once: looked for before every event, a long log of small events would be read as often as it has events.
        let padding = bytes.last().filter(|byte| matches!(byte, 0 | 0xff));
        let padding = padding.map_or(0, |last| bytes.iter().rev().take_while(|byte| *byte == last).count());
        while reader.left() > padding {
            if events.len() == MAX_EVENTS {
                return Err(LogError::TooLong);
            }
            let event = event(&mut reader, &sizes)?;
            if event.kind == EV_NO_ACTION
                && let Some([value]) = event.data.strip_prefix(STARTUP_LOCALITY)
            {
                locality = *value;
            }
            events.push(event);
        }
        Ok(Self { events, locality })
    }

    /// The registers that the log leads to, by number; registers without an event are not in it.
    pub fn replay(&self, algorithm: Algorithm) -> Result<BTreeMap<u32, Vec<u8>>, LogError> {
        let mut registers = BTreeMap::new();
        for (index, event) in self.events.iter().enumerate() {
            if event.kind == EV_NO_ACTION {
                continue;
            }
            let digest = event.digest(algorithm).ok_or(LogError::NoDigest(index, algorithm))?;
            let value = registers.entry(event.register).or_insert_with(|| self.start(event.register, algorithm));
            *value = algorithm.hash(&[value, digest].concat());
        }
        Ok(registers)
    }

    fn start(&self, register: u32, algorithm: Algorithm) -> Vec<u8> {
        let mut value = vec![0; algorithm.length()];
        if register == 0
            && let Some(last) = value.last_mut()
        {
            *last = self.locality;
        }
        value
    }

    /// Members and names as Trustee's `uefi_event_logs`: of the registers alone that a replay with this algorithm was compared for.
    pub fn claims(&self, algorithm: Algorithm, is_compared: impl Fn(u32) -> bool) -> Value {
        let claims = self.events.iter().filter(|event| event.kind != EV_NO_ACTION && is_compared(event.register));
        claims
            .map(|event| {
                let digests = event
                    .digest(algorithm)
                    .map(|digest| json!([{"alg": describe::algorithm_name(algorithm.id()), "digest": hex::encode(digest)}]));
                json!({
                    "index": event.register,
                    "type_name": describe::type_name(event.kind),
                    "digests": digests,
                    "digest_matches_event": event.is_data_measured(algorithm),
                    "event": STANDARD.encode(&event.data),
                    "details": describe::details(event),
                })
            })
            .collect()
    }
}

impl Event {
    fn digest(&self, algorithm: Algorithm) -> Option<&[u8]> {
        self.digests.iter().find(|(id, _)| *id == algorithm.id()).map(|(_, digest)| &digest[..])
    }

    /// Whether the data is what was hashed with this algorithm, so that the digest vouches for it.
    pub fn is_data_measured(&self, algorithm: Algorithm) -> bool {
        self.digest(algorithm).is_some_and(|digest| algorithm.hash(&self.data) == digest)
    }
}

impl Algorithm {
    /// The identifier in TPM structures.
    pub fn id(self) -> u16 {
        match self {
            Self::Sha256 => 0x000b,
            Self::Sha384 => 0x000c,
        }
    }

    fn length(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha384 => 48,
        }
    }

    fn hash(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha256 => Sha256::digest(bytes).to_vec(),
            Self::Sha384 => Sha384::digest(bytes).to_vec(),
        }
    }
}

/// The first event, in the older format: which algorithms follow, with how many bytes.
fn header(reader: &mut Reader<'_>) -> Result<Vec<(u16, usize)>, Malformed> {
    reader.u32("header: register")?;
    if reader.u32("header: type")? != EV_NO_ACTION {
        return Err(Malformed::new("the first event is not the header"));
    }
    reader.zeros(20, "header: digest")?;
    let mut inner = Reader::new(reader.sized("header")?);
    if inner.array::<16>("header: signature")? != *SPEC_ID {
        return Err(Malformed::new("the log is not in the crypto-agile format"));
    }
    inner.take(8, "header: versions")?;
    let count = inner.u32("header: algorithms")?;
    if !(1..=8).contains(&count) {
        return Err(Malformed::new(format!("header: {count} algorithms")));
    }
    let mut sizes = Vec::new();
    for _ in 0..count {
        sizes.push((inner.u16("header: algorithm")?, usize::from(inner.u16("header: digest size")?)));
    }
    Ok(sizes)
}

fn event(reader: &mut Reader<'_>, sizes: &[(u16, usize)]) -> Result<Event, Malformed> {
    let (register, kind) = (reader.u32("event: register")?, reader.u32("event: type")?);
    let count = reader.u32("event: digests")?;
    if usize::try_from(count).is_ok_and(|count| count > sizes.len()) {
        return Err(Malformed::new(format!("event: {count} digests")));
    }
    let mut digests = Vec::new();
    for _ in 0..count {
        let id = reader.u16("event: algorithm")?;
        let size = sizes.iter().find(|(known, _)| *known == id).map(|(_, size)| *size);
        let size = size.ok_or_else(|| Malformed::new(format!("event: algorithm {id:#x} is not in the header")))?;
        if digests.iter().any(|(known, _)| *known == id) {
            return Err(Malformed::new(format!("event: algorithm {id:#x} twice")));
        }
        digests.push((id, reader.take(size, "event: digest")?.to_vec()));
    }
    Ok(Event { register, kind, digests, data: reader.sized("event: data")?.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(events: &[Vec<u8>], padding: &[u8]) -> Vec<u8> {
        let inner =
            [&SPEC_ID[..], &[0; 8], &1u32.to_le_bytes(), &Algorithm::Sha256.id().to_le_bytes(), &32u16.to_le_bytes(), &[0]].concat();
        let length = u32::try_from(inner.len()).unwrap().to_le_bytes();
        let head = [&0u32.to_le_bytes()[..], &EV_NO_ACTION.to_le_bytes(), &[0; 20], &length, &inner].concat();
        [head, events.concat(), padding.to_vec()].concat()
    }

    fn event(register: u32, digests: &[[u8; 32]], data: &[u8]) -> Vec<u8> {
        let mut bytes = [register.to_le_bytes(), 13u32.to_le_bytes(), u32::try_from(digests.len()).unwrap().to_le_bytes()].concat();
        for digest in digests {
            bytes.extend(Algorithm::Sha256.id().to_le_bytes());
            bytes.extend(digest);
        }
        bytes.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
        bytes.extend(data);
        bytes
    }

    #[test]
    fn tables_may_be_padded_and_events_may_end_like_padding() {
        for (data, padding) in [(&b"a\0\0"[..], &[0; 64][..]), (b"a", &[0xff; 64]), (b"a", &[])] {
            let bytes = log(&[event(4, &[[1; 32]], b"x"), event(4, &[[2; 32]], data)], padding);
            let parsed = EventLog::parse(&bytes).unwrap();
            assert_eq!(parsed.events.iter().map(|event| &event.data[..]).collect::<Vec<_>>(), [b"x", data]);
        }
        assert!(EventLog::parse(&log(&[event(4, &[[1; 32]], b"x")], &[0, 1])).is_err());
    }

    #[test]
    fn claims_tell_of_compared_registers_and_digests_alone() {
        let digest: [u8; 32] = Sha256::digest(b"x").into();
        let parsed = EventLog::parse(&log(&[event(4, &[digest], b"x"), event(8, &[digest], b"x")], &[])).unwrap();
        let claims = parsed.claims(Algorithm::Sha256, |register| register != 8);
        assert_eq!(
            (claims.as_array().unwrap().len(), &claims[0]["index"], &claims[0]["digest_matches_event"]),
            (1, &json!(4), &json!(true))
        );
        assert_eq!(claims[0]["digests"], json!([{"alg": describe::algorithm_name(Algorithm::Sha256.id()), "digest": hex::encode(digest)}]));
        assert_eq!(parsed.claims(Algorithm::Sha384, |_| true)[0]["digest_matches_event"], json!(false));
    }

    #[test]
    fn an_algorithm_counts_once() {
        let two = EventLog::parse(&log(&[event(4, &[[1; 32]], b"x")], &[])).unwrap();
        assert_eq!(two.events.len(), 1);
        // The header has room for as many digests as algorithms, so another one is needed for a second digest.
        let inner = [&SPEC_ID[..], &[0; 8], &2u32.to_le_bytes(), &[0x0b, 0, 32, 0, 0x0c, 0, 48, 0, 0]].concat();
        let length = u32::try_from(inner.len()).unwrap().to_le_bytes();
        let head = [&0u32.to_le_bytes()[..], &EV_NO_ACTION.to_le_bytes(), &[0; 20], &length, &inner].concat();
        let error = EventLog::parse(&[head, event(4, &[[1; 32], [2; 32]], b"x")].concat()).unwrap_err();
        assert!(error.to_string().contains("twice"), "{error}");
    }
}
