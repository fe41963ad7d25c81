//! Reading fixed layouts: every read is bounded, and what is left over is the caller's to judge.

/// What is wrong with a binary structure. The text names the field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub(crate) String);

impl Malformed {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

/// A cursor over bytes from the other side of the TEE line.
#[derive(Debug, Clone)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn take(&mut self, length: usize, what: &str) -> Result<&'a [u8], Malformed> {
        let missing = || Malformed(format!("{what}: {length} bytes expected, {} left", self.rest.len()));
        let (head, tail) = self.rest.split_at_checked(length).ok_or_else(missing)?;
        self.rest = tail;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], Malformed> {
        self.take(N, what)?.try_into().map_err(|_| Malformed::new(what))
    }

    pub(crate) fn u16(&mut self, what: &str) -> Result<u16, Malformed> {
        self.array(what).map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self, what: &str) -> Result<u32, Malformed> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, what: &str) -> Result<u64, Malformed> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A little-endian u32 length and that many bytes.
    pub(crate) fn sized(&mut self, what: &str) -> Result<&'a [u8], Malformed> {
        let length = self.u32(what)?;
        self.take(usize::try_from(length).unwrap_or(usize::MAX), what)
    }

    /// Everything that is left.
    pub(crate) fn rest(self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn left(&self) -> usize {
        self.rest.len()
    }

    /// Reserved bytes: a bit set there is a version that is not known, or a change that no signature covers.
    pub(crate) fn zeros(&mut self, length: usize, what: &str) -> Result<(), Malformed> {
        zeros(self.take(length, what)?, what)
    }
}

/// Refuses anything but zeros.
pub(crate) fn zeros(bytes: &[u8], what: &str) -> Result<(), Malformed> {
    if bytes.iter().all(|byte| *byte == 0) { Ok(()) } else { Err(Malformed(format!("{what} is not zero"))) }
}
