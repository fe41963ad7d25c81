//! What a pull may do: which registries, with which credentials, and which image.

use std::sync::Arc;

use serde::Deserialize;

use crate::{
    AuthError, Digest, ImagePolicy, ImagePolicyError, Lookaside, LookasideError, Proxies, ProxyError, Registries, RegistriesError,
    RegistryAuths, ResourceError, ResourceSource, Resources,
};

/// The settings of one pull. The default: HTTPS to the registry that the reference names, no credentials, nothing pinned,
/// every image accepted, no keys.
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
    /// Which images may be used.
    pub image_policy: ImagePolicy,
    /// Where the GPG signatures are that the image policy may want.
    pub lookaside: Lookaside,
    /// Where the keys of encrypted layers and of signatures are to be had.
    pub resources: Resources,
    /// Resource that holds the credentials, until [`PullPolicy::load`] has read it.
    pub auth_uri: Option<String>,
    /// Resource that holds the registry configuration, until [`PullPolicy::load`] has read it.
    pub registries_uri: Option<String>,
    /// Resource that holds the image policy, until [`PullPolicy::load`] has read it.
    pub image_policy_uri: Option<String>,
    /// Resource that holds the places of GPG signatures, until [`PullPolicy::load`] has read it.
    pub lookaside_uri: Option<String>,
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
    /// The registry configuration.
    #[error("cdh.toml: image.registry_config")]
    Registries(#[source] RegistriesError),
    /// A proxy.
    #[error("cdh.toml")]
    Proxies(#[source] ProxyError),
    /// The image policy.
    #[error("cdh.toml: image.image_security_policy")]
    ImagePolicy(#[source] ImagePolicyError),
    /// The places of GPG signatures.
    #[error("cdh.toml: image.sigstore_config")]
    Lookaside(#[source] LookasideError),
    /// A configuration is not text.
    #[error("the configuration {uri} is not UTF-8")]
    NotText {
        /// The resource.
        uri: String,
    },
    /// The credentials.
    #[error("the registry credentials")]
    Auth(#[source] AuthError),
    /// A resource could not be had.
    #[error("cannot get what cdh.toml names in image.{key}")]
    Resource {
        /// The member.
        key: &'static str,
        /// Why.
        #[source]
        source: ResourceError,
    },
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
    image_security_policy: Option<String>,
    image_security_policy_uri: Option<String>,
    sigstore_config: Option<String>,
    sigstore_config_uri: Option<String>,
    image_pull_proxy: Proxies,
    /// The store's folder and its limits are the guest's own business.
    #[serde(rename = "work_dir")]
    _work_dir: Option<toml::Value>,
    #[serde(rename = "max_concurrent_layer_downloads_per_image")]
    _max_concurrent_layer_downloads_per_image: Option<toml::Value>,
}

impl PullPolicy {
    /// Reads the `[image]` table of initdata's `cdh.toml`, in the form of the Confidential Data Hub. Without the table the policy is the
    /// default one. As there, of two members for one thing:
    ///
    /// * `registry_config` (an inline registries.conf) wins over `registry_configuration_uri`;
    /// * `image_security_policy_uri` wins over `image_security_policy` (a policy.json as text), which is then not even read;
    /// * `sigstore_config_uri` wins over `sigstore_config` (a file of registries.d as text).
    ///
    /// Beside these there are `authenticated_registry_credentials_uri`, `image_pull_proxy` and `extra_root_certificates`. Resources that it
    /// names have to be read with [`PullPolicy::resolve`] before a pull.
    pub fn from_cdh_toml(text: &str) -> Result<Self, PolicyError> {
        let file: CdhFile = toml::from_str(text).map_err(|error| PolicyError::Syntax { reason: error.to_string() })?;
        let image = file.image;
        let registries_uri = if image.registry_config.is_some() { None } else { image.registry_configuration_uri };
        let registries = image.registry_config.map(Registries::from_table).transpose().map_err(PolicyError::Registries)?;
        let inline = image.image_security_policy.filter(|_| image.image_security_policy_uri.is_none());
        let image_policy = inline.map(|text| ImagePolicy::parse(text.as_bytes())).transpose().map_err(PolicyError::ImagePolicy)?;
        let inline = image.sigstore_config.filter(|_| image.sigstore_config_uri.is_none());
        let lookaside = inline.map(|text| Lookaside::parse(&text)).transpose().map_err(PolicyError::Lookaside)?;
        Ok(Self {
            registries: registries.unwrap_or_default(),
            extra_root_certificates: image.extra_root_certificates,
            proxies: image.image_pull_proxy.check().map_err(PolicyError::Proxies)?,
            image_policy: image_policy.unwrap_or_default(),
            lookaside: lookaside.unwrap_or_default(),
            auth_uri: image.authenticated_registry_credentials_uri,
            registries_uri,
            image_policy_uri: image.image_security_policy_uri,
            lookaside_uri: image.sigstore_config_uri,
            ..Self::default()
        })
    }

    /// The first resource that [`PullPolicy::load`] still has to read: until then each pull is refused.
    pub fn unread_resource(&self) -> Option<&str> {
        let all = [&self.image_policy_uri, &self.lookaside_uri, &self.registries_uri, &self.auth_uri];
        all.into_iter().find_map(|uri| uri.as_deref())
    }

    /// Reads the resources that the policy names, and takes the keys of layers and signatures from the same source from now on.
    pub async fn resolve(&mut self, source: Arc<dyn ResourceSource>) -> Result<(), PolicyError> {
        self.load(&*source).await?;
        self.resources = Resources::from_source(source);
        Ok(())
    }

    /// Reads the resources that the policy names. One that was read is not read again; after an error the rest can be tried again.
    pub async fn load(&mut self, source: &dyn ResourceSource) -> Result<(), PolicyError> {
        if let Some(uri) = &self.image_policy_uri {
            let json = get(source, uri, "image_security_policy_uri").await?;
            self.image_policy = ImagePolicy::parse(&json).map_err(PolicyError::ImagePolicy)?;
            self.image_policy_uri = None;
        }
        if let Some(uri) = &self.lookaside_uri {
            let text = get_text(source, uri, "sigstore_config_uri").await?;
            self.lookaside = Lookaside::parse(&text).map_err(PolicyError::Lookaside)?;
            self.lookaside_uri = None;
        }
        if let Some(uri) = &self.registries_uri {
            let text = get_text(source, uri, "registry_configuration_uri").await?;
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

async fn get(source: &dyn ResourceSource, uri: &str, key: &'static str) -> Result<Vec<u8>, PolicyError> {
    source.get(uri).await.map_err(|source| PolicyError::Resource { key, source })
}

async fn get_text(source: &dyn ResourceSource, uri: &str, key: &'static str) -> Result<String, PolicyError> {
    String::from_utf8(get(source, uri, key).await?).map_err(|_| PolicyError::NotText { uri: uri.to_owned() })
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;

    struct Broker;

    #[async_trait]
    impl ResourceSource for Broker {
        async fn get(&self, uri: &str) -> Result<Vec<u8>, ResourceError> {
            match uri {
                "kbs:///default/credential/test" => Ok(br#"{"auths":{"r.example":{"auth":"YTpi"}}}"#.to_vec()),
                "kbs:///default/security-policy/test" => Ok(br#"{"default":[{"type":"reject"}]}"#.to_vec()),
                "kbs:///default/sigstore-config/test" => Ok(b"default-docker:\n  sigstore: http://sig.example\n".to_vec()),
                "kbs:///default/bad/test" => Ok(b"\xff{".to_vec()),
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
    fn inline_policies_are_read_unless_a_resource_wins() {
        let decides = |policy: &PullPolicy| format!("{:?} {:?}", policy.image_policy, policy.lookaside);
        let inline = "[image]\nimage_security_policy = '{\"default\":[{\"type\":\"reject\"}]}'\nsigstore_config = \"default-docker:\\n  sigstore: http://inline.example\"\n";
        let policy = PullPolicy::from_cdh_toml(inline).unwrap();
        assert!(decides(&policy).contains("Reject") && decides(&policy).contains("inline.example"), "{}", decides(&policy));
        let both = format!("{inline}image_security_policy_uri = \"kbs:///a/b/c\"\nsigstore_config_uri = \"kbs:///d/e/f\"\n");
        let policy = PullPolicy::from_cdh_toml(&both).unwrap();
        assert!(!decides(&policy).contains("Reject") && !decides(&policy).contains("inline.example"));
        assert_eq!(policy.unread_resource(), Some("kbs:///a/b/c"));
    }

    #[test]
    fn odd_policies_and_unknown_members_are_errors() {
        let bad = |text: &str| PullPolicy::from_cdh_toml(text).unwrap_err();
        assert!(matches!(bad("[image]\nimage_security_policy = \"{}\"\n"), PolicyError::ImagePolicy(_)));
        assert!(matches!(bad("[image]\nsigstore_config = \"x\"\n"), PolicyError::Lookaside(_)));
        assert!(matches!(bad("[image]\nimage_security_policy = {}\n"), PolicyError::Syntax { .. }));
        assert!(PullPolicy::from_cdh_toml("[image]\nregistry_confg = {}\n").unwrap_err().to_string().contains("registry_confg"));
        assert!(matches!(PullPolicy::from_cdh_toml("[image.registry_config]\nx = 1\n"), Err(PolicyError::Registries(_))));
    }

    #[tokio::test]
    async fn resources_are_read_once_asked() {
        let text = "[image]\nauthenticated_registry_credentials_uri = \"kbs:///default/credential/test\"\nregistry_configuration_uri = \"kbs:///default/registries/test\"\n";
        let mut policy = PullPolicy::from_cdh_toml(text).unwrap();
        assert_eq!(policy.unread_resource(), Some("kbs:///default/registries/test"));
        policy.load(&Broker).await.unwrap();
        assert_eq!(policy.unread_resource(), None);
        assert_eq!(policy.auth.find("r.example", "a").unwrap().user(), "a");
        assert_eq!(policy.registries.endpoints(&"r.example/a:1".parse().unwrap()).unwrap()[0].scheme, crate::registries::Scheme::Http);

        policy.auth_uri = Some("kbs:///x/y/z".to_owned());
        assert!(matches!(policy.load(&Broker).await, Err(PolicyError::Auth(AuthError::Resource(_)))));
    }

    #[tokio::test]
    async fn image_policy_is_read_and_the_source_is_kept() {
        let text = "[image]\nimage_security_policy_uri = \"kbs:///default/security-policy/test\"\nsigstore_config_uri = \"kbs:///default/sigstore-config/test\"\n";
        let mut policy = PullPolicy::from_cdh_toml(text).unwrap();
        policy.resolve(Arc::new(Broker)).await.unwrap();
        assert_eq!(policy.unread_resource(), None);
        assert!(policy.resources.source().is_some());
        let read = format!("{:?} {:?}", policy.image_policy, policy.lookaside);
        assert!(read.contains("Reject") && read.contains("sig.example"), "{read}");

        policy.image_policy_uri = Some("kbs:///x/y/z".to_owned());
        let error = policy.load(&Broker).await.unwrap_err();
        assert_eq!(error.to_string(), "cannot get what cdh.toml names in image.image_security_policy_uri");
        assert_eq!(policy.unread_resource(), Some("kbs:///x/y/z"), "it can be tried again, and nothing is pulled before");
        policy.image_policy_uri = Some("kbs:///default/bad/test".to_owned());
        assert!(matches!(policy.load(&Broker).await, Err(PolicyError::ImagePolicy(_))));
        policy.image_policy_uri = None;
        policy.lookaside_uri = Some("kbs:///default/bad/test".to_owned());
        assert!(matches!(policy.load(&Broker).await, Err(PolicyError::NotText { .. })));
    }
}
