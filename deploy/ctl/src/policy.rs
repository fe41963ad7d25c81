//! `peerpodctl policy`: from a pod's manifest to the policies that hold its node and its key broker to it.

mod agent;
mod broker;
mod containers;
mod environment;
mod expand;
mod image;
mod manifest;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;

use broker::{Pins, Tee};
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

measurements.json has claims with their values, such as {\"pcr04\":[\"<hex>\"],\"pcr09\":[\"<hex>\"],\"pcr11\":[\"<hex>\"]}.";

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
        files.push(("attestation-policy.rego", pins.attestation_policy()));
        files.push(("resource-policy.rego", pins.resource_policy()));
        files.push(("reference-values.json", format!("{:#}\n", pins.reference_values())));
    }
    for warning in warnings.iter().filter(|_| !generate.json) {
        eprintln!("peerpodctl: warning: {warning}");
    }
    let Some(out) = &generate.out else { return Ok(files.into_iter().map(|(_, text)| text).collect()) };
    write(out, &files)?;
    if generate.json {
        let paths: Vec<PathBuf> = files.iter().map(|(name, _)| out.join(name)).collect();
        return Ok(format!("{:#}\n", json!({"files": paths, "warnings": warnings})));
    }
    Ok(for_people(out, &files))
}

fn agent_policy(yaml: &str, generate: &Generate) -> Result<(String, Vec<String>), PolicyError> {
    let mut additions = Additions {
        digests: generate.digest.clone(),
        exec: generate.allow_exec.iter().map(|words| words.0.clone()).collect(),
        any_value: generate.allow_env.iter().cloned().collect(),
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

/// What was written, and where it goes.
fn for_people(out: &Path, files: &[(&str, String)]) -> String {
    let mut text = String::new();
    for (name, content) in files {
        let path = out.join(name);
        let path = path.display();
        let _ = match *name {
            AGENT_POLICY => writeln!(text, "{path}: into the pod's initdata\n  peerpodctl initdata new --policy {path} ..."),
            "attestation-policy.rego" => {
                writeln!(
                    text,
                    "{path}: into the key broker\n  kbs-client config set-attestation-policy --id default_cpu --policy-file {path}"
                )
            }
            "resource-policy.rego" => {
                writeln!(text, "{path}: into the key broker\n  kbs-client config set-resource-policy --policy-file {path}")
            }
            _ => {
                let _ = writeln!(text, "{path}: into the key broker");
                let values: serde_json::Value = serde_json::from_str(content).unwrap_or_default();
                for (name, values) in values.as_object().into_iter().flatten() {
                    for value in values.as_array().into_iter().flatten() {
                        let _ =
                            writeln!(text, "  kbs-client config set-sample-reference-value {name} {}", value.as_str().unwrap_or_default());
                    }
                }
                Ok(())
            }
        };
    }
    text
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
