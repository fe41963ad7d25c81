//! What the owner of a confidential workload has: a relying party that releases keys, initdata that names it, signed and encrypted images.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

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
    /// How evidence shows that a VM was bound with initdata of this SHA-256.
    pub fn init_data_claim(&self, digest: &[u8]) -> Result<String> {
        match self {
            Self::Sample => Ok(hex::encode(digest)),
            Self::Tpm(_) => pcr8_after(digest),
        }
    }

    fn attestation_policy(&self) -> String {
        let rules = match self {
            Self::Sample => "hardware := 2 if input.sample.svn in query_reference_value(\"svn\")\nexecutables := 3 if input.sample\nconfiguration := 2 if input.init_data\n".to_owned(),
            Self::Tpm(measurements) => {
                let same: String = measurements.iter().map(|(claim, _)| format!("\tinput.tpm.{claim} in query_reference_value(\"{claim}\")\n")).collect();
                format!("hardware := 2 if input.tpm.ak_public\nexecutables := 3 if {{\n{same}}}\nconfiguration := 2 if input.init_data\n")
            }
        };
        format!(
            "package policy\nimport rego.v1\ndefault hardware := 97\ndefault executables := 33\ndefault configuration := 36\n{rules}\
             trust_claims := {{\"hardware\": hardware, \"executables\": executables, \"configuration\": configuration}}\n"
        )
    }

    fn reference_values(&self) -> Vec<(String, String)> {
        match self {
            Self::Sample => vec![("svn".to_owned(), "1".to_owned())],
            Self::Tpm(measurements) => measurements.clone(),
        }
    }
}

/// PCR 8 of a VM that was bound with initdata of this SHA-256, in hex digits.
pub fn pcr8_after(digest: &[u8]) -> Result<String> {
    Ok(hex::encode(peerpods_evidence::register::pcr_after(digest)?))
}

/// A relying party in a node's namespace, where pod VMs reach it.
pub struct RelyingParty {
    process: Process,
    state: PathBuf,
    url: String,
    tee: TeeUnderTest,
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
        let mut this = Self { process, state, url: format!("https://{address}:{PORT}"), tee };
        eventually("the relying party serves", Duration::from_secs(20), || {
            this.process.check_alive()?;
            if this.process.log_tail().contains("listening on") { Ok(()) } else { bail!("not yet") }
        })?;
        this.set(world, "set-attestation-policy", &[], this.tee.attestation_policy().as_bytes())?;
        for (name, value) in this.tee.reference_values() {
            let value = json!([value]).to_string();
            this.command(world, &["set-reference-value", &name, &value])?;
        }
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
        self.set(world, "set-resource", &[name], content)
    }

    /// Releases everything to VMs of the right image that were bound with one of these texts of initdata.
    pub fn release_to(&self, world: &World, initdata: &[&str]) -> Result<()> {
        let mut pinned = Vec::new();
        for text in initdata {
            let digest = peerpods_evidence::initdata::digest(Some(text))?;
            pinned.push(self.tee.init_data_claim(&digest)?);
        }
        let policy = format!(
            "package policy\nimport rego.v1\ndefault allow := false\nallow if {{\n\tdata.plugin == \"resource\"\n\tcpu := input.submods.cpu0\n\
             \tcpu[\"ear.status\"] == \"affirming\"\n\tcpu[\"ear.veraison.annotated-evidence\"].init_data in {}\n}}\n",
            json!(pinned)
        );
        self.set(world, "set-resource-policy", &[], policy.as_bytes())
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
