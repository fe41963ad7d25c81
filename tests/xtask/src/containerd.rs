//! containerd 1.7 and 2.x from Debian, side by side in the target folder; nothing is installed.
//!
//! apt does the work with a state folder of its own: it knows this machine's mirrors and proxies and checks signatures against
//! Debian's keyring. Of other releases only containerd itself is taken, which is statically linked enough to run on older ones;
//! runc is not, and is this release's own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::binaries;
use crate::stage::{Stages, output, run};

/// The variable that tells tests, demo and benchmarks where the versions are.
pub(crate) const VARIABLE: &str = "PEERPODS_CONTAINERD";

/// A version: the folder's name, how its number begins, and the releases that may have it, the likeliest first.
const VERSIONS: [(&str, &str, &[&str]); 2] = [("1.7", "1.7.", &["trixie"]), ("2", "2.", &["sid", "forky", "trixie-backports"])];

const KEYRINGS: [&str; 2] = ["/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp"];

/// Makes sure that both are there, fetching what is not; gives the folder that holds them.
pub(crate) fn ensure(stages: &mut Stages) -> Result<PathBuf, String> {
    stages.run("containerd 1.7 and 2.x", || {
        let folder = binaries::containerd_folder()?;
        for (name, number, suites) in VERSIONS {
            let version = match version(&folder.join(name)) {
                Some(version) if version.starts_with(number) => version,
                _ => fetch(&folder, name, number, suites)?,
            };
            println!("    containerd {name}: {version}");
        }
        Ok(folder)
    })
}

/// What `containerd --version` says: `containerd <import path> <version> <commit>`.
fn version(unpacked: &Path) -> Option<String> {
    let out = Command::new(unpacked.join("usr/bin/containerd")).arg("--version").stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    let word = text.split_whitespace().nth(2)?;
    out.status.success().then(|| word.trim_start_matches('v').to_owned())
}

fn fetch(folder: &Path, name: &str, number: &str, suites: &[&str]) -> Result<String, String> {
    let mut failures = Vec::new();
    for suite in suites {
        let unpacked = folder.join(format!("{name}.new"));
        let _ = std::fs::remove_dir_all(&unpacked);
        match unpack(suite, &folder.join("apt"), &unpacked) {
            Err(error) => failures.push(format!("{suite}: {error}")),
            Ok(()) => match version(&unpacked) {
                Some(version) if version.starts_with(number) => {
                    let _ = std::fs::remove_dir_all(folder.join(name));
                    std::fs::rename(&unpacked, folder.join(name)).map_err(|e| format!("{}: {e}", unpacked.display()))?;
                    let _ = std::fs::remove_dir_all(folder.join("apt"));
                    return Ok(version);
                }
                Some(version) => failures.push(format!("{suite}: has {version}")),
                None => failures.push(format!("{suite}: its containerd does not start here")),
            },
        }
    }
    Err(format!("no containerd {number}x: {}", failures.join("; ")))
}

/// Fetches a release's containerd with apt, in a folder of its own, and unpacks it.
fn unpack(suite: &str, apt: &Path, into: &Path) -> Result<(), String> {
    let keyring = KEYRINGS.iter().find(|k| Path::new(k).exists()).ok_or("install debian-archive-keyring")?;
    let _ = std::fs::remove_dir_all(apt);
    for below in ["state/lists/partial", "cache/archives/partial", "sources.d", "deb"] {
        std::fs::create_dir_all(apt.join(below)).map_err(|e| format!("{}: {e}", apt.display()))?;
    }
    let write = |name: &str, text: &str| std::fs::write(apt.join(name), text).map_err(|e| format!("{name}: {e}"));
    write("state/status", "")?;
    write("sources.list", &format!("deb [arch=amd64 signed-by={keyring}] {} {suite} main\n", archive()?))?;
    let folder = apt.to_str().ok_or("the target folder's path is not text")?;
    // An old index is good enough here: it is signed, and nothing that is shipped is made of it.
    write(
        "apt.conf",
        &format!(
            r#"#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Update::Pre-Invoke;
Dir::Etc::SourceList "{folder}/sources.list";
Dir::Etc::SourceParts "{folder}/sources.d";
Dir::State "{folder}/state";
Dir::State::status "{folder}/state/status";
Dir::Cache "{folder}/cache";
APT::Architecture "amd64";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::Check-Valid-Until "false";
Acquire::Check-Date "false";
Acquire::AllowInsecureRepositories "false";
"#
        ),
    )?;
    let deb = apt.join("deb");
    for args in [&["update"][..], &["download", "containerd"][..]] {
        let mut command = Command::new("apt-get");
        command.env("LC_ALL", "C").current_dir(&deb).arg("-q").arg("-c").arg(apt.join("apt.conf")).args(args);
        output(command.stdin(Stdio::null()))?;
    }
    let found = std::fs::read_dir(&deb).map_err(|e| format!("{}: {e}", deb.display()))?.flatten().map(|entry| entry.path()).next();
    let package = found.ok_or("apt-get download left no package")?;
    run(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(into))
}

/// The Debian archive that this machine's apt uses.
fn archive() -> Result<String, String> {
    let mut list = Command::new("apt-get");
    let targets = output(list.args(["indextargets", "--format", "$(REPO_URI) $(COMPONENT)", "Created-By: Packages"]))?;
    let uris = targets.lines().filter_map(|line| line.strip_suffix(" main"));
    let found = uris.map(|uri| uri.trim_end_matches('/')).find(|uri| uri.ends_with("/debian"));
    found.map(str::to_owned).ok_or_else(|| "apt on this machine names no Debian archive: run `apt-get update`, then try again".to_owned())
}
