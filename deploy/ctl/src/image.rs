//! `peerpodctl image`: images as OCI image layouts on disk, encrypted and signed for guests.
//!
//! No registry is spoken to: skopeo and its like copy layouts to and from registries.

mod encrypt;
mod inspect;
mod layout;
mod sign;

use std::path::PathBuf;

use clap::{Args, Subcommand};

pub(crate) use encrypt::EncryptImageError;
pub(crate) use layout::LayoutError;
pub(crate) use sign::SignError;

use crate::key_file::KeyId;

/// Images on disk: encrypt, sign, look at them.
#[derive(Subcommand)]
pub(crate) enum Image {
    /// Write a copy whose layers are encrypted.
    #[command(after_help = ENCRYPT_EXAMPLES)]
    Encrypt(Encrypt),
    /// Which layers are encrypted, and with which key.
    #[command(after_help = INSPECT_EXAMPLES)]
    Inspect(Inspect),
    /// Sign with a key, as cosign does; the signature is put into the layout.
    #[command(after_help = SIGN_EXAMPLES)]
    Sign(Sign),
}

const ENCRYPT_EXAMPLES: &str = "\
Examples:
  skopeo copy docker://registry.example.org/app:1 oci:app:1
  peerpodctl image encrypt app encrypted --key-id kbs:///default/key/1
  skopeo copy oci:encrypted:1 docker://registry.example.org/app:1-encrypted

Configuration and manifest stay in clear: they say how the image starts, its layers hold its files.";

const INSPECT_EXAMPLES: &str = "\
Examples:
  peerpodctl image inspect encrypted
  peerpodctl image inspect app.tar --json";

const SIGN_EXAMPLES: &str = "\
Examples:
  openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out signing.pem
  openssl pkey -in signing.pem -pubout -out signing.pub
  peerpodctl image sign encrypted --key signing.pem --reference registry.example.org/app:1-encrypted

Then copy the image and, under the tags that are printed, its signatures to the registry.
Guests that have {\"type\":\"sigstoreSigned\",\"keyPath\":\"kbs:///default/cosign-public-key/1\"} in their image policy want it.";

/// Arguments of `image encrypt`.
#[derive(Args)]
pub(crate) struct Encrypt {
    /// An OCI image layout: a folder, or a tar of one (oci-archive).
    src: PathBuf,
    /// What is written: a folder, or a tar if it ends in .tar. Nothing may be there.
    dst: PathBuf,
    /// The name that the key broker knows the key by.
    #[arg(long, value_name = "kbs:///REPOSITORY/TYPE/TAG", value_parser = KeyId::parse)]
    key_id: KeyId,
    /// The key, 32 bytes. Without this a new one is made beside DST, named DST.key.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// JSON for programs.
    #[arg(long)]
    json: bool,
}

/// Arguments of `image inspect`.
#[derive(Args)]
pub(crate) struct Inspect {
    /// An OCI image layout: a folder, or a tar of one (oci-archive).
    layout: PathBuf,
    /// JSON for programs.
    #[arg(long)]
    json: bool,
}

/// Arguments of `image sign`.
#[derive(Args)]
pub(crate) struct Sign {
    /// An OCI image layout folder; the signature is written into it.
    layout: PathBuf,
    /// ECDSA P-256 private key, PEM (PKCS #8 or SEC 1), without a password.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// What the image will be called: guests compare the repository.
    #[arg(long, value_name = "REGISTRY/REPOSITORY[:TAG]")]
    reference: String,
    /// The image's tag in the layout; not needed where there is one image only.
    #[arg(long)]
    tag: Option<String>,
    /// JSON for programs.
    #[arg(long)]
    json: bool,
}

/// Why nothing came of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    /// The layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Encryption.
    #[error(transparent)]
    Encrypt(#[from] EncryptImageError),
    /// A signature.
    #[error(transparent)]
    Sign(#[from] SignError),
}

/// Carries the command out; gives what is printed.
pub(crate) fn run(command: &Image) -> Result<String, ImageError> {
    match command {
        Image::Encrypt(Encrypt { src, dst, key_id, key, json }) => {
            let done = encrypt::encrypt(src, dst, key_id, key.as_deref())?;
            Ok(if *json { done.to_json() } else { done.for_people() })
        }
        Image::Inspect(Inspect { layout, json }) => {
            let images = inspect::inspect(&layout::Layout::open(layout)?)?;
            Ok(if *json { inspect::to_json(&images) } else { inspect::for_people(&images) })
        }
        Image::Sign(Sign { layout, key, reference, tag, json }) => {
            let signed = sign::sign(&layout::Layout::open(layout)?, key, reference, tag.as_deref())?;
            Ok(if *json { sign::to_json(&signed) } else { sign::for_people(&signed, layout, reference) })
        }
    }
}
