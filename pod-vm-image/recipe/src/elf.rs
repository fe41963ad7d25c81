//! As much ELF as kernel modules need: one section by name, and the `key=value` strings of `.modinfo`. Of programs, whether they are static.

use anyhow::{Context as _, Result, ensure};

/// The bytes of a section of a 64-bit little-endian ELF file.
pub fn section<'a>(elf: &'a [u8], name: &str) -> Result<Option<&'a [u8]>> {
    ensure!(elf.starts_with(b"\x7fELF\x02\x01"), "not a 64-bit little-endian ELF file");
    let table = read(elf, 0x28, 8)?;
    let entry_size = read(elf, 0x3a, 2)?;
    let count = read(elf, 0x3c, 2)?;
    let names_index = read(elf, 0x3e, 2)?;
    let header = |index: usize| table + index * entry_size;
    let content = |index: usize| -> Result<&'a [u8]> {
        let offset = read(elf, header(index) + 0x18, 8)?;
        let size = read(elf, header(index) + 0x20, 8)?;
        elf.get(offset..offset.saturating_add(size)).context("section lies outside the file")
    };
    let names = content(names_index)?;
    for index in 0..count {
        let start = read(elf, header(index), 4)?;
        let rest = names.get(start..).context("section name lies outside its table")?;
        let found = rest.split(|b| *b == 0).next().unwrap_or_default();
        if found == name.as_bytes() {
            return content(index).map(Some);
        }
    }
    Ok(None)
}

/// The values of a key in a module's `.modinfo`.
pub fn modinfo<'a>(module: &'a [u8], key: &str) -> Result<Vec<&'a str>> {
    let info = section(module, ".modinfo")?.context("no .modinfo section: not a kernel module")?;
    let mut values = Vec::new();
    for entry in info.split(|b| *b == 0) {
        let text = std::str::from_utf8(entry).context(".modinfo is not text")?;
        if let Some((found, value)) = text.split_once('=')
            && found == key
        {
            values.push(value);
        }
    }
    Ok(values)
}

/// Whether a program for this architecture runs without a loader (`PT_INTERP`); a position-independent one may.
pub fn is_static(elf: &[u8]) -> Result<bool> {
    const X86_64: usize = 62;
    const INTERPRETER: usize = 3;
    ensure!(elf.starts_with(b"\x7fELF\x02\x01"), "not a 64-bit little-endian ELF file");
    ensure!(read(elf, 0x12, 2)? == X86_64, "not a program for x86-64");
    let (table, entry_size, count) = (read(elf, 0x20, 8)?, read(elf, 0x36, 2)?, read(elf, 0x38, 2)?);
    ensure!(count > 0, "no segments: not a program");
    for index in 0..count {
        if read(elf, table.saturating_add(index * entry_size), 4)? == INTERPRETER {
            return Ok(false);
        }
    }
    Ok(true)
}

fn read(elf: &[u8], offset: usize, size: usize) -> Result<usize> {
    let bytes = elf.get(offset..offset.saturating_add(size)).context("ELF header lies outside the file")?;
    let mut value = [0; 8];
    value[..size].copy_from_slice(bytes);
    usize::try_from(u64::from_le_bytes(value)).context("ELF offset does not fit")
}
