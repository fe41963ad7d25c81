//! A layer's way from the socket to the thread that unpacks it: a bounded channel of the chunks as they arrive.

use std::io::{self, BufRead, Read};

use bytes::{Buf as _, Bytes};
use reqwest::Response;
use tokio::sync::mpsc;

use crate::digest::Hasher;
use crate::transport::Repository;
use crate::{Digest, PullError};

/// Chunks under way per layer. A chunk is what one read of the socket gave, at most about 400 KiB with hyper's defaults.
const CHUNKS: usize = 4;

/// One step of a download.
enum Step {
    Chunk(Bytes),
    /// The registry sent everything. A channel that closes without this was given up.
    End,
}

/// The sending end.
pub(crate) struct Feeder(mpsc::Sender<Step>);

/// The reading end, for a blocking thread. Hashes and counts what passes.
pub(crate) struct Compressed {
    steps: mpsc::Receiver<Step>,
    chunk: Bytes,
    ended: bool,
    hasher: Hasher,
    received: u64,
}

/// Inside an [`io::Error`]: the download was given up.
#[derive(Debug, thiserror::Error)]
#[error("the download was given up")]
pub(crate) struct GivenUp;

pub(crate) fn channel(expected: &Digest) -> (Feeder, Compressed) {
    let (sender, steps) = mpsc::channel(CHUNKS);
    (Feeder(sender), Compressed { steps, chunk: Bytes::new(), ended: false, hasher: expected.hasher(), received: 0 })
}

impl Feeder {
    /// Sends a response's body on. Success means that the announced number of bytes went into the channel, or that the reader has
    /// gone, which then has an error of its own.
    pub(crate) async fn feed(
        self,
        mut response: Response,
        repository: &Repository,
        what: &str,
        size: u64,
        mut received: impl FnMut(u64),
    ) -> Result<(), PullError> {
        let mut got: u64 = 0;
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) => {
                    got += chunk.len() as u64;
                    if got > size {
                        return Err(repository.unusable("a layer", format!("{what} is longer than the {size} bytes of its descriptor")));
                    }
                    if self.0.send(Step::Chunk(chunk)).await.is_err() {
                        return Ok(());
                    }
                    received(got);
                }
                Ok(None) if got < size => return Err(repository.truncated(what, size, got, None)),
                Ok(None) => {
                    // A reader that has gone reports why by itself.
                    let _ = self.0.send(Step::End).await;
                    return Ok(());
                }
                Err(error) => return Err(repository.truncated(what, size, got, Some(error.without_url().into()))),
            }
        }
    }
}

impl Compressed {
    /// Bytes taken from the channel so far.
    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// Reads to the end and gives the digest of everything that came.
    pub(crate) fn finish(mut self) -> io::Result<Digest> {
        while !self.fill_buf()?.is_empty() {
            self.chunk.clear();
        }
        Ok(self.hasher.finish())
    }
}

impl BufRead for Compressed {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.chunk.is_empty() && !self.ended {
            match self.steps.blocking_recv() {
                Some(Step::Chunk(chunk)) => {
                    self.hasher.update(&chunk);
                    self.received += chunk.len() as u64;
                    self.chunk = chunk;
                }
                Some(Step::End) => self.ended = true,
                None => return Err(io::Error::other(GivenUp)),
            }
        }
        Ok(&self.chunk)
    }

    fn consume(&mut self, amount: usize) {
        self.chunk.advance(amount);
    }
}

impl Read for Compressed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let taken = available.len().min(buffer.len());
        buffer[..taken].copy_from_slice(&available[..taken]);
        self.consume(taken);
        Ok(taken)
    }
}
