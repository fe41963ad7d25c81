//! Packages of Debian releases other than this machine's, unpacked into folders; nothing is installed.
//!
//! apt does the work with a state folder of its own: it knows this machine's mirrors and proxies and checks signatures against
//! Debian's keyring. How old an index may be is for this machine's own configuration of apt to say, and is not changed here.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::stage::{output, run};

const KEYRINGS: [&str; 2] = ["/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp"];

/// Fetches packages of a release with apt, in the folder `apt`, and unpacks them one over the other. What they depend on is not
/// followed. Gives name and version of each, with a space between.
pub(crate) fn unpack(suite: &str, packages: &[&str], apt: &Path, into: &Path) -> Result<Vec<String>, String> {
    let keyring = KEYRINGS.iter().find(|k| Path::new(k).exists()).ok_or("install debian-archive-keyring")?;
    let _ = std::fs::remove_dir_all(apt);
    for below in ["state/lists/partial", "cache/archives/partial", "sources.d", "deb"] {
        std::fs::create_dir_all(apt.join(below)).map_err(|e| format!("{}: {e}", apt.display()))?;
    }
    let write = |name: &str, text: &str| std::fs::write(apt.join(name), text).map_err(|e| format!("{name}: {e}"));
    write("state/status", "")?;
    write("sources.list", &format!("deb [arch=amd64 signed-by={keyring}] {} {suite} main\n", archive()?))?;
    let folder = apt.to_str().ok_or("the target folder's path is not text")?;
    write("apt.conf", &configuration(folder))?;
    let deb = apt.join("deb");
    for args in [&["update"][..], &[&["download"], packages].concat()] {
        let mut command = Command::new("apt-get");
        command.env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive").current_dir(&deb);
        command.arg("-q").arg("-c").arg(apt.join("apt.conf")).args(args).stdin(Stdio::null());
        output(&mut command)
            .map_err(|error| format!("{error}: apt says why above; {suite} was to give {}; {NEXT}", packages.join(", ")))?;
    }
    let found: Vec<_> =
        std::fs::read_dir(&deb).map_err(|e| format!("{}: {e}", deb.display()))?.flatten().map(|entry| entry.path()).collect();
    if found.len() != packages.len() {
        return Err(format!("apt-get download left {} packages and not {}", found.len(), packages.len()));
    }
    let mut unpacked = Vec::new();
    for package in &found {
        run(Command::new("dpkg-deb").arg("--extract").arg(package).arg(into))?;
        let show = output(Command::new("dpkg-deb").args(["--show", "--showformat", "${Package} ${Version}"]).arg(package))?;
        unpacked.push(show);
    }
    unpacked.sort();
    Ok(unpacked)
}

/// What to do when apt cannot fetch.
const NEXT: &str = "see that `apt-get update` works on this machine and that its mirror is up to date, then try again";

/// Everything stays in the folder, and a download is tried again.
fn configuration(folder: &str) -> String {
    format!(
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
Acquire::AllowInsecureRepositories "false";
"#
    )
}

/// The Debian archive that this machine's apt uses.
fn archive() -> Result<String, String> {
    let mut list = Command::new("apt-get");
    let targets = output(list.args(["indextargets", "--format", "$(REPO_URI) $(COMPONENT)", "Created-By: Packages"]))?;
    let uris = targets.lines().filter_map(|line| line.strip_suffix(" main"));
    let found = uris.map(|uri| uri.trim_end_matches('/')).find(|uri| uri.ends_with("/debian"));
    found.map(str::to_owned).ok_or_else(|| "apt on this machine names no Debian archive: run `apt-get update`, then try again".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apt_keeps_to_its_folder_and_its_checks() {
        let text = configuration("/folder");
        for line in text.lines().filter(|line| line.starts_with("Dir::")) {
            assert!(line.contains(" \"/folder/"), "{line}");
        }
        for check in ["Check-Valid-Until", "Check-Date", "AllowUnauthenticated", "AllowInsecureRepositories \"true\""] {
            assert!(!text.contains(check), "{check}");
        }
        assert!(text.contains("Acquire::Retries \"3\";"), "{text}");
    }
}
