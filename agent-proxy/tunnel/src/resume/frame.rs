//! Frames: what flows after the preamble, both ways. A header of 13 bytes (kind, a u64, a u32 length, big-endian), then data.
//!
//! The sequence space counts bytes from 0, and one more for the end of a direction, so that the end is acknowledged like data.

/// Length of every header.
pub(super) const HEADER: usize = 13;

/// Longest data of one frame.
pub(super) const MAX_DATA: usize = 64 << 10;

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Frame {
    /// `len` bytes follow; the first has sequence number `seq`.
    Data { seq: u64, len: usize },
    /// The reader has consumed everything before this sequence number; the sender forgets it and may send that much more.
    Ack { consumed: u64 },
    /// Asks for a Pong.
    Ping,
    /// Says nothing but that the peer lives.
    Pong,
    /// No more data: `seq` is the end.
    Close { half: Half, seq: u64 },
}

/// What a sender closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Half {
    /// It will write no more, but still reads.
    Write,
    /// It will neither write nor read: its stream was dropped.
    Both,
}

/// A header that no sender of this version writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadFrame;

const DATA: u8 = 1;
const ACK: u8 = 2;
const PING: u8 = 3;
const PONG: u8 = 4;
const CLOSE_WRITE: u8 = 5;
const CLOSE_BOTH: u8 = 6;

impl Frame {
    pub(super) fn encode(self) -> [u8; HEADER] {
        let (kind, number, len) = match self {
            Self::Data { seq, len } => (DATA, seq, len),
            Self::Ack { consumed } => (ACK, consumed, 0),
            Self::Ping => (PING, 0, 0),
            Self::Pong => (PONG, 0, 0),
            Self::Close { half: Half::Write, seq } => (CLOSE_WRITE, seq, 0),
            Self::Close { half: Half::Both, seq } => (CLOSE_BOTH, seq, 0),
        };
        let len = u32::try_from(len).expect("data is cut into frames of at most 64 KiB");
        let mut bytes = [0; HEADER];
        bytes[0] = kind;
        bytes[1..9].copy_from_slice(&number.to_be_bytes());
        bytes[9..].copy_from_slice(&len.to_be_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8; HEADER]) -> Result<Self, BadFrame> {
        let [kind, n0, n1, n2, n3, n4, n5, n6, n7, len @ ..] = *bytes;
        let number = u64::from_be_bytes([n0, n1, n2, n3, n4, n5, n6, n7]);
        let len = usize::try_from(u32::from_be_bytes(len)).map_err(|_| BadFrame)?;
        match (kind, number, len) {
            (DATA, seq, 1..=MAX_DATA) => Ok(Self::Data { seq, len }),
            (ACK, consumed, 0) => Ok(Self::Ack { consumed }),
            (PING, 0, 0) => Ok(Self::Ping),
            (PONG, 0, 0) => Ok(Self::Pong),
            (CLOSE_WRITE, seq, 0) => Ok(Self::Close { half: Half::Write, seq }),
            (CLOSE_BOTH, seq, 0) => Ok(Self::Close { half: Half::Both, seq }),
            _ => Err(BadFrame),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn version_1_bytes_decode_and_encode_unchanged() {
        let golden = include_str!("../../../../tests/compat/resume/v1/frames.txt");
        let frames = [
            ("data", Frame::Data { seq: 0x0102_0304_0506_0708, len: 65536 }),
            ("ack", Frame::Ack { consumed: 258 }),
            ("ping", Frame::Ping),
            ("pong", Frame::Pong),
            ("close-write", Frame::Close { half: Half::Write, seq: 7 }),
            ("close-both", Frame::Close { half: Half::Both, seq: 8 }),
        ];
        assert_eq!(golden.lines().count(), frames.len());
        for ((name, frame), line) in frames.into_iter().zip(golden.lines()) {
            let (golden_name, bytes) = line.split_once(' ').unwrap();
            assert_eq!(golden_name, name);
            assert_eq!(hex::encode(frame.encode()), bytes);
            assert_eq!(Frame::decode(&frame.encode()), Ok(frame));
        }
    }

    proptest! {
        #[test]
        fn every_accepted_header_has_one_encoding(bytes in any::<[u8; HEADER]>(), kind in 0u8..8) {
            let mut bytes = bytes;
            bytes[0] = kind;
            if let Ok(frame) = Frame::decode(&bytes) {
                prop_assert_eq!(frame.encode(), bytes);
            }
        }
    }
}
