//! `peerpods-recipe`: builds the pod VM image, renews what it is made of and tells what it will measure.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};
use peerpods_recipe::archive::Freshness;
use peerpods_recipe::cache::Cache;
use peerpods_recipe::image::{self, Inputs};
use peerpods_recipe::pins::{BUILT_IN, Pins};
use peerpods_recipe::{measure, snp};

/// The pod VM image: build it, renew its pins, tell its measurements.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build an image from a guest binary and the pinned packages.
    Build {
        /// The static guest binary.
        #[arg(long)]
        guest: PathBuf,
        /// Folder for vmlinux, initrd, uki.efi, disk.raw and manifest.json.
        #[arg(long)]
        out: PathBuf,
        /// Refuse inputs that are not the pinned ones.
        #[arg(long)]
        release: bool,
        /// Pins to use in place of those that this program was built with.
        #[arg(long)]
        pins: Option<PathBuf>,
        #[command(flatten)]
        source: Source,
    },
    /// Write the archive's present packages to pins.toml and say what changes.
    Update {
        /// The file to write.
        #[arg(long, default_value = "pod-vm-image/recipe/pins.toml")]
        pins: PathBuf,
        /// Accept indexes that are past their Valid-Until.
        #[arg(long)]
        allow_expired: bool,
        #[command(flatten)]
        source: Source,
    },
    /// Print the measurements of a boot of an image as reference values in JSON: a name, and the values that are good.
    Measure {
        /// The image's folder.
        #[arg(long, default_value = "target/podvm-image")]
        image: PathBuf,
        /// Initdata (TOML, `algorithm = "sha256"`) of a pod: adds `pcr08`.
        #[arg(long)]
        initdata: Option<PathBuf>,
        /// Firmware that checks kernel hashes (edk2's OvmfPkg/AmdSev): adds `snp_launch_measurement` of an SEV-SNP machine of QEMU's
        /// that boots the image's kernel, initrd and command line directly.
        #[arg(long)]
        snp_firmware: Option<PathBuf>,
        /// That machine's number of virtual processors.
        #[arg(long, default_value_t = 1, requires = "snp_firmware")]
        vcpus: u32,
        /// That machine's processors by QEMU's name.
        #[arg(long, default_value = "EPYC-Milan", requires = "snp_firmware")]
        cpu: snp::Cpu,
    },
}

#[derive(Debug, Args)]
struct Source {
    /// Root of a Debian archive; default: the one that apt's sources on this machine name.
    #[arg(long, env = "PEERPODS_DEBIAN_ARCHIVE")]
    archive: Option<String>,
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Build { guest, out, release, pins, source } => {
            let text = match pins {
                Some(path) => std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?,
                None => BUILT_IN.to_owned(),
            };
            let inputs = if release { Inputs::Pinned } else { Inputs::PinnedOrCurrent };
            let manifest = image::build(&Pins::parse(&text)?, &guest, &out, source.archive.as_deref(), inputs)?;
            println!("{}: kernel {}{}", out.display(), manifest.kernel, if manifest.unpinned { ", not pinned" } else { "" });
            Ok(())
        }
        Command::Update { pins, allow_expired, source } => {
            let old = Pins::parse(&std::fs::read_to_string(&pins).with_context(|| format!("read {}", pins.display()))?)?;
            let freshness = if allow_expired { Freshness::Tolerated } else { Freshness::Required };
            let new = image::current_pins(&Cache::open_default()?, source.archive.as_deref(), freshness)?;
            if old == new {
                println!("{} is up to date", pins.display());
                return Ok(());
            }
            print!("{}", image::describe_changes(&old, &new));
            new.write(&pins)
        }
        Command::Measure { image, initdata, snp_firmware, vcpus, cpu } => {
            let uki = image.join("uki.efi");
            let bytes = std::fs::read(&uki).with_context(|| format!("read {}", uki.display()))?;
            let mut values = measure::predict(&bytes).with_context(|| format!("measure {}", uki.display()))?.reference_values();
            if let Some(path) = initdata {
                let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
                values.add("pcr08", &measure::pcr08_of_initdata(&text).with_context(|| format!("measure {}", path.display()))?);
            }
            if let Some(firmware) = snp_firmware {
                let content = std::fs::read(&firmware).with_context(|| format!("read {}", firmware.display()))?;
                let boot = snp::Boot::of_uki(&bytes)?;
                let digest = snp::launch_digest(&snp::Machine { firmware: &content, boot, vcpus, cpu, features: snp::ACTIVE });
                values.add("snp_launch_measurement", &digest.with_context(|| format!("measure {}", firmware.display()))?);
            }
            println!("{}", serde_json::to_string_pretty(&values)?);
            Ok(())
        }
    }
}
