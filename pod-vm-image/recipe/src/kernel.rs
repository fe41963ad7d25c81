//! Debian's kernel: where its files are, whether it can run a pod VM, and its uncompressed form.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

/// The oldest kernel that reports TDX's run-time measurements through sysfs (TSM measurements).
const OLDEST: (u32, u32) = (6, 16);

/// Options that a pod VM cannot do without, and what for. Either built in or a module.
pub(crate) const REQUIRED: &[(&str, &str)] = &[
    ("ACPI", "finds virtio devices of a microvm"),
    ("AMD_MEM_ENCRYPT", "runs as an SEV-SNP guest"),
    ("BLK_DEV_DM", "encrypted scratch space"),
    ("BLK_DEV_INITRD", "boots our user space"),
    ("CGROUPS", "limits containers"),
    ("CGROUP_BPF", "device rules of containers"),
    ("CGROUP_PIDS", "limits containers"),
    ("CRYPTO_AES", "encrypted scratch space"),
    ("CRYPTO_AUTHENC", "authenticated scratch space"),
    ("CRYPTO_HMAC", "authenticated scratch space"),
    ("CRYPTO_SHA256", "authenticated scratch space"),
    ("CRYPTO_XTS", "encrypted scratch space"),
    ("DEVTMPFS", "device nodes without udev"),
    ("DM_CRYPT", "encrypted scratch space"),
    ("DM_INTEGRITY", "authenticated scratch space"),
    ("DM_SNAPSHOT", "encrypted scratch space"),
    ("DM_ZERO", "encrypted scratch space"),
    ("EFI_STUB", "boots as a UKI"),
    ("EXT4_FS", "scratch disk"),
    ("FW_CFG_SYSFS", "boot configuration of QEMU machines"),
    ("INTEL_TDX_GUEST", "runs as a TDX guest"),
    ("KVM_GUEST", "clock and wake-ups of a KVM guest"),
    ("MEMCG", "limits containers"),
    ("NET_ACT_MIRRED", "pod network"),
    ("NET_CLS_BPF", "guards of the pod network"),
    ("NET_CLS_U32", "pod network"),
    ("NET_NS", "pod network"),
    ("NET_SCH_INGRESS", "pod network"),
    ("OVERLAY_FS", "container root file systems"),
    ("PVH", "direct boot of an ELF kernel"),
    ("RD_ZSTD", "compressed initrd"),
    ("SECCOMP_FILTER", "system call filters of containers"),
    ("SERIAL_8250_CONSOLE", "console"),
    ("SEV_GUEST", "evidence on SEV-SNP"),
    ("TDX_GUEST_DRIVER", "evidence on TDX"),
    ("TMPFS", "folders of the guest"),
    ("TSM_MEASUREMENTS", "run-time measurement of initdata on TDX"),
    ("TSM_REPORTS", "evidence through configfs"),
    ("USER_NS", "containers with user namespaces"),
    ("VETH", "pod network"),
    ("VIRTIO_BLK", "scratch disk"),
    ("VIRTIO_MMIO", "devices of a microvm"),
    ("VIRTIO_NET", "network"),
    ("VXLAN", "pod network"),
];

/// An unpacked kernel.
#[derive(Debug)]
pub struct Kernel {
    /// What `uname -r` says.
    pub release: String,
    /// The compressed kernel image.
    pub vmlinuz: Vec<u8>,
    /// The folder of modules.
    pub modules: PathBuf,
    config: String,
}

impl Kernel {
    /// Finds the one kernel in a folder of unpacked packages: both layouts that Debian uses, everything beside the modules or
    /// kernel and configuration in `boot`.
    pub fn open(unpacked: &Path) -> Result<Self> {
        let modules_root = ["usr/lib/modules", "lib/modules"]
            .map(|folder| unpacked.join(folder))
            .into_iter()
            .find(|folder| folder.is_dir())
            .context("the kernel packages contain no modules")?;
        let mut releases = std::fs::read_dir(&modules_root)?.collect::<std::io::Result<Vec<_>>>()?;
        let folder = releases.pop().context("the kernel packages contain no release")?;
        ensure!(releases.is_empty(), "the kernel packages contain more than one release");
        let release = folder.file_name().into_string().ok().context("kernel release is not text")?;
        let modules = folder.path();
        let read = |name: &str| {
            let beside = modules.join(name);
            let boot = unpacked.join(format!("boot/{name}-{release}"));
            std::fs::read(&beside).or_else(|_| std::fs::read(&boot)).with_context(|| format!("no {name} at {beside:?} or {boot:?}"))
        };
        let config = String::from_utf8(read("config")?).context("kernel configuration is not text")?;
        Ok(Self { vmlinuz: read("vmlinuz")?, config, modules, release })
    }

    /// Fails with everything that this kernel lacks.
    pub fn check(&self) -> Result<()> {
        check(&self.release, &self.config)
    }

    /// The ELF file inside the compressed image: what a hypervisor that knows PVH loads without firmware or decompressor.
    pub fn vmlinux(&self) -> Result<Vec<u8>> {
        let payload = payload(&self.vmlinuz)?;
        let elf = zstd::decode_all(payload).context("decompress the kernel")?;
        ensure!(elf.starts_with(b"\x7fELF"), "the kernel's payload is not an ELF file");
        Ok(elf)
    }
}

fn check(release: &str, config: &str) -> Result<()> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else { bail!("unreadable kernel release {release}") };
    ensure!((major, minor) >= OLDEST, "kernel {release} is older than {}.{}", OLDEST.0, OLDEST.1);
    let has = |option: &str| config.lines().any(|l| l == format!("CONFIG_{option}=y") || l == format!("CONFIG_{option}=m"));
    let missing: Vec<String> =
        REQUIRED.iter().filter(|(option, _)| !has(option)).map(|(option, why)| format!("\n  CONFIG_{option}: {why}")).collect();
    ensure!(missing.is_empty(), "kernel {release} lacks{}", missing.concat());
    Ok(())
}

/// The zstd frame of a bzImage, by the setup header (Documentation/arch/x86/boot.rst, protocol 2.08 and later).
fn payload(image: &[u8]) -> Result<&[u8]> {
    let number = |offset: usize, size: usize| -> Result<usize> {
        let mut value = [0; 4];
        value[..size].copy_from_slice(image.get(offset..offset + size).context("kernel image is too short")?);
        usize::try_from(u32::from_le_bytes(value)).context("kernel image is too large")
    };
    ensure!(image.get(0x202..0x206) == Some(b"HdrS"), "not a bzImage");
    ensure!(number(0x206, 2)? >= 0x208, "bzImage of a boot protocol older than 2.08");
    let start = (number(0x1f1, 1)? + 1) * 512 + number(0x248, 4)?;
    let length = number(0x24c, 4)?;
    let payload = image.get(start..start + length).context("kernel payload lies outside the image")?;
    ensure!(payload.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]), "the kernel is not compressed with zstd");
    // The build appends the uncompressed size, four bytes that are not part of the frame.
    Ok(&payload[..length - 4])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{bzimage, full_config};

    #[test]
    fn kernel_with_everything_passes() {
        check("7.3.4+deb13-cloud-amd64", &full_config()).expect("passes");
        check("6.16.0", &full_config().replace("VXLAN=y", "VXLAN=m")).expect("a module is as good");
    }

    #[test]
    fn failure_names_every_missing_option() {
        let config = full_config().replace("CONFIG_SEV_GUEST=y", "# CONFIG_SEV_GUEST is not set").replace("CONFIG_VXLAN=y\n", "");
        let error = check("7.3.4", &config).expect_err("fails").to_string();
        assert!(error.contains("CONFIG_SEV_GUEST: evidence on SEV-SNP") && error.contains("CONFIG_VXLAN"), "{error}");
    }

    #[test]
    fn old_kernel_is_refused() {
        assert!(check("6.12.117+deb13-cloud-amd64", &full_config()).is_err());
    }

    #[test]
    fn payload_is_found_by_the_setup_header() {
        let image = bzimage(b"\x7fELF and so on");
        assert_eq!(zstd::decode_all(payload(&image).expect("payload")).expect("frame"), b"\x7fELF and so on");
        assert!(payload(&image[..0x610]).is_err());
    }
}
