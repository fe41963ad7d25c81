//! What must be there before a machine can be.

use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use peerpods_cloud_api::settings::local::{Accelerator, Firmware, Level};

use super::netlink::Netlink;
use super::network::Found;
use super::qemu::{self, Image};
use super::{Host, tpm, tsc};

impl Host {
    /// Everything that is missing, in words for the operator; empty when machines can be made. Changes nothing.
    pub fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        if !nix::unistd::geteuid().is_root() {
            missing.push("local machines need root".to_owned());
        }
        let exists = |path: &Path| path.ancestors().find(|path| path.exists()).is_some_and(Path::is_dir);
        if !exists(&self.settings.state_dir) {
            missing.push(format!("provider.local.state_dir {} is in no folder", self.settings.state_dir.display()));
        }
        match Netlink::open() {
            Err(error) => missing.push(format!("netlink cannot be used: {error}")),
            Ok(mut netlink) => match self.bridge.find(&mut netlink) {
                Ok(Found::Foreign) => missing.push(self.bridge.foreign().to_string()),
                Ok(Found::Nothing | Found::Ours(_)) => {}
                Err(error) => missing.push(super::error::chain(&error)),
            },
        }
        match self.settings.level {
            Level::Qemu => self.missing_for_qemu(&mut missing),
            Level::Sandbox => self.missing_for_sandbox(&mut missing),
        }
        missing
    }

    fn missing_for_qemu(&self, missing: &mut Vec<String>) {
        if qemu::find_program().is_none() {
            missing.push(format!("{} is not in PATH (Debian package qemu-system-x86)", qemu::PROGRAM));
        }
        if let Err(error) = Image::open(&self.settings.image) {
            missing.push(format!("provider.local.image is not a pod VM image: {}", super::error::chain(&error)));
        }
        if self.settings.firmware == Firmware::Uefi {
            let files = [self.settings.image.join("disk.raw"), qemu::FIRMWARE[0].into(), qemu::FIRMWARE[1].into()];
            for file in files.iter().filter(|file| !file.is_file()) {
                missing.push(format!("{} is missing, which provider.local.firmware \"uefi\" needs (Debian package ovmf)", file.display()));
            }
        }
        if self.settings.measured {
            missing.extend(tpm::missing());
        }
        if let Err(error) = File::options().read(true).write(true).open("/dev/net/tun") {
            missing.push(format!("/dev/net/tun cannot be opened (kernel module tun): {error}"));
        }
        if self.settings.accelerator == Accelerator::Kvm
            && let Err(error) = File::options().read(true).write(true).open("/dev/kvm")
        {
            missing.push(format!("/dev/kvm cannot be opened, and provider.local.accelerator is \"kvm\": {error}"));
        }
        let known = || super::facts::Facts::read(&self.settings.state_dir).tsc_khz;
        if self.settings.accelerator != Accelerator::Kvm && self.settings.tsc_khz.or_else(known).or_else(tsc::find).is_none() {
            missing.push("neither the kernel nor CPUID tells the host's TSC frequency; set provider.local.tsc_khz".to_owned());
        }
    }

    fn missing_for_sandbox(&self, missing: &mut Vec<String>) {
        let is_program = |path: &Path| path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
        if !is_program(&self.settings.image) {
            missing.push(format!("provider.local.image {} is not the guest binary", self.settings.image.display()));
        }
        for namespace in ["cgroup", "ipc", "mnt", "net", "pid", "uts"] {
            if !Path::new("/proc/self/ns").join(namespace).exists() {
                missing.push(format!("the kernel has no {namespace} namespaces"));
            }
        }
    }
}
