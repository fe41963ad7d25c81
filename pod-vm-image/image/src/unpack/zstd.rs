//! Zstandard (RFC 8878) as layers have it: frames one after the other, skippable ones left out.

use std::io::{self, Read};

use zstd::stream::read::Decoder;

use crate::LayerError;
use crate::download::Compressed;

/// Binary logarithm of what a frame may want to look back: 8 MiB, the size that every decoder should support (RFC 8878 section
/// 3.1.1.1.2), and the largest that tools write unless they are asked for more. Each layer that is unpacked has a buffer of this size.
const WINDOW_LOG: u32 = 23;

/// libzstd's words for a frame that wants more.
const TOO_MUCH: &str = "Frame requires too much memory for decoding";

/// The content of all frames.
pub(crate) struct Frames(Decoder<'static, Compressed>);

impl Frames {
    pub(crate) fn new(source: Compressed) -> io::Result<Self> {
        let mut decoder = Decoder::with_buffer(source)?;
        decoder.window_log_max(WINDOW_LOG)?;
        Ok(Self(decoder))
    }

    pub(crate) fn get_ref(&self) -> &Compressed {
        self.0.get_ref()
    }

    pub(crate) fn into_inner(self) -> Compressed {
        self.0.finish()
    }
}

impl Read for Frames {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(|error| {
            if error.to_string() == TOO_MUCH {
                return io::Error::other(LayerError::Limit { what: "bytes of zstd window", limit: 1 << WINDOW_LOG });
            }
            error
        })
    }
}
