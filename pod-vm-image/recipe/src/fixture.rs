//! Tests' own packages and firmware: as small as what reads them allows. A defect of them panics.

pub mod firmware;

use std::path::{Path, PathBuf};

use crate::pins::Role;
use crate::{kernel, modules, sha256_hex};

/// A kernel configuration with everything that is required.
pub fn full_config() -> String {
    kernel::REQUIRED.iter().map(|(option, _)| format!("CONFIG_{option}=y\n")).collect()
}

/// A bzImage, also an EFI program, with this content as its payload.
pub fn bzimage(content: &[u8]) -> Vec<u8> {
    let frame = zstd::encode_all(content, 1).expect("encode");
    let mut image = vec![0; 0x600];
    image[0x1f1] = 1;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
    image[0x248..0x24c].copy_from_slice(&0x200_u32.to_le_bytes());
    image[0x24c..0x250].copy_from_slice(&u32::try_from(frame.len() + 4).expect("short").to_le_bytes());
    image.extend_from_slice(&frame);
    image.extend_from_slice(&[13, 0, 0, 0]);
    let size = u32::try_from(image.len() - 0x600).expect("short");
    write_pe_header(&mut image, 0x600, [size, 4096, size, 0x600]);
    image
}

/// Makes these bytes a PE32+ file with one section: its size in memory, address, size and offset.
fn write_pe_header(pe: &mut [u8], headers_size: u32, section: [u32; 4]) {
    pe[..2].copy_from_slice(b"MZ");
    pe[0x3c] = 0x40;
    pe[0x40..0x44].copy_from_slice(b"PE\0\0");
    pe[0x44 + 2..0x44 + 4].copy_from_slice(&1_u16.to_le_bytes());
    pe[0x44 + 16..0x44 + 18].copy_from_slice(&240_u16.to_le_bytes());
    let optional = 0x44 + 20;
    pe[optional..optional + 2].copy_from_slice(&0x20b_u16.to_le_bytes());
    for (offset, value) in [(32, 4096_u32), (36, 512), (56, 8192), (60, headers_size)] {
        pe[optional + offset..optional + offset + 4].copy_from_slice(&value.to_le_bytes());
    }
    let header = optional + 240;
    pe[header..header + 8].copy_from_slice(b".text\0\0\0");
    for (offset, value) in [8, 12, 16, 20].into_iter().zip(section) {
        pe[header + offset..header + offset + 4].copy_from_slice(&value.to_le_bytes());
    }
}

/// An ELF file with a `.modinfo` section.
pub fn module(info: &[u8]) -> Vec<u8> {
    let names = b"\0.shstrtab\0.modinfo\0";
    let mut elf = vec![0; 64];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    let names_at = elf.len();
    elf.extend_from_slice(names);
    let info_at = elf.len();
    elf.extend_from_slice(info);
    let table = elf.len();
    elf[0x28..0x30].copy_from_slice(&(table as u64).to_le_bytes());
    elf[0x3a..0x40].copy_from_slice(&[64, 0, 2, 0, 0, 0]);
    for (name, at, size) in [(1_u32, names_at, names.len()), (11, info_at, info.len())] {
        let mut header = vec![0; 64];
        header[..4].copy_from_slice(&name.to_le_bytes());
        header[0x18..0x20].copy_from_slice(&(at as u64).to_le_bytes());
        header[0x20..0x28].copy_from_slice(&(size as u64).to_le_bytes());
        elf.extend_from_slice(&header);
    }
    elf
}

/// All modules that an image carries, without dependencies.
pub fn write_modules(folder: &Path) {
    std::fs::create_dir_all(folder).expect("folder");
    for name in modules::REQUIRED.iter().chain(modules::OPTIONAL) {
        std::fs::write(folder.join(format!("{name}.ko")), module(b"license=GPL\0depends=\0")).expect("module");
    }
}

/// A PE32+ file with one section, and this many more headers already used.
pub fn stub(used_headers: u16) -> Vec<u8> {
    let mut pe = vec![0; 0x600];
    write_pe_header(&mut pe, 0x600 - u32::from(used_headers) * 40, [16, 4096, 512, 0x600]);
    pe.resize(0x800, 0);
    pe
}

/// Unpacked packages, one folder a role.
pub fn write_packages(unpacked: &Path) {
    let write = |role: Role, path: &str, content: &[u8]| {
        let path = unpacked.join(format!("{role:?}")).join(path);
        std::fs::create_dir_all(path.parent().expect("parent")).expect("folder");
        std::fs::write(path, content).expect("file");
    };
    write(Role::Kernel, "usr/lib/modules/7.3.4-test/config", full_config().as_bytes());
    write(Role::Kernel, "usr/lib/modules/7.3.4-test/vmlinuz", &bzimage(b"\x7fELF kernel"));
    write_modules(&unpacked.join("Kernel/usr/lib/modules/7.3.4-test/kernel"));
    write(Role::Stub, "usr/lib/systemd/boot/efi/linuxx64.efi.stub", &stub(0));
    write(Role::Certificates, "usr/share/ca-certificates/b.crt", b"-----BEGIN CERTIFICATE-----\nb\n-----END CERTIFICATE-----\n");
    write(Role::Certificates, "usr/share/ca-certificates/a.crt", b"-----BEGIN CERTIFICATE-----\na\n-----END CERTIFICATE-----");
}

/// A program without code, which asks for this loader if any.
pub fn program(loader: Option<&str>) -> Vec<u8> {
    let mut elf = vec![0; 64 + 56];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf[0x12] = 62;
    elf[0x20] = 64;
    elf[0x36] = 56;
    elf[0x38] = 1;
    elf[64] = if loader.is_some() { 3 } else { 1 };
    elf.extend_from_slice(loader.unwrap_or_default().as_bytes());
    elf
}

/// Programs for the upstream profile, and the file that names them.
pub fn write_upstream(folder: &Path) -> PathBuf {
    write_upstream_with(folder, "kata-agent", &program(None))
}

/// The same with this content for one of them.
pub fn write_upstream_with(folder: &Path, other: &str, content: &[u8]) -> PathBuf {
    let mut text = "version = 1\n".to_owned();
    for name in ["kata-agent", "attestation-agent", "confidential-data-hub", "api-server-rest"].iter().rev() {
        let content = if *name == other { content.to_vec() } else { [program(None), name.as_bytes().to_vec()].concat() };
        std::fs::write(folder.join(name), &content).expect("program");
        text.push_str(&format!("\n[{name}]\npath = \"{name}\"\nsha256 = \"{}\"\n", sha256_hex(&content)));
    }
    let file = folder.join("upstream.toml");
    std::fs::write(&file, text).expect("file");
    file
}
