//! `peerpods-recipe`: builds the pod VM image and renews what it is made of.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};
use peerpods_recipe::archive::Freshness;
use peerpods_recipe::cache::Cache;
use peerpods_recipe::image::{self, Binaries, Inputs};
use peerpods_recipe::pins::{BUILT_IN, Pins};

/// The pod VM image: build it, renew its pins. `peerpodctl measure` tells its measurements.
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
        /// Make an image of the upstream profile: its pods are served by Kata's agent and the guest components of Confidential
        /// Containers. FILE has `version = 1` and the tables [kata-agent], [attestation-agent], [confidential-data-hub] and
        /// [api-server-rest], each with `path` (of a static program, relative to FILE) and `sha256`.
        #[arg(long, value_name = "FILE")]
        upstream: Option<PathBuf>,
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
}

#[derive(Debug, Args)]
struct Source {
    /// Root of a Debian archive; default: the one that apt's sources on this machine name.
    #[arg(long, env = "PEERPODS_DEBIAN_ARCHIVE")]
    archive: Option<String>,
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Build { guest, upstream, out, release, pins, source } => {
            let text = match pins {
                Some(path) => std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?,
                None => BUILT_IN.to_owned(),
            };
            let inputs = if release { Inputs::Pinned } else { Inputs::PinnedOrCurrent };
            let binaries = Binaries { guest: &guest, upstream: upstream.as_deref() };
            let manifest = image::build(&Pins::parse(&text)?, binaries, &out, source.archive.as_deref(), inputs)?;
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
    }
}
