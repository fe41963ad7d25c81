//! `peerpodctl measure`: what evidence of a machine with an image will show, told from files alone.
//!
//! Only what the files decide is told. Every other measurement is listed with the reason why it is not: what is guessed here would be
//! believed by a key broker.

mod image;
mod names;

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use peerpods_recipe::{snp, tdx};
use serde_json::{Map, Value, json};

use image::{Image, ImageError};

use crate::initdata::{self, InitdataCommandError};
use crate::input::{self, InputError};
use crate::policy::Tee;
use crate::table;

/// Measurements: what evidence of a machine with an image will show, for policies and key brokers.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Measure {
    /// The image's folder, or its manifest.json alone, which tells less.
    image: PathBuf,
    /// The pod's initdata, TOML or in the annotation's form: tells the register that is extended with it.
    #[arg(long, value_name = "FILE")]
    initdata: Option<PathBuf>,
    /// Only what evidence of this kind shows.
    #[arg(long, value_enum)]
    tee: Option<Tee>,
    #[command(flatten)]
    machine: Machine,
    /// JSON for programs: measurements, and those that are not told with the reason.
    #[arg(long)]
    json: bool,
    /// Reference values in JSON, by the names of Trustee's default policies and of those that `policy generate` writes.
    #[arg(long, conflicts_with = "json")]
    reference_values: bool,
    /// The same as the message that Trustee's reference value provider takes.
    #[arg(long, conflicts_with_all = ["json", "reference_values"])]
    rvps_message: bool,
}

const EXAMPLES: &str = "\
Examples:
  peerpodctl measure image                                       the registers of a cloud's TPM
  peerpodctl measure image --initdata initdata.toml              with the one that holds the pod's initdata
  peerpodctl measure image --tee tpm --json | jq .measurements > measurements.json
                                                                 for `peerpodctl policy generate --measurements`
  peerpodctl measure image --tee snp --snp-firmware OVMF.amdsev.fd --vcpus 2 --cpu EPYC-Genoa
  peerpodctl measure image --tee tdx --tdx-firmware OVMF.inteltdx.fd --reference-values
  peerpodctl measure image --rvps-message | curl --data-binary @- -H \"Authorization: Bearer $(cat token)\" \\
    https://kbs.example.org:8080/kbs/v0/reference-value";

/// A machine of QEMU's whose firmware the owner knows. A cloud's is its own.
#[derive(Args)]
struct Machine {
    /// Firmware of an SEV-SNP machine that boots kernel, initrd and command line directly, of which it checks the hashes: edk2's
    /// OvmfPkg/AmdSev.
    #[arg(long, value_name = "FILE")]
    snp_firmware: Option<PathBuf>,
    /// That machine's number of virtual processors.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096), requires = "snp_firmware")]
    vcpus: u32,
    /// That machine's processors by QEMU's name.
    #[arg(long, default_value = "EPYC-Milan", requires = "snp_firmware")]
    cpu: snp::Cpu,
    /// The kernel that it boots, if not the image's.
    #[arg(long, value_name = "FILE", requires = "snp_firmware")]
    kernel: Option<PathBuf>,
    /// The initrd that it boots, if not the image's.
    #[arg(long, value_name = "FILE", requires = "snp_firmware")]
    initrd: Option<PathBuf>,
    /// The kernel's command line, if not the image's.
    #[arg(long, value_name = "TEXT", requires = "snp_firmware")]
    cmdline: Option<String>,
    /// Firmware of a trust domain (TDX) without a TPM that boots the image's disk: edk2 202411 or later, given to `-bios`; on Linux 6.16
    /// or later.
    #[arg(long, value_name = "FILE")]
    tdx_firmware: Option<PathBuf>,
}

/// Why nothing is told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MeasureError {
    /// A file.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The initdata.
    #[error(transparent)]
    Initdata(#[from] InitdataCommandError),
    /// Firmware, or what it boots.
    #[error("cannot tell what a machine with {} measures; next: give the firmware that the option's help names", path.display())]
    Firmware {
        /// The firmware.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: anyhow::Error,
    },
    /// A kind of evidence that shows nothing.
    #[error("sample evidence says whatever its writer likes, whatever the image is; next: give another --tee")]
    Sample,
    /// Reference values without a value.
    #[error("nothing of it can be told: {0}")]
    Nothing(String),
}

/// A measurement.
struct Line {
    /// As evidence claims it.
    claim: &'static str,
    /// What it is of.
    of: &'static str,
    /// The values that are good, in hexadecimal, or why there are none.
    told: Told,
}

type Told = Result<Vec<String>, String>;

/// Longest firmware that is read; edk2's has 2 to 16 MiB.
const MAX_FIRMWARE_BYTES: u64 = 64 << 20;

/// Carries the command out; gives what is printed.
pub(crate) fn run(measure: &Measure) -> Result<String, MeasureError> {
    if measure.tee == Some(Tee::Sample) {
        return Err(MeasureError::Sample);
    }
    let mut lines = all(measure)?;
    if let Some(tee) = measure.tee {
        lines.retain(|line| names::of(tee).contains(&line.claim));
        for line in &mut lines {
            if let Some(reason) = names::beyond(tee, line.claim) {
                line.told = Err(reason.to_owned());
            }
        }
    }
    if measure.json {
        return Ok(format!("{:#}\n", for_programs(&lines)));
    }
    if measure.reference_values || measure.rvps_message {
        let values = reference_values(&lines, measure.tee)?;
        return Ok(if measure.rvps_message { message(&values) } else { format!("{:#}\n", Value::Object(values)) });
    }
    let rows = lines.into_iter().map(|line| {
        let told = line.told.map_or_else(|reason| format!("not told: {reason}"), |values| values.join(" "));
        [line.claim.to_owned(), line.of.to_owned(), told]
    });
    Ok(table::table(["MEASUREMENT", "OF", "VALUE"], rows))
}

/// Every measurement of every kind of evidence.
fn all(measure: &Measure) -> Result<Vec<Line>, MeasureError> {
    let image = Image::read(&measure.image)?;
    let registers = measure.initdata.as_deref().map(initdata::read).transpose()?.map(|document| document.registers());
    let of_initdata = |value: Option<Option<String>>| match value {
        Some(Some(value)) => Ok(vec![value]),
        Some(None) => Err("a digest of the initdata's algorithm does not fit; make it with --algorithm sha256".to_owned()),
        None => Err("the pod's initdata decides; give --initdata".to_owned()),
    };
    let pcr08 = of_initdata(registers.as_ref().map(|registers| registers.pcr08.map(hex::encode)));
    let rtmr3 = of_initdata(registers.as_ref().map(|registers| registers.rtmr3.map(hex::encode)));
    let measurement = launch_digest(&measure.machine, &image)?;
    let domain = trust_domain(&measure.machine, &image)?;
    let line = |claim, of, told| Line { claim, of, told };
    Ok(vec![
        line("pcr04", "UKI and kernel", image.register("pcr04")),
        line("pcr08", "initdata", pcr08),
        line("pcr09", "command line and initrd", image.register("pcr09")),
        line("pcr11", "the UKI's sections", image.register("pcr11")),
        line("measurement", "SEV-SNP: firmware and what it boots", measurement),
        line("mr_td", "TDX: firmware", domain.mr_td),
        line(
            "rtmr_0",
            "TDX: the machine",
            Err("memory, devices and firmware's variables decide; read it from a machine that you trust, or leave it out".to_owned()),
        ),
        line("rtmr_1", "TDX: disk, UKI and kernel", domain.rtmr_1),
        line("rtmr_2", "TDX: sections, command line, initrd", domain.rtmr_2),
        line("rtmr_3", "TDX: initdata", rtmr3),
    ])
}

fn launch_digest(machine: &Machine, image: &Image) -> Result<Told, MeasureError> {
    let Some(path) = &machine.snp_firmware else {
        return Ok(Err("firmware decides, and a cloud's is its own; give --snp-firmware for QEMU's".to_owned()));
    };
    let part = |path: &Option<PathBuf>| path.as_deref().map(|path| input::bytes(path, image::MAX_BYTES)).transpose();
    let (kernel, initrd) = (part(&machine.kernel)?, part(&machine.initrd)?);
    let failed = |source| MeasureError::Firmware { path: path.clone(), source };
    let of_image = match &image.uki {
        Some(uki) => Some(snp::Boot::of_uki(uki).map_err(failed)?),
        None => None,
    };
    let parts = (
        kernel.as_deref().or(of_image.map(|boot| boot.kernel)),
        initrd.as_deref().or(of_image.map(|boot| boot.initrd)),
        machine.cmdline.as_deref().or(of_image.map(|boot| boot.cmdline)),
    );
    let (Some(kernel), Some(initrd), Some(cmdline)) = parts else {
        return Ok(Err("a manifest does not hold what is booted; give the image's folder".to_owned()));
    };
    let firmware = input::bytes(path, MAX_FIRMWARE_BYTES)?;
    let boot = snp::Boot { kernel, initrd, cmdline };
    let machine = snp::Machine { firmware: &firmware, boot, vcpus: machine.vcpus, cpu: machine.cpu, features: snp::ACTIVE };
    Ok(Ok(vec![hex::encode(snp::launch_digest(&machine).map_err(failed)?)]))
}

struct TrustDomain {
    mr_td: Told,
    rtmr_1: Told,
    rtmr_2: Told,
}

fn trust_domain(machine: &Machine, image: &Image) -> Result<TrustDomain, MeasureError> {
    let Some(path) = &machine.tdx_firmware else {
        let reason = || Err("firmware decides, and a cloud's is its own; give --tdx-firmware for QEMU's".to_owned());
        return Ok(TrustDomain { mr_td: reason(), rtmr_1: reason(), rtmr_2: reason() });
    };
    let failed = |source| MeasureError::Firmware { path: path.clone(), source };
    let mr_td = tdx::mrtd(&input::bytes(path, MAX_FIRMWARE_BYTES)?).map_err(failed)?;
    let (rtmr_1, rtmr_2) = match (&image.uki, &image.disk) {
        (Some(uki), Some(disk)) => {
            let registers = tdx::registers(uki, disk).map_err(failed)?;
            (Ok(vec![hex::encode(registers.rtmr1)]), Ok(vec![hex::encode(registers.rtmr2)]))
        }
        _ => {
            let reason = || Err("a manifest does not hold what is booted; give the image's folder".to_owned());
            (reason(), reason())
        }
    };
    Ok(TrustDomain { mr_td: Ok(vec![hex::encode(mr_td)]), rtmr_1, rtmr_2 })
}

fn for_programs(lines: &[Line]) -> Value {
    let (mut measurements, mut not_told) = (Map::new(), Map::new());
    for line in lines {
        match &line.told {
            Ok(values) => measurements.insert(line.claim.to_owned(), json!(values)),
            Err(reason) => not_told.insert(line.claim.to_owned(), json!(reason)),
        };
    }
    json!({"measurements": measurements, "not_told": not_told})
}

/// By every name that a policy asks for them.
fn reference_values(lines: &[Line], tee: Option<Tee>) -> Result<Map<String, Value>, MeasureError> {
    let mut all = Map::new();
    for tee in tee.map_or_else(|| names::ALL.to_vec(), |tee| vec![tee]) {
        for line in lines.iter().filter(|line| names::of(tee).contains(&line.claim) && names::beyond(tee, line.claim).is_none()) {
            let Ok(values) = &line.told else { continue };
            for name in names::references(tee, line.claim) {
                all.insert(name, json!(names::forms(line.claim, values)));
            }
        }
    }
    if all.is_empty() {
        let reasons = lines.iter().filter_map(|line| Some(format!("{}: {}", line.claim, line.told.as_ref().err()?)));
        return Err(MeasureError::Nothing(reasons.collect::<Vec<_>>().join("; ")));
    }
    Ok(all)
}

/// `sample` is the name of the extractor that takes values as they are.
fn message(values: &Map<String, Value>) -> String {
    let payload = STANDARD.encode(json!(values).to_string());
    format!("{}\n", json!({"version": "0.1.0", "type": "sample", "payload": payload}))
}

#[cfg(test)]
mod tests;
