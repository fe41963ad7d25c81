//! The pod VM image: pins, kernel, initrd, UKI, measurements.
//!
//! One command turns Debian's cloud kernel and the guest binary into the files that a pod VM boots:
//!
//! | file | what it is |
//! |---|---|
//! | `vmlinux` | the kernel as an uncompressed ELF, for hypervisors that boot it directly (PVH) |
//! | `initrd` | the whole user space: guest binary as `/init`, kernel modules, CA certificates, [`upstream`] programs if any; newc cpio, zstd |
//! | `uki.efi` | kernel, initrd and command line as one signed-able EFI program, for firmware and clouds |
//! | `disk.raw` | a disk that firmware boots: `uki.efi` in its EFI system partition, and a scratch partition that grows at boot |
//! | `manifest.json` | digests, sizes, command line and inputs of the others ([`manifest::Manifest`]) |
//!
//! **Inputs** are Debian packages pinned by SHA-256 in `pins.toml`. A pinned package comes from the cache or from the pool of the
//! archive that this machine's own apt uses, so no archive is named here; its digest is all the trust it needs. When the
//! archive no longer has it, its present version is taken from indexes that apt verified against Debian's keys, and the image says
//! `unpinned: true`; a release refuses that.
//!
//! **Reproducible**: same inputs, same bytes, in any folder and at any time. Nothing but inputs reaches the output: archive members are
//! sorted and carry no time or owner, and both the compressor and the PE writer are crates of this workspace's lock file or our own.
//!
//! **Measurements**: what a TPM will show after a boot of `uki.efi` is told from its bytes ([`measure`]) and stands in the manifest;
//! what a machine of QEMU's shows whose memory is hidden from it, too ([`snp`], [`tdx`]).
//!
//! A build that fails leaves no manifest behind, which is what marks a folder as an image.

pub mod archive;
pub mod cache;
pub mod certificates;
pub mod cpio;
pub mod disk;
pub mod elf;
mod firmware;
#[cfg(any(test, feature = "fixture"))]
pub mod fixture;
pub mod image;
pub mod initrd;
pub mod kernel;
pub mod manifest;
pub mod measure;
pub mod modules;
pub mod package;
pub mod pe;
pub mod pins;
pub mod snp;
pub mod tdx;
pub mod uki;
pub mod upstream;

use sha2::{Digest as _, Sha256};

/// SHA-256 in hexadecimal, as pins and manifests write it.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}
