//! The unified kernel image: systemd's EFI stub with kernel, initrd and command line as PE sections.
//!
//! Written by hand because the result is measured: it must not depend on which objcopy a machine has. The stub's header has room for
//! more sections; nothing of it is moved.

use anyhow::{Context as _, Result, ensure};

use crate::pe::{self, SECTION_HEADER, get16, get32, size};

/// What goes into a UKI.
#[derive(Debug)]
pub struct Parts<'a> {
    /// `linuxx64.efi.stub`.
    pub stub: &'a [u8],
    /// The kernel image.
    pub linux: &'a [u8],
    /// The initrd.
    pub initrd: &'a [u8],
    /// The kernel's command line.
    pub cmdline: &'a str,
    /// `uname -r` of the kernel.
    pub release: &'a str,
    /// Text in the format of `os-release`.
    pub os_release: &'a str,
}

/// Initialised data, readable.
const READABLE_DATA: u32 = 0x4000_0040;

/// The UKI's bytes.
pub fn build(parts: &Parts<'_>) -> Result<Vec<u8>> {
    let sections: [(&[u8; 8], &[u8]); 5] = [
        (b".osrel\0\0", parts.os_release.as_bytes()),
        (b".cmdline", parts.cmdline.as_bytes()),
        (b".uname\0\0", parts.release.as_bytes()),
        (b".initrd\0", parts.initrd),
        // Last, so that the kernel may unpack itself behind its end.
        (b".linux\0\0", parts.linux),
    ];
    let mut pe = Pe::parse(parts.stub)?;
    for (name, content) in sections {
        pe.append(name, content).with_context(|| format!("section {}", String::from_utf8_lossy(name)))?;
    }
    Ok(pe.bytes)
}

/// A PE32+ file that sections are appended to.
struct Pe {
    bytes: Vec<u8>,
    /// Offset of the COFF header.
    coff: usize,
    section_table: usize,
    section_alignment: u32,
    file_alignment: u32,
    /// First address behind the last section.
    next_address: u32,
    /// End of all headers in the file: the section table may grow up to here.
    headers_end: usize,
}

impl Pe {
    fn parse(stub: &[u8]) -> Result<Self> {
        let bytes = stub.to_vec();
        let coff = pe::coff(&bytes).context("stub")?;
        let optional = coff + 20;
        let section_table = optional + usize::from(get16(&bytes, coff + 16)?);
        let mut pe = Self {
            coff,
            section_table,
            section_alignment: get32(&bytes, optional + 32)?,
            file_alignment: get32(&bytes, optional + 36)?,
            next_address: 0,
            headers_end: size(get32(&bytes, optional + 60)?)?,
            bytes,
        };
        for index in 0..pe.count()? {
            let header = section_table + index * SECTION_HEADER;
            let end = get32(&pe.bytes, header + 12)?.checked_add(get32(&pe.bytes, header + 8)?).context("section is too large")?;
            pe.next_address = pe.next_address.max(end);
        }
        Ok(pe)
    }

    fn count(&self) -> Result<usize> {
        Ok(usize::from(get16(&self.bytes, self.coff + 2)?))
    }

    fn append(&mut self, name: &[u8; 8], content: &[u8]) -> Result<()> {
        let count = self.count()?;
        let header = self.section_table + count * SECTION_HEADER;
        ensure!(header + SECTION_HEADER <= self.headers_end, "the stub has no room for another section header");
        let virtual_size = u32::try_from(content.len())?;
        let address = self.next_address.next_multiple_of(self.section_alignment);
        let alignment = size(self.file_alignment)?;
        self.bytes.resize(self.bytes.len().next_multiple_of(alignment), 0);
        let offset = u32::try_from(self.bytes.len())?;
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(alignment), 0);
        let raw_size = virtual_size.next_multiple_of(self.file_alignment);

        self.bytes[header..header + 8].copy_from_slice(name);
        self.put32(header + 8, virtual_size);
        self.put32(header + 12, address);
        self.put32(header + 16, raw_size);
        self.put32(header + 20, offset);
        self.bytes[header + 24..header + 36].fill(0);
        self.put32(header + 36, READABLE_DATA);

        let count = u16::try_from(count + 1)?;
        self.bytes[self.coff + 2..self.coff + 4].copy_from_slice(&count.to_le_bytes());
        self.next_address = address.checked_add(virtual_size).context("the image is too large")?;
        let optional = self.coff + 20;
        let initialised = get32(&self.bytes, optional + 8)?.wrapping_add(raw_size);
        self.put32(optional + 8, initialised);
        self.put32(optional + 56, self.next_address.next_multiple_of(self.section_alignment));
        // The checksum is optional for EFI; zero says that there is none.
        self.put32(optional + 64, 0);
        Ok(())
    }

    fn put32(&mut self, offset: usize, value: u32) {
        self.bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    const PARTS: Parts<'static> =
        Parts { stub: &[], linux: &[7; 5000], initrd: b"initrd", cmdline: "quiet", release: "7.0", os_release: "ID=x\n" };

    #[test]
    fn sections_hold_what_was_given_and_do_not_overlap() {
        let stub = fixture::stub(3);
        let uki = build(&Parts { stub: &stub, ..PARTS }).expect("build");
        let pe = Pe::parse(&uki).expect("parse");
        assert_eq!(pe.count().expect("count"), 6);
        let mut end = 0;
        let mut found = Vec::new();
        for index in 0..6 {
            let header = pe.section_table + index * SECTION_HEADER;
            let field = |offset| size(get32(&uki, header + offset).expect("field")).expect("size");
            let (virtual_size, address, raw_size, offset) = (field(8), field(12), field(16), field(20));
            assert!(address >= end && address % 4096 == 0 && offset % 512 == 0 && raw_size % 512 == 0);
            end = address + virtual_size;
            let name = String::from_utf8_lossy(&uki[header..header + 8]).trim_end_matches('\0').to_owned();
            found.push((name, uki[offset..offset + virtual_size].to_vec()));
        }
        assert_eq!(found[2], (".cmdline".to_owned(), b"quiet".to_vec()));
        assert_eq!(found[4], (".initrd".to_owned(), b"initrd".to_vec()));
        assert_eq!(found[5], (".linux".to_owned(), vec![7; 5000]));
        let image_size = get32(&uki, pe.coff + 20 + 56).expect("image size");
        assert_eq!(size(image_size).expect("size"), end.next_multiple_of(4096));
    }

    #[test]
    fn stub_without_room_for_headers_is_refused() {
        let error = format!("{:#}", build(&Parts { stub: &fixture::stub(26), ..PARTS }).expect_err("refused"));
        assert!(error.contains("no room"), "{error}");
    }

    #[test]
    fn anything_but_an_efi_program_is_refused() {
        for stub in [&b""[..], b"MZ", &[0; 4096], b"\x7fELF"] {
            assert!(build(&Parts { stub, ..PARTS }).is_err());
        }
    }
}
