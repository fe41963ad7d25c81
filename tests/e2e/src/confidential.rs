//! What the owner of a confidential workload has: a relying party that releases keys, initdata that names it, signed and encrypted images.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::{Process, World, binaries_folder, eventually};

/// Which evidence the owner's policies speak of.
#[derive(Debug, Clone)]
pub enum TeeUnderTest {
    /// Anybody's word.
    Sample,
    /// A TPM, with these measurements: the claim's name to its value.
    Tpm(Vec<(String, String)>),
}

impl TeeUnderTest {
    fn name(&self) -> &'static str {
        match self {
            Self::Sample => "sample",
            Self::Tpm(_) => "tpm",
        }
    }

    fn measurements(&self) -> Value {
        match self {
            Self::Sample => json!({"svn": ["1"]}),
            Self::Tpm(measurements) => measurements.iter().map(|(claim, value)| (claim.clone(), json!([value]))).collect(),
        }
    }
}

/// A relying party in a node's namespace, where pod VMs reach it.
pub struct RelyingParty {
    process: Process,
    state: PathBuf,
    url: String,
    tee: TeeUnderTest,
    /// What it was given.
    resources: Mutex<BTreeSet<String>>,
}

/// In every world's own namespace.
const PORT: u16 = 8443;

impl RelyingParty {
    /// Starts one that knows what `tee` must show, and releases nothing yet.
    pub fn start(world: &World, tee: TeeUnderTest) -> Result<Self> {
        let address = world.registry_host();
        let address = address.split(':').next().context("the registry's host")?;
        // Owners reach it and the registry where guests do, also before the first machine, whose bridge has that address.
        world.netns().ip(&["address", "replace", &format!("{address}/32"), "dev", "lo"])?;
        let state = world.folder().join("relying-party");
        let program = binaries_folder()?.join("peerpods-relying-party");
        run(world.netns().command(&program).args(["init", "--name", address, "--state"]).arg(&state))?;
        let mut command = world.netns().command(&program);
        command.args(["serve", "--listen", &format!("0.0.0.0:{PORT}"), "--state"]).arg(&state);
        let process = Process::start("relying-party", world.folder(), &mut command)?;
        let mut this = Self { process, state, url: format!("https://{address}:{PORT}"), tee, resources: Mutex::default() };
        eventually("the relying party serves", Duration::from_secs(20), || {
            this.process.check_alive()?;
            if this.process.log_tail().contains("listening on") { Ok(()) } else { bail!("not yet") }
        })?;
        Ok(this)
    }

    /// Where guests reach it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What guests pin.
    pub fn certificate(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.state.join("tls-certificate.pem"))?)
    }

    /// Its folder, whose content no node may see.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        self.process.log_tail()
    }

    /// Registers a resource, `repository/type/tag`.
    pub fn set_resource(&self, world: &World, name: &str, content: &[u8]) -> Result<()> {
        self.resources.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
        self.set(world, "set-resource", &[name], content)
    }

    /// Releases every resource of now to VMs of the right image that were bound with this text of initdata, by policies of `peerpodctl`.
    pub fn release_to(&self, world: &World, initdata: &str) -> Result<()> {
        let folder = tempfile::tempdir_in(world.folder())?;
        let file = |name: &str| folder.path().join(name);
        std::fs::write(file("measurements.json"), self.tee.measurements().to_string())?;
        std::fs::write(file("initdata.toml"), initdata)?;
        let mut command = Command::new(binaries_folder()?.join("peerpodctl"));
        command.args(["policy", "generate", "--tee", self.tee.name(), "--measurements"]).arg(file("measurements.json"));
        command.arg("--initdata").arg(file("initdata.toml")).arg("--out").arg(folder.path());
        for name in &*self.resources.lock().unwrap_or_else(PoisonError::into_inner) {
            command.args(["--resource", name]);
        }
        run(&mut command)?;
        self.set(world, "set-attestation-policy", &[], &std::fs::read(file("attestation-policy.rego"))?)?;
        let values: BTreeMap<String, Value> = serde_json::from_slice(&std::fs::read(file("reference-values.json"))?)?;
        for (name, value) in values {
            self.command(world, &["set-reference-value", &name, &value.to_string()])?;
        }
        self.set(world, "set-resource-policy", &[], &std::fs::read(file("resource-policy.rego"))?)
    }

    /// `aa.toml` and the beginning of `cdh.toml` for initdata.
    pub fn files(&self) -> Result<(String, String)> {
        let (url, certificate) = (&self.url, self.certificate()?);
        let aa = format!("[token_configs.kbs]\nurl = \"{url}\"\ncert = \"\"\"\n{certificate}\"\"\"\n");
        let cdh = format!("[kbc]\nname = \"cc_kbc\"\nurl = \"{url}\"\nkbs_cert = \"\"\"\n{certificate}\"\"\"\n");
        Ok((aa, cdh))
    }

    /// Initdata that names this broker, wants images to be signed as the resource `default/security-policy/images` says, and has
    /// this agent policy.
    pub fn initdata(&self, world: &World, policy: &str) -> Result<String> {
        let (aa, cdh) = self.files()?;
        let registry = world.registry_host();
        Ok(format!(
            "algorithm = \"sha256\"\nversion = \"0.1.0\"\n\n[data]\n\"aa.toml\" = '''\n{aa}'''\n\"cdh.toml\" = '''\n{cdh}[image]\n\
             image_security_policy_uri = \"kbs:///default/security-policy/images\"\n[[image.registry_config.registry]]\n\
             location = \"{registry}\"\ninsecure = true\n'''\n\"policy.rego\" = '''\n{policy}'''\n"
        ))
    }

    fn set(&self, world: &World, command: &str, words: &[&str], content: &[u8]) -> Result<()> {
        let file = tempfile::NamedTempFile::new_in(world.folder())?;
        std::fs::write(file.path(), content)?;
        let path = file.path().display().to_string();
        self.command(world, &[&[command], words, &[&path]].concat())
    }

    fn command(&self, world: &World, words: &[&str]) -> Result<()> {
        let mut command = world.netns().command(binaries_folder()?.join("peerpods-relying-party"));
        command.arg(words[0]).args(["--url", &self.url, "--state"]).arg(&self.state).args(&words[1..]);
        run(&mut command)
    }
}

fn run(command: &mut Command) -> Result<()> {
    let out = command.output()?;
    if !out.status.success() {
        bail!("{:?}: {}", command.get_args().collect::<Vec<_>>(), String::from_utf8_lossy(&out.stderr));
    }
    Ok(())
}

/// A key that signs images as cosign does.
pub struct CosignKey(EcdsaKeyPair);

impl CosignKey {
    /// A new one.
    pub fn generate() -> Result<Self> {
        EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map(Self).map_err(|_| anyhow::anyhow!("no key"))
    }

    /// Its public part.
    pub fn public_pem(&self) -> Result<String> {
        let der: PublicKeyX509Der<'_> = self.0.public_key().as_der().map_err(|_| anyhow::anyhow!("no key"))?;
        Ok(format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der.as_ref())))
    }

    /// Signs an image of the world's registry, by its manifest's digest.
    pub fn sign(&self, world: &World, name: &str, manifest: &str) -> Result<()> {
        let payload = json!({
            "critical": {
                "type": "cosign container image signature",
                "image": { "docker-manifest-digest": manifest },
                "identity": { "docker-reference": format!("{}/{name}", world.registry_host()) },
            },
            "optional": null,
        });
        let payload = payload.to_string().into_bytes();
        let signature = self.0.sign(&SystemRandom::new(), &payload).map_err(|_| anyhow::anyhow!("cannot sign"))?;
        world.registry().push_signature(world.netns(), name, manifest, &payload, &STANDARD.encode(signature.as_ref()))
    }
}
