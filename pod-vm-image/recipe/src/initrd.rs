//! The initrd: the guest's whole user space.

use anyhow::{Context as _, Result};

use crate::cpio::Archive;
use crate::modules::{self, Module};
use crate::upstream::{self, Program};

/// Folders that `init` mounts something on, or writes to.
const FOLDERS: &[&str] = &["dev", "etc", "proc", "run", "sys", "tmp"];

/// Level of compression: the highest without the larger windows of levels 20 to 22, which cost the booting machine memory.
const COMPRESSION: i32 = 19;

/// The uncompressed archive; without programs of upstream's the guest runs its own agent.
pub fn archive(guest: Vec<u8>, modules: Vec<Module>, certificates: Vec<u8>, upstream: &[Program]) -> Result<Vec<u8>> {
    let mut archive = Archive::new();
    FOLDERS.iter().for_each(|folder| archive.add_directory(folder));
    // The kernel opens it for PID 1 before anything is mounted.
    archive.add_character_device("dev/console", 0o600, 5, 1);
    archive.add_file("etc/ssl/certs/ca-certificates.crt", 0o644, certificates);
    archive.add_file("init", 0o755, guest);
    archive.add_file("modules/order", 0o644, modules::order(&modules).into_bytes());
    for module in modules {
        archive.add_file(&format!("modules/{}", module.file), 0o644, module.content);
    }
    if !upstream.is_empty() {
        upstream::add(&mut archive, upstream)?;
    }
    Ok(archive.finish())
}

/// What the kernel unpacks.
pub fn compress(archive: &[u8]) -> Result<Vec<u8>> {
    zstd::encode_all(archive, COMPRESSION).context("compress the initrd")
}
