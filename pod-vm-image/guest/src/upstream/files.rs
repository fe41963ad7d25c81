//! What the programs read: initdata as upstream lays it out, and settings of ours.
//!
//! The folder of initdata is made read-only: Kata's agent looks at every disk for initdata of its own format and would put it, and its
//! policy, in the place of what was measured. It writes the files first, and ends when that fails.

use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use peerpods_agent::policy::{BUILT_IN_DEFAULT, STRICT_DEFAULT};
use peerpods_agent::{AgentPolicy, policy::PolicyError};
use peerpods_evidence::{Initdata, InitdataError, initdata};

use super::Features;
use super::components::AGENT_SOCKET;

const INITDATA_FOLDER: &str = "/run/confidential-containers/initdata";
pub(super) const AA: &str = "/run/confidential-containers/initdata/aa.toml";
pub(super) const CDH: &str = "/run/confidential-containers/initdata/cdh.toml";

const FOLDER: &str = "/run/peerpods/upstream";
const POLICY: &str = "/run/peerpods/upstream/policy.rego";
pub(super) const AGENT: &str = "/run/peerpods/upstream/agent.toml";
pub(super) const OCICRYPT: &str = "/run/peerpods/upstream/ocicrypt.json";
/// The data hub unwraps the keys of encrypted layers for its own image library.
const OCICRYPT_TEXT: &str = r#"{"key-providers":{"attestation-agent":{"ttrpc":"unix:///run/confidential-containers/cdh.sock"}}}"#;

/// Kata's folder for images, bundles and volumes.
const SHARE: &str = "/run/kata-containers";

/// Initdata that can be followed.
pub(crate) struct PodFiles {
    /// What is measured.
    pub(crate) digest: Vec<u8>,
    /// What the pod's REST server offers.
    pub(crate) features: Features,
    /// For what is asked of the guest beside Kata's agent, which reads it too.
    pub(crate) policy: AgentPolicy,
    files: Vec<(&'static str, String)>,
}

/// Initdata that cannot be followed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PodFilesError {
    /// Not initdata.
    #[error(transparent)]
    Initdata(#[from] InitdataError),
    /// The agent policy, which Kata's agent would end on without a word.
    #[error("policy.rego")]
    Policy(#[from] PolicyError),
}

/// A file, folder or mount that the programs need could not be made.
#[derive(Debug, thiserror::Error)]
#[error("make {} for the guest components", path.display())]
pub(crate) struct WriteError {
    path: PathBuf,
    source: io::Error,
}

impl PodFiles {
    /// Reads the text of a Bind; `None` is a pod without initdata. What `aa.toml` and `cdh.toml` say is upstream's affair.
    pub(crate) fn read(text: Option<&str>) -> Result<Self, PodFilesError> {
        let digest = initdata::digest(text)?;
        let document = text.map(Initdata::parse).transpose()?;
        // A pod without initdata is measured as if it had the empty text, so that text must mean the same.
        let given = document.as_ref().filter(|_| text != Some(initdata::EMPTY));
        let rego = match given.map(|document| document.data.get("policy.rego")) {
            None => BUILT_IN_DEFAULT,
            Some(None) => STRICT_DEFAULT,
            Some(Some(rego)) => rego,
        };
        let policy = AgentPolicy::parse(rego)?;
        let is_key_allowed = policy.check("AllowTeeKeypair", &serde_json::json!({})).is_ok();
        let mut files = vec![(POLICY, rego.to_owned()), (OCICRYPT, OCICRYPT_TEXT.to_owned()), (AGENT, agent_settings())];
        if let (Some(text), Some(document)) = (text, &document) {
            files.push(("/run/confidential-containers/initdata/initdata.toml", text.to_owned()));
            for (name, path) in [("aa.toml", AA), ("cdh.toml", CDH)] {
                files.extend(document.data.get(name).map(|content| (path, content.clone())));
            }
        }
        Ok(Self { digest, features: if is_key_allowed { Features::All } else { Features::Resource }, policy, files })
    }

    /// Writes everything, seals initdata, and puts Kata's folder on the scratch disk.
    pub(crate) fn put_in_place(&self, scratch: &Path) -> Result<(), WriteError> {
        self.write_below(Path::new("/"))?;
        let folder = scratch.join("kata-containers");
        make_folder(&folder).and_then(|()| make_folder(Path::new(SHARE)))?;
        bind(&folder, SHARE, MsFlags::empty())?;
        bind(Path::new(INITDATA_FOLDER), INITDATA_FOLDER, MsFlags::MS_RDONLY)
    }

    fn write_below(&self, root: &Path) -> Result<(), WriteError> {
        let below = |path: &str| root.join(path.trim_start_matches('/'));
        make_folder(&below(FOLDER)).and_then(|()| make_folder(&below(INITDATA_FOLDER)))?;
        for (path, content) in &self.files {
            let path = below(path);
            std::fs::write(&path, content).map_err(|source| WriteError { path, source })?;
        }
        Ok(())
    }
}

/// Everything else stays Kata's default. Components of its own: none, they run already.
fn agent_settings() -> String {
    format!("server_addr = \"unix://{AGENT_SOCKET}\"\nguest_components_procs = \"none\"\npolicy_file = \"{POLICY}\"\n")
}

fn make_folder(path: &Path) -> Result<(), WriteError> {
    std::fs::create_dir_all(path).map_err(|source| WriteError { path: path.to_owned(), source })
}

fn bind(from: &Path, to: &'static str, flags: MsFlags) -> Result<(), WriteError> {
    let none = None::<&str>;
    let mounted = mount(Some(from), to, none, MsFlags::MS_BIND, none).and_then(|()| {
        // A bind mount takes other flags only when it is mounted again.
        if flags.is_empty() { Ok(()) } else { mount(none, to, none, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | flags, none) }
    });
    mounted.map_err(|error| WriteError { path: to.into(), source: error.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(files: &[(&str, &str)]) -> String {
        let mut text = "version = \"0.1.0\"\nalgorithm = \"sha384\" # every byte counts\n[data]\n".to_owned();
        for (name, content) in files {
            text.push_str(&format!("\"{name}\" = '''\n{content}'''\n"));
        }
        text
    }

    fn written(initdata: Option<&str>) -> std::collections::BTreeMap<String, String> {
        let root = tempfile::tempdir().expect("folder");
        PodFiles::read(initdata).expect("valid").write_below(root.path()).expect("write");
        let folders = [INITDATA_FOLDER, FOLDER].map(|folder| root.path().join(&folder[1..]));
        let entries = folders.iter().flat_map(|folder| std::fs::read_dir(folder).expect("folder"));
        let paths = entries.map(|entry| entry.expect("entry").path());
        paths.map(|path| (path.file_name().expect("name").display().to_string(), std::fs::read_to_string(path).expect("file"))).collect()
    }

    #[test]
    fn initdata_is_laid_out_as_kata_does_it_byte_for_byte() {
        let policy = "package agent_policy\ndefault CreateContainerRequest := true\n";
        let (aa, cdh) = ("[token_configs.kbs]\nurl = \"http://kbs\"\n", "[kbc]\nname = \"any_kbc\"\nnew = 1\n");
        let initdata = text(&[("aa.toml", aa), ("cdh.toml", cdh), ("policy.rego", policy), ("other", "x\n")]);
        let files = written(Some(&initdata));
        let names: Vec<&str> = files.keys().map(String::as_str).collect();
        assert_eq!(names, ["aa.toml", "agent.toml", "cdh.toml", "initdata.toml", "ocicrypt.json", "policy.rego"]);
        assert_eq!((files["aa.toml"].as_str(), files["cdh.toml"].as_str(), files["policy.rego"].as_str()), (aa, cdh, policy));
        assert_eq!(files["initdata.toml"], initdata);
        let settings: toml::Table = files["agent.toml"].parse().expect("TOML");
        assert_eq!(settings["server_addr"].as_str(), Some("unix:///run/peerpods/upstream/kata-agent.sock"));
        assert_eq!(settings["guest_components_procs"].as_str(), Some("none"));
        assert_eq!(settings["policy_file"].as_str(), Some(POLICY));
    }

    #[test]
    fn pod_without_initdata_has_the_images_policy_and_no_files_of_it() {
        let files = written(None);
        assert_eq!(files.keys().collect::<Vec<_>>(), ["agent.toml", "ocicrypt.json", "policy.rego"]);
        assert_eq!(files["policy.rego"], BUILT_IN_DEFAULT);
        assert_eq!(written(Some(initdata::EMPTY))["policy.rego"], BUILT_IN_DEFAULT, "measured as none is");
        assert_eq!(written(Some(&text(&[])))["policy.rego"], STRICT_DEFAULT);
    }

    #[test]
    fn digest_is_over_the_text_and_bad_initdata_is_refused_by_name() {
        let initdata = text(&[("aa.toml", "")]);
        assert_eq!(PodFiles::read(Some(&initdata)).expect("valid").digest.len(), 48);
        let refused = |text: &str| PodFiles::read(Some(text)).map(drop).expect_err("refused").to_string();
        assert!(refused("version = \"9\"").contains("version"));
        assert_eq!(refused(&text(&[("policy.rego", "package agent_policy\nx :=\n")])), "policy.rego");
    }

    #[test]
    fn the_tees_key_reaches_the_pod_only_where_the_policy_says_so() {
        let features = |policy: &str| PodFiles::read(Some(&text(&[("policy.rego", policy)]))).expect("valid").features;
        assert_eq!(features("package agent_policy\nAllowTeeKeypair := true\n"), Features::All);
        assert_eq!(features("package agent_policy\nAllowTeeKeypair := false\n"), Features::Resource);
        assert_eq!(PodFiles::read(None).expect("valid").features, Features::Resource);
    }
}
