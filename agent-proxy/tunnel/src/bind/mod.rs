//! What node and guest say to each other on a `peerpods-bind/1` connection, and how evidence is tied to it.

mod message;
mod report;
mod wire;

pub(crate) use message::{Activate, ActivateReply, Activated, Answer, Evidence, Hello, Reply};
pub use message::{BIND_VERSION, BindRequest, Pod, Refusal, RefusalCode};
pub(crate) use report::{EXPORTER_LABEL, report_data};
pub(crate) use wire::{
    MAX_ACTIVATE, MAX_ANSWER, MAX_BIND, MAX_EVIDENCE, MAX_HELLO, WireError, decode, decode_versioned, encode, is_activate, receive, send,
};

/// 64 lower-case hex digits as bytes.
pub(crate) fn decode_hex32(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    let lower = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    (lower && hex::decode_to_slice(text, &mut bytes).is_ok()).then_some(bytes)
}
