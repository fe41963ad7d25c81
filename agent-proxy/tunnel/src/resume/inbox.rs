//! What has arrived and was not yet read. Pure.
//!
//! Never refuses data within the protocol's window: the connection is always read, so that acknowledgements and pings
//! of the other direction are never stuck behind data that nobody wants.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::options::MAX_WINDOW;

/// Shorter pieces are copied together, so that a peer that sends its window in tiny frames cannot make each of them pin a block.
const COPY_BELOW: usize = 8 << 10;

/// One direction's receiving end.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    chunks: VecDeque<Bytes>,
    small: BytesMut,
    /// Everything before this sequence number has arrived; the end of the direction counts as one.
    received: u64,
    is_ended: bool,
}

impl Inbox {
    /// Takes the next piece; `consumed` is how far the reader has come.
    pub(super) fn push(&mut self, piece: Bytes, consumed: u64) -> Result<(), &'static str> {
        if self.is_ended {
            return Err("data after the end");
        }
        self.received += piece.len() as u64;
        if self.received - consumed > MAX_WINDOW as u64 {
            return Err("more data than the window allows");
        }
        if piece.len() < COPY_BELOW {
            self.small.extend_from_slice(&piece);
            if self.small.len() >= COPY_BELOW {
                self.freeze_small();
            }
        } else {
            self.freeze_small();
            self.chunks.push_back(piece);
        }
        Ok(())
    }

    /// The peer writes no more.
    pub(super) fn end(&mut self) {
        if !self.is_ended {
            self.is_ended = true;
            self.received += 1;
        }
    }

    /// Moves everything to the reader.
    pub(super) fn drain_into(&mut self, reader: &mut VecDeque<Bytes>) {
        self.freeze_small();
        if reader.is_empty() {
            std::mem::swap(reader, &mut self.chunks);
        } else {
            reader.append(&mut self.chunks);
        }
    }

    pub(super) fn received(&self) -> u64 {
        self.received
    }

    pub(super) fn is_ended(&self) -> bool {
        self.is_ended
    }

    fn freeze_small(&mut self) {
        if !self.small.is_empty() {
            self.chunks.push_back(self.small.split().freeze());
        }
    }
}
