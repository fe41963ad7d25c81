//! Makes an empty ext4 file system with a handful of writes, whatever the disk's size.
//!
//! What makes it small: no journal; no backup superblocks (`sparse_super2` with none named); block and inode bitmaps of untouched
//! groups are not written but marked uninitialised (`uninit_bg`), which the kernel believes because the group descriptors carry
//! checksums. All metadata comes first (`flex_bg`): superblock, descriptors, block bitmaps, inode bitmaps, inode tables, directories;
//! the rest is data.
//!
//! **The metadata's blocks must be zeros where they were not written**, which on an authenticated device they are not by themselves.
//! The kernel makes block bitmaps, directories and extents without reading, but of inode tables only the first inode of a block: it
//! reads the block when another thread has taken a second inode of it meanwhile, as unpacking layers side by side does.
//!
//! Numbers and offsets are those of the kernel's Documentation/filesystems/ext4; `e2fsck` checks the result in tests.

use std::io::{self, Seek, SeekFrom, Write};

const BLOCK: u32 = 4096;
const BLOCK_BYTES: usize = 4096;
const BLOCKS_PER_GROUP: u32 = 32768;
/// One inode for 16 KiB, as mke2fs does.
const INODES_PER_GROUP: u32 = 8192;
const INODE_SIZE: usize = 256;
const INODE_TABLE_BLOCKS: u32 = 512;
/// The metadata's blocks that each group has: two bitmaps and the inode table.
const BLOCKS_FOR_GROUP: u32 = 2 + INODE_TABLE_BLOCKS;
/// The blocks of the root directory and of lost+found.
const DIRECTORY_BLOCKS: u32 = 2;
/// Fewer blocks than these are no group.
const LEAST_DATA: u32 = 64;
/// log2 of how many groups the kernel sees as one when it spreads folders; 16 is what mke2fs takes.
const GROUPS_PER_FLEX_LOG2: u8 = 4;
const DESCRIPTOR_SIZE: usize = 32;
const ROOT_INODE: u32 = 2;
const FIRST_INODE: u32 = 11;
const LOST_AND_FOUND_INODE: u32 = FIRST_INODE;

/// ext_attr, dir_index, sparse_super2.
const COMPATIBLE: u32 = 0x8 | 0x20 | 0x200;
/// filetype, extents, flex_bg.
const INCOMPATIBLE: u32 = 0x2 | 0x40 | 0x200;
/// sparse_super, large_file, huge_file, uninit_bg, dir_nlink, extra_isize.
const READ_ONLY_COMPATIBLE: u32 = 0x1 | 0x2 | 0x8 | 0x10 | 0x20 | 0x40;

const INODES_UNINITIALISED: u16 = 1;
const BLOCKS_UNINITIALISED: u16 = 2;
const INODE_TABLE_ZEROED: u16 = 4;

/// A file system that is planned but not written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Filesystem {
    blocks: u32,
    groups: u32,
    /// Blocks of the group descriptor table.
    descriptor_blocks: u32,
    uuid: [u8; 16],
    hash_seed: [u8; 16],
}

impl Filesystem {
    /// Plans for a disk of this size. `random` becomes UUID and hash seed. `None`: too small (4 MiB) or too large (16 TiB).
    pub(super) fn plan(bytes: u64, random: [u8; 32]) -> Option<Self> {
        let mut blocks = u32::try_from(bytes / u64::from(BLOCK)).ok()?;
        // A last group whose tables would take what it has is left out.
        let rest = blocks % BLOCKS_PER_GROUP;
        if blocks > BLOCKS_PER_GROUP && rest != 0 && rest < BLOCKS_FOR_GROUP + LEAST_DATA {
            blocks -= rest;
        }
        let groups = blocks.div_ceil(BLOCKS_PER_GROUP);
        let per_block = u32::try_from(BLOCK_BYTES / DESCRIPTOR_SIZE).ok()?;
        let descriptor_blocks = groups.div_ceil(per_block);
        let (uuid, hash_seed) = random.split_at(16);
        let planned = Self { blocks, groups, descriptor_blocks, uuid: uuid.try_into().ok()?, hash_seed: hash_seed.try_into().ok()? };
        (blocks >= planned.metadata_blocks() + LEAST_DATA).then_some(planned)
    }

    /// How many bytes at the beginning must be zeros before [`Self::write`]. What is behind them is not read before it is written.
    pub(super) fn metadata_bytes(&self) -> u64 {
        u64::from(self.metadata_blocks()) * u64::from(BLOCK)
    }

    /// Writes it. What was on the disk stays in blocks that count as free.
    pub(super) fn write(&self, disk: &mut (impl Write + Seek)) -> io::Result<()> {
        let mut at = |block: u32, content: &[u8]| -> io::Result<()> {
            disk.seek(SeekFrom::Start(u64::from(block) * u64::from(BLOCK)))?;
            disk.write_all(content)
        };
        for group in (0..self.groups).filter(|group| self.has_block_bitmap(*group)) {
            at(self.block_bitmap(group), &bitmap(self.used_blocks(group), self.blocks_in(group)))?;
        }
        at(self.inode_bitmap(0), &bitmap(FIRST_INODE, INODES_PER_GROUP))?;
        at(self.inode_table(0), &self.first_inodes())?;
        at(self.root_block(), &directory(ROOT_INODE, ROOT_INODE, Some((LOST_AND_FOUND_INODE, "lost+found"))))?;
        at(self.root_block() + 1, &directory(LOST_AND_FOUND_INODE, ROOT_INODE, None))?;
        at(1, &self.descriptors())?;
        let mut first = vec![0; BLOCK_BYTES];
        first[1024..2048].copy_from_slice(&self.superblock());
        at(0, &first)?;
        disk.flush()
    }

    fn blocks_in(&self, group: u32) -> u32 {
        (self.blocks - group * BLOCKS_PER_GROUP).min(BLOCKS_PER_GROUP)
    }

    fn block_bitmap(&self, group: u32) -> u32 {
        1 + self.descriptor_blocks + group
    }

    fn inode_bitmap(&self, group: u32) -> u32 {
        self.block_bitmap(self.groups) + group
    }

    fn inode_table(&self, group: u32) -> u32 {
        self.inode_bitmap(self.groups) + group * INODE_TABLE_BLOCKS
    }

    /// The root directory's block; lost+found's is the next.
    fn root_block(&self) -> u32 {
        self.inode_table(self.groups)
    }

    /// All that is not data.
    fn metadata_blocks(&self) -> u32 {
        self.root_block() + DIRECTORY_BLOCKS
    }

    /// How many of a group's blocks, the first ones, are metadata of any group.
    fn used_blocks(&self, group: u32) -> u32 {
        self.metadata_blocks().saturating_sub(group * BLOCKS_PER_GROUP).min(self.blocks_in(group))
    }

    /// Whether a group's block bitmap is written. The last one is padded where the disk ends, which the kernel does not do for an
    /// uninitialised one.
    fn has_block_bitmap(&self, group: u32) -> bool {
        self.used_blocks(group) > 0 || group == self.groups - 1
    }

    fn free_blocks(&self) -> u32 {
        (0..self.groups).map(|g| self.blocks_in(g) - self.used_blocks(g)).sum()
    }

    fn superblock(&self) -> [u8; 1024] {
        let mut sb = [0; 1024];
        let inodes = self.groups * INODES_PER_GROUP;
        let words = [
            (0, inodes),
            (4, self.blocks),
            (12, self.free_blocks()),
            (16, inodes - FIRST_INODE),
            (24, 2), // log2(block size) - 10
            (28, 2), // the same for clusters
            (32, BLOCKS_PER_GROUP),
            (36, BLOCKS_PER_GROUP),
            (40, INODES_PER_GROUP),
            (76, 1), // revision with variable inode sizes
            (84, FIRST_INODE),
            (92, COMPATIBLE),
            (96, INCOMPATIBLE),
            (100, READ_ONLY_COMPATIBLE),
            (352, 1), // directory hashes of signed characters
        ];
        for (offset, value) in words {
            put32(&mut sb, offset, value);
        }
        let halves = [
            (54, u16::MAX), // never ask for a check by mount count
            (56, 0xef53),
            (58, 1), // clean
            (60, 2), // on errors: read-only
            (88, 256),
            (348, 32),
            (350, 32),
        ];
        for (offset, value) in halves {
            put16(&mut sb, offset, value);
        }
        sb[104..120].copy_from_slice(&self.uuid);
        sb[120..128].copy_from_slice(b"peerpods");
        sb[236..252].copy_from_slice(&self.hash_seed);
        sb[252] = 1; // half MD4
        sb[372] = GROUPS_PER_FLEX_LOG2;
        sb
    }

    fn descriptors(&self) -> Vec<u8> {
        let mut table = vec![0; usize::try_from(self.descriptor_blocks).unwrap_or(0) * BLOCK_BYTES];
        for (group, entry) in (0..self.groups).zip(table.chunks_exact_mut(DESCRIPTOR_SIZE)) {
            put32(entry, 0, self.block_bitmap(group));
            put32(entry, 4, self.inode_bitmap(group));
            put32(entry, 8, self.inode_table(group));
            let used_inodes = if group == 0 { FIRST_INODE } else { 0 };
            let mut flags = INODE_TABLE_ZEROED | if group == 0 { 0 } else { INODES_UNINITIALISED };
            if !self.has_block_bitmap(group) {
                flags |= BLOCKS_UNINITIALISED;
            }
            put16(entry, 12, half(self.blocks_in(group) - self.used_blocks(group)));
            put16(entry, 14, half(INODES_PER_GROUP - used_inodes));
            put16(entry, 16, if group == 0 { 2 } else { 0 });
            put16(entry, 18, flags);
            put16(entry, 28, half(INODES_PER_GROUP - used_inodes));
            let mut checksum = crc16(0xffff, &self.uuid);
            checksum = crc16(checksum, &group.to_le_bytes());
            checksum = crc16(checksum, &entry[..30]);
            put16(entry, 30, checksum);
        }
        table
    }

    /// The block of the inode table that holds the root directory and lost+found.
    fn first_inodes(&self) -> Vec<u8> {
        let mut table = vec![0; BLOCK_BYTES];
        for (number, mode, links, block) in
            [(ROOT_INODE, 0o040_755, 3, self.root_block()), (LOST_AND_FOUND_INODE, 0o040_700, 2, self.root_block() + 1)]
        {
            let start = usize::try_from(number - 1).unwrap_or(0) * INODE_SIZE;
            let inode = &mut table[start..start + INODE_SIZE];
            put16(inode, 0, mode);
            put32(inode, 4, BLOCK);
            put16(inode, 26, links);
            put32(inode, 28, BLOCK / 512);
            put32(inode, 32, 0x80000); // extents
            put16(inode, 40, 0xf30a); // extent header: magic, one entry of at most four, depth 0
            put16(inode, 42, 1);
            put16(inode, 44, 4);
            put16(inode, 56, 1); // one block at logical 0
            put32(inode, 60, block);
            put16(inode, 128, 32); // extra inode size
        }
        table
    }
}

/// One block: the first `used` bits set, and those from `end` on.
fn bitmap(used: u32, end: u32) -> Vec<u8> {
    let mut map = vec![0_u8; BLOCK_BYTES];
    for bit in (0..used).chain(end..BLOCK * 8) {
        map[bit as usize / 8] |= 1 << (bit % 8);
    }
    map
}

/// A directory's one block. The last entry takes the rest of it.
fn directory(own: u32, parent: u32, child: Option<(u32, &str)>) -> Vec<u8> {
    let mut block = Vec::with_capacity(BLOCK_BYTES);
    let mut entries = vec![(own, "."), (parent, "..")];
    entries.extend(child);
    for (index, (inode, name)) in entries.iter().enumerate() {
        let length = if index + 1 == entries.len() { BLOCK_BYTES - block.len() } else { (8 + name.len()).next_multiple_of(4) };
        let end = block.len() + length;
        block.extend_from_slice(&inode.to_le_bytes());
        block.extend_from_slice(&u16::try_from(length).unwrap_or(u16::MAX).to_le_bytes());
        block.extend_from_slice(&[u8::try_from(name.len()).unwrap_or(u8::MAX), 2]); // 2: a directory
        block.extend_from_slice(name.as_bytes());
        block.resize(end, 0);
    }
    block
}

fn half(value: u32) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}

fn put16(bytes: &mut [u8], offset: usize, value: u16) {
    bytes[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
}

fn put32(bytes: &mut [u8], offset: usize, value: u32) {
    bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
}

/// CRC-16 with the reflected polynomial 0xA001, as `uninit_bg` uses it.
fn crc16(mut crc: u16, bytes: &[u8]) -> u16 {
    for byte in bytes {
        crc ^= u16::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xa001 } else { crc >> 1 };
        }
    }
    crc
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::path::Path;
    use std::process::Command;

    const RANDOM: [u8; 32] = *b"0123456789abcdef0123456789ABCDEF";

    fn format(path: &Path, size: u64) {
        let mut file = File::options().create(true).truncate(false).read(true).write(true).open(path).expect("create");
        file.set_len(size).expect("size");
        Filesystem::plan(size, RANDOM).expect("plan").write(&mut file).expect("write");
    }

    #[test]
    fn e2fsck_finds_nothing_to_repair() {
        let folder = tempfile::tempdir().expect("folder");
        let mib = 1 << 20;
        // One group; exactly two; a last group that is short; one that is left out; many; metadata of more than one group; sizes that
        // are no multiple of a block.
        for size in [5 * mib, 64 * mib + 512, 256 * mib, 300 * mib, 257 * mib, 8192 * mib, (1 << 40) + 12345] {
            let path = folder.path().join("disk");
            format(&path, size);
            let out = Command::new("e2fsck").args(["-f", "-n"]).arg(&path).output().expect("run e2fsck (package e2fsprogs)");
            assert!(out.status.success(), "{size} bytes: {}", String::from_utf8_lossy(&out.stdout));
            std::fs::remove_file(&path).expect("remove");
        }
    }

    #[test]
    fn kernel_mounts_it_over_old_content_and_e2fsck_agrees_afterwards() {
        if !nix::unistd::geteuid().is_root() {
            println!("not mounted: this test is not run as root");
            return;
        }
        let folder = tempfile::tempdir().expect("folder");
        let (disk, mounted) = (folder.path().join("disk"), folder.path().join("mounted"));
        std::fs::create_dir(&mounted).expect("mount point");
        // Old bytes everywhere, as on a disk that had a life before.
        std::fs::write(&disk, vec![0xa5; 300 << 20]).expect("fill");
        let planned = Filesystem::plan(300 << 20, RANDOM).expect("plan");
        let zeros = vec![0; usize::try_from(planned.metadata_bytes()).expect("small")];
        File::options().write(true).open(&disk).and_then(|mut file| file.write_all(&zeros)).expect("blank metadata");
        format(&disk, 300 << 20);
        let run = |command: &mut Command| {
            let out = command.output().expect("run");
            assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
        };
        run(Command::new("mount").args(["-o", "loop,noinit_itable", "-t", "ext4"]).arg(&disk).arg(&mounted));
        for index in 0..3000 {
            let below = mounted.join(format!("{}", index % 50));
            std::fs::create_dir_all(&below).expect("folder");
            std::fs::write(below.join(index.to_string()), vec![1; 20_000]).expect("file");
        }
        run(Command::new("umount").arg(&mounted));
        run(Command::new("e2fsck").args(["-f", "-n"]).arg(&disk));
    }

    /// A disk that knows what was written to it.
    #[derive(Default)]
    struct Written {
        at: u64,
        blocks: std::collections::BTreeSet<u64>,
    }

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let (first, count) = (self.at / 4096, bytes.len() as u64 / 4096);
            assert!(self.at.is_multiple_of(4096) && bytes.len().is_multiple_of(4096), "a part of a block would be read first");
            self.blocks.extend(first..first + count);
            self.at += bytes.len() as u64;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Seek for Written {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            let SeekFrom::Start(at) = to else { return Err(io::ErrorKind::Unsupported.into()) };
            self.at = at;
            Ok(at)
        }
    }

    #[test]
    fn whole_blocks_are_written_and_of_the_metadata_only() {
        let planned = Filesystem::plan(300 << 20, RANDOM).expect("plan");
        let mut disk = Written::default();
        planned.write(&mut disk).expect("write");
        let metadata = planned.metadata_bytes() / 4096;
        assert!(disk.blocks.iter().all(|block| *block < metadata), "{:?} of {metadata}", disk.blocks);
        for block in [0, 1, planned.inode_bitmap(0), planned.root_block() + 1, planned.block_bitmap(planned.groups - 1)] {
            assert!(disk.blocks.contains(&u64::from(block)), "{block} of {:?}", disk.blocks);
        }
        assert_eq!(disk.blocks.len(), 8, "little, whatever the size: {:?}", disk.blocks);
    }

    #[test]
    fn disk_that_is_too_small_or_too_large_is_refused() {
        assert_eq!(Filesystem::plan(1 << 20, RANDOM), None);
        assert_eq!(Filesystem::plan(17 << 40, RANDOM), None);
    }
}
