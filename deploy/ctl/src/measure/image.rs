//! An image as its owner has it: the folder that the recipe writes, or its manifest alone.

use std::path::{Path, PathBuf};

use peerpods_recipe::manifest::{FILE_NAME, Manifest};
use peerpods_recipe::measure::{self, ReferenceValues};
use peerpods_recipe::sha256_hex;

use crate::input::{self, InputError};

/// Bytes of any file of an image that is read: some ten times what it has.
pub(super) const MAX_BYTES: u64 = 1 << 30;

const UKI: &str = "uki.efi";
const DISK: &str = "disk.raw";

/// What is told of an image, and told from.
#[derive(Debug)]
pub(super) struct Image {
    /// PCRs of a boot.
    measurements: ReferenceValues,
    /// `None` where there is only a manifest.
    pub(super) uki: Option<Vec<u8>>,
    /// `None` where there is only a manifest, and for images that have no disk.
    pub(super) disk: Option<Vec<u8>>,
}

/// Why an image is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    /// A file.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The manifest does not parse.
    #[error("{} is no manifest of an image; next: give an image's folder, or the manifest.json in it", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// An older manifest, and nothing else.
    #[error("{} tells no measurements; next: give the image's folder", .0.display())]
    NoMeasurements(PathBuf),
    /// A file is not the one that the manifest lists.
    #[error("{} is not the file that the image's manifest lists; next: build or copy the image again", .0.display())]
    Changed(PathBuf),
    /// The UKI cannot be measured.
    #[error("cannot tell what {} measures", path.display())]
    Uki {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: anyhow::Error,
    },
    /// The manifest is of a release that measured otherwise.
    #[error("{} gives other measurements than its manifest tells; next: use the release that built the image", .0.display())]
    OtherMeasurements(PathBuf),
}

impl Image {
    /// Reads a folder, whose files must be those of its manifest, or a manifest.
    pub(super) fn read(path: &Path) -> Result<Self, ImageError> {
        if !path.is_dir() {
            let manifest = manifest(path)?;
            let measurements = manifest.measurements.ok_or_else(|| ImageError::NoMeasurements(path.to_owned()))?;
            return Ok(Self { measurements, uki: None, disk: None });
        }
        let manifest = manifest(&path.join(FILE_NAME))?;
        let file = |name: &str| {
            let path = path.join(name);
            let content = input::bytes(&path, MAX_BYTES)?;
            match manifest.files.get(name) {
                Some(listed) if listed.sha256 == sha256_hex(&content) => Ok(content),
                _ => Err(ImageError::Changed(path)),
            }
        };
        let uki = file(UKI)?;
        let disk = if manifest.files.contains_key(DISK) { Some(file(DISK)?) } else { None };
        let told = measure::predict(&uki).map_err(|source| ImageError::Uki { path: path.join(UKI), source })?.reference_values();
        match manifest.measurements {
            Some(other) if other != told => Err(ImageError::OtherMeasurements(path.join(UKI))),
            _ => Ok(Self { measurements: told, uki: Some(uki), disk }),
        }
    }

    /// Values of a register.
    pub(super) fn register(&self, name: &str) -> Result<Vec<String>, String> {
        let found = self.measurements.iter().find(|(found, _)| *found == name);
        found.map(|(_, values)| values.to_vec()).ok_or_else(|| "the manifest does not tell it; give the image's folder".to_owned())
    }
}

fn manifest(path: &Path) -> Result<Manifest, ImageError> {
    serde_json::from_str(&input::text(path)?).map_err(|source| ImageError::Manifest { path: path.to_owned(), source })
}
