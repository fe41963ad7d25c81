//! `cdh.toml` of initdata: what the workload's owner says about image pulls.
//!
//! The file is the Confidential Data Hub's; here is the part of its `[image]` table that this guest can honour. A key that it
//! cannot honour is an error by name, never ignored: an owner who asked for signatures must not get an unchecked image. Tables that
//! have nothing to do with images are left alone.

use peerpods_image::{PullPolicy, Registries};
use serde::Deserialize;

/// Name of the file in initdata.
const FILE: &str = "cdh.toml";

#[derive(Debug, Default, Deserialize)]
struct CdhConfig {
    #[serde(default)]
    image: Image,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Image {
    /// A table in the form of registries.conf.
    registry_config: Option<toml::Table>,
    /// PEM certificates.
    #[serde(default)]
    extra_root_certificates: Vec<String>,
    /// Ours are decided by the guest; accepted because templates carry them.
    #[serde(rename = "work_dir")]
    _work_dir: Option<String>,
    #[serde(rename = "max_concurrent_layer_downloads_per_image")]
    _max_concurrent_layer_downloads_per_image: Option<u32>,
}

/// `cdh.toml` cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum CdhConfigError {
    /// Not TOML, or a key of `[image]` that this guest cannot honour.
    #[error("cdh.toml: {0}")]
    Parse(#[from] toml::de::Error),
    /// `registry_config` is not what it should be.
    #[error("cdh.toml: {0}")]
    Registries(#[from] peerpods_image::RegistriesError),
}

/// The policy of image pulls by the files of initdata; without `cdh.toml`: HTTPS, no credentials.
pub(super) fn pull_policy<'a>(file: impl FnOnce(&str) -> Option<&'a str>) -> Result<PullPolicy, CdhConfigError> {
    let Some(text) = file(FILE) else { return Ok(PullPolicy::default()) };
    let config: CdhConfig = toml::from_str(text)?;
    let registries = config.image.registry_config.map_or(Ok(Registries::default()), Registries::from_table)?;
    Ok(PullPolicy { registries, extra_root_certificates: config.image.extra_root_certificates, ..PullPolicy::default() })
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
    fn nothing_in_initdata_means_https_without_credentials() {
        assert!(pull_policy(|_| None).is_ok());
    }
}
