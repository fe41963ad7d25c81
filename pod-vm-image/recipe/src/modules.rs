//! Which kernel modules the initrd carries, and in which order `init` loads them.
//!
//! One list, here: the guest loads what `modules/order` says and knows no module by name. Modules keep Debian's signatures, which a
//! kernel under Secure Boot insists on; that is why they are not stripped (it would save 200 bytes each).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::elf::modinfo;
use crate::package::{files_below, unxz};

/// Modules without which a pod VM cannot work; their dependencies are found by themselves.
pub(crate) const REQUIRED: &[&str] = &[
    // Devices first: the boot configuration and the disk are read as soon as loading is done.
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "qemu_fw_cfg",
    "overlay",
    // Encrypted and authenticated scratch space; AES-XTS and HMAC-SHA-256 are in the kernel itself.
    "dm-mod",
    "dm-integrity",
    "dm-crypt",
    "dm-snapshot",
    "dm-zero",
    "authenc",
    // Pod network: `GUEST_MODULES` of the crate `network`.
    "vxlan",
    "veth",
    "sch_ingress",
    "cls_u32",
    "cls_bpf",
    "act_mirred",
];

/// Modules for hardware that only some machines have: TEEs, EC2's network adapter, processors with instructions for AES (with them the
/// scratch space is several times as fast). NVMe and virtio over PCI are in the kernel itself.
pub(crate) const OPTIONAL: &[&str] = &["aesni-intel", "sev-guest", "tdx-guest", "ena"];

/// A module to carry.
#[derive(Debug, PartialEq, Eq)]
pub struct Module {
    /// Its file's name in the initrd, `virtio_net.ko`.
    pub file: String,
    /// Whether a failure to load it stops the machine.
    pub is_required: bool,
    /// Its decompressed bytes, with signature.
    pub content: Vec<u8>,
}

/// All modules in load order: a module comes after those it depends on.
pub fn collect(folder: &Path) -> Result<Vec<Module>> {
    let mut available = BTreeMap::new();
    for path in files_below(folder)? {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if let Some(stem) = name.strip_suffix(".ko.xz").or_else(|| name.strip_suffix(".ko")) {
            available.insert(normal(stem), path);
        }
    }
    let mut collection = Collection { available, seen: BTreeSet::new(), ordered: Vec::new() };
    for name in REQUIRED {
        collection.add(name, true).with_context(|| format!("module {name}"))?;
    }
    for name in OPTIONAL {
        collection.add(name, false).with_context(|| format!("module {name}"))?;
    }
    Ok(collection.ordered)
}

/// The text of `modules/order`: `required FILE` or `optional FILE`, one a line.
pub fn order(modules: &[Module]) -> String {
    modules.iter().map(|m| format!("{} {}\n", if m.is_required { "required" } else { "optional" }, m.file)).collect()
}

struct Collection {
    available: BTreeMap<String, PathBuf>,
    seen: BTreeSet<String>,
    ordered: Vec<Module>,
}

impl Collection {
    fn add(&mut self, name: &str, is_required: bool) -> Result<()> {
        if !self.seen.insert(normal(name)) {
            return Ok(());
        }
        let path = self.available.get(&normal(name)).context("the kernel packages do not contain it")?;
        let content = if path.extension().is_some_and(|e| e == "xz") { unxz(path)? } else { std::fs::read(path)? };
        let file = format!("{}.ko", normal(name));
        let mut before: Vec<String> = modinfo(&content, "depends")?.iter().flat_map(|d| d.split(',')).map(normal).collect();
        // A soft dependency may be built in or absent; then there is nothing to load.
        for soft in modinfo(&content, "softdep")? {
            let wanted = soft.strip_prefix("pre:").map(|rest| rest.split_whitespace().map(normal)).into_iter().flatten();
            before.extend(wanted.filter(|name| self.available.contains_key(name)));
        }
        for dependency in before.iter().filter(|d| !d.is_empty()) {
            self.add(dependency, is_required).with_context(|| format!("dependency {dependency}"))?;
        }
        self.ordered.push(Module { file, is_required, content });
        Ok(())
    }
}

/// The kernel treats `-` and `_` in module names alike.
fn normal(name: &str) -> String {
    name.trim().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{self, module};

    #[test]
    fn dependencies_come_first_and_once() {
        let folder = tempfile::tempdir().expect("folder");
        fixture::write_modules(folder.path());
        let with = |name: &str, info| std::fs::write(folder.path().join(name), module(info)).expect("write");
        with("virtio_net.ko", b"depends=net-failover\0");
        with("net_failover.ko", b"depends=failover\0");
        with("failover.ko", b"license=GPL\0");
        with("vxlan.ko", b"depends=udp_tunnel,ip6_udp_tunnel\0softdep=pre: crc_absent\0");
        with("udp_tunnel.ko", b"depends=\0");
        with("ip6_udp_tunnel.ko", b"depends=\0");
        let modules = collect(folder.path()).expect("collect");
        let order = order(&modules);
        let position = |line: &str| order.lines().position(|l| l == line).unwrap_or_else(|| panic!("{line} in {order}"));
        assert!(position("required failover.ko") < position("required net_failover.ko"));
        assert!(position("required net_failover.ko") < position("required virtio_net.ko"));
        assert!(position("required ip6_udp_tunnel.ko") < position("required vxlan.ko"));
        assert_eq!(position("optional sev_guest.ko") + 3, order.lines().count());
    }

    #[test]
    fn list_has_every_module_of_the_pod_network() {
        for name in peerpods_network::guest::GUEST_MODULES {
            // Found as dependencies of vxlan, as long as the kernel has them as modules.
            let is_implied = matches!(*name, "udp_tunnel" | "ip6_udp_tunnel");
            assert!(is_implied || REQUIRED.contains(name), "{name} is missing");
        }
    }

    #[test]
    fn missing_module_is_named() {
        let folder = tempfile::tempdir().expect("folder");
        let error = format!("{:#}", collect(folder.path()).expect_err("nothing there"));
        assert!(error.contains("virtio_mmio"), "{error}");
    }
}
