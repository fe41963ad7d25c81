//! Container images made from Debian's busybox, as bytes of the OCI image format.

use std::collections::BTreeMap;
use std::io::Write as _;

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use peerpods_image::encrypt::{self, WrappingKey};
use sha2::{Digest as _, Sha256};

/// A layer as the registry holds it, and the digest of its content.
pub struct Layer {
    /// What the manifest says of it.
    pub media_type: String,
    /// More that the manifest says of it.
    pub annotations: BTreeMap<String, String>,
    /// As the registry holds it.
    pub bytes: Vec<u8>,
    /// `sha256:…` of the uncompressed tar.
    pub diff_id: String,
}

impl Layer {
    /// The digest of the compressed layer.
    pub fn digest(&self) -> String {
        digest(&self.bytes)
    }
}

/// An image ready to be pushed.
pub struct Image {
    /// Bottom first.
    pub layers: Vec<Layer>,
    /// The command of its configuration.
    pub command: Vec<String>,
    /// More of its configuration: `User`, `Entrypoint`, `Volumes` and the like.
    pub settings: serde_json::Map<String, serde_json::Value>,
}

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// Applets that images of the tests use.
const APPLETS: &[&str] = &[
    "awk",
    "base64",
    "cat",
    "chgrp",
    "chmod",
    "chown",
    "chroot",
    "cp",
    "cut",
    "date",
    "dd",
    "df",
    "dmesg",
    "echo",
    "env",
    "expr",
    "false",
    "find",
    "grep",
    "head",
    "hostname",
    "httpd",
    "id",
    "ip",
    "kill",
    "ln",
    "ls",
    "mkdir",
    "mkfifo",
    "mknod",
    "mount",
    "nc",
    "ping",
    "printf",
    "ps",
    "pwd",
    "readlink",
    "rm",
    "route",
    "sed",
    "seq",
    "setsid",
    "sh",
    "sha256sum",
    "sleep",
    "sort",
    "stat",
    "stty",
    "sync",
    "sysctl",
    "tail",
    "tar",
    "test",
    "timeout",
    "touch",
    "tr",
    "true",
    "tty",
    "umount",
    "uname",
    "unshare",
    "usleep",
    "wc",
    "wget",
    "yes",
];

impl Image {
    /// Busybox with its applets, and the given extra files.
    pub fn busybox(files: &[(&str, &[u8])]) -> Result<Self> {
        let busybox =
            std::fs::read("/usr/bin/busybox").or_else(|_| std::fs::read("/bin/busybox")).context("Debian package busybox-static")?;
        let mut base = Builder::new();
        for folder in ["bin", "etc", "proc", "sys", "dev", "tmp", "root", "www"] {
            base.folder(folder)?;
        }
        base.file("bin/busybox", 0o755, &busybox)?;
        for applet in APPLETS {
            base.link(&format!("bin/{applet}"), "busybox")?;
        }
        base.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n")?;
        base.file("etc/group", 0o644, b"root:x:0:\nuser:x:1000:\n")?;
        let mut layers = vec![base.finish()?];
        if !files.is_empty() {
            let mut extra = Builder::new();
            for (path, content) in files {
                extra.file(path, 0o644, content)?;
            }
            layers.push(extra.finish()?);
        }
        Ok(Self { layers, command: vec!["/bin/sh".to_owned()], settings: serde_json::Map::new() })
    }

    /// What containerd starts in every pod: one program that waits and reaps.
    pub fn pause() -> Result<Self> {
        let program = crate::binaries_folder()?.join("peerpods-pause");
        let mut layer = Builder::new();
        layer.file("pause", 0o755, &std::fs::read(&program).with_context(|| program.display().to_string())?)?;
        // As Kubernetes' own, which agent policies know.
        let env = serde_json::json!(["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]);
        let settings = serde_json::Map::from_iter([("Env".to_owned(), env)]);
        Ok(Self { layers: vec![layer.finish()?], command: vec!["/pause".to_owned()], settings })
    }

    /// An image that sets whatever an image can set: user, entry point, working directory, volume, variables.
    pub fn configured() -> Result<Self> {
        let mut image = Self::busybox(&[])?;
        let mut layer = Builder::new();
        layer.file(
            "etc/passwd",
            0o644,
            b"root:x:0:0:root:/root:/bin/sh\napp:x:1234:1235:app:/home/app:/bin/sh\nother:x:2000:2000::/:/bin/sh\n",
        )?;
        layer.file("etc/group", 0o644, b"root:x:0:\nstaff:x:1235:\naudio:x:29:app,other\nvideo:x:44:app\nother:x:2000:\n")?;
        layer.owned_folder("home/app", 1234, 1235)?;
        layer.owned_folder("data", 1234, 1235)?;
        layer.file("data/seed", 0o640, b"from the image\n")?;
        layer.owned_folder("srv/work", 0, 0)?;
        layer.file("bin/plain", 0o644, b"not a program\n")?;
        layer.file("bin/greet", 0o755, b"#!/bin/sh\necho \"greet: $@\"\n")?;
        image.layers.push(layer.finish()?);
        let settings = serde_json::json!({
            "User": "app",
            "Entrypoint": ["/bin/greet", "from-entrypoint"],
            "WorkingDir": "/srv/work",
            "Volumes": { "/data": {} },
            "Env": ["PATH=/bin", "FROM_IMAGE=yes", "OVERRIDDEN=image"],
            "StopSignal": "SIGUSR1",
        });
        image.command = vec!["from-cmd".to_owned()];
        image.settings = settings.as_object().cloned().unwrap_or_default();
        Ok(image)
    }

    /// One layer with one file of `bytes` incompressible bytes on top of busybox.
    pub fn bulky(bytes: usize) -> Result<Self> {
        let mut image = Self::busybox(&[])?;
        let mut content = Vec::with_capacity(bytes);
        let mut block = Sha256::digest(b"peerpods").to_vec();
        while content.len() < bytes {
            block = Sha256::digest(&block).to_vec();
            content.extend_from_slice(&block);
        }
        content.truncate(bytes);
        let mut layer = Builder::new();
        layer.file("bulk", 0o644, &content)?;
        image.layers.push(layer.finish()?);
        Ok(image)
    }

    /// The same with zstd in place of gzip.
    pub fn as_zstd(mut self) -> Result<Self> {
        for layer in &mut self.layers {
            layer.bytes = zstd::encode_all(flate2::read::GzDecoder::new(&layer.bytes[..]), 3)?;
            layer.media_type = ZSTD.to_owned();
        }
        Ok(self)
    }
    /// The same with its layers encrypted; their keys are wrapped with the resource of that URI.
    pub fn encrypted(mut self, key: &[u8; 32], uri: &str) -> Result<Self> {
        let key = WrappingKey::new(key)?;
        for layer in &mut self.layers {
            let mut ciphertext = Vec::new();
            let encrypted = encrypt::encrypt_layer(&layer.bytes[..], &mut ciphertext)?;
            let packet = encrypt::wrap_key(&encrypted.options, &key, uri)?;
            layer.media_type = encrypt::encrypted_media_type(&layer.media_type).context("a layer that can be encrypted")?;
            layer.annotations.insert(encrypt::PUBLIC_OPTIONS_ANNOTATION.to_owned(), encrypted.public_options);
            layer.annotations.insert(encrypt::KEY_PACKETS_ANNOTATION.to_owned(), packet);
            layer.bytes = ciphertext;
        }
        Ok(self)
    }

    /// The configuration object.
    pub fn config(&self) -> Vec<u8> {
        let diff_ids: Vec<&str> = self.layers.iter().map(|l| l.diff_id.as_str()).collect();
        let mut settings = serde_json::Map::new();
        settings.insert("Cmd".to_owned(), self.command.clone().into());
        settings.insert("Env".to_owned(), serde_json::json!(["PATH=/bin"]));
        settings.insert("WorkingDir".to_owned(), "/".into());
        settings.extend(self.settings.clone());
        let config = serde_json::json!({
            "architecture": "amd64",
            "os": "linux",
            "config": settings,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        config.to_string().into_bytes()
    }
}

/// `sha256:…` of some bytes.
pub(crate) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

struct Builder(tar::Builder<Vec<u8>>);

impl Builder {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn folder(&mut self, path: &str) -> Result<()> {
        self.owned_folder(path, 0, 0)
    }

    fn owned_folder(&mut self, path: &str, user: u64, group: u64) -> Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(if path == "tmp" { 0o1777 } else { 0o755 });
        header.set_size(0);
        header.set_uid(user);
        header.set_gid(group);
        Ok(self.0.append_data(&mut header, format!("{path}/"), std::io::empty())?)
    }

    fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        Ok(self.0.append_data(&mut header, path, content)?)
    }

    fn link(&mut self, path: &str, target: &str) -> Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_mode(0o777);
        header.set_size(0);
        Ok(self.0.append_link(&mut header, path, target)?)
    }

    fn finish(self) -> Result<Layer> {
        let tar = self.0.into_inner()?;
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&tar)?;
        Ok(Layer { media_type: GZIP.to_owned(), annotations: BTreeMap::new(), bytes: gzip.finish()?, diff_id: digest(&tar) })
    }
}
