//! System packages: installed from Debian when root, else the one line to run is printed.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::stage::{output, run};

/// A Debian package and why it is needed.
pub(crate) struct Package {
    /// The package's name.
    pub(crate) name: &'static str,
    /// A file that is there when the package is; asking dpkg would be slower and says less.
    pub(crate) probe: &'static str,
    /// Shown to the person whose machine it is installed on.
    pub(crate) why: &'static str,
}

/// What building a static binary with C parts needs.
pub(crate) const BUILD: &[Package] = &[
    Package { name: "gcc", probe: "/usr/bin/gcc", why: "links binaries and compiles the C parts of aws-lc" },
    Package { name: "libc6-dev", probe: "/usr/lib/x86_64-linux-gnu/libc.a", why: "static C library" },
    Package { name: "make", probe: "/usr/bin/make", why: "builds C parts of crates" },
];

/// What the pod VM image is made with.
pub(crate) const IMAGE: &[Package] = &[
    Package { name: "apt", probe: "/usr/bin/apt-get", why: "fetches and verifies Debian packages, in a folder of its own" },
    Package { name: "dpkg", probe: "/usr/bin/dpkg-deb", why: "unpacks Debian packages" },
    Package { name: "xz-utils", probe: "/usr/bin/xz", why: "unpacks kernel modules" },
    Package { name: "debian-archive-keyring", probe: "/usr/share/keyrings/debian-archive-keyring.gpg", why: "verifies Debian's archive" },
];

/// What running a pod in a pod VM here needs.
pub(crate) const RUN: &[Package] = &[
    Package { name: "qemu-system-x86", probe: "/usr/bin/qemu-system-x86_64", why: "the pod VM" },
    Package { name: "swtpm", probe: "/usr/bin/swtpm", why: "the software TPM of measured pod VMs" },
    Package { name: "swtpm-tools", probe: "/usr/bin/swtpm_setup", why: "makes that TPM's keys and certificates" },
    Package { name: "iproute2", probe: "/usr/sbin/ip", why: "network namespaces of the demo and the tests" },
    Package { name: "docker-registry", probe: "/usr/bin/docker-registry", why: "a real registry to pull from" },
    Package { name: "busybox-static", probe: "/usr/bin/busybox", why: "content of the demo's and tests' container images" },
];

/// What a containerd needs beside itself; containerd is not installed but unpacked, see `containerd.rs`.
pub(crate) const CONTAINERD: &[Package] = &[
    Package { name: "runc", probe: "/usr/sbin/runc", why: "the runtime that peer pods are compared with" },
    Package { name: "containernetworking-plugins", probe: "/usr/lib/cni/bridge", why: "the network of pods on the node" },
    Package { name: "iptables", probe: "/usr/sbin/iptables", why: "host ports of pods on the node" },
    Package { name: "protobuf-compiler", probe: "/usr/bin/protoc", why: "compiles the CRI's definitions for the tests' client" },
];

/// What only tests need.
pub(crate) const TEST: &[Package] = &[
    Package { name: "ovmf", probe: "/usr/share/OVMF/OVMF_CODE_4M.fd", why: "boots the disk image as clouds do" },
    Package { name: "e2fsprogs", probe: "/usr/sbin/e2fsck", why: "checks the file system that the guest makes" },
    Package { name: "cryptsetup-bin", probe: "/usr/sbin/cryptsetup", why: "reads the encrypted scratch space that the guest makes" },
    Package { name: "gpg-agent", probe: "/usr/bin/gpg-agent", why: "keeps the keys that images are signed with" },
    Package { name: "gpg", probe: "/usr/bin/gpg", why: "signs images, for skopeo" },
    Package { name: "procps", probe: "/usr/bin/kill", why: "signals the programs under test" },
];

/// Of every call: another program that installs something is waited for, and a download is tried again.
const APT: [&str; 5] = ["-q", "-o", "DPkg::Lock::Timeout=300", "-o", "Acquire::Retries=3"];

/// Makes sure that all of these are there.
pub(crate) fn ensure(groups: &[&[Package]]) -> Result<(), String> {
    let missing: Vec<&Package> = groups.iter().flat_map(|g| g.iter()).filter(|p| !Path::new(p.probe).exists()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("needed from Debian:");
    for package in &missing {
        println!("  {:24} {}", package.name, package.why);
    }
    let names: Vec<&str> = missing.iter().map(|p| p.name).collect();
    if output(Command::new("id").arg("-u"))?.trim() != "0" {
        return Err(format!("run this, then try again:\n  sudo apt-get install --no-install-recommends {}", names.join(" ")));
    }
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(APT).args(arguments).stdin(Stdio::null());
        run(&mut command).map_err(|error| format!("{error}: apt says why above; mend that, then try again"))
    };
    apt(&["update"])?;
    apt(&[&["-y", "--no-install-recommends", "install"], names.as_slice()].concat())?;
    match missing.iter().find(|p| !Path::new(p.probe).exists()) {
        None => Ok(()),
        Some(p) => Err(format!("package {} is installed but {} is missing", p.name, p.probe)),
    }
}
