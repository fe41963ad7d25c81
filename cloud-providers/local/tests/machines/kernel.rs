//! A kernel of 60 bytes: an ELF file with a PVH entry that writes a line to the serial port and halts.

/// The line.
pub(crate) const LINE: &str = "tiny kernel: up";

/// Where it is loaded, a multiple of 4096.
const BASE: u32 = 0x10_0000;
/// Where code begins in the file and, from [`BASE`] on, in memory.
const CODE: usize = 0x1000;

/// The file.
pub(crate) fn elf() -> Vec<u8> {
    let entry = BASE + 0x1000;
    let message = entry + 21;
    let mut code = vec![0xbe]; // mov esi, message
    code.extend(message.to_le_bytes());
    code.extend([
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xac, // next: lodsb
        0x84, 0xc0, // test al, al
        0x74, 0x03, // jz end
        0xee, // out dx, al
        0xeb, 0xf8, // jmp next
        0xfa, 0xf4, 0xeb, 0xfc, // end: cli; hlt; jmp end
    ]);
    assert_eq!(code.len(), 21);
    code.extend(LINE.bytes());
    code.extend(b"\r\n\0");

    let note = note(entry);
    let mut file = header();
    file.extend(program_header(1, CODE, u64::from(entry), code.len(), 0x1000));
    let note_offset = 64 + 2 * 56;
    file.extend(program_header(4, note_offset, 0, note.len(), 4));
    file.extend(note);
    file.resize(CODE, 0);
    file.extend(code);
    file
}

/// ELF64, x86-64, executable, two program headers, no sections.
fn header() -> Vec<u8> {
    let mut header = b"\x7fELF\x02\x01\x01".to_vec();
    header.resize(16, 0);
    header.extend(2_u16.to_le_bytes());
    header.extend(62_u16.to_le_bytes());
    header.extend(1_u32.to_le_bytes());
    header.extend(u64::from(BASE + 0x1000).to_le_bytes());
    header.extend(64_u64.to_le_bytes());
    header.extend(0_u64.to_le_bytes());
    header.extend(0_u32.to_le_bytes());
    for field in [64_u16, 56, 2, 64, 0, 0] {
        header.extend(field.to_le_bytes());
    }
    header
}

fn program_header(kind: u32, offset: usize, address: u64, size: usize, align: u64) -> Vec<u8> {
    let mut header = kind.to_le_bytes().to_vec();
    header.extend(7_u32.to_le_bytes());
    for field in [offset as u64, address, address, size as u64, size as u64, align] {
        header.extend(field.to_le_bytes());
    }
    header
}

/// XEN_ELFNOTE_PHYS32_ENTRY, which is how a kernel says that it can be entered the PVH way.
fn note(entry: u32) -> Vec<u8> {
    let mut note = Vec::new();
    for field in [4_u32, 8, 18] {
        note.extend(field.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend(u64::from(entry).to_le_bytes());
    note
}
