//! Images as bytes of the OCI image format.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use tar::{EntryType, Header};

pub const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
pub const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";

/// A layer under construction: raw entries, hostile ones included.
pub struct Layer(tar::Builder<Vec<u8>>);

#[derive(Clone)]
pub struct Blob {
    pub bytes: Vec<u8>,
    pub media_type: String,
    pub diff_id: String,
    /// Of the layer's entry in the manifest.
    pub annotations: Value,
}

#[derive(Clone)]
pub struct Image {
    pub layers: Vec<Blob>,
}

pub fn digest(bytes: &[u8]) -> String {
    peerpods_image::Digest::of(bytes).to_string()
}

impl Layer {
    pub fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    /// Any entry, its path written as it is.
    pub fn entry(mut self, path: &str, kind: EntryType, link: &str, content: &[u8], change: impl FnOnce(&mut Header)) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
        header.set_size(content.len() as u64);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        change(&mut header);
        self.long(path, EntryType::GNULongName, 100, |header| &mut header.as_gnu_mut().unwrap().name, &mut header);
        self.long(link, EntryType::GNULongLink, 100, |header| &mut header.as_gnu_mut().unwrap().linkname, &mut header);
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    fn long(&mut self, text: &str, kind: EntryType, room: usize, field: impl Fn(&mut Header) -> &mut [u8; 100], header: &mut Header) {
        if text.len() < room {
            field(header)[..text.len()].copy_from_slice(text.as_bytes());
            return;
        }
        let mut long = Header::new_gnu();
        long.set_entry_type(kind);
        long.set_size(text.len() as u64);
        long.set_cksum();
        self.0.append(&long, text.as_bytes()).unwrap();
    }

    pub fn file(self, path: &str, content: &[u8]) -> Self {
        self.entry(path, EntryType::Regular, "", content, |_| ())
    }

    pub fn folder(self, path: &str) -> Self {
        self.entry(path, EntryType::Directory, "", b"", |_| ())
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(path, EntryType::Symlink, target, b"", |_| ())
    }

    pub fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(path, EntryType::Link, target, b"", |_| ())
    }

    /// Extended header records for the entry that follows.
    pub fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    pub fn tar(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }

    pub fn gzip(self) -> Blob {
        gzip_of(&self.tar())
    }

    pub fn plain(self) -> Blob {
        let bytes = self.tar();
        Blob { diff_id: digest(&bytes), bytes, media_type: PLAIN.to_owned(), annotations: Value::Null }
    }
}

/// Frames of an independent encoder, the reference implementation.
pub fn zstd_of(tar: &[u8], level: i32) -> Blob {
    Blob { diff_id: digest(tar), bytes: zstd::encode_all(tar, level).unwrap(), media_type: ZSTD.to_owned(), annotations: Value::Null }
}

pub fn gzip_of(tar: &[u8]) -> Blob {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(tar).unwrap();
    Blob { diff_id: digest(tar), bytes: encoder.finish().unwrap(), media_type: GZIP.to_owned(), annotations: Value::Null }
}

impl Image {
    pub fn of(layers: impl IntoIterator<Item = Blob>) -> Self {
        Self { layers: layers.into_iter().collect() }
    }

    pub fn config(&self) -> Vec<u8> {
        let diff_ids: Vec<&str> = self.layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        let config = json!({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/sh"], "Env": ["A=b"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        config.to_string().into_bytes()
    }

    pub fn manifest_json(&self) -> Value {
        let config = self.config();
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|layer| {
                json!({"mediaType": layer.media_type, "digest": digest(&layer.bytes), "size": layer.bytes.len(),
                    "annotations": layer.annotations})
            })
            .collect();
        json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(&config), "size": config.len()},
            "layers": layers})
    }

    pub fn manifest(&self) -> Vec<u8> {
        self.manifest_json().to_string().into_bytes()
    }
}
