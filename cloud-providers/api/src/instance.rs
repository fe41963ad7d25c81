use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Mib;

/// A name or id that breaks its grammar.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?} must be 1 to {max} characters of [A-Za-z0-9._:/-]")]
pub struct InvalidName {
    what: &'static str,
    value: String,
    max: usize,
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal, $max:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// Checks the grammar: 1 to the limit of `[A-Za-z0-9._:/-]`.
            pub fn new(value: impl Into<String>) -> Result<Self, InvalidName> {
                let value = value.into();
                let is_valid = (1..=$max).contains(&value.len())
                    && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"._:/-".contains(&b));
                if is_valid { Ok(Self(value)) } else { Err(InvalidName { what: $what, value, max: $max }) }
            }

            /// The bare text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $type {
            type Error = InvalidName;
            fn try_from(value: String) -> Result<Self, InvalidName> {
                Self::new(value)
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0
            }
        }
    };
}

name!(
    /// The cloud's name of an instance.
    InstanceId, "instance id", 128
);
name!(
    /// Marks everything that one controller owns in an account, so that it finds its own and touches nothing else.
    OwnerTag, "owner tag", 128
);
name!(
    /// Makes a launch idempotent: derived from the launch record, written before the call.
    LaunchToken, "launch token", 64
);
name!(
    /// A place inside a region where capacity is counted separately.
    Zone, "zone", 64
);

/// The hardware-isolated environment that a class asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Tee {
    /// AMD SEV-SNP.
    Snp,
    /// AMD SEV-SNP with the cloud's own TPM, which shows what was booted and with which initdata: the cloud is trusted for that.
    SnpTpm,
    /// Intel TDX.
    Tdx,
    /// A TPM alone; protects nothing when it is a software TPM.
    Tpm,
    /// No protection at all: evidence that anyone can make, for tests and the demo.
    Sample,
}

impl Tee {
    /// All values, in the order of their documentation.
    pub const ALL: [Tee; 5] = [Tee::Snp, Tee::SnpTpm, Tee::Tdx, Tee::Tpm, Tee::Sample];

    /// The name used in settings, user data and evidence.
    pub fn as_str(self) -> &'static str {
        match self {
            Tee::Snp => "snp",
            Tee::SnpTpm => "snp-tpm",
            Tee::Tdx => "tdx",
            Tee::Tpm => "tpm",
            Tee::Sample => "sample",
        }
    }
}

/// One batch of equal launches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchRequest {
    /// The batch's idempotency token.
    pub token: LaunchToken,
    /// Goes on every instance.
    pub owner: OwnerTag,
    /// The instance type's name as [`crate::CloudProvider::instance_types`] gives it.
    pub instance_type: String,
    /// Where; `None` leaves it to the provider.
    pub zone: Option<Zone>,
    /// The provider's name of the pod VM image; `None` means the provider's configured one.
    pub image: Option<String>,
    /// The TEE that must be on, or the launch is refused.
    pub tee: Tee,
    /// How many, 1 to 100.
    pub count: u32,
    /// At most 1 KiB, public, the same for every instance of the batch.
    pub user_data: Vec<u8>,
}

/// What a launch gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launched {
    /// The instances accepted, at most as many as asked for.
    pub instances: Vec<Instance>,
}

/// One instance as the cloud tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// The cloud's id.
    pub id: InstanceId,
    /// Whose it is.
    pub owner: OwnerTag,
    /// The launch that made it.
    pub token: LaunchToken,
    /// Where it is in its life.
    pub state: InstanceState,
    /// Its address in the network that nodes reach; `None` until the cloud has given one.
    pub address: Option<IpAddr>,
}

/// An instance's life as all clouds have it in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InstanceState {
    /// Accepted, not yet running.
    Pending,
    /// Running, as far as the cloud knows; the guest may still be booting.
    Running,
    /// Stopped by itself or by somebody else; it will not run again.
    Stopped,
    /// Being deleted.
    Deleting,
}

/// A size that may be launched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceType {
    /// The provider's name.
    pub name: String,
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory of the instance, guest overhead included.
    pub memory: Mib,
    /// Number of GPUs.
    pub gpus: u32,
    /// TEEs that it can turn on.
    pub tees: Vec<Tee>,
}
