//! The disk image: what clouds boot.
//!
//! ```text
//! GPT | EFI system partition (FAT32): EFI/BOOT/BOOTX64.EFI = the UKI | scratch, empty | GPT
//! ```
//!
//! The scratch partition is the last one: the guest lets it grow to the end of whatever disk the image was put on. Names and numbers derive
//! from the UKI's digest and no clock is read, so that equal inputs give equal bytes.

use std::collections::BTreeMap;
use std::io::{Cursor, Write as _};

use anyhow::{Context as _, Result};
use gpt::disk::LogicalBlockSize;
use gpt::partition::Partition;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// By which the guest finds it (`scratch/partition.rs` there).
const SCRATCH: &str = "peerpods-scratch";

/// Where firmware looks without being told (UEFI specification, "Removable media boot behaviour").
const BOOT_FILE: [&str; 3] = ["EFI", "BOOT", "BOOTX64.EFI"];

const MIB: u64 = 1 << 20;
const SECTOR: u64 = 512;

/// Both copies of the partition table have a MiB of their own, which also aligns what lies between.
const TABLE: u64 = MIB;
/// FAT32 begins at 65,525 clusters, here of one sector each.
const SMALLEST_SYSTEM: u64 = 34 * MIB;
/// File allocation tables and folders: two tables of four bytes a cluster are less than a fiftieth.
const SYSTEM_OVERHEAD: u64 = 2 * MIB;
/// Enough for the guest's file system where the disk is not larger than the image.
const SMALLEST_SCRATCH: u64 = 16 * MIB;

/// A raw disk image that boots this UKI.
pub fn build(uki: &[u8]) -> Result<Vec<u8>> {
    let digest = Sha256::digest(uki);
    let needed = uki.len() as u64 + uki.len() as u64 / 50 + SYSTEM_OVERHEAD;
    let system = needed.next_multiple_of(MIB).max(SMALLEST_SYSTEM);
    let total = TABLE + system + SMALLEST_SCRATCH + TABLE;
    let mut bytes = vec![0; usize::try_from(total)?];
    let volume_id = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]);
    let place = usize::try_from(TABLE)?..usize::try_from(TABLE + system)?;
    system_partition(&mut bytes[place], uki, volume_id).context("EFI system partition")?;
    let areas = [("EFI system", gpt::partition_types::EFI, system), (SCRATCH, gpt::partition_types::LINUX_FS, SMALLEST_SCRATCH)];
    let mut next = TABLE;
    let mut partitions = BTreeMap::new();
    for ((name, kind, size), number) in areas.into_iter().zip(1..) {
        let partition = Partition {
            part_type_guid: kind,
            part_guid: derived(&digest, number),
            first_lba: next / SECTOR,
            last_lba: (next + size) / SECTOR - 1,
            flags: 0,
            name: name.to_owned(),
        };
        partitions.insert(u32::from(number), partition);
        next += size;
    }
    table(bytes, &partitions, derived(&digest, 0)).context("partition table")
}

fn system_partition(area: &mut [u8], uki: &[u8], volume_id: u32) -> Result<()> {
    let options = fatfs::FormatVolumeOptions::new()
        .fat_type(fatfs::FatType::Fat32)
        .bytes_per_cluster(u32::try_from(SECTOR)?)
        .volume_id(volume_id)
        .volume_label(*b"PEERPODS   ");
    fatfs::format_volume(Cursor::new(&mut *area), options)?;
    let volume = fatfs::FileSystem::new(Cursor::new(area), fatfs::FsOptions::new())?;
    {
        let [efi, boot, file] = BOOT_FILE;
        let folder = volume.root_dir().create_dir(efi)?.create_dir(boot)?;
        let mut file = folder.create_file(file)?;
        file.write_all(uki)?;
        file.flush()?;
    }
    volume.unmount()?;
    Ok(())
}

fn table(bytes: Vec<u8>, partitions: &BTreeMap<u32, Partition>, disk: Uuid) -> Result<Vec<u8>> {
    let blocks = u32::try_from(bytes.len() as u64 / SECTOR)?;
    let mut device = Cursor::new(bytes);
    gpt::mbr::ProtectiveMBR::with_lb_size(blocks - 1).overwrite_lba0(&mut device)?;
    let config = gpt::GptConfig::new().writable(true).logical_block_size(LogicalBlockSize::Lb512);
    let mut disk = config.create_from_device(device, Some(disk))?;
    disk.update_partitions(partitions.clone())?;
    Ok(disk.write()?.into_inner())
}

/// A name that only this content has.
fn derived(digest: &[u8], number: u8) -> Uuid {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&Sha256::digest([digest, &[number]].concat())[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn equal_inputs_give_equal_bytes_that_hold_the_uki() {
        let uki = vec![7; 3 << 20];
        let disk = build(&uki).expect("a disk");
        assert!(disk == build(&uki).expect("a disk"), "the same bytes");
        assert!(disk != build(&uki[1..]).expect("a disk"), "another UKI, another disk");
        let opened = gpt::GptConfig::new().open_from_device(Cursor::new(disk.clone())).expect("a partition table");
        let partitions = opened.partitions();
        assert_eq!((partitions[&1].part_type_guid.guid, partitions[&2].name.as_str()), (gpt::partition_types::EFI.guid, SCRATCH));
        assert!(partitions[&2].last_lba * SECTOR < disk.len() as u64 - 33 * SECTOR, "room for the second table");
        let begin = usize::try_from(partitions[&1].first_lba * SECTOR).expect("fits");
        let end = usize::try_from((partitions[&1].last_lba + 1) * SECTOR).expect("fits");
        let mut system = disk[begin..end].to_vec();
        let volume = fatfs::FileSystem::new(Cursor::new(&mut system[..]), fatfs::FsOptions::new()).expect("a file system");
        let mut content = Vec::new();
        volume.root_dir().open_file(&BOOT_FILE.join("/")).expect("the boot file").read_to_end(&mut content).expect("read");
        assert!(content == uki, "the UKI");
    }
}
