//! PE32+ files as firmware reads them: their sections, and the Authenticode hash by which they are measured and signed.

use anyhow::{Context as _, Result, ensure};
use sha2::Digest;
use sha2::digest::Output;

/// Bytes of one entry of the section table.
pub(crate) const SECTION_HEADER: usize = 40;

/// Which entry of the data directory names the signatures.
const CERTIFICATES: usize = 4;

/// A parsed EFI program.
#[derive(Debug)]
pub struct Program<'a> {
    bytes: &'a [u8],
    /// Offset of the optional header.
    optional: usize,
    /// End of all headers in the file.
    headers_end: usize,
    sections: Vec<Section>,
}

#[derive(Debug)]
struct Section {
    name: [u8; 8],
    /// Bytes in memory; what is more in the file is padding.
    virtual_size: usize,
    offset: usize,
    raw_size: usize,
}

impl<'a> Program<'a> {
    /// Reads the headers.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        let coff = coff(bytes)?;
        let optional = coff + 20;
        let table = optional + usize::from(get16(bytes, coff + 16)?);
        let section = |index: usize| -> Result<Section> {
            let header = table + index * SECTION_HEADER;
            let field = |offset| get32(bytes, header + offset).and_then(size);
            let name = bytes.get(header..header + 8).context("section table lies outside the file")?.try_into()?;
            Ok(Section { name, virtual_size: field(8)?, raw_size: field(16)?, offset: field(20)? })
        };
        let sections = (0..usize::from(get16(bytes, coff + 2)?)).map(section).collect::<Result<_>>()?;
        Ok(Self { bytes, optional, headers_end: size(get32(bytes, optional + 60)?)?, sections })
    }

    /// The content of the first section of this name, as it is in memory.
    pub fn section(&self, name: &str) -> Result<Option<&'a [u8]>> {
        let is_wanted = |section: &&Section| section.name.split(|byte| *byte == 0).next() == Some(name.as_bytes());
        let Some(section) = self.sections.iter().find(is_wanted) else { return Ok(None) };
        ensure!(section.virtual_size <= section.raw_size, "section {name} is larger in memory than in the file");
        self.slice(section.offset, section.virtual_size).map(Some)
    }

    /// The hash of all that a signature covers: everything but the checksum, the entry that names the signatures, and these
    /// (Windows Authenticode Portable Executable Signature Format; `HashPeImage` in edk2's DxeTpm2MeasureBootLib).
    pub fn authenticode<D: Digest>(&self) -> Result<Output<D>> {
        let checksum = self.optional + 64;
        let mut hash = D::new();
        let mut hash_range = |begin: usize, end: usize| -> Result<()> {
            hash.update(self.slice(begin, end.checked_sub(begin).context("headers overlap")?)?);
            Ok(())
        };
        hash_range(0, checksum)?;
        let directories = size(get32(self.bytes, self.optional + 108)?)?;
        let mut signatures = 0;
        if directories > CERTIFICATES {
            let entry = self.optional + 112 + CERTIFICATES * 8;
            signatures = size(get32(self.bytes, entry + 4)?)?;
            hash_range(checksum + 4, entry)?;
            hash_range(entry + 8, self.headers_end)?;
        } else {
            hash_range(checksum + 4, self.headers_end)?;
        }
        let mut in_file: Vec<&Section> = self.sections.iter().filter(|section| section.raw_size > 0).collect();
        in_file.sort_by_key(|section| section.offset);
        // Counted, not looked up, as firmware does: a gap between sections is made up for at the end.
        let mut hashed = self.headers_end;
        for section in in_file {
            hash_range(section.offset, section.offset + section.raw_size)?;
            hashed += section.raw_size;
        }
        hash_range(hashed, self.bytes.len().checked_sub(signatures).context("signatures lie outside the file")?)?;
        Ok(hash.finalize())
    }

    fn slice(&self, offset: usize, length: usize) -> Result<&'a [u8]> {
        offset.checked_add(length).and_then(|end| self.bytes.get(offset..end)).context("section lies outside the file")
    }
}

/// Offset of the COFF header of a PE32+ file.
pub(crate) fn coff(bytes: &[u8]) -> Result<usize> {
    ensure!(bytes.starts_with(b"MZ"), "not an EFI program");
    let signature = size(get32(bytes, 0x3c)?)?;
    ensure!(bytes.get(signature..).is_some_and(|rest| rest.starts_with(b"PE\0\0")), "no PE header");
    ensure!(get16(bytes, signature + 24)? == 0x20b, "not PE32+");
    Ok(signature + 4)
}

pub(crate) fn get16(bytes: &[u8], offset: usize) -> Result<u16> {
    let found = bytes.get(offset..offset + 2).context("PE header lies outside the file")?;
    Ok(u16::from_le_bytes([found[0], found[1]]))
}

pub(crate) fn get32(bytes: &[u8], offset: usize) -> Result<u32> {
    let found = bytes.get(offset..offset + 4).context("PE header lies outside the file")?;
    Ok(u32::from_le_bytes([found[0], found[1], found[2], found[3]]))
}

pub(crate) fn size(value: u32) -> Result<usize> {
    usize::try_from(value).context("size does not fit")
}

#[cfg(test)]
mod tests {
    use sha2::Sha256;

    use super::*;
    use crate::fixture;

    /// Offset of the optional header in the fixture.
    const OPTIONAL: usize = 0x58;

    fn authenticode(bytes: &[u8]) -> [u8; 32] {
        Program::parse(bytes).expect("parse").authenticode::<Sha256>().expect("hash").into()
    }

    /// The fixture with a data directory and a signature of 8 bytes at its end.
    fn signed() -> Vec<u8> {
        let mut bytes = fixture::stub(0);
        bytes[OPTIONAL + 108] = 16;
        bytes[OPTIONAL + 148] = 8;
        bytes.extend_from_slice(b"signed!!");
        bytes
    }

    #[test]
    fn hash_covers_all_but_checksum_and_signatures() {
        let bytes = signed();
        let mut covered = bytes[..bytes.len() - 8].to_vec();
        covered.drain(OPTIONAL + 144..OPTIONAL + 152);
        covered.drain(OPTIONAL + 64..OPTIONAL + 68);
        assert_eq!(authenticode(&bytes), <[u8; 32]>::from(Sha256::digest(&covered)));
        for (at, is_covered) in
            [(2, true), (OPTIONAL + 65, false), (OPTIONAL + 145, false), (0x5ff, true), (0x600, true), (bytes.len() - 1, false)]
        {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert_eq!(authenticode(&changed) != authenticode(&bytes), is_covered, "byte {at}");
        }
    }

    #[test]
    fn program_without_a_directory_is_hashed_whole_with_what_follows_its_sections() {
        let mut bytes = fixture::stub(0);
        bytes.extend_from_slice(b"behind");
        let mut covered = bytes.clone();
        covered.drain(OPTIONAL + 64..OPTIONAL + 68);
        assert_eq!(authenticode(&bytes), <[u8; 32]>::from(Sha256::digest(&covered)));
    }

    #[test]
    fn section_is_as_long_as_in_memory_and_may_be_absent() {
        let mut bytes = fixture::stub(0);
        let program = Program::parse(&bytes).expect("parse");
        assert_eq!(program.section(".text").expect("read").map(<[u8]>::len), Some(16));
        assert_eq!(program.section(".tex").expect("read"), None);
        bytes.truncate(0x600);
        let cut = Program::parse(&bytes).expect("parse");
        assert!(cut.section(".text").is_err() && cut.authenticode::<Sha256>().is_err());
    }

    #[test]
    fn no_cut_of_a_program_makes_it_panic() {
        let bytes = signed();
        for length in 0..bytes.len() {
            if let Ok(program) = Program::parse(&bytes[..length]) {
                let _ = program.authenticode::<Sha256>();
            }
        }
    }
}
