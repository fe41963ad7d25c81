//! ttrpc frames: a ten-byte header and a body, cut out of a byte stream whole.
//!
//! A frame is handed on only when its last byte has arrived, so that a peer which dies half way never leaves the other side with half a
//! message, and so that an answer of our own fits between any two frames. Nothing is allocated on the word of a header: the buffer grows
//! with what arrives, up to ttrpc's limit of 4 MiB.

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Bytes before a frame's body.
pub const HEADER_BYTES: usize = 10;

/// The longest body that ttrpc accepts.
pub const BODY_LIMIT: usize = 4 << 20;

/// A buffer above this size is given back once its frame is gone; most frames are below 33 KiB.
const KEEP_BYTES: usize = 64 << 10;

/// How much room is made for one read.
const READ_BYTES: usize = 16 << 10;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// A call.
    Request,
    /// The answer to a call.
    Response,
    /// A piece of a stream.
    Data,
}

/// The first ten bytes: u32 body length, u32 stream, u8 kind, u8 flags, big endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the body.
    pub body_len: u32,
    /// Pairs an answer with its call.
    pub stream_id: u32,
    /// What follows; `Err` holds a byte that ttrpc does not define.
    pub kind: Result<FrameKind, u8>,
    /// Half-close flags of streams; carried unchanged.
    pub flags: u8,
}

impl Header {
    /// Reads a header.
    pub fn decode(bytes: [u8; HEADER_BYTES]) -> Self {
        let mut rest = &bytes[..];
        let body_len = rest.get_u32();
        let stream_id = rest.get_u32();
        let kind = match rest.get_u8() {
            1 => Ok(FrameKind::Request),
            2 => Ok(FrameKind::Response),
            3 => Ok(FrameKind::Data),
            other => Err(other),
        };
        Self { body_len, stream_id, kind, flags: rest.get_u8() }
    }
}

/// One whole frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The header, decoded.
    pub header: Header,
    /// Header and body as they came.
    pub bytes: Bytes,
}

impl Frame {
    /// The body.
    pub fn body(&self) -> &[u8] {
        &self.bytes[HEADER_BYTES..]
    }
}

/// Why the next frame cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The body is longer than ttrpc allows; it has been read and thrown away, so the next frame can be read.
    #[error("a frame of {} bytes on stream {} is above ttrpc's limit of {BODY_LIMIT} bytes", header.body_len, header.stream_id)]
    TooLong {
        /// The frame's header.
        header: Header,
    },
    /// The stream ended inside a frame.
    #[error("the connection ended after {got} of {expected} bytes of a frame")]
    Truncated {
        /// The frame's header, if it came whole.
        header: Option<Header>,
        /// Bytes that came, header included.
        got: usize,
        /// Bytes that should have come.
        expected: usize,
    },
    /// The header is not ttrpc's; where the next frame begins is unknown.
    #[error("frame type {kind:#04x} on stream {} is not ttrpc's", header.stream_id)]
    UnknownKind {
        /// The frame's header.
        header: Header,
        /// The type byte.
        kind: u8,
    },
    /// The connection failed.
    #[error("reading a frame")]
    Read {
        /// What the kernel or the tunnel says.
        #[source]
        source: std::io::Error,
    },
}

/// Cuts frames out of a stream. `next` may be dropped at any await without losing bytes.
pub struct FrameReader<R> {
    stream: R,
    buffer: BytesMut,
    /// Bytes of a body above the limit that are still to be thrown away.
    discard: Option<(Header, usize)>,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads frames from `stream`.
    pub fn new(stream: R) -> Self {
        Self { stream, buffer: BytesMut::new(), discard: None }
    }

    /// The next frame; `None` when the stream ended between two frames.
    pub async fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            if self.discard.is_some() {
                return Err(self.finish_discard().await);
            }
            let Some(header) = self.peek_header() else {
                if self.fill(READ_BYTES).await? == 0 {
                    return if self.buffer.is_empty() { Ok(None) } else { Err(self.truncated(None, HEADER_BYTES)) };
                }
                continue;
            };
            if let Err(kind) = header.kind {
                return Err(FrameError::UnknownKind { header, kind });
            }
            let body_len = header.body_len as usize;
            if body_len > BODY_LIMIT {
                self.buffer.advance(HEADER_BYTES);
                self.discard = Some((header, body_len));
                continue;
            }
            let total = HEADER_BYTES + body_len;
            if self.buffer.len() >= total {
                return Ok(Some(self.cut(header, total)));
            }
            if self.fill((total - self.buffer.len()).clamp(READ_BYTES, KEEP_BYTES)).await? == 0 {
                return Err(self.truncated(Some(header), total));
            }
        }
    }

    fn peek_header(&self) -> Option<Header> {
        self.buffer.first_chunk::<HEADER_BYTES>().map(|bytes| Header::decode(*bytes))
    }

    fn cut(&mut self, header: Header, total: usize) -> Frame {
        let bytes = self.buffer.split_to(total).freeze();
        if total > KEEP_BYTES {
            // What is left shares the big allocation; copy it so that the frame's owner frees it.
            self.buffer = BytesMut::from(&self.buffer[..]);
        }
        Frame { header, bytes }
    }

    async fn fill(&mut self, room: usize) -> Result<usize, FrameError> {
        self.buffer.reserve(room);
        self.stream.read_buf(&mut self.buffer).await.map_err(|source| FrameError::Read { source })
    }

    fn truncated(&self, header: Option<Header>, expected: usize) -> FrameError {
        FrameError::Truncated { header, got: self.buffer.len(), expected }
    }

    async fn finish_discard(&mut self) -> FrameError {
        while let Some((header, left)) = self.discard {
            let thrown = left.min(self.buffer.len());
            self.buffer.advance(thrown);
            if left == thrown {
                self.discard = None;
                return FrameError::TooLong { header };
            }
            self.discard = Some((header, left - thrown));
            match self.fill(READ_BYTES).await {
                Ok(0) => {
                    let expected = HEADER_BYTES + header.body_len as usize;
                    return FrameError::Truncated { header: Some(header), got: expected - (left - thrown), expected };
                }
                Ok(_) => {}
                Err(error) => return error,
            }
        }
        FrameError::Read { source: std::io::Error::other("nothing to throw away") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(stream_id: u32, kind: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(body.len()).expect("short").to_be_bytes().to_vec();
        bytes.extend(stream_id.to_be_bytes());
        bytes.extend([kind, 0]);
        bytes.extend(body);
        bytes
    }

    #[tokio::test]
    async fn frames_come_out_whole_however_the_bytes_are_cut() {
        let mut bytes = Vec::new();
        for (stream_id, len) in [(1, 0), (3, 1), (5, 9), (7, 70_000), (9, 3)] {
            bytes.extend(frame(stream_id, 1, &vec![u8::try_from(stream_id).expect("small"); len]));
        }
        for piece in [1, 7, 10, 4096, bytes.len()] {
            let mut mock = tokio_test_reader(&bytes, piece);
            let mut reader = FrameReader::new(&mut mock);
            let mut got = Vec::new();
            while let Some(frame) = reader.next().await.expect("valid") {
                assert_eq!(frame.header.body_len as usize, frame.body().len());
                got.extend_from_slice(&frame.bytes);
            }
            assert_eq!(got, bytes, "cut into pieces of {piece}");
        }
    }

    #[tokio::test]
    async fn body_of_exactly_4_mib_passes_and_one_more_byte_is_refused_without_losing_the_next_frame() {
        let mut bytes = frame(1, 1, &vec![7; BODY_LIMIT]);
        bytes.extend(frame(3, 1, &vec![8; BODY_LIMIT + 1]));
        bytes.extend(frame(5, 2, b"next"));
        let mut reader = FrameReader::new(&bytes[..]);
        assert_eq!(reader.next().await.expect("passes").expect("a frame").body().len(), BODY_LIMIT);
        let error = reader.next().await.expect_err("refused");
        assert!(matches!(error, FrameError::TooLong { header } if header.stream_id == 3), "{error}");
        assert_eq!(reader.next().await.expect("passes").expect("a frame").body(), b"next");
        assert!(reader.next().await.expect("end").is_none());
    }

    #[tokio::test]
    async fn end_inside_a_frame_is_an_error_and_between_frames_is_not() {
        let whole = frame(1, 1, b"hello");
        for cut in 1..whole.len() {
            let error = FrameReader::new(&whole[..cut]).next().await.expect_err("truncated");
            assert!(matches!(error, FrameError::Truncated { got, .. } if got == cut), "{cut}: {error}");
        }
        let mut reader = FrameReader::new(&whole[..]);
        assert!(reader.next().await.expect("whole").is_some());
        assert!(reader.next().await.expect("the end").is_none());
    }

    #[tokio::test]
    async fn unknown_type_is_refused() {
        for kind in [0, 4, 255] {
            let bytes = frame(1, kind, b"x");
            let error = FrameReader::new(&bytes[..]).next().await.expect_err("refused");
            assert!(matches!(error, FrameError::UnknownKind { kind: k, .. } if k == kind), "{error}");
        }
    }

    #[tokio::test]
    async fn a_big_frame_does_not_pin_its_memory_in_the_reader() {
        let mut bytes = frame(1, 1, &vec![7; 1 << 20]);
        bytes.extend(frame(3, 1, b"small"));
        let mut reader = FrameReader::new(&bytes[..]);
        drop(reader.next().await.expect("big"));
        assert!(reader.buffer.capacity() <= KEEP_BYTES, "{}", reader.buffer.capacity());
        assert_eq!(reader.next().await.expect("small").expect("a frame").body(), b"small");
    }

    /// A reader that gives at most `piece` bytes at a time.
    fn tokio_test_reader(bytes: &[u8], piece: usize) -> Pieces<'_> {
        Pieces { bytes, piece }
    }

    struct Pieces<'a> {
        bytes: &'a [u8],
        piece: usize,
    }

    impl AsyncRead for Pieces<'_> {
        fn poll_read(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            buf: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            let n = self.piece.min(self.bytes.len()).min(buf.remaining());
            buf.put_slice(&self.bytes[..n]);
            self.bytes = &self.bytes[n..];
            std::task::Poll::Ready(Ok(()))
        }
    }
}
