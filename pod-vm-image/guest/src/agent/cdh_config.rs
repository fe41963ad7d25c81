//! `cdh.toml` of initdata: what the workload's owner says about image pulls.
//!
//! The file is the Confidential Data Hub's; [`PullPolicy::from_cdh_toml`] reads the part about images. What this guest cannot honour is an
//! error by name, never ignored: an owner who asked for signatures must not get an unchecked image.

use peerpods_image::{PolicyError, PullPolicy};

/// Name of the file in initdata.
const FILE: &str = "cdh.toml";

/// `cdh.toml` cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum CdhConfigError {
    /// It says something that is wrong or not supported.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// It names a resource of a key broker.
    #[error(
        "cdh.toml: {uri} is to be had from a key broker, which this version does not ask: put registry_config inline, use no credentials"
    )]
    Resource {
        /// The resource.
        uri: String,
    },
}

/// The policy of image pulls by the files of initdata; without `cdh.toml`: HTTPS, no credentials.
pub(super) fn pull_policy<'a>(file: impl FnOnce(&str) -> Option<&'a str>) -> Result<PullPolicy, CdhConfigError> {
    let Some(text) = file(FILE) else { return Ok(PullPolicy::default()) };
    let policy = PullPolicy::from_cdh_toml(text)?;
    match policy.unread_resource() {
        Some(uri) => Err(CdhConfigError::Resource { uri: uri.to_owned() }),
        None => Ok(policy),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn insecure_registry_and_certificates_are_read() {
        let text = "[kbc]\nname = \"cc_kbc\"\nurl = \"http://broker\"\n[image]\nextra_root_certificates = [\"PEM\"]\n\
            [[image.registry_config.registry]]\nlocation = \"10.93.0.1:5000\"\ninsecure = true\n";
        let policy = pull_policy(|name| (name == "cdh.toml").then_some(text)).expect("valid");
        assert_eq!(policy.extra_root_certificates, ["PEM"]);
        assert!(format!("{:?}", policy.registries).contains("10.93.0.1:5000"));
    }

    #[test]
    fn signature_policy_is_refused_by_name_and_not_ignored() {
        let text = "[image]\nimage_security_policy_uri = \"kbs:///default/security-policy/test\"\n";
        let error = pull_policy(|_| Some(text)).expect_err("refused").to_string();
        assert!(error.contains("image_security_policy_uri"), "{error}");
    }

    #[test]
    fn resources_of_a_broker_are_refused_by_name() {
        let text = "[image]\nauthenticated_registry_credentials_uri = \"kbs:///default/credential/test\"\n";
        let error = pull_policy(|_| Some(text)).expect_err("refused").to_string();
        assert!(error.contains("kbs:///default/credential/test"), "{error}");
    }

    #[test]
    fn nothing_in_initdata_means_https_without_credentials() {
        assert!(pull_policy(|_| None).is_ok());
    }
}
