//! Debian's archive, reached the way this machine's apt reaches it.
//!
//! apt does the work, in a state folder of our own: it knows this machine's mirrors, proxies and credentials, checks the signatures of
//! indexes against Debian's keyring and every index by its hash, and is what people already trust to install packages. What is
//! ours is which suites are asked and what is believed about their age.
//!
//! **Age of indexes.** A signed index stays validly signed for ever, so a mirror can hold back updates; `Valid-Until` limits that.
//! [`Freshness::Required`] refuses expired indexes. [`Freshness::Tolerated`] takes them and says so: only for images that are not
//! pinned, which no release uses. Pinned packages need no index.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use crate::cache::Cache;
use crate::pins::Pin;

/// The suites that images are made of, and what is taken from each, see [`crate::pins::Role`].
pub const SUITES: [&str; 2] = [KERNEL_SUITE, STABLE_SUITE];
/// Stable with its kernel backports: the oldest suite whose kernel knows TSM measurements.
pub const KERNEL_SUITE: &str = "trixie-backports";
/// Where everything else comes from.
pub const STABLE_SUITE: &str = "trixie";

const KEYRINGS: [&str; 2] = ["/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp"];
const HELPER: &str = "/usr/lib/apt/apt-helper";

/// What to do about indexes whose `Valid-Until` has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// Refuse them.
    Required,
    /// Print a warning and use them.
    Tolerated,
}

/// A package as an index describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The text of its `Depends` field.
    pub depends: String,
    /// Its file, relative to the archive's root.
    pub path: String,
    /// Size of the file in bytes.
    pub size: u64,
    /// SHA-256 of the file.
    pub sha256: String,
}

/// Where the archive is.
#[derive(Debug, Clone)]
pub struct Archive {
    /// URIs to try, in order.
    roots: Vec<String>,
}

impl Archive {
    /// The archive at this URI, or what this machine's apt sources name.
    pub fn locate(given: Option<&str>) -> Result<Self> {
        if let Some(uri) = given {
            return Ok(Self { roots: vec![format!("{}/", uri.trim_end_matches('/'))] });
        }
        let out = Command::new("apt-get")
            .args(["indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"])
            .output()
            .context("run apt-get: the image is made of Debian packages, so it is built on Debian")?;
        let roots = archive_roots(&String::from_utf8_lossy(&out.stdout));
        ensure!(!roots.is_empty(), "apt's sources name no Debian archive; name one with --archive");
        Ok(Self { roots })
    }

    /// Downloads a pinned package into the cache. `Ok(None)`: the archive does not have it any more.
    pub fn download(&self, cache: &Cache, pin: &Pin) -> Result<Option<PathBuf>> {
        let staged = cache.staging(&pin.sha256);
        for root in &self.roots {
            let status = Command::new(HELPER)
                .args(["-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3", "download-file"])
                .arg(format!("{root}{}", pin.path))
                .arg(&staged)
                .arg(format!("SHA256:{}", pin.sha256))
                .stdin(Stdio::null())
                .status()
                .with_context(|| format!("run {HELPER}"))?;
            if status.success() {
                return cache.keep(&staged, &pin.sha256).map(Some);
            }
            let _ = std::fs::remove_file(&staged);
        }
        Ok(None)
    }

    /// Reads the current, signed indexes of [`SUITES`].
    pub fn read_index(&self, cache: &Cache, freshness: Freshness) -> Result<Index> {
        let mut failure = String::new();
        for root in &self.roots {
            match Index::update(root, cache, Freshness::Required) {
                Ok(index) => return Ok(index),
                Err(error) if freshness == Freshness::Tolerated && format!("{error:#}").contains("is expired") => {
                    println!("warning: {error:#}");
                    println!("warning: the archive's indexes are past their Valid-Until; newer packages may exist");
                    return Index::update(root, cache, Freshness::Tolerated);
                }
                Err(error) => failure = format!("{error:#}"),
            }
        }
        bail!("{failure}")
    }
}

/// Roots of Debian archives in the output of `apt-get indextargets`, likeliest first. A wrong guess does no harm: its signature or
/// digest will not match.
fn archive_roots(targets: &str) -> Vec<String> {
    let mut roots: Vec<String> = Vec::new();
    for line in targets.lines() {
        let mut words = line.split_whitespace();
        let (Some(uri), Some(release), Some("main")) = (words.next(), words.next(), words.next()) else { continue };
        if !release.contains("security") && !release.contains('/') && !roots.iter().any(|r| r == uri) {
            roots.push(uri.to_owned());
        }
    }
    roots.sort_by_key(|uri| !uri.trim_end_matches('/').ends_with("/debian"));
    roots
}

/// Packages of [`SUITES`].
#[derive(Debug)]
pub struct Index {
    packages: Vec<(&'static str, Package)>,
}

impl Index {
    /// The newest version of a package in a suite.
    pub fn newest(&self, suite: &str, name: &str) -> Result<&Package> {
        let mut found: Option<&Package> = None;
        for (_, package) in self.packages.iter().filter(|(s, p)| *s == suite && p.name == name) {
            if found.is_none_or(|f| is_newer(&package.version, &f.version)) {
                found = Some(package);
            }
        }
        found.with_context(|| format!("suite {suite} has no package {name}"))
    }

    fn update(root: &str, cache: &Cache, freshness: Freshness) -> Result<Self> {
        let keyring = KEYRINGS.iter().find(|k| Path::new(k).exists()).context("install debian-archive-keyring")?;
        let apt = Apt::prepare(&cache.folder().join("apt"), root, keyring, freshness)?;
        let out = apt.command("apt-get").arg("update").output().context("run apt-get update")?;
        let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        // apt calls some failures warnings and goes on with what it had; we start from nothing, so either is a failure here.
        let faults: Vec<&str> = text.lines().filter(|l| l.starts_with("E:") || l.starts_with("W:") || l.starts_with("Err:")).collect();
        ensure!(out.status.success() && faults.is_empty(), "apt-get update from {root}: {}", faults.join("; "));
        let mut packages = Vec::new();
        for suite in SUITES {
            let target = apt
                .command("apt-get")
                .args(["indextargets", "--format", "$(FILENAME)", "Created-By: Packages"])
                .arg(format!("Release: {suite}"))
                .output()?;
            let file = String::from_utf8(target.stdout).context("apt printed a file name that is not text")?;
            let text = apt.command(HELPER).arg("cat-file").arg(file.trim()).output()?;
            ensure!(text.status.success(), "no package index of suite {suite}");
            let text = String::from_utf8(text.stdout).context("package index is not text")?;
            packages.extend(parse_index(&text).map(|package| (suite, package)));
        }
        Ok(Self { packages })
    }
}

/// apt with a state of its own; this machine's lists and installed packages do not matter and are not touched.
struct Apt {
    config: PathBuf,
}

impl Apt {
    fn prepare(folder: &Path, root: &str, keyring: &str, freshness: Freshness) -> Result<Self> {
        let _ = std::fs::remove_dir_all(folder);
        for below in ["state/lists/partial", "cache/archives/partial", "sources.d"] {
            std::fs::create_dir_all(folder.join(below)).with_context(|| format!("make {}", folder.join(below).display()))?;
        }
        std::fs::write(folder.join("state/status"), "")?;
        let sources: String = SUITES.iter().map(|suite| format!("deb [arch=amd64 signed-by={keyring}] {root} {suite} main\n")).collect();
        std::fs::write(folder.join("sources.list"), sources)?;
        let config = folder.join("apt.conf");
        let folder = folder.to_str().context("cache folder's path is not text")?;
        let is_checked = freshness == Freshness::Required;
        // Read last, so it wins over this machine's settings.
        std::fs::write(
            &config,
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
Acquire::Check-Valid-Until "{is_checked}";
Acquire::Check-Date "{is_checked}";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
Acquire::AllowDowngradeToInsecureRepositories "false";
"#
            ),
        )?;
        Ok(Self { config })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C").arg("-c").arg(&self.config).stdin(Stdio::null());
        command
    }
}

fn parse_index(text: &str) -> impl Iterator<Item = Package> {
    text.split("\n\n").filter_map(|stanza| {
        let field = |name: &str| stanza.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": ")).map(str::to_owned);
        Some(Package {
            name: field("Package")?,
            version: field("Version")?,
            depends: field("Depends").unwrap_or_default(),
            path: field("Filename")?,
            size: field("Size")?.parse().ok()?,
            sha256: field("SHA256")?,
        })
    })
}

fn is_newer(version: &str, than: &str) -> bool {
    Command::new("dpkg").args(["--compare-versions", version, "gt", than]).status().is_ok_and(|s| s.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_root_is_found_among_other_sources() {
        let targets = "https://deb.vendor.example/node nodistro main\n\
            https://mirror.example/debian-security/ bookworm-security main\n\
            https://mirror.example/debian/ bookworm main\n\
            https://mirror.example/debian/ bookworm-updates main\n\
            https://mirror.example/debian/ bookworm contrib\n";
        assert_eq!(archive_roots(targets), ["https://mirror.example/debian/", "https://deb.vendor.example/node"]);
    }

    #[test]
    fn index_is_read_field_by_field() {
        let text = "Package: a\nVersion: 1-1\nDepends: b (= 1)\nDescription: x\n Package: not\nFilename: pool/a.deb\nSize: 12\nSHA256: ab\n\nPackage: broken\n\n";
        let packages: Vec<Package> = parse_index(text).collect();
        assert_eq!(packages.len(), 1);
        assert_eq!((packages[0].name.as_str(), packages[0].size, packages[0].depends.as_str()), ("a", 12, "b (= 1)"));
    }

    #[test]
    fn versions_are_compared_as_debian_does() {
        assert!(is_newer("7.3.4-1~bpo13+1", "7.3.4-1~bpo13+0") && is_newer("7.3.4-1", "7.3.4-1~bpo13+1"));
    }
}
