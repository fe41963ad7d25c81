//! The first bytes of a connection: the node opens a session or resumes one; the guest answers.
//!
//! A session's secret comes from the TLS exporter of the connection that opened it and never travels. Each resume proves it with
//! a MAC that covers the exporter of the *new* connection, so that it cannot be carried over to another one.

use aws_lc_rs::hmac;

/// The version that this crate speaks.
const VERSION: u8 = 1;

/// Exporter label of the session secret; the context is the session id.
pub(crate) const SECRET_LABEL: &[u8] = b"EXPORTER-peerpods-session";
/// Exporter label that names a resuming connection.
pub(crate) const RESUME_LABEL: &[u8] = b"EXPORTER-peerpods-resume";

/// Random, but not secret: knowing it lets nobody resume.
pub(crate) type SessionId = [u8; 16];

/// What a node asks for. 18 bytes, or 66.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Preamble {
    Open { session_id: SessionId },
    Resume { session_id: SessionId, claim: Claim },
}

/// One side's word in a resume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Claim {
    /// Counts the attempts of the node; a higher one fences all lower ones.
    pub(crate) epoch: u64,
    /// Everything before this sequence number has arrived here.
    pub(crate) received: u64,
    pub(crate) mac: [u8; 32],
}

/// The guest's answer. 2 bytes, or 42 to accept a resume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reply {
    Opened,
    Resumed { received: u64, mac: [u8; 32] },
    Refused(ResumeRefusal),
}

/// The closed list of refusals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ResumeRefusal {
    #[error("unknown session")]
    UnknownSession,
    #[error("a later epoch was seen before")]
    StaleEpoch,
    #[error("the MAC is wrong")]
    BadMac,
    #[error("too many streams")]
    Busy,
    #[error("the session exists already")]
    Exists,
    #[error("unsupported version of the preamble")]
    UnsupportedVersion,
    #[error("malformed preamble")]
    Malformed,
}

const OPEN: u8 = 1;
const RESUME: u8 = 2;
const OPENED: u8 = 1;
const RESUMED: u8 = 2;

const REFUSALS: [(u8, ResumeRefusal); 7] = [
    (16, ResumeRefusal::UnknownSession),
    (17, ResumeRefusal::StaleEpoch),
    (18, ResumeRefusal::BadMac),
    (19, ResumeRefusal::Busy),
    (20, ResumeRefusal::Exists),
    (21, ResumeRefusal::UnsupportedVersion),
    (22, ResumeRefusal::Malformed),
];

impl Preamble {
    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Open { session_id } => [&[VERSION, OPEN][..], session_id].concat(),
            Self::Resume { session_id, claim } => {
                let numbers = [claim.epoch.to_be_bytes(), claim.received.to_be_bytes()].concat();
                [&[VERSION, RESUME][..], session_id, &numbers, &claim.mac].concat()
            }
        }
    }

    /// Reads version and kind, then how many bytes follow.
    pub(crate) fn rest(head: [u8; 2]) -> Result<usize, ResumeRefusal> {
        match head {
            [VERSION, OPEN] => Ok(16),
            [VERSION, RESUME] => Ok(16 + 8 + 8 + 32),
            [VERSION, _] => Err(ResumeRefusal::Malformed),
            _ => Err(ResumeRefusal::UnsupportedVersion),
        }
    }

    /// Decodes the bytes after the head.
    pub(crate) fn decode(rest: &[u8]) -> Result<Self, ResumeRefusal> {
        let (&session_id, rest) = rest.split_first_chunk().ok_or(ResumeRefusal::Malformed)?;
        if rest.is_empty() {
            return Ok(Self::Open { session_id });
        }
        let (&epoch, rest) = rest.split_first_chunk().ok_or(ResumeRefusal::Malformed)?;
        let (&received, rest) = rest.split_first_chunk().ok_or(ResumeRefusal::Malformed)?;
        let mac = rest.try_into().map_err(|_| ResumeRefusal::Malformed)?;
        let claim = Claim { epoch: u64::from_be_bytes(epoch), received: u64::from_be_bytes(received), mac };
        Ok(Self::Resume { session_id, claim })
    }
}

impl Reply {
    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Opened => vec![VERSION, OPENED],
            Self::Resumed { received, mac } => [&[VERSION, RESUMED][..], &received.to_be_bytes(), mac].concat(),
            Self::Refused(refusal) => {
                let code = REFUSALS.iter().find(|(_, known)| known == refusal).map_or(0, |(code, _)| *code);
                vec![VERSION, code]
            }
        }
    }

    /// Reads version and status; `None` means that a resume was accepted and 40 bytes follow.
    pub(crate) fn decode_head(head: [u8; 2]) -> Result<Option<Self>, &'static str> {
        match head {
            [VERSION, OPENED] => Ok(Some(Self::Opened)),
            [VERSION, RESUMED] => Ok(None),
            [VERSION, code] => {
                let known = REFUSALS.iter().find(|(known, _)| *known == code);
                known.map(|(_, refusal)| Some(Self::Refused(*refusal))).ok_or("unknown answer to the preamble")
            }
            _ => Err("unsupported version of the answer to the preamble"),
        }
    }

    pub(crate) fn decode_resumed(rest: &[u8; 40]) -> Self {
        let mut received = [0; 8];
        let mut mac = [0; 32];
        received.copy_from_slice(&rest[..8]);
        mac.copy_from_slice(&rest[8..]);
        Self::Resumed { received: u64::from_be_bytes(received), mac }
    }
}

/// Which end speaks in a MAC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speaker {
    Node,
    Guest,
}

/// A session's secret; does not print.
pub(crate) struct SessionKey(hmac::Key);

impl SessionKey {
    pub(crate) fn new(secret: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// HMAC-SHA256 over `"peerpods-resume/1 " | "node" or "guest" | 0 | exporter | session id | epoch | received`.
    pub(crate) fn mac(&self, speaker: Speaker, exporter: &[u8; 32], session_id: &SessionId, epoch: u64, received: u64) -> [u8; 32] {
        let tag = hmac::sign(&self.0, &message(speaker, exporter, session_id, epoch, received));
        let mut mac = [0; 32];
        mac.copy_from_slice(tag.as_ref());
        mac
    }

    /// Compares in constant time.
    pub(crate) fn verify(&self, speaker: Speaker, exporter: &[u8; 32], session_id: &SessionId, claim: &Claim) -> bool {
        hmac::verify(&self.0, &message(speaker, exporter, session_id, claim.epoch, claim.received), &claim.mac).is_ok()
    }
}

fn message(speaker: Speaker, exporter: &[u8; 32], session_id: &SessionId, epoch: u64, received: u64) -> Vec<u8> {
    let speaker: &[u8] = match speaker {
        Speaker::Node => b"peerpods-resume/1 node\0",
        Speaker::Guest => b"peerpods-resume/1 guest\0",
    };
    [speaker, exporter, session_id, &epoch.to_be_bytes(), &received.to_be_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: SessionId = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

    fn golden(name: &str) -> Vec<u8> {
        let lines = include_str!("../../../../tests/compat/resume/v1/preambles.txt");
        let line = lines.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        hex::decode(line.unwrap_or_else(|| panic!("no line {name}"))).unwrap()
    }

    fn decode(bytes: &[u8]) -> Result<Preamble, ResumeRefusal> {
        let (head, rest) = bytes.split_first_chunk().unwrap();
        assert_eq!(Preamble::rest(*head)?, rest.len());
        Preamble::decode(rest)
    }

    #[test]
    fn version_1_bytes_decode_and_encode_unchanged() {
        // The secret is 32 times 07, the exporter 32 times 03.
        let key = SessionKey::new(&[7; 32]);
        let mac = |speaker| key.mac(speaker, &[3; 32], &ID, 2, 258);
        let claim = Claim { epoch: 2, received: 258, mac: mac(Speaker::Node) };
        for (name, preamble) in [("open", Preamble::Open { session_id: ID }), ("resume", Preamble::Resume { session_id: ID, claim })] {
            assert_eq!(preamble.encode(), golden(name), "{name}");
            assert_eq!(decode(&golden(name)), Ok(preamble), "{name}");
        }
        let resumed = Reply::Resumed { received: 258, mac: mac(Speaker::Guest) };
        assert_eq!(resumed.encode(), golden("resumed"));
        assert_eq!(Reply::decode_resumed(golden("resumed")[2..].try_into().unwrap()), resumed);
        let refusals = ["unknown-session", "stale-epoch", "bad-mac", "busy", "exists", "unsupported-version", "malformed"];
        let replies = REFUSALS.map(|(_, refusal)| Reply::Refused(refusal));
        for (name, reply) in refusals.into_iter().zip(replies).chain([("opened", Reply::Opened)]) {
            assert_eq!(reply.encode(), golden(name), "{name}");
            assert_eq!(Reply::decode_head(golden(name).try_into().unwrap()), Ok(Some(reply)), "{name}");
        }
    }

    #[test]
    fn mac_holds_for_one_speaker_connection_session_and_claim_only() {
        let key = SessionKey::new(&[7; 32]);
        let claim = Claim { epoch: 2, received: 258, mac: key.mac(Speaker::Node, &[3; 32], &ID, 2, 258) };
        assert!(key.verify(Speaker::Node, &[3; 32], &ID, &claim));
        assert!(!key.verify(Speaker::Guest, &[3; 32], &ID, &claim));
        assert!(!key.verify(Speaker::Node, &[4; 32], &ID, &claim));
        assert!(!key.verify(Speaker::Node, &[3; 32], &[0; 16], &claim));
        assert!(!key.verify(Speaker::Node, &[3; 32], &ID, &Claim { epoch: 3, ..claim }));
        assert!(!key.verify(Speaker::Node, &[3; 32], &ID, &Claim { received: 259, ..claim }));
        assert!(!SessionKey::new(&[8; 32]).verify(Speaker::Node, &[3; 32], &ID, &claim));
    }

    #[test]
    fn other_versions_and_kinds_are_refused_by_type() {
        assert_eq!(Preamble::rest([2, 1]), Err(ResumeRefusal::UnsupportedVersion));
        assert_eq!(Preamble::rest([1, 9]), Err(ResumeRefusal::Malformed));
        assert!(Reply::decode_head([1, 99]).is_err());
        assert!(Reply::decode_head([2, 1]).is_err());
    }
}
