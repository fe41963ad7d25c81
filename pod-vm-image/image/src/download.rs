//! A layer's way from the socket to the thread that unpacks it: a bounded channel of the chunks as they arrive.
//!
//! A download that breaks goes on where it broke; whether the pieces belong together is for the digest to say.

use std::io::{self, BufRead, Read};

use bytes::{Buf as _, Bytes};
use reqwest::Response;
use tokio::sync::mpsc;

use crate::digest::Hasher;
use crate::ocicrypt::Spool;
use crate::patience::Patience;
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

/// A layer's compressed bytes, for a blocking thread. Hashes and counts what passes.
pub(crate) struct Compressed {
    origin: Origin,
    chunk: Bytes,
    ended: bool,
    hasher: Hasher,
    received: u64,
}

/// Where the bytes come from.
enum Origin {
    /// The registry, as they arrive.
    Network(mpsc::Receiver<Step>),
    /// A layer that arrived encrypted and was found right.
    Spool(Box<Spool>),
}

/// Inside an [`io::Error`]: the download was given up.
#[derive(Debug, thiserror::Error)]
#[error("the download was given up")]
pub(crate) struct GivenUp;

pub(crate) fn channel(expected: &Digest) -> (Feeder, Compressed) {
    let (sender, steps) = mpsc::channel(CHUNKS);
    (Feeder(sender), Compressed::new(Origin::Network(steps), expected))
}

/// What is downloaded.
pub(crate) struct Source<'a> {
    pub(crate) repository: &'a Repository,
    pub(crate) digest: &'a Digest,
    /// For errors.
    pub(crate) what: &'a str,
    pub(crate) size: u64,
}

/// How far one response got.
enum Poured {
    /// To the end, or the reader has gone, which then has an error of its own.
    All,
    /// It broke; more may come of another try.
    Broken(PullError),
}

impl Feeder {
    /// Sends the content on. Success means that all of it went into the channel, or that the reader has gone.
    pub(crate) async fn feed(self, source: &Source<'_>, mut received: impl FnMut(u64)) -> Result<(), PullError> {
        let repository = source.repository;
        let mut patience = Patience::new(repository.limits());
        let (mut got, mut resumes) = (0, 0);
        loop {
            let before = got;
            let poured = match repository.blob_from(source.digest, source.what, got, source.size).await {
                Ok((response, skip)) => self.pour(response, skip, source, &mut got, &mut received).await?,
                Err(error @ PullError::Unreachable { .. }) if got > 0 => Poured::Broken(error),
                Err(error) => return Err(error),
            };
            let Poured::Broken(error) = poured else { return Ok(()) };
            if got > before {
                patience.begin_again();
            }
            resumes += 1;
            let pause = patience.next(None).filter(|_| resumes <= repository.limits().resumes);
            let Some(pause) = pause else { return Err(error) };
            tracing::info!(registry = repository.registry(), got, size = source.size, ?pause, "the download of {} broke", source.what);
            tokio::time::sleep(pause).await;
        }
    }

    async fn pour(
        &self,
        mut response: Response,
        mut skip: u64,
        source: &Source<'_>,
        got: &mut u64,
        received: &mut impl FnMut(u64),
    ) -> Result<Poured, PullError> {
        let &Source { repository, what, size, .. } = source;
        loop {
            match response.chunk().await {
                Ok(Some(mut chunk)) => {
                    let known = skip.min(chunk.len() as u64);
                    chunk.advance(usize::try_from(known).unwrap_or(chunk.len()));
                    skip -= known;
                    *got += chunk.len() as u64;
                    if *got > size {
                        return Err(repository.unusable("a layer", format!("{what} is longer than the {size} bytes of its descriptor")));
                    }
                    if self.0.send(Step::Chunk(chunk)).await.is_err() {
                        return Ok(Poured::All);
                    }
                    received(*got);
                }
                Ok(None) if *got < size => return Ok(Poured::Broken(repository.truncated(what, size, *got, None))),
                Ok(None) => {
                    // A reader that has gone reports why by itself.
                    let _ = self.0.send(Step::End).await;
                    return Ok(Poured::All);
                }
                Err(error) => return Ok(Poured::Broken(repository.truncated(what, size, *got, Some(error.without_url().into())))),
            }
        }
    }
}

impl Origin {
    /// The next bytes, which are not empty; `None` at the end.
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        match self {
            Self::Network(steps) => match steps.blocking_recv() {
                Some(Step::Chunk(chunk)) => Ok(Some(chunk)),
                Some(Step::End) => Ok(None),
                None => Err(io::Error::other(GivenUp)),
            },
            Self::Spool(spool) => spool.next(),
        }
    }
}

impl Compressed {
    fn new(origin: Origin, expected: &Digest) -> Self {
        Self { origin, chunk: Bytes::new(), ended: false, hasher: expected.hasher(), received: 0 }
    }

    /// What a spool holds, in clear.
    pub(crate) fn from_spool(spool: Spool, expected: &Digest) -> Self {
        Self::new(Origin::Spool(Box::new(spool)), expected)
    }

    /// Bytes taken so far.
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
            match self.origin.next()? {
                Some(chunk) => {
                    self.hasher.update(&chunk);
                    self.received += chunk.len() as u64;
                    self.chunk = chunk;
                }
                None => self.ended = true,
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
