//! Deterministic newc cpio archives, the kernel's initrd format.
//!
//! Members are written in the order of their paths with owner 0, time 0 and inode numbers by position; parents come before
//! children because `a` sorts before `a/b`.

use std::collections::BTreeMap;

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// The name of the member that ends an archive.
const TRAILER: &str = "TRAILER!!!";

/// An archive that is being filled.
#[derive(Debug, Default)]
pub struct Archive {
    members: BTreeMap<String, Member>,
}

#[derive(Debug)]
struct Member {
    mode: u32,
    device: (u32, u32),
    content: Vec<u8>,
}

impl Archive {
    /// An empty archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory and those above it, all 0755.
    pub fn add_directory(&mut self, path: &str) {
        let mut end = 0;
        while let Some(slash) = path[end..].find('/') {
            self.add(&path[..end + slash], DIRECTORY | 0o755, (0, 0), Vec::new());
            end += slash + 1;
        }
        self.add(path, DIRECTORY | 0o755, (0, 0), Vec::new());
    }

    /// Adds a file with these permissions, and the directories above it.
    pub fn add_file(&mut self, path: &str, permissions: u32, content: Vec<u8>) {
        self.add_parents(path);
        self.add(path, FILE | permissions, (0, 0), content);
    }

    /// Adds a symbolic link, and the directories above it.
    pub fn add_symlink(&mut self, path: &str, target: &str) {
        self.add_parents(path);
        self.add(path, SYMLINK | 0o777, (0, 0), target.as_bytes().to_vec());
    }

    /// Adds a character device, and the directories above it.
    pub fn add_character_device(&mut self, path: &str, permissions: u32, major: u32, minor: u32) {
        self.add_parents(path);
        self.add(path, CHARACTER_DEVICE | permissions, (major, minor), Vec::new());
    }

    /// The archive's bytes.
    pub fn finish(self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut inode = 0;
        for (path, member) in &self.members {
            inode += 1;
            write_member(&mut out, inode, path, member);
        }
        let trailer = Member { mode: 0, device: (0, 0), content: Vec::new() };
        write_member(&mut out, 0, TRAILER, &trailer);
        out
    }

    fn add_parents(&mut self, path: &str) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.add_directory(parent);
        }
    }

    fn add(&mut self, path: &str, mode: u32, device: (u32, u32), content: Vec<u8>) {
        assert!(!path.is_empty() && !path.starts_with('/'), "paths of members are relative: {path:?}");
        self.members.insert(path.to_owned(), Member { mode, device, content });
    }
}

/// The archive in which systemd's stub hands one file on to the kernel (`pack_cpio_literal` in systemd's `cpio.c`): its folder, then the
/// file, both read-only and with one link.
pub(crate) fn as_systemd_stub_packs(folder: &str, file: &str, content: &[u8]) -> Vec<u8> {
    let member = |mode, content| Member { mode, device: (0, 0), content };
    let mut out = Vec::new();
    write_member_with(&mut out, 1, 1, folder, &member(DIRECTORY | 0o555, Vec::new()));
    write_member_with(&mut out, 2, 1, &format!("{folder}/{file}"), &member(FILE | 0o444, content.to_vec()));
    // Unlike the rest, the trailer's length of a name is in capitals there.
    let mut trailer = Vec::new();
    write_member_with(&mut trailer, 0, 1, TRAILER, &member(0, Vec::new()));
    out.extend(trailer.iter().map(u8::to_ascii_uppercase));
    out
}

fn write_member(out: &mut Vec<u8>, inode: u32, path: &str, member: &Member) {
    let links = if member.mode & 0o170_000 == DIRECTORY { 2 } else { 1 };
    write_member_with(out, inode, links, path, member);
}

fn write_member_with(out: &mut Vec<u8>, inode: u32, links: u32, path: &str, member: &Member) {
    let size = u32::try_from(member.content.len()).expect("members of an initrd are far below 4 GiB");
    let name_size = u32::try_from(path.len() + 1).expect("paths are short");
    let (major, minor) = member.device;
    out.extend_from_slice(b"070701");
    // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
    for field in [inode, member.mode, 0, 0, links, 0, size, 0, 0, major, minor, name_size, 0] {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend_from_slice(&member.content);
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(reverse: bool) -> Vec<u8> {
        let mut archive = Archive::new();
        let mut adds: Vec<fn(&mut Archive)> = vec![
            |a| a.add_file("init", 0o755, b"binary".to_vec()),
            |a| a.add_file("etc/ssl/cert.pem", 0o644, b"pem".to_vec()),
            |a| a.add_character_device("dev/console", 0o600, 5, 1),
            |a| a.add_symlink("etc/link", "ssl/cert.pem"),
            |a| a.add_directory("proc"),
        ];
        if reverse {
            adds.reverse();
        }
        adds.into_iter().for_each(|add| add(&mut archive));
        archive.finish()
    }

    #[test]
    fn order_of_adding_does_not_change_the_bytes() {
        assert_eq!(sample(false), sample(true));
    }

    #[test]
    fn cpio_reads_what_is_written() {
        let Ok(mut cpio) = std::process::Command::new("busybox")
            .args(["cpio", "-t"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
        else {
            eprintln!("not checked against another reader: busybox is not installed");
            return;
        };
        std::io::Write::write_all(&mut cpio.stdin.take().expect("stdin"), &sample(false)).expect("write");
        let listed = cpio.wait_with_output().expect("cpio");
        assert!(listed.status.success());
        let text = String::from_utf8(listed.stdout).expect("text");
        assert_eq!(
            text.lines().collect::<Vec<_>>(),
            ["dev", "dev/console", "etc", "etc/link", "etc/ssl", "etc/ssl/cert.pem", "init", "proc"]
        );
    }
}
