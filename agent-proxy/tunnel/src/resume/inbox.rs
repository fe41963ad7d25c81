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

#[cfg(test)]
mod tests {
    use super::*;

    fn read(inbox: &mut Inbox) -> Vec<u8> {
        let mut chunks = VecDeque::new();
        inbox.drain_into(&mut chunks);
        chunks.iter().flat_map(|chunk| chunk.to_vec()).collect()
    }

    #[test]
    fn pieces_of_all_sizes_keep_their_order() {
        let mut inbox = Inbox::default();
        let mut all = Vec::new();
        for (index, len) in [1, 9_000, 2, 3, 8_192, 8_191, 1, 65_536, 5].into_iter().enumerate() {
            let piece = vec![u8::try_from(index).unwrap(); len];
            all.extend_from_slice(&piece);
            inbox.push(piece.into(), 0).unwrap();
        }
        assert!(read(&mut inbox) == all);
        assert_eq!(inbox.received(), all.len() as u64);
    }

    #[test]
    fn tiny_pieces_do_not_pin_the_blocks_they_came_in() {
        let mut inbox = Inbox::default();
        for _ in 0..20_000 {
            let block = Bytes::from(vec![0; 1 << 10]);
            inbox.push(block.slice(..1), 0).unwrap();
        }
        let mut chunks = VecDeque::new();
        inbox.drain_into(&mut chunks);
        assert!(chunks.len() <= 3, "{}", chunks.len());
    }

    #[test]
    fn data_beyond_the_window_or_the_end_is_refused() {
        let mut inbox = Inbox::default();
        inbox.push(vec![0; MAX_WINDOW].into(), 0).unwrap();
        assert!(inbox.push(vec![0; 1].into(), 0).is_err());
        let mut inbox = Inbox::default();
        inbox.end();
        inbox.end();
        assert_eq!(inbox.received(), 1);
        assert!(inbox.push(vec![0; 1].into(), 1).is_err());
    }
}
