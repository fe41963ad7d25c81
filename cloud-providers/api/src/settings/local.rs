//! Settings of the local provider.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Mib;

/// Settings of the local provider, table `[provider.local]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LocalSettings {
    /// How machines are made.
    pub level: Level,
    /// Must be true for `level = "sandbox"`: such a machine shares the host's kernel and isolates nothing.
    #[serde(default)]
    pub insecure_sandbox: bool,
    /// Folder with `vmlinux`, `initrd` and `manifest.json` (level `qemu`), or the guest binary's path (level `sandbox`).
    pub image: PathBuf,
    /// Where machines keep their files; one folder a machine.
    pub state_dir: PathBuf,
    /// The bridge that the provider creates and owns.
    #[serde(default = "default_bridge")]
    pub bridge: String,
    /// The bridge's own address; machines get the others of its /24.
    #[serde(default = "default_gateway")]
    pub gateway: Ipv4Addr,
    /// Size of each machine's scratch disk (sparse).
    #[serde(default = "default_scratch")]
    pub scratch_mib: Mib,
    /// QEMU accelerator: `auto` boots a canary with KVM once and falls back to TCG.
    #[serde(default)]
    pub accelerator: Accelerator,
    /// How machines of level `qemu` boot.
    #[serde(default, skip_serializing_if = "Firmware::is_none")]
    pub firmware: Firmware,
    /// Whether machines have a software TPM (Debian packages `swtpm` and `swtpm-tools`) that tells what they booted; needs
    /// `firmware = "uefi"`. The protocol is real, the protection is none: the host's root can make it say anything.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub measured: bool,
    /// The host's TSC frequency in kHz, for hosts where neither the kernel nor CPUID tells it; `None` finds it out.
    /// Only software emulation needs it: the guest has no other clock to measure its own by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tsc_khz: Option<u32>,
}

/// How a local machine is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// A QEMU microvm that boots the pod VM image directly.
    Qemu,
    /// Linux namespaces and the guest binary, for tests.
    Sandbox,
}

/// What QEMU executes guest code with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Accelerator {
    /// KVM when a canary boot works, else TCG.
    #[default]
    Auto,
    /// KVM or fail.
    Kvm,
    /// Software emulation.
    Tcg,
}

/// What a machine of level `qemu` begins with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Firmware {
    /// None: QEMU starts the image's kernel itself, on its smallest machine.
    #[default]
    None,
    /// UEFI, which boots the image's `disk.raw` as clouds do; some twenty seconds slower under emulation. The disk is the machine's own
    /// copy and has `scratch_mib` more than the image.
    Uefi,
}

impl Firmware {
    fn is_none(&self) -> bool {
        *self == Self::None
    }
}

fn default_bridge() -> String {
    "peerpods0".to_owned()
}

fn default_gateway() -> Ipv4Addr {
    Ipv4Addr::new(10, 93, 0, 1)
}

fn default_scratch() -> Mib {
    Mib(8192)
}
