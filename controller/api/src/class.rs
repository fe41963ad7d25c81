//! Classes: what an operator offers to pods.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Tee, Zone};

/// What vouches for a pod VM, from strongest to weakest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RootOfTrust {
    /// The processor's own measurement covers image and initdata.
    #[default]
    Hardware,
    /// The cloud's TPM covers them: the cloud is trusted.
    CloudTpm,
    /// Nothing does: for tests and demonstrations only.
    Insecure,
}

/// What a pod may use of its node, beyond what every pod may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum HostAccess {
    /// Files and folders of the node are copied into the pod VM, read-only; without it hostPath volumes are refused.
    HostPath,
    /// Privileged containers and devices, which are then those of the pod VM; without it they are refused.
    Privileged,
}

impl RootOfTrust {
    /// The word for it in configuration and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hardware => "hardware",
            Self::CloudTpm => "cloud-tpm",
            Self::Insecure => "insecure",
        }
    }
}

impl HostAccess {
    /// The word for it in configuration and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HostPath => "host-path",
            Self::Privileged => "privileged",
        }
    }
}

/// Claims of a class, and values of a claim.
pub const MAX_REFERENCES: usize = 16;
/// Longest of either, in bytes: a TPM's key of 4096 bits has 734 in base64.
pub const MAX_REFERENCE_BYTES: usize = 1024;

/// A kind of pod VM that pods may ask for by name, table `[class.NAME]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "ClassFields")]
#[schemars(!try_from, deny_unknown_fields)]
pub struct Class {
    /// The TEE that must be on.
    pub tee: Tee,
    /// What must vouch for image and initdata; a claim that this class cannot serve so fails.
    #[schemars(default)]
    pub root_of_trust: RootOfTrust,
    /// What claims of the evidence must be, for the node to give a pod VM its pod: the claim's path to the values that are accepted, as
    /// `measurements` of the image's manifest.json has them; those of a TPM beside SNP stand below `tpm.`. Without any, the node takes every
    /// image that the cloud boots; the key broker decides for itself.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(default)]
    pub reference_values: BTreeMap<String, Vec<String>>,
    /// The provider's name of the pod VM image; `None` means the provider's configured one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Other images that a pod may ask for by annotation; empty means none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub allowed_images: Vec<String>,
    /// Instance types that may be launched; empty means all that the provider lists.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub instance_types: Vec<String>,
    /// The only zone to launch in; `None` leaves it to `zones`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<Zone>,
    /// Where to launch, the first choice first; another one is tried while a zone has no capacity. Excludes `zone`; without either, all
    /// zones of the provider are.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub zones: Vec<Zone>,
    /// Pod VMs that are kept ready; `None` means that each is launched when a pod wants it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<Pool>,
    /// What its pods may use of their node; empty means nothing.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    #[schemars(default)]
    pub host_access: BTreeSet<HostAccess>,
}

/// How many pod VMs wait for pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    /// Always this many, as far as the cloud gives them; 0 keeps only what is left over.
    pub min: u32,
    /// More than `min` may wait, as many as this, when pods no longer want theirs.
    pub max: u32,
    /// How long those above `min` wait before they are deleted, in seconds.
    #[serde(default = "pool_ttl_secs")]
    pub ttl_secs: u64,
}

/// Ten minutes: as long as most clouds bill at least.
fn pool_ttl_secs() -> u64 {
    600
}

/// A class that contradicts itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClassError {
    /// The sample TEE protects nothing, and whoever offers it must say so.
    #[error("tee = \"sample\" protects nothing and needs root_of_trust = \"insecure\"")]
    SampleIsInsecure,
    /// A TPM alone is as good as whoever runs it, and whoever offers it must say so.
    #[error("tee = \"tpm\" is rooted in whoever runs the TPM and needs root_of_trust = \"insecure\"")]
    TpmIsInsecure,
    /// The image and the initdata are in a TPM that the cloud makes.
    #[error("tee = \"snp-tpm\" has the cloud's TPM say what was booted: write root_of_trust = \"cloud-tpm\"")]
    SnpTpmTrustsTheCloud,
    /// More than nodes take, or a claim that nothing can meet.
    #[error(
        "reference_values: at most {MAX_REFERENCES} claims with 1 to {MAX_REFERENCES} values each, none longer than {MAX_REFERENCE_BYTES} bytes"
    )]
    ReferenceValues,
    /// Both say where to launch.
    #[error("zone and zones exclude each other: put the zone into zones")]
    ZoneAndZones,
    /// A pool that cannot be.
    #[error("pool.max = {max} is less than pool.min = {min}")]
    PoolRange {
        /// As configured.
        min: u32,
        /// As configured.
        max: u32,
    },
}

impl Class {
    /// A class with this TEE and root of trust and nothing unusual.
    pub fn new(tee: Tee, root_of_trust: RootOfTrust) -> Result<Self, ClassError> {
        if tee == Tee::Sample && root_of_trust != RootOfTrust::Insecure {
            return Err(ClassError::SampleIsInsecure);
        }
        if tee == Tee::Tpm && root_of_trust != RootOfTrust::Insecure {
            return Err(ClassError::TpmIsInsecure);
        }
        if tee == Tee::SnpTpm && root_of_trust == RootOfTrust::Hardware {
            return Err(ClassError::SnpTpmTrustsTheCloud);
        }
        Ok(Self {
            tee,
            root_of_trust,
            reference_values: BTreeMap::new(),
            image: None,
            allowed_images: Vec::new(),
            instance_types: Vec::new(),
            zone: None,
            zones: Vec::new(),
            pool: None,
            host_access: BTreeSet::new(),
        })
    }

    /// Where to launch, the first choice first; `None` leaves it to the provider.
    pub fn places(&self) -> Vec<Option<Zone>> {
        if self.zones.is_empty() { vec![self.zone.clone()] } else { self.zones.iter().cloned().map(Some).collect() }
    }

    /// Whether a pod of this class may run this image.
    pub fn allows_image(&self, image: &str) -> bool {
        self.image.as_deref() == Some(image) || self.allowed_images.iter().any(|allowed| allowed == image)
    }

    /// Whether this instance type may be launched for the class.
    pub fn allows_instance_type(&self, name: &str) -> bool {
        self.instance_types.is_empty() || self.instance_types.iter().any(|allowed| allowed == name)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClassFields {
    tee: Tee,
    #[serde(default)]
    root_of_trust: RootOfTrust,
    #[serde(default)]
    reference_values: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    image: Option<String>,
    #[serde(default)]
    allowed_images: Vec<String>,
    #[serde(default)]
    instance_types: Vec<String>,
    #[serde(default)]
    zone: Option<Zone>,
    #[serde(default)]
    zones: Vec<Zone>,
    #[serde(default)]
    pool: Option<Pool>,
    #[serde(default)]
    host_access: BTreeSet<HostAccess>,
}

impl TryFrom<ClassFields> for Class {
    type Error = ClassError;
    fn try_from(fields: ClassFields) -> Result<Self, ClassError> {
        let ClassFields { tee, root_of_trust, reference_values, image, allowed_images, instance_types, zone, zones, pool, host_access } =
            fields;
        let is_short = |text: &String| text.len() <= MAX_REFERENCE_BYTES;
        let is_usable = |values: &Vec<String>| (1..=MAX_REFERENCES).contains(&values.len()) && values.iter().all(is_short);
        if reference_values.len() > MAX_REFERENCES || !reference_values.iter().all(|(claim, values)| is_short(claim) && is_usable(values)) {
            return Err(ClassError::ReferenceValues);
        }
        if zone.is_some() && !zones.is_empty() {
            return Err(ClassError::ZoneAndZones);
        }
        if let Some(Pool { min, max, .. }) = pool.filter(|pool| pool.max < pool.min) {
            return Err(ClassError::PoolRange { min, max });
        }
        Ok(Self {
            reference_values,
            image,
            allowed_images,
            instance_types,
            zone,
            zones,
            pool,
            host_access,
            ..Self::new(tee, root_of_trust)?
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sample_tee_must_be_called_insecure() {
        for root in [RootOfTrust::Hardware, RootOfTrust::CloudTpm] {
            assert_eq!(Class::new(Tee::Sample, root), Err(ClassError::SampleIsInsecure));
        }
        assert!(Class::new(Tee::Sample, RootOfTrust::Insecure).is_ok());
        assert!(serde_json::from_str::<Class>(r#"{"tee":"sample"}"#).is_err(), "the default is hardware");
        assert!(serde_json::from_str::<Class>(r#"{"tee":"snp"}"#).is_ok());
    }

    #[test]
    fn zones_and_pools_that_cannot_be_are_refused() {
        let class = |more: &str| serde_json::from_str::<Class>(&format!(r#"{{"tee":"snp",{more}}}"#)).map_err(|error| error.to_string());
        assert!(class(r#""zone":"a","zones":["b"]"#).unwrap_err().contains("zones"));
        assert!(class(r#""pool":{"min":2,"max":1}"#).unwrap_err().contains("pool.max = 1"));
        assert_eq!(class(r#""zones":["b","a"]"#).unwrap().places().len(), 2);
        assert_eq!(class(r#""pool":{"min":0,"max":1}"#).unwrap().pool.unwrap().ttl_secs, 600);
        assert_eq!(class(r#""image":"i""#).unwrap().places(), [None]);
    }

    #[test]
    fn reference_values_that_no_node_takes_are_refused() {
        let class =
            |values: serde_json::Value| serde_json::from_value::<Class>(serde_json::json!({"tee": "tdx", "reference_values": values}));
        assert!(class(serde_json::json!({"quote.body.mr_td": ["aa", "k".repeat(MAX_REFERENCE_BYTES)]})).is_ok());
        for values in [
            serde_json::json!({"a": []}),
            serde_json::json!({"a": ["k".repeat(MAX_REFERENCE_BYTES + 1)]}),
            serde_json::json!({"a": vec!["k"; MAX_REFERENCES + 1]}),
            (0..=MAX_REFERENCES).map(|n| (n.to_string(), serde_json::json!(["k"]))).collect(),
        ] {
            assert!(class(values).unwrap_err().to_string().contains("at most 16 claims"));
        }
        let snp_tpm = |root: &str| serde_json::from_value::<Class>(serde_json::json!({"tee": "snp-tpm", "root_of_trust": root}));
        assert!(snp_tpm("hardware").unwrap_err().to_string().contains("cloud-tpm") && snp_tpm("cloud-tpm").is_ok());
    }

    #[test]
    fn words_of_host_access_are_those_of_the_wire() {
        let class: Class = serde_json::from_str(r#"{"tee":"snp","host_access":["privileged","host-path"]}"#).expect("valid");
        let words: Vec<&str> = class.host_access.iter().map(|access| access.as_str()).collect();
        assert_eq!(words, ["host-path", "privileged"]);
        assert!(serde_json::from_str::<Class>(r#"{"tee":"snp","host_access":["root"]}"#).is_err());
    }

    #[test]
    fn images_are_refused_unless_listed() {
        let mut class = Class::new(Tee::Snp, RootOfTrust::Hardware).expect("valid");
        assert!(!class.allows_image("ami-1"));
        class.allowed_images.push("ami-1".to_owned());
        assert!(class.allows_image("ami-1"));
    }
}
