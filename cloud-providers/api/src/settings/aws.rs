//! Settings of the AWS provider.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Secret;

/// Settings of the AWS provider, table `[provider.aws]`.
///
/// Credentials are taken from `access_key_id` and `secret_access_key`, else from `profile`, else as every AWS tool takes them: environment,
/// web identity (IRSA), EKS Pod Identity, the instance's own role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AwsSettings {
    /// The region, such as `eu-west-1`; `None` takes it from `AWS_REGION`, the profile or the instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// A profile of the shared AWS configuration files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// A static access key; needs `secret_access_key`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_key_id: Option<String>,
    /// The access key's secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_access_key: Option<Secret>,
    /// The session token of temporary credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_token: Option<Secret>,
    /// Another address of the EC2 API, such as a VPC endpoint's or a mock's; `None` is the region's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The pod VM image of classes that name none: an AMI's id.
    pub image: String,
    /// Subnets of one VPC, the first choice first; a class's zone chooses among them.
    pub subnets: Vec<String>,
    /// Security groups of every pod VM; they must let nodes reach TCP port 15150 and UDP port 4789.
    pub security_groups: Vec<String>,
    /// Instance types that may be launched, the cheapest first.
    #[serde(default = "default_instance_types")]
    pub instance_types: Vec<String>,
    /// Whether pod VMs get a public address and nodes use that one.
    #[serde(default)]
    pub public_address: bool,
    /// The instance profile of pod VMs, by name or ARN. Whatever runs in a pod VM's agent may use it; pods cannot reach it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_profile: Option<String>,
    /// A key pair, for images that have an SSH server; ours has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_name: Option<String>,
    /// A launch template, by name or `lt-` id, in its default version. What these settings say wins over it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub launch_template: Option<String>,
    /// More tags of instances, volumes and network interfaces. Keys that begin with `aws:` or `peerpods:` are refused.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// The root volume.
    #[serde(default)]
    pub root_volume: RootVolume,
}

/// The root volume of every pod VM, table `[provider.aws.root_volume]`: the image, and scratch space behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RootVolume {
    /// Its size; never less than the image's.
    #[serde(default = "default_size_gib")]
    pub size_gib: u32,
    /// The kind of volume.
    #[serde(default = "default_kind")]
    pub kind: String,
    /// Provisioned I/O operations in a second, for kinds that have them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iops: Option<u32>,
    /// Throughput in MiB/s, for kinds that have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throughput_mib_per_second: Option<u32>,
    /// The KMS key that encrypts it; `None` is the account's default key. It is always encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kms_key: Option<String>,
}

impl Default for RootVolume {
    fn default() -> Self {
        Self { size_gib: default_size_gib(), kind: default_kind(), iops: None, throughput_mib_per_second: None, kms_key: None }
    }
}

impl AwsSettings {
    /// Rules that no single field can check. The error is the key below `provider.aws` and what is wrong with it.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let is_id = |prefix: &str, id: &str| {
            let rest = id.strip_prefix(prefix).unwrap_or_default();
            !rest.is_empty() && rest.len() <= 32 && rest.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        };
        let fault = |key, problem: String| Err((key, problem));
        if !is_id("ami-", &self.image) {
            return fault("image", format!("must be an AMI's id, ami-…, not {:?}", self.image));
        }
        for (key, prefix, ids) in [("subnets", "subnet-", &self.subnets), ("security_groups", "sg-", &self.security_groups)] {
            if ids.is_empty() || ids.len() > 16 {
                return fault(key, "needs 1 to 16 ids".to_owned());
            }
            if let Some(bad) = ids.iter().find(|id| !is_id(prefix, id)) {
                return fault(key, format!("must be ids that begin with {prefix}, not {bad:?}"));
            }
        }
        if self.instance_types.is_empty() {
            return fault("instance_types", "needs at least one, such as \"m6a.large\"".to_owned());
        }
        match (&self.access_key_id, &self.secret_access_key, &self.session_token) {
            (Some(_), None, _) => return fault("secret_access_key", "is missing beside access_key_id".to_owned()),
            (None, Some(_), _) | (None, _, Some(_)) => return fault("access_key_id", "is missing beside its secret".to_owned()),
            (Some(_), Some(_), _) if self.profile.is_some() => {
                return fault("profile", "excludes access_key_id: remove one of them".to_owned());
            }
            _ => {}
        }
        let is_reserved = |key: &str| ["aws:", "peerpods:"].iter().any(|prefix| key.to_ascii_lowercase().starts_with(prefix));
        let is_tag = |(key, value): &(&String, &String)| (1..=128).contains(&key.len()) && value.len() <= 256 && !is_reserved(key);
        if let Some((key, _)) = self.tags.iter().find(|tag| !is_tag(tag)) {
            let allowed = "keys have 1 to 128 bytes and begin neither with aws: nor with peerpods:, values have at most 256 bytes";
            return fault("tags", format!("{key:?}: {allowed}"));
        }
        if self.tags.len() > 40 {
            return fault("tags", "at most 40; EC2 allows 50 and some are ours".to_owned());
        }
        if !(1..=16_384).contains(&self.root_volume.size_gib) {
            return fault("root_volume.size_gib", "1 to 16384 is allowed".to_owned());
        }
        Ok(())
    }
}

/// General-purpose types with SEV-SNP, of 2 to 32 vCPUs (EC2 user guide, "AMD SEV-SNP": M6a, C6a and R6a have it).
fn default_instance_types() -> Vec<String> {
    ["m6a.large", "m6a.xlarge", "m6a.2xlarge", "m6a.4xlarge", "m6a.8xlarge"].map(str::to_owned).to_vec()
}

fn default_size_gib() -> u32 {
    30
}

fn default_kind() -> String {
    "gp3".to_owned()
}
