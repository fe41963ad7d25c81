//! The upstream profile: Kata's agent and the guest components of Confidential Containers in place of our own agent.
//!
//! The four programs are the builder's: a file in TOML names where they are and what their digests must be.
//!
//! ```toml
//! version = 1
//!
//! [kata-agent]
//! path = "kata-agent"    # relative paths begin at this file's folder
//! sha256 = "..."
//! ```
//!
//! and likewise `attestation-agent`, `confidential-data-hub` and `api-server-rest`. They lie in the initrd where upstream has them, with
//! a marker that tells the guest to run them, and so are measured with it. The initrd has no loader and no library, so only static
//! programs are taken.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde_json::json;

use crate::cpio::Archive;
use crate::{elf, sha256_hex};

/// Where the programs lie, as upstream's own images have them.
pub const FOLDER: &str = "usr/local/bin";
/// Tells the guest to run this profile.
pub const MARKER: &str = "etc/peerpods/upstream.toml";

/// What the marker says: the version of what the guest finds, and nothing else.
const MARKER_TEXT: &str = "version = 1\n";
/// Kata's agent runs the process that this folder describes where a pod's sandbox container is asked for.
const PAUSE_BUNDLE: &str = "pause_bundle";

/// A program that was found to be the one that was meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Its name at [`FOLDER`].
    pub name: &'static str,
    /// SHA-256 of its content.
    pub sha256: String,
    /// The file.
    pub content: Vec<u8>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Wanted {
    version: u32,
    kata_agent: Source,
    attestation_agent: Source,
    confidential_data_hub: Source,
    api_server_rest: Source,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    path: PathBuf,
    sha256: String,
}

/// Reads the programs that a file names, all of them or none.
pub fn read(file: &Path) -> Result<Vec<Program>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    let wanted: Wanted = toml::from_str(&text).with_context(|| format!("parse {}", file.display()))?;
    ensure!(wanted.version == 1, "{} has version {}, this program reads version 1", file.display(), wanted.version);
    let folder = file.parent().unwrap_or(Path::new(""));
    let sources = [
        ("api-server-rest", wanted.api_server_rest),
        ("attestation-agent", wanted.attestation_agent),
        ("confidential-data-hub", wanted.confidential_data_hub),
        ("kata-agent", wanted.kata_agent),
    ];
    sources.into_iter().map(|(name, source)| program(name, &source, folder)).collect()
}

fn program(name: &'static str, source: &Source, folder: &Path) -> Result<Program> {
    let path = folder.join(&source.path);
    let content = std::fs::read(&path).with_context(|| format!("read {name} from {}", path.display()))?;
    let sha256 = sha256_hex(&content);
    ensure!(
        sha256 == source.sha256,
        "{name}: {} has SHA-256 {sha256} instead of {}; if the new file is meant, write its digest down",
        path.display(),
        source.sha256
    );
    let is_static = elf::is_static(&content).with_context(|| format!("{name}: {}", path.display()))?;
    ensure!(
        is_static,
        "{name}: {} needs a loader and libraries, which a pod VM does not have; build it statically, such as for musl",
        path.display()
    );
    Ok(Program { name, sha256, content })
}

/// Puts the programs and what belongs to them into an initrd.
pub fn add(archive: &mut Archive, programs: &[Program]) -> Result<()> {
    for program in programs {
        archive.add_file(&format!("{FOLDER}/{}", program.name), 0o755, program.content.clone());
    }
    archive.add_file(MARKER, 0o644, MARKER_TEXT.as_bytes().to_vec());
    archive.add_file(&format!("{PAUSE_BUNDLE}/config.json"), 0o644, serde_json::to_vec(&pause())?);
    // Kata's agent copies it into the container; it is the guest's own program.
    archive.add_symlink(&format!("{PAUSE_BUNDLE}/rootfs/pause"), "/init");
    Ok(())
}

/// The guest as the process that keeps a pod's namespaces, without any privilege.
fn pause() -> serde_json::Value {
    let none: [&str; 0] = [];
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 65535, "gid": 65535 },
            "args": ["/pause", "runner", "pause"],
            "env": none,
            "cwd": "/",
            "capabilities": { "bounding": none, "effective": none, "inheritable": none, "permitted": none, "ambient": none },
            "noNewPrivileges": true,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn programs_are_read_beside_the_file_that_names_them() {
        let folder = tempfile::tempdir().expect("folder");
        let programs = read(&fixture::write_upstream(folder.path())).expect("valid");
        let names: Vec<&str> = programs.iter().map(|program| program.name).collect();
        assert_eq!(names, ["api-server-rest", "attestation-agent", "confidential-data-hub", "kata-agent"]);
        assert!(programs.iter().all(|program| program.sha256 == sha256_hex(&program.content)));
    }

    #[test]
    fn another_file_is_refused_with_both_digests() {
        let folder = tempfile::tempdir().expect("folder");
        let file = fixture::write_upstream(folder.path());
        let path = folder.path().join("kata-agent");
        let before = sha256_hex(&std::fs::read(&path).expect("program"));
        let after = [fixture::program(None), b"changed".to_vec()].concat();
        std::fs::write(&path, &after).expect("change");
        let error = read(&file).expect_err("refused").to_string();
        assert!(error.starts_with("kata-agent: ") && error.contains(&before) && error.contains(&sha256_hex(&after)), "{error}");
    }

    #[test]
    fn program_that_needs_a_loader_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let dynamic = fixture::program(Some("/lib64/ld-linux-x86-64.so.2"));
        let file = fixture::write_upstream_with(folder.path(), "attestation-agent", &dynamic);
        let error = read(&file).expect_err("refused").to_string();
        assert!(error.starts_with("attestation-agent: ") && error.contains("needs a loader"), "{error}");
        let file = fixture::write_upstream_with(folder.path(), "api-server-rest", b"#!/bin/sh\n");
        assert!(format!("{:#}", read(&file).expect_err("refused")).contains("not a 64-bit little-endian ELF file"));
    }

    #[test]
    fn all_four_are_needed_and_nothing_else() {
        let folder = tempfile::tempdir().expect("folder");
        let file = fixture::write_upstream(folder.path());
        let text = std::fs::read_to_string(&file).expect("text");
        for (bad, why) in [
            (text.replace("[kata-agent]", "[kata]"), "kata"),
            (text.replace("version = 1", "version = 2"), "version 2"),
            (text.split("[kata-agent]").next().unwrap_or_default().to_owned(), "kata-agent"),
            (format!("{text}size = 1\n"), "size"),
        ] {
            std::fs::write(&file, bad).expect("write");
            let error = format!("{:#}", read(&file).expect_err("refused"));
            assert!(error.contains(why), "{error}");
        }
        let file = fixture::write_upstream(folder.path());
        std::fs::remove_file(folder.path().join("confidential-data-hub")).expect("remove");
        assert!(read(&file).expect_err("refused").to_string().contains("read confidential-data-hub from "));
    }

    #[test]
    fn pause_bundle_is_one_that_katas_agent_reads() {
        let spec: oci_spec::runtime::Spec = serde_json::from_value(pause()).expect("a specification");
        let process = spec.process().as_ref().expect("a process");
        assert_eq!(process.args().as_deref(), Some(["/pause", "runner", "pause"].map(str::to_owned).as_slice()));
        assert!(process.capabilities().as_ref().is_some_and(|sets| sets.bounding().as_ref().is_some_and(|set| set.is_empty())));
    }
}
