//! Firmware for virtual machines as hypervisors read it: edk2's table of named blobs, which ends 32 bytes before the file's end and is
//! read backwards (`OvmfPkg/ResetVector/Ia16/ResetVectorVtf0.asm` there).

use anyhow::{Context as _, Result, bail, ensure};
use uuid::{Uuid, uuid};

/// What hypervisors add memory in.
pub(crate) const PAGE: usize = 4096;

/// Most sections of memory that metadata may ask for: more than any firmware has.
pub(crate) const MOST_SECTIONS: u32 = 64;

/// Most bytes that the sections may have together: some ten times what firmware has, and measured within a second.
pub(crate) const MOST_MEMORY: u64 = 64 << 20;

/// Firmware with its table.
pub(crate) struct Firmware<'a> {
    bytes: &'a [u8],
    table: &'a [u8],
}

pub(crate) const TABLE: Uuid = uuid!("96b582de-1fb2-45f7-baea-a366c55a082d");

/// Bytes of an entry's size and name.
pub(crate) const ENTRY: usize = 18;

impl<'a> Firmware<'a> {
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self> {
        let end = bytes.len().checked_sub(32).context("too short")?;
        let (size, name) = entry(&bytes[..end]).context("no table")?;
        ensure!(name == TABLE, "no table; is it edk2's?");
        let begin = end.checked_sub(size).context("the table is longer than the file")?;
        Ok(Self { bytes, table: &bytes[begin..end - ENTRY] })
    }

    /// The whole file.
    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// QEMU maps it so that it ends at 4 GiB.
    pub(crate) fn address(&self) -> Result<u64> {
        (1_u64 << 32).checked_sub(u64::try_from(self.bytes.len())?).context("firmware of more than 4 GiB")
    }

    /// The first number of a blob; `purpose` is what firmware without it is not built for.
    pub(crate) fn number(&self, wanted: Uuid, purpose: &str) -> Result<u32> {
        let mut table = self.table;
        while let Some((size, name)) = entry(table) {
            let begin = table.len().checked_sub(size).context("an entry of the table is longer than the table")?;
            if name == wanted {
                return word(&table[begin..table.len() - ENTRY], 0);
            }
            table = &table[..begin];
        }
        bail!("its table has no {wanted}; it is not built for {purpose}")
    }

    /// What a blob points at, counted from the file's end, and all behind it.
    pub(crate) fn metadata(&self, wanted: Uuid, purpose: &str) -> Result<&'a [u8]> {
        let from_end = usize::try_from(self.number(wanted, purpose)?)?;
        let begin = self.bytes.len().checked_sub(from_end).context("the metadata lie outside the file")?;
        Ok(&self.bytes[begin..])
    }
}

/// The 32 bits at this offset.
pub(crate) fn word(bytes: &[u8], offset: usize) -> Result<u32> {
    let word = bytes.get(offset..offset + 4).context("firmware table is cut off")?;
    Ok(u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
}

/// Size, with itself and the name, and name of the entry that ends here; `None` at the beginning.
fn entry(table: &[u8]) -> Option<(usize, Uuid)> {
    let header = table.get(table.len().checked_sub(ENTRY)?..)?;
    let size = usize::from(u16::from_le_bytes([header[0], header[1]]));
    let name = Uuid::from_slice_le(&header[2..]).ok()?;
    (size >= ENTRY).then_some((size, name))
}
