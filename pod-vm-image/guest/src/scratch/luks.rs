//! A LUKS2 header (on-disk format 1.1): what says that a device is encrypted, how, and under which key.
//!
//! Two copies of a binary header with its JSON, then one keyslot, then from [`DATA_OFFSET`] on what dm-integrity and dm-crypt make of
//! the rest. `cryptsetup` reads it, and opens it for who has the passphrase, which tests prove. In a pod VM nobody has: key and
//! passphrase are random, live in memory for the time that it takes to hand the key to the kernel, and are overwritten. A device is
//! thus readable until its machine ends and by nobody after.

mod keyslot;

use std::io::{self, Seek, SeekFrom, Write};

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustix::rand::GetRandomFlags;
use zeroize::Zeroizing;

use keyslot::Keyslot;

/// Where encrypted data begins, in bytes.
pub(super) const DATA_OFFSET: u64 = 1 << 20;
/// Bytes that are encrypted and authenticated together: a page, and a block of the file system.
pub(super) const SECTOR: u32 = 4096;
/// Bytes of a sector's authentication tag.
pub(super) const TAG: u32 = 32;

/// AES-256-XTS takes two keys of 32 bytes, HMAC-SHA-256 one.
const KEY_BYTES: usize = 64 + 32;
const PASSPHRASE_BYTES: usize = 64;

const HEADER_BYTES: usize = 16 << 10;
const BINARY_BYTES: usize = 4096;
/// dm-integrity's superblock, at the beginning of the data.
const SUPERBLOCK_BYTES: usize = 4096;

/// The least that cryptsetup takes. Stretching is for passphrases that somebody could guess; this one has 512 random bits.
const ITERATIONS: u32 = 1000;

/// What encrypts and authenticates a device's sectors.
pub(super) struct VolumeKey(Zeroizing<Vec<u8>>);

impl VolumeKey {
    /// A new one, from the kernel's random numbers.
    pub(super) fn generate() -> io::Result<Self> {
        random(KEY_BYTES).map(Self)
    }

    /// As dm-crypt takes it.
    pub(super) fn to_hex(&self) -> Zeroizing<String> {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        // With its capacity from the beginning: a string that grows leaves copies behind.
        let mut text = Zeroizing::new(String::with_capacity(KEY_BYTES * 2));
        for byte in self.0.iter() {
            text.push(char::from(DIGITS[usize::from(byte >> 4)]));
            text.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
        text
    }
}

/// What opens a keyslot.
pub(super) struct Passphrase(Zeroizing<Vec<u8>>);

impl Passphrase {
    /// A new one, from the kernel's random numbers.
    pub(super) fn generate() -> io::Result<Self> {
        random(PASSPHRASE_BYTES).map(Self)
    }
}

/// Writes the header, and zeros where dm-integrity looks for its superblock, which it takes for an order to make one.
pub(super) fn format(device: &mut (impl Write + Seek), key: &VolumeKey, passphrase: &Passphrase) -> io::Result<()> {
    let slot = Keyslot::seal(&key.0, &passphrase.0, ITERATIONS)?;
    let json = metadata(key, &slot)?.to_string();
    let uuid = uuid()?;
    let mut headers = Vec::with_capacity(2 * HEADER_BYTES);
    for copy in [Copy::First, Copy::Second] {
        headers.extend_from_slice(&header(copy, &uuid, &json)?);
    }
    device.write_all(&headers)?;
    device.write_all(&slot.area)?;
    device.seek(SeekFrom::Start(DATA_OFFSET))?;
    device.write_all(&[0; SUPERBLOCK_BYTES])?;
    device.flush()
}

/// The two places of a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Copy {
    First,
    Second,
}

/// A binary header with its JSON.
fn header(copy: Copy, uuid: &str, json: &str) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; HEADER_BYTES];
    // The area ends with at least one zero.
    if json.len() >= HEADER_BYTES - BINARY_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let (magic, offset) = match copy {
        Copy::First => (b"LUKS\xba\xbe", 0),
        Copy::Second => (b"SKUL\xba\xbe", HEADER_BYTES as u64),
    };
    let salt = random(64)?;
    let fields: [(usize, &[u8]); 9] = [
        (0, magic),
        (6, &2_u16.to_be_bytes()),
        (8, &(HEADER_BYTES as u64).to_be_bytes()),
        (16, &1_u64.to_be_bytes()), // the header's age
        (72, b"sha256"),
        (104, &salt), // makes the two headers differ
        (168, uuid.as_bytes()),
        (256, &u64::to_be_bytes(offset)),
        (BINARY_BYTES, json.as_bytes()),
    ];
    for (at, field) in fields {
        bytes[at..at + field.len()].copy_from_slice(field);
    }
    // Over all of the header, with zeros where it is going to be.
    let checksum = digest(&SHA256, &bytes);
    bytes[448..448 + 32].copy_from_slice(checksum.as_ref());
    Ok(bytes)
}

fn metadata(key: &VolumeKey, slot: &Keyslot) -> io::Result<serde_json::Value> {
    let salt = random(32)?;
    let digest = keyslot::stretch::<32>(&key.0, &salt, ITERATIONS);
    let slots_offset = 2 * HEADER_BYTES;
    // Numbers of 64 bits are text in this format.
    Ok(serde_json::json!({
        "keyslots": { "0": {
            "type": "luks2",
            "key_size": KEY_BYTES,
            "af": { "type": "luks1", "stripes": keyslot::STRIPES, "hash": "sha256" },
            "area": {
                "type": "raw",
                "offset": slots_offset.to_string(),
                "size": slot.area.len().to_string(),
                "encryption": "aes-xts-plain64",
                "key_size": keyslot::KEY_BYTES,
            },
            "kdf": { "type": "pbkdf2", "hash": "sha256", "iterations": ITERATIONS, "salt": BASE64.encode(&slot.salt) },
        } },
        "tokens": {},
        "segments": { "0": {
            "type": "crypt",
            "offset": DATA_OFFSET.to_string(),
            "size": "dynamic",
            "iv_tweak": "0",
            "encryption": "aes-xts-plain64",
            "sector_size": SECTOR,
            "integrity": { "type": "hmac(sha256)", "journal_encryption": "none", "journal_integrity": "none" },
        } },
        "digests": { "0": {
            "type": "pbkdf2",
            "keyslots": ["0"],
            "segments": ["0"],
            "hash": "sha256",
            "iterations": ITERATIONS,
            "salt": BASE64.encode(&salt),
            "digest": BASE64.encode(digest.as_slice()),
        } },
        "config": {
            "json_size": (HEADER_BYTES - BINARY_BYTES).to_string(),
            "keyslots_size": (DATA_OFFSET - slots_offset as u64).to_string(),
            "flags": ["no-journal"],
        },
    }))
}

/// A random UUID, version 4.
fn uuid() -> io::Result<String> {
    let mut bytes = random(16)?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = String::new();
    for (index, byte) in bytes.iter().enumerate() {
        let dash = if matches!(index, 4 | 6 | 8 | 10) { "-" } else { "" };
        text.push_str(&format!("{dash}{byte:02x}"));
    }
    Ok(text)
}

/// Bytes of getrandom(2), which waits until the kernel has gathered enough to give good ones.
pub(super) fn random(count: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(vec![0; count]);
    let mut filled = 0;
    while filled < count {
        match rustix::rand::getrandom(&mut bytes[filled..], GetRandomFlags::empty()) {
            Ok(more) => filled += more,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Cursor;
    use std::path::PathBuf;
    use std::process::{Command, Output};

    fn formatted() -> (Vec<u8>, VolumeKey, Passphrase) {
        let (key, passphrase) = (VolumeKey::generate().expect("key"), Passphrase::generate().expect("passphrase"));
        let mut device = Cursor::new(vec![0xa5; 2 << 20]);
        format(&mut device, &key, &passphrase).expect("format");
        (device.into_inner(), key, passphrase)
    }

    #[test]
    fn both_headers_have_their_checksum_and_the_same_metadata() {
        let (device, ..) = formatted();
        let (first, second) = device[..2 * HEADER_BYTES].split_at(HEADER_BYTES);
        assert_eq!((&first[..6], &second[..6]), (&b"LUKS\xba\xbe"[..], &b"SKUL\xba\xbe"[..]));
        for (copy, offset) in [(first, 0_u64), (second, 16384)] {
            let mut blank = copy.to_vec();
            blank[448..512].fill(0);
            assert_eq!(&copy[448..480], digest(&SHA256, &blank).as_ref());
            assert_eq!(copy[256..264], offset.to_be_bytes());
            let text = copy[BINARY_BYTES..].split(|byte| *byte == 0).next().expect("text");
            let json: serde_json::Value = serde_json::from_slice(text).expect("valid JSON");
            assert_eq!(json["segments"]["0"]["integrity"]["type"], "hmac(sha256)");
            assert!(copy[BINARY_BYTES + text.len()..].iter().all(|byte| *byte == 0));
        }
        assert_eq!(first[BINARY_BYTES..], second[BINARY_BYTES..]);
        assert_ne!(first[104..168], second[104..168], "salts differ");
    }

    #[test]
    fn superblock_is_blank_and_the_rest_is_left_alone() {
        let (device, ..) = formatted();
        let data = &device[1 << 20..];
        assert!(data[..4096].iter().all(|byte| *byte == 0) && data[4096..].iter().all(|byte| *byte == 0xa5));
    }

    #[test]
    fn neither_key_nor_passphrase_is_on_the_device() {
        let (device, key, passphrase) = formatted();
        for secret in [&key.0[..32], &key.0[64..], &passphrase.0[..32]] {
            assert!(!device.windows(secret.len()).any(|window| window == secret));
        }
        assert_eq!(key.to_hex().len(), 192);
        assert_eq!(u8::from_str_radix(&key.to_hex()[2..4], 16), Ok(key.0[1]));
    }

    /// A formatted file with its passphrase beside, and a way to ask cryptsetup about it.
    struct Asked {
        folder: tempfile::TempDir,
        key: VolumeKey,
    }

    impl Asked {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("folder");
            let (key, passphrase) = (VolumeKey::generate().expect("key"), Passphrase::generate().expect("passphrase"));
            let mut file = File::create(folder.path().join("device")).expect("create");
            file.set_len(64 << 20).expect("size");
            format(&mut file, &key, &passphrase).expect("format");
            std::fs::write(folder.path().join("passphrase"), &passphrase.0[..]).expect("write");
            Self { folder, key }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        /// Fails where cryptsetup is missing: `cargo xtask test` installs it.
        fn cryptsetup(&self, arguments: &[&str]) -> Output {
            let mut command = Command::new("/usr/sbin/cryptsetup");
            command.current_dir(self.folder.path()).arg("--batch-mode").args(arguments).arg("device");
            command.output().expect("run cryptsetup (package cryptsetup-bin)")
        }
    }

    #[test]
    fn cryptsetup_reads_the_header() {
        let asked = Asked::new();
        let out = asked.cryptsetup(&["luksDump", "--dump-json-metadata"]);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let json: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
        assert_eq!(json["keyslots"]["0"]["key_size"], 96);
        let text = String::from_utf8(asked.cryptsetup(&["luksDump"]).stdout).expect("text");
        for line in ["integrity: hmac(sha256)", "sector: 4096 [bytes]", "cipher: aes-xts-plain64", "offset: 1048576 [bytes]"] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }

    #[test]
    fn cryptsetup_opens_the_keyslot_and_finds_our_key() {
        let asked = Asked::new();
        let opened = asked.cryptsetup(&["luksOpen", "--test-passphrase", "--key-file", "passphrase"]);
        assert!(opened.status.success(), "{}", String::from_utf8_lossy(&opened.stderr));
        let dump = ["luksDump", "--dump-volume-key", "--key-file", "passphrase", "--volume-key-file", "key"];
        let dumped = asked.cryptsetup(&dump);
        assert!(dumped.status.success(), "{}", String::from_utf8_lossy(&dumped.stderr));
        assert_eq!(std::fs::read(asked.path("key")).expect("key"), asked.key.0[..]);
    }

    #[test]
    fn cryptsetup_refuses_another_passphrase_and_repairs_a_broken_header() {
        let asked = Asked::new();
        std::fs::write(asked.path("other"), [7; 64]).expect("write");
        let opened = asked.cryptsetup(&["luksOpen", "--test-passphrase", "--key-file", "other"]);
        assert_eq!(opened.status.code(), Some(2), "{}", String::from_utf8_lossy(&opened.stderr));
        let mut file = File::options().write(true).open(asked.path("device")).expect("open");
        file.write_all(&[0; BINARY_BYTES]).expect("break the first header");
        let opened = asked.cryptsetup(&["luksOpen", "--test-passphrase", "--key-file", "passphrase"]);
        assert!(opened.status.success(), "{}", String::from_utf8_lossy(&opened.stderr));
    }
}
