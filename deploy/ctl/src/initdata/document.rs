//! The document: its two forms, its digest, and what registers hold of it.
//!
//! The text is what counts: it is written once, and read back exactly.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::read::GzDecoder;
use flate2::{Compression, GzBuilder};
use peerpods_evidence::initdata::{self, Initdata, InitdataError};
use peerpods_evidence::register;

/// Initdata that parses, with its text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Document {
    text: String,
    initdata: Initdata,
}

/// Hashes that a new document may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum HashAlgorithm {
    /// 32 bytes: fits every register.
    Sha256,
    /// 48 bytes: a TPM's register and SNP's HOST_DATA do not hold it.
    Sha384,
}

/// What evidence holds of a document.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Registers {
    /// SNP: the digest, cut or filled with zeros.
    pub(crate) host_data: [u8; 32],
    /// TDX: the digest, cut or filled with zeros.
    pub(crate) mrconfigid: [u8; 48],
    /// TDX: register 3 after the digest was extended into it; `None` for a digest that is longer than the register.
    pub(crate) rtmr3: Option<[u8; 48]>,
    /// TPM: register 8 after the digest was extended into it; `None` for a digest of another length than the register's.
    pub(crate) pcr08: Option<[u8; 32]>,
}

/// Why something is no document.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DocumentError {
    /// Neither form.
    #[error(transparent)]
    Initdata(#[from] InitdataError),
    /// It begins like the annotation's form and is not.
    #[error("it looks like the annotation's form and is not base64; was it cut?")]
    Base64,
    /// What base64 holds is not gzip.
    #[error("it looks like the annotation's form and does not decompress; was it cut?")]
    Gzip(#[source] std::io::Error),
    /// More than is ever read.
    #[error("it decompresses to more than {} bytes, or to something that is no text", initdata::MAX_BYTES)]
    Decompressed,
    /// Compression failed.
    #[error("cannot compress")]
    Compress(#[source] std::io::Error),
    /// A file that TOML cannot hold.
    #[error("{0} cannot be kept as TOML")]
    Unkeepable(String),
}

/// The first characters of base64 of every gzip stream.
const GZIP_IN_BASE64: &str = "H4sI";

impl Document {
    /// Makes a document of files.
    pub(crate) fn new(algorithm: HashAlgorithm, files: BTreeMap<String, String>) -> Result<Self, DocumentError> {
        let name = match algorithm {
            HashAlgorithm::Sha256 => "sha256",
            HashAlgorithm::Sha384 => "sha384",
        };
        let mut text = format!("version = \"{}\"\nalgorithm = \"{name}\"\n\n[data]\n", initdata::VERSION);
        for (name, content) in &files {
            text += &format!("{} = {}\n", quoted(name), multi_line(content));
        }
        let initdata = Initdata::parse(&text)?;
        match files.into_iter().find(|(name, content)| initdata.data.get(name) != Some(content)) {
            Some((name, _)) => Err(DocumentError::Unkeepable(name)),
            None => Ok(Self { text, initdata }),
        }
    }

    /// Reads either form.
    pub(crate) fn parse(text: &str) -> Result<Self, DocumentError> {
        let text = match text.trim() {
            annotation if annotation.starts_with(GZIP_IN_BASE64) => decompressed(annotation)?,
            _ => text.to_owned(),
        };
        let initdata = Initdata::parse(&text)?;
        Ok(Self { text, initdata })
    }

    /// The form of the pod's annotation. The same for the same text.
    pub(crate) fn to_annotation(&self) -> Result<String, DocumentError> {
        // No time and no name: nothing but the text decides.
        let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
        gzip.write_all(self.text.as_bytes()).map_err(DocumentError::Compress)?;
        Ok(STANDARD.encode(gzip.finish().map_err(DocumentError::Compress)?))
    }

    /// The document, byte for byte.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// What it says.
    pub(crate) fn initdata(&self) -> &Initdata {
        &self.initdata
    }

    /// Of the text, by its own algorithm.
    pub(crate) fn digest(&self) -> Vec<u8> {
        self.initdata.algorithm.digest(self.text.as_bytes())
    }

    /// What evidence holds of it.
    pub(crate) fn registers(&self) -> Registers {
        let digest = self.digest();
        let (pcr08, rtmr3) = (register::pcr_after(&digest).ok(), register::rtmr_after(&digest).ok());
        Registers { host_data: fitted(&digest), mrconfigid: fitted(&digest), rtmr3, pcr08 }
    }
}

/// aa.toml that uses a key broker.
pub(super) fn aa_toml(url: &str, certificate: Option<&str>) -> String {
    let certificate = certificate.map_or_else(String::new, |pem| format!("cert = {}\n", multi_line(pem)));
    format!("[token_configs.kbs]\nurl = {}\n{certificate}", quoted(url))
}

/// cdh.toml that uses a key broker.
pub(super) fn cdh_toml(url: &str, certificate: Option<&str>) -> String {
    let certificate = certificate.map_or_else(String::new, |pem| format!("kbs_cert = {}\n", multi_line(pem)));
    format!("[kbc]\nname = \"cc_kbc\"\nurl = {}\n{certificate}", quoted(url))
}

/// The part of cdh.toml that says which images the guest may run: a policy.json (containers-policy.json(5)) as text.
pub(super) fn image_policy_toml(json: &str) -> String {
    format!("[image]\nimage_security_policy = {}\n", multi_line(json))
}

fn decompressed(annotation: &str) -> Result<String, DocumentError> {
    let gzip = STANDARD.decode(annotation).map_err(|_| DocumentError::Base64)?;
    let mut text = Vec::new();
    let limit = initdata::MAX_BYTES as u64 + 1;
    GzDecoder::new(gzip.as_slice()).take(limit).read_to_end(&mut text).map_err(DocumentError::Gzip)?;
    match String::from_utf8(text) {
        Ok(text) if text.len() <= initdata::MAX_BYTES => Ok(text),
        _ => Err(DocumentError::Decompressed),
    }
}

/// A string on lines of its own when TOML can hold it so, for people who read it.
fn multi_line(content: &str) -> String {
    let is_literal = content.contains('\n')
        && !content.contains("'''")
        && !content.ends_with('\'')
        && !content.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\t'));
    if is_literal { format!("'''\n{content}'''") } else { quoted(content) }
}

fn quoted(content: &str) -> String {
    let mut text = String::from("\"");
    for c in content.chars() {
        match c {
            '"' => text += "\\\"",
            '\\' => text += "\\\\",
            '\n' => text += "\\n",
            '\t' => text += "\\t",
            '\r' => text += "\\r",
            c if c.is_control() => text += &format!("\\u{:04X}", u32::from(c)),
            c => text.push(c),
        }
    }
    text + "\""
}

fn fitted<const N: usize>(digest: &[u8]) -> [u8; N] {
    let mut register = [0; N];
    let bytes = digest.len().min(N);
    register[..bytes].copy_from_slice(&digest[..bytes]);
    register
}

#[cfg(test)]
mod tests {
    use sha2::{Digest as _, Sha256};

    use super::*;

    fn files(contents: &[(&str, &str)]) -> BTreeMap<String, String> {
        contents.iter().map(|(name, content)| ((*name).to_owned(), (*content).to_owned())).collect()
    }

    #[test]
    fn any_text_comes_back_exactly() {
        let odd = files(&[
            ("plain", "a\nb\n"),
            ("no newline", "a\nb"),
            ("empty", ""),
            ("quotes", "'''\n\"\"\"\\"),
            ("last quote", "a\nb'"),
            ("first newline", "\n\na"),
            ("line ends", "a\r\nb\rc"),
            ("controls", "\u{0}\u{1b}\u{7f}\u{9f}"),
            ("q\"uo\\te\n", "\u{1f512}"),
        ]);
        for algorithm in [HashAlgorithm::Sha256, HashAlgorithm::Sha384] {
            let document = Document::new(algorithm, odd.clone()).unwrap();
            assert_eq!(document.initdata().data, odd);
            let again = Document::parse(&format!("  {}\n", document.to_annotation().unwrap())).unwrap();
            assert_eq!(again, document);
            assert_eq!(Document::parse(document.text()).unwrap(), document);
        }
    }

    /// Digest and annotation of Python: hashlib, gzip.decompress.
    #[test]
    fn registers_hold_the_digest_as_they_can() {
        let document = Document::new(HashAlgorithm::Sha256, files(&[("a", "b")])).unwrap();
        let registers = document.registers();
        assert_eq!(registers.host_data.as_slice(), document.digest());
        assert_eq!(registers.mrconfigid[..32], document.digest());
        assert_eq!(registers.mrconfigid[32..], [0; 16]);
        let mut extended = vec![0; 32];
        extended.extend(document.digest());
        assert_eq!(registers.pcr08.unwrap().as_slice(), Sha256::digest(extended).as_slice());

        let longer = Document::new(HashAlgorithm::Sha384, files(&[("a", "b")])).unwrap();
        assert_eq!(longer.registers().host_data, longer.digest()[..32]);
        assert_eq!(longer.registers().mrconfigid.as_slice(), longer.digest());
        assert_eq!(longer.registers().pcr08, None);
        let mut extended = vec![0; 48];
        extended.extend(longer.digest());
        assert_eq!(longer.registers().rtmr3.unwrap().as_slice(), sha2::Sha384::digest(extended).as_slice());
    }

    #[test]
    fn bombs_and_fragments_are_refused() {
        let bomb = |bytes: usize| {
            let mut gzip = GzBuilder::new().write(Vec::new(), Compression::best());
            gzip.write_all(&vec![b' '; bytes]).unwrap();
            STANDARD.encode(gzip.finish().unwrap())
        };
        assert!(matches!(Document::parse(&bomb(64 << 20)), Err(DocumentError::Decompressed)));
        assert!(matches!(Document::parse(&bomb(10)), Err(DocumentError::Initdata(_))));
        let annotation = Document::new(HashAlgorithm::Sha256, files(&[("a", "b")])).unwrap().to_annotation().unwrap();
        assert!(matches!(Document::parse(&annotation[..annotation.len() - 8]), Err(DocumentError::Gzip(_))));
        assert!(matches!(Document::parse("H4sI???"), Err(DocumentError::Base64)));
        let long = files(&[("a", &"x".repeat(initdata::MAX_BYTES))]);
        assert!(matches!(Document::new(HashAlgorithm::Sha256, long), Err(DocumentError::Initdata(InitdataError::TooLong(_)))));
    }
}
