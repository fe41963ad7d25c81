//! What a pod's initdata says, read once: its digest, and what each file asks of this machine.
//!
//! | file | asks for |
//! |---|---|
//! | `aa.toml`, `cdh.toml` | the key broker ([`Broker`]) |
//! | `cdh.toml` | image pulls ([`PullPolicy`]), sealed secrets |
//! | `policy.rego` | what the node may do ([`AgentPolicy`]) |
//!
//! Files of other names are measured with the rest and left alone. What a known file asks for and this guest cannot do is an error by
//! name, never ignored: an owner who asked for signatures must not get an unchecked image.

use peerpods_agent::AgentPolicy;
use peerpods_agent::policy::PolicyError;
use peerpods_evidence::{Initdata, InitdataError, initdata};
use peerpods_image::PullPolicy;

use super::attestation::Attestation;
use super::broker::{Broker, BrokerConfigError};
use super::secrets::BrokerSecrets;

/// Initdata that asks for nothing impossible.
pub(super) struct PodConfig {
    /// What is measured.
    pub(super) digest: Vec<u8>,
    /// Who releases keys.
    pub(super) broker: Broker,
    /// How images are pulled.
    pub(super) pull: PullPolicy,
    /// How secrets are opened.
    pub(super) secrets: BrokerSecrets,
    /// What the node may ask of the agent.
    pub(super) policy: AgentPolicy,
}

/// Initdata that cannot be followed.
#[derive(Debug, thiserror::Error)]
pub(super) enum PodConfigError {
    /// Not initdata.
    #[error(transparent)]
    Initdata(#[from] InitdataError),
    /// The broker.
    #[error(transparent)]
    Broker(#[from] BrokerConfigError),
    /// Image pulls.
    #[error(transparent)]
    Pull(#[from] peerpods_image::PolicyError),
    /// Sealed secrets.
    #[error("cdh.toml")]
    Secrets(#[from] toml::de::Error),
    /// The agent policy.
    #[error("policy.rego")]
    Policy(#[from] PolicyError),
}

impl PodConfig {
    /// Reads the text of a Bind; `None` is a pod without initdata.
    pub(super) fn read(text: Option<&str>, attestation: Attestation) -> Result<Self, PodConfigError> {
        let digest = initdata::digest(text)?;
        let document = text.map(Initdata::parse).transpose()?;
        let file = |name: &str| document.as_ref()?.data.get(name).map(String::as_str);
        let broker = Broker::from_initdata(file, text, attestation)?;
        Ok(Self {
            digest,
            pull: file("cdh.toml").map(PullPolicy::from_cdh_toml).transpose()?.unwrap_or_default(),
            secrets: BrokerSecrets::new(broker.clone(), file("cdh.toml"))?,
            broker,
            // A pod without initdata is measured as if it had the empty text, so that text must mean the same.
            policy: agent_policy(document.as_ref().filter(|_| text != Some(initdata::EMPTY)))?,
        })
    }
}

/// The owner's policy, or one of the image's own: which of them follows from what is measured, so a verifier knows it.
fn agent_policy(initdata: Option<&Initdata>) -> Result<AgentPolicy, PolicyError> {
    match initdata.map(|initdata| initdata.data.get("policy.rego")) {
        None => AgentPolicy::built_in_default(),
        Some(None) => AgentPolicy::strict_default(),
        Some(Some(rego)) => AgentPolicy::parse(rego),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use peerpods_attester::Attester;

    fn read(files: &[(&str, &str)]) -> Result<PodConfig, PodConfigError> {
        let mut text = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n".to_owned();
        for (name, content) in files {
            text.push_str(&format!("\"{name}\" = '''\n{content}'''\n"));
        }
        PodConfig::read(Some(&text), Attestation::new(Attester::for_tee("sample").expect("an attester")))
    }

    fn refused(files: &[(&str, &str)]) -> String {
        let error = read(files).map(drop).expect_err("refused");
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }

    #[test]
    fn each_file_is_read_by_who_needs_it() {
        let cdh = "[kbc]\nname = \"cc_kbc\"\nurl = \"http://broker\"\n[image]\nextra_root_certificates = [\"PEM\"]\n\
            image_security_policy_uri = \"kbs:///default/security-policy/test\"\n\
            [[image.registry_config.registry]]\nlocation = \"10.93.0.1:5000\"\ninsecure = true\n";
        let config = read(&[("cdh.toml", cdh), ("other", "anything")]).expect("valid");
        assert_eq!(config.pull.extra_root_certificates, ["PEM"]);
        assert_eq!(config.pull.unread_resource(), Some("kbs:///default/security-policy/test"));
        assert!(format!("{:?}", config.pull.registries).contains("10.93.0.1:5000"));
        assert_eq!(config.digest.len(), 32);
    }

    #[test]
    fn impossible_wishes_are_refused_by_name() {
        assert!(refused(&[("cdh.toml", "[image]\nimage_security_polcy = \"x\"\n")]).contains("image_security_polcy"));
        assert!(refused(&[("cdh.toml", "[kbc]\nname = \"kms\"\nurl = \"\"\n")]).contains("kms"));
        assert!(refused(&[("policy.rego", "package agent_policy\nx :=\n")]).starts_with("policy.rego: "));
        assert!(refused(&[("policy.rego", "package other\n")]).contains("other"));
    }

    #[test]
    fn pod_without_initdata_runs_with_the_images_own_policy() {
        let attestation = || Attestation::new(Attester::for_tee("sample").expect("an attester"));
        let exec = |config: &PodConfig| config.policy.check("ExecProcessRequest", &serde_json::json!({})).is_ok();
        let none = PodConfig::read(None, attestation()).expect("valid");
        assert!(exec(&none));
        assert!(exec(&PodConfig::read(Some(initdata::EMPTY), attestation()).expect("valid")), "measured as none is");
        assert!(!exec(&read(&[]).expect("valid")), "initdata without a policy");
    }

    #[test]
    fn broker_without_a_policy_leaves_containers_closed() {
        let aa = "[token_configs.kbs]\nurl = \"http://broker\"\n";
        let config = read(&[("aa.toml", aa)]).expect("valid");
        let file = |name: &str| {
            let path = format!("/run/kata-containers/shared/containers/{}-0123456789abcdef-{name}", "a".repeat(64));
            serde_json::json!({"path": path, "file_type": "Regular"})
        };
        for (request, input, is_allowed) in [
            ("ExecProcessRequest", serde_json::json!({}), false),
            ("WriteStreamRequest", serde_json::json!({}), false),
            ("SetPolicyRequest", serde_json::json!({}), false),
            ("PortForwardRequest", serde_json::json!({"port": 80}), false),
            ("AllowTeeKeypair", serde_json::json!({}), false),
            ("CopyFileRequest", file("app.conf"), false),
            ("CopyFileRequest", file("resolv.conf"), true),
            ("CreateContainerRequest", serde_json::json!({}), true),
        ] {
            assert_eq!(config.policy.check(request, &input).is_ok(), is_allowed, "{request}");
        }
    }
}
