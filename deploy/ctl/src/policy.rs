//! `peerpodctl policy`: from a pod's manifest to the policies that hold its node and its key broker to it.

mod agent;
mod broker;
mod containers;
mod environment;
mod expand;
mod image;
mod manifest;
mod mounts;
mod next_steps;
mod security;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::io;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;

use broker::{Pins, TcbStatus};
pub(crate) use broker::{Tee, resource};
use containers::Additions;
use image::ImageConfig;
use manifest::Workload;

use crate::initdata::{self, InitdataCommandError};
use crate::input::{self, InputError};

/// Policies: what a node may ask of a VM, and what a key broker gives to it.
#[derive(Subcommand)]
pub(crate) enum Policy {
    /// Write policies for a pod.
    #[command(after_help = EXAMPLES)]
    Generate(Box<Generate>),
}

const EXAMPLES: &str = "\
Examples:
  1. what the node may do, into initdata:
     skopeo inspect --config docker://registry.example.org/app@sha256:... > app.json
     peerpodctl policy generate --pod pod.yaml --image-config app=app.json > policy.rego
     peerpodctl initdata new --kbs-url https://kbs.example.org:8080 --policy policy.rego > initdata.toml
  2. what the key broker gives, and to whom:
     peerpodctl policy generate --tee az-snp-vtpm --measurements measurements.json --initdata initdata.toml \\
       --resource default/key/1 --out policies
  Both at once check that the initdata has the pod's policy:
     peerpodctl policy generate --pod pod.yaml --tee sample --measurements m.json --initdata initdata.toml \\
       --resource default/key/1 --out policies

measurements.json has claims with their values, such as {\"pcr04\":[\"<hex>\"],\"pcr09\":[\"<hex>\"],\"pcr11\":[\"<hex>\"]}.
Needed are pcr04, pcr09 and pcr11 of every TPM, measurement of az-snp-vtpm and snp, mr_td of az-tdx-vtpm and tdx, rtmr_1 and rtmr_2 of tdx,
and ak_public of snp-tpm: the attestation keys (base64 of the DER SubjectPublicKeyInfo) of TPMs that the cloud vouches for.
SNP platforms may be held to versions of their firmware: reported_tcb_bootloader, _microcode, _snp, _tee, _fmc.
TDX platforms must be UpToDate in Intel's words, unless --accept-tcb-status says what else they may be.";

/// Arguments of `policy generate`.
#[derive(Args)]
pub(crate) struct Generate {
    /// A manifest with one pod, or one workload that makes pods; `-` reads standard input. Gives policy.rego, the agent policy.
    #[arg(long, value_name = "FILE", required_unless_present = "tee")]
    pod: Option<PathBuf>,
    /// What an image says of how it runs, as `skopeo inspect --config` prints it; for each container that does not state its command.
    #[arg(long, value_name = "CONTAINER=FILE", value_parser = input::named_path, requires = "pod")]
    image_config: Vec<(String, PathBuf)>,
    /// A digest of a container's image: where the manifest has a tag only, or that of one platform where it names an index.
    #[arg(long, value_name = "CONTAINER=DIGEST", value_parser = named_digest, requires = "pod")]
    digest: Vec<(String, String)>,
    /// A command that may be run in containers beside those of probes: words with spaces between them, or a JSON list.
    #[arg(long, value_name = "COMMAND", value_parser = command, requires = "pod")]
    allow_exec: Vec<Words>,
    /// An environment variable that may have any value.
    #[arg(long, value_name = "NAME", requires = "pod")]
    allow_env: Vec<String>,
    /// A port of the pod that `kubectl port-forward` reaches; may be given more than once.
    #[arg(long, value_name = "PORT", requires = "pod")]
    allow_port_forward: Vec<NonZeroU16>,
    /// Keep the containers' output from the node: `kubectl logs` shows nothing.
    #[arg(long, requires = "pod")]
    deny_logs: bool,
    /// The kind of evidence. Gives attestation-policy.rego, resource-policy.rego and reference-values.json for the key broker.
    #[arg(long, value_enum, requires_all = ["measurements", "initdata", "out"])]
    tee: Option<Tee>,
    /// The image's measurements: JSON, claim to list of values.
    #[arg(long, value_name = "FILE", requires = "tee")]
    measurements: Option<PathBuf>,
    /// The pod's initdata, TOML or in the annotation's form.
    #[arg(long, value_name = "FILE", requires = "tee")]
    initdata: Option<PathBuf>,
    /// A resource that the pod gets, such as default/key/1; may be given more than once.
    #[arg(long, value_name = "REPOSITORY/TYPE/TAG", requires = "tee")]
    resource: Vec<String>,
    /// Do without measurements of the firmware, on clouds that change it without a word.
    #[arg(long, requires = "tee")]
    any_firmware: bool,
    /// Accept TDX platforms of this status beside UpToDate; may be given more than once.
    ///
    /// Intel tells of each platform's firmware in collateral that the verifier has. Anything but UpToDate has known holes or open settings;
    /// Unknown is what our verifier says without collateral. Status and advisories of your platforms: `peerpodctl verify evidence`.
    #[arg(long, value_enum, value_name = "STATUS", requires = "tee")]
    accept_tcb_status: Vec<TcbStatus>,
    /// The folder to write to; without it the agent policy is printed.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// JSON for programs: files and warnings.
    #[arg(long, requires = "out")]
    json: bool,
}

/// A command with its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Words(Vec<String>);

/// Why there are no policies.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PolicyError {
    /// A file.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The manifest.
    #[error(transparent)]
    Manifest(#[from] manifest::ManifestError),
    /// What the manifest leaves open.
    #[error(transparent)]
    Unclear(#[from] containers::Unclear),
    /// An image's configuration.
    #[error("{} is no image configuration; next: make it with `skopeo inspect --config docker://IMAGE`", path.display())]
    ImageConfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The initdata.
    #[error(transparent)]
    Initdata(#[from] InitdataCommandError),
    /// The broker's side.
    #[error(transparent)]
    Broker(#[from] broker::BrokerError),
    /// Policy and initdata are of two pods.
    #[error("the initdata has {0} policy.rego than this manifest gives; next: make it again with `peerpodctl initdata new --policy`")]
    OtherPolicy(&'static str),
    /// The folder.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

const AGENT_POLICY: &str = "policy.rego";
const ATTESTATION_POLICY: &str = "attestation-policy.rego";
const RESOURCE_POLICY: &str = "resource-policy.rego";
const REFERENCE_VALUES: &str = "reference-values.json";

/// Carries the command out; gives what is printed. Warnings go to standard error.
pub(crate) fn run(command: &Policy) -> Result<String, PolicyError> {
    let Policy::Generate(generate) = command;
    let mut files: Vec<(&str, String)> = Vec::new();
    let mut warnings = Vec::new();
    if let Some(path) = &generate.pod {
        let (rego, unclear) = agent_policy(&input::text(path)?, generate)?;
        warnings.extend(unclear);
        files.push((AGENT_POLICY, rego));
    }
    if let (Some(tee), Some(measurements), Some(initdata)) = (generate.tee, &generate.measurements, &generate.initdata) {
        let resources = generate.resource.iter().map(|resource| broker::resource(resource)).collect::<Result<BTreeSet<_>, _>>()?;
        let pins = Pins {
            measurements: broker::measurements(&input::text(measurements)?)?,
            initdata: initdata::read(initdata)?,
            resources,
            tee,
            any_firmware: generate.any_firmware,
            accepted_tcb: generate.accept_tcb_status.iter().copied().collect(),
        };
        pins.check()?;
        warnings.extend(pins.warnings());
        if let Some((_, rego)) = files.first() {
            match pins.initdata.initdata().data.get(AGENT_POLICY) {
                Some(present) if present == rego => {}
                Some(_) => return Err(PolicyError::OtherPolicy("another")),
                None => return Err(PolicyError::OtherPolicy("no")),
            }
        }
        files.push((ATTESTATION_POLICY, pins.attestation_policy()));
        files.push((RESOURCE_POLICY, pins.resource_policy()));
        files.push((REFERENCE_VALUES, format!("{:#}\n", pins.reference_values())));
    }
    for warning in warnings.iter().filter(|_| !generate.json) {
        eprintln!("peerpodctl: warning: {warning}");
    }
    let Some(out) = &generate.out else {
        eprintln!("peerpodctl: next: peerpodctl initdata new --policy FILE ..., where FILE is what is printed here");
        return Ok(files.into_iter().map(|(_, text)| text).collect());
    };
    write(out, &files)?;
    if generate.json {
        let paths: Vec<PathBuf> = files.iter().map(|(name, _)| out.join(name)).collect();
        return Ok(format!("{:#}\n", json!({"files": paths, "warnings": warnings})));
    }
    Ok(next_steps::text(out, &files))
}

fn agent_policy(yaml: &str, generate: &Generate) -> Result<(String, Vec<String>), PolicyError> {
    let mut additions = Additions {
        digests: generate.digest.clone(),
        exec: generate.allow_exec.iter().map(|words| words.0.clone()).collect(),
        any_value: generate.allow_env.iter().cloned().collect(),
        forwarded_ports: generate.allow_port_forward.iter().copied().collect(),
        deny_output: generate.deny_logs,
        ..Additions::default()
    };
    for (container, path) in &generate.image_config {
        let config = ImageConfig::parse(&input::text(path)?);
        let config = config.map_err(|source| PolicyError::ImageConfig { path: path.clone(), source })?;
        additions.image_configs.insert(container.clone(), config);
    }
    let made = containers::policy_data(&Workload::parse(yaml)?, &additions)?;
    Ok((agent::render(&made.data), made.warnings))
}

fn write(folder: &Path, files: &[(&str, String)]) -> Result<(), PolicyError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| PolicyError::Write { path, source }
    };
    std::fs::create_dir_all(folder).map_err(failed(folder))?;
    for (name, text) in files {
        let path = folder.join(name);
        std::fs::write(&path, text).map_err(failed(&path))?;
    }
    Ok(())
}

fn named_digest(argument: &str) -> Result<(String, String), String> {
    let refused = || format!("{argument:?} is not CONTAINER=sha256:<64 hexadecimal digits>");
    let (container, digest) = argument.split_once('=').ok_or_else(refused)?;
    Ok((container.to_owned(), image::checked_digest(digest).ok_or_else(refused)?))
}

fn command(argument: &str) -> Result<Words, String> {
    let words = match argument.starts_with('[') {
        true => serde_json::from_str(argument).map_err(|error| format!("{argument:?} is no JSON list of strings: {error}"))?,
        false => argument.split_whitespace().map(str::to_owned).collect::<Vec<String>>(),
    };
    if words.is_empty() { Err("no command".to_owned()) } else { Ok(Words(words)) }
}
