//! What a pull may do: which registries, with which credentials, and which image.

use serde::Deserialize;

use crate::{AuthError, Digest, Proxies, ProxyError, Registries, RegistriesError, RegistryAuths, ResourceError, ResourceSource};

/// The settings of one pull. The default: HTTPS to the registry that the reference names, no credentials, nothing pinned.
#[derive(Debug, Clone, Default)]
pub struct PullPolicy {
    /// Locations, mirrors, and which of them are plain HTTP.
    pub registries: Registries,
    /// Credentials by registry or repository.
    pub auth: RegistryAuths,
    /// PEM certificates trusted in addition to the system's.
    pub extra_root_certificates: Vec<String>,
    /// Between this machine and the registries.
    pub proxies: Proxies,
    /// The digest the reference must resolve to: that of the index if it names an index, or of its linux/amd64 manifest.
    pub expected_manifest: Option<Digest>,
    /// The digest the image's configuration must have.
    pub expected_config: Option<Digest>,
    /// Resource that holds the credentials, until [`PullPolicy::load`] has read it.
    pub auth_uri: Option<String>,
    /// Resource that holds the registry configuration, until [`PullPolicy::load`] has read it.
    pub registries_uri: Option<String>,
}

/// A policy that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// Not TOML, or a member of `[image]` that this version does not know or that has another type.
    #[error("cdh.toml: {reason}")]
    Syntax {
        /// What and where.
        reason: String,
    },
    /// A member of `[image]` that asks for something this version does not do; ignoring it would pull what it forbids.
    #[error("cdh.toml: image.{key} is not supported by this version")]
    Unsupported {
        /// The member.
        key: &'static str,
    },
    /// The registry configuration.
    #[error("cdh.toml: image.registry_config")]
    Registries(#[source] RegistriesError),
    /// A proxy.
    #[error("cdh.toml")]
    Proxies(#[source] ProxyError),
    /// The registry configuration is not text.
    #[error("the registry configuration {uri} is not UTF-8")]
    NotText {
        /// The resource.
        uri: String,
    },
    /// The credentials.
    #[error("the registry credentials")]
    Auth(#[source] AuthError),
    /// A resource could not be had.
    #[error("cannot get the registry configuration")]
    Resource(#[source] ResourceError),
}

/// Other tables of the file belong to others.
#[derive(Deserialize)]
struct CdhFile {
    #[serde(default)]
    image: ImageTable,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct ImageTable {
    registry_config: Option<toml::Table>,
    registry_configuration_uri: Option<String>,
    authenticated_registry_credentials_uri: Option<String>,
    extra_root_certificates: Vec<String>,
    image_security_policy: Option<toml::Value>,
    image_security_policy_uri: Option<toml::Value>,
    sigstore_config: Option<toml::Value>,
    sigstore_config_uri: Option<toml::Value>,
    image_pull_proxy: Proxies,
    /// The store's folder and its limits are the guest's own business.
    #[serde(rename = "work_dir")]
    _work_dir: Option<toml::Value>,
    #[serde(rename = "max_concurrent_layer_downloads_per_image")]
    _max_concurrent_layer_downloads_per_image: Option<toml::Value>,
}

impl PullPolicy {
    /// Reads the `[image]` table of initdata's `cdh.toml`, in the form of the Confidential Data Hub: `registry_config` (an inline
    /// registries.conf, which wins over `registry_configuration_uri`), `authenticated_registry_credentials_uri`, `image_pull_proxy` and
    /// `extra_root_certificates`. Without the table the policy is the default one.
    ///
    /// Resources that it names have to be read with [`PullPolicy::load`] before a pull.
    pub fn from_cdh_toml(text: &str) -> Result<Self, PolicyError> {
        let file: CdhFile = toml::from_str(text).map_err(|error| PolicyError::Syntax { reason: error.to_string() })?;
        let image = file.image;
        let unsupported = [
            ("image_security_policy", image.image_security_policy),
            ("image_security_policy_uri", image.image_security_policy_uri),
            ("sigstore_config", image.sigstore_config),
            ("sigstore_config_uri", image.sigstore_config_uri),
        ];
        if let Some((key, _)) = unsupported.into_iter().find(|(_, value)| value.is_some()) {
            return Err(PolicyError::Unsupported { key });
        }
        let registries_uri = if image.registry_config.is_some() { None } else { image.registry_configuration_uri };
        let registries = image.registry_config.map(Registries::from_table).transpose().map_err(PolicyError::Registries)?;
        Ok(Self {
            registries: registries.unwrap_or_default(),
            extra_root_certificates: image.extra_root_certificates,
            proxies: image.image_pull_proxy.check().map_err(PolicyError::Proxies)?,
            auth_uri: image.authenticated_registry_credentials_uri,
            registries_uri,
            ..Self::default()
        })
    }

    /// The first resource that [`PullPolicy::load`] still has to read. A caller without a broker refuses to pull while there is one.
    pub fn unread_resource(&self) -> Option<&str> {
        self.registries_uri.as_deref().or(self.auth_uri.as_deref())
    }

    /// Reads the resources that the policy names.
    pub async fn load(&mut self, source: &dyn ResourceSource) -> Result<(), PolicyError> {
        if let Some(uri) = &self.registries_uri {
            let text = source.get(uri).await.map_err(PolicyError::Resource)?;
            let text = String::from_utf8(text).map_err(|_| PolicyError::NotText { uri: uri.clone() })?;
            self.registries = Registries::parse(&text).map_err(PolicyError::Registries)?;
            self.registries_uri = None;
        }
        if let Some(uri) = self.auth_uri.clone() {
            self.load_auth(source, &uri).await.map_err(PolicyError::Auth)?;
            self.auth_uri = None;
        }
        Ok(())
    }

    /// Reads the credentials from a resource in the form of docker's `config.json`.
    pub async fn load_auth(&mut self, source: &dyn ResourceSource, uri: &str) -> Result<(), AuthError> {
        let bytes = source.get(uri).await.map_err(AuthError::Resource)?;
        self.auth = RegistryAuths::from_docker_config(&bytes)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;

    struct Resources;

    #[async_trait]
    impl ResourceSource for Resources {
        async fn get(&self, uri: &str) -> Result<Vec<u8>, ResourceError> {
            match uri {
                "kbs:///default/credential/test" => Ok(br#"{"auths":{"r.example":{"auth":"YTpi"}}}"#.to_vec()),
                "kbs:///default/registries/test" => Ok(b"[[registry]]\nlocation = \"r.example\"\ninsecure = true\n".to_vec()),
                _ => Err(ResourceError { uri: uri.to_owned(), source: "no such resource".into() }),
            }
        }
    }

    #[test]
    fn inline_registry_config_is_read_beside_other_tables() {
        let text = "socket = \"unix:///x\"\n[kbc]\nname = \"cc_kbc\"\n[image]\n[[image.registry_config.registry]]\nlocation = \"127.0.0.1:5000\"\ninsecure = true\n";
        let policy = PullPolicy::from_cdh_toml(text).unwrap();
        let places = policy.registries.endpoints(&"127.0.0.1:5000/a:1".parse().unwrap()).unwrap();
        assert_eq!(places[0].scheme, crate::registries::Scheme::Http);
        assert_eq!(policy.unread_resource(), None);
    }

    #[test]
    fn missing_table_is_the_default() {
        let policy = PullPolicy::from_cdh_toml("").unwrap();
        assert!(policy.extra_root_certificates.is_empty() && policy.unread_resource().is_none());
    }

    #[test]
    fn security_policies_and_unknown_members_are_errors() {
        let error = PullPolicy::from_cdh_toml("[image]\nimage_security_policy_uri = \"kbs:///a/b/c\"\n").unwrap_err();
        assert_eq!(error.to_string(), "cdh.toml: image.image_security_policy_uri is not supported by this version");
        assert!(PullPolicy::from_cdh_toml("[image]\nregistry_confg = {}\n").unwrap_err().to_string().contains("registry_confg"));
        assert!(matches!(PullPolicy::from_cdh_toml("[image.registry_config]\nx = 1\n"), Err(PolicyError::Registries(_))));
    }

    #[tokio::test]
    async fn resources_are_read_once_asked() {
        let text = "[image]\nauthenticated_registry_credentials_uri = \"kbs:///default/credential/test\"\nregistry_configuration_uri = \"kbs:///default/registries/test\"\n";
        let mut policy = PullPolicy::from_cdh_toml(text).unwrap();
        assert_eq!(policy.unread_resource(), Some("kbs:///default/registries/test"));
        policy.load(&Resources).await.unwrap();
        assert_eq!(policy.unread_resource(), None);
        assert_eq!(policy.auth.find("r.example", "a").unwrap().user(), "a");
        assert_eq!(policy.registries.endpoints(&"r.example/a:1".parse().unwrap()).unwrap()[0].scheme, crate::registries::Scheme::Http);

        policy.auth_uri = Some("kbs:///x/y/z".to_owned());
        assert!(matches!(policy.load(&Resources).await, Err(PolicyError::Auth(AuthError::Resource(_)))));
    }
}
