//! The QEMU command line of a machine, and the way from its process to a running guest.
//!
//! Direct boot of a microvm: no firmware, no PCI, devices on virtio-mmio found through ACPI. Or, as on clouds, UEFI on a PC that boots a
//! disk. The guest is held (`-S`) until its tap, which QEMU makes itself and which goes with QEMU, is on the bridge.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use peerpods_cloud_api::{InstanceType, Mib};
use serde::Deserialize;

use super::netlink::Netlink;
use super::network::Bridge;
use super::qmp::{self, Monitor};
use super::{MachineError, ProcessId, console, helper, tpm};

/// The program, looked for in `PATH`.
pub(crate) const PROGRAM: &str = "qemu-system-x86_64";

/// How long QEMU may take to set up; an idle host takes 0.2 s.
const SETUP_LIMIT: Duration = Duration::from_secs(30);

/// How often the monitor is tried meanwhile.
const SETUP_PAUSE: Duration = Duration::from_millis(10);

/// The names under which the guest finds its boot files; each is a file of the same name in `boot/`.
pub(crate) const BOOT_FILES: [&str; 3] = ["user-data", "instance-id", "network"];

/// UEFI without Secure Boot's system management mode, and its empty variables: Debian's package `ovmf`.
pub(crate) const FIRMWARE: [&str; 2] = ["/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"];

/// What executes the guest's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Executor {
    Kvm,
    /// Needs the host's TSC frequency.
    Tcg {
        tsc_khz: u32,
    },
}

impl Executor {
    /// The options that choose it.
    pub(crate) fn options(self) -> [[&'static str; 2]; 2] {
        match self {
            Self::Kvm => [["-accel", "kvm"], ["-cpu", "host"]],
            // 64 MiB of translated code is plenty for an agent and keeps the process small.
            Self::Tcg { .. } => [["-accel", "tcg,thread=multi,tb-size=64"], ["-cpu", "max"]],
        }
    }

    /// The image's kernel command line with what this executor needs.
    pub(crate) fn command_line(self, image: &str) -> String {
        match self {
            Self::Kvm => image.to_owned(),
            Self::Tcg { tsc_khz } => format!("{image} tsc_early_khz={tsc_khz}"),
        }
    }
}

/// The pod VM image: a folder with a kernel, an initrd and `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Image {
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
    pub(crate) command_line: String,
}

/// The part of `manifest.json` that booting needs; the rest is the recipe's.
#[derive(Deserialize)]
struct Manifest {
    cmdline: String,
}

impl Image {
    /// Reads the manifest and looks for the files.
    pub(crate) fn open(folder: &Path) -> Result<Self, MachineError> {
        let (kernel, initrd) = (folder.join("vmlinux"), folder.join("initrd"));
        for file in [&kernel, &initrd] {
            std::fs::File::open(file).map_err(MachineError::file("open", file))?;
        }
        let path = folder.join("manifest.json");
        let text = std::fs::read(&path).map_err(MachineError::file("read", &path))?;
        let manifest = serde_json::from_slice::<Manifest>(&text);
        let Manifest { cmdline } = manifest.map_err(|error| MachineError::Understand { path, detail: error.to_string() })?;
        Ok(Self { kernel, initrd, command_line: cmdline })
    }
}

/// What the machine begins with.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Boot<'a> {
    /// The image's kernel; the scratch disk is `scratch.img`.
    Direct(&'a Image),
    /// Firmware with its variables in `vars.fd`; the disk is `disk.raw`.
    Uefi,
}

/// All that a command line says.
pub(crate) struct Plan<'a> {
    pub(crate) id: &'a str,
    pub(crate) link: &'a str,
    pub(crate) mac: [u8; 6],
    pub(crate) instance_type: &'a InstanceType,
    pub(crate) boot: Boot<'a>,
    pub(crate) executor: Executor,
    pub(crate) boot_files: &'a [&'a str],
    /// Whether a software TPM listens at [`tpm::SOCKET`].
    pub(crate) has_tpm: bool,
}

impl Plan<'_> {
    /// QEMU's arguments. File names without a slash in front are of the machine's folder, where QEMU runs.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let [a, b, c, d, e, f] = self.mac;
        let (vcpus, Mib(memory_mib)) = (self.instance_type.vcpus, self.instance_type.memory);
        let mut arguments = vec!["-name".to_owned(), self.id.to_owned()];
        let mut option = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        let (machine, bus) = match self.boot {
            Boot::Direct(_) => ("microvm,acpi=on", "device"),
            Boot::Uefi => ("q35,smm=off", "pci"),
        };
        option("-M", machine.to_owned());
        for [name, value] in self.executor.options() {
            option(name, value.to_owned());
        }
        option("-smp", vcpus.to_string());
        option("-m", format!("{memory_mib}M"));
        match self.boot {
            Boot::Direct(image) => {
                option("-kernel", image.kernel.display().to_string());
                option("-initrd", image.initrd.display().to_string());
                option("-append", self.executor.command_line(&image.command_line));
            }
            Boot::Uefi => {
                option("-drive", format!("if=pflash,format=raw,unit=0,readonly=on,file={}", FIRMWARE[0]));
                option("-drive", "if=pflash,format=raw,unit=1,file=vars.fd".to_owned());
            }
        }
        option("-netdev", format!("tap,id=net,ifname={},script=no,downscript=no", self.link));
        option("-device", format!("virtio-net-{bus},netdev=net,mac={a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"));
        // The disk is thrown away with the machine: nothing on it need survive the host.
        let (file, order) = match self.boot {
            Boot::Direct(_) => ("scratch.img", ""),
            Boot::Uefi => ("disk.raw", ",bootindex=1"),
        };
        option("-drive", format!("if=none,id=scratch,file={file},format=raw,cache=unsafe,discard=unmap"));
        option("-device", format!("virtio-blk-{bus},drive=scratch{order}"));
        for name in self.boot_files {
            option("-fw_cfg", format!("name=opt/org.peerpods/{name},file=boot/{name}"));
        }
        if self.has_tpm {
            option("-chardev", format!("socket,id=tpm,path={}", tpm::SOCKET));
            option("-tpmdev", "emulator,id=tpm0,chardev=tpm".to_owned());
            option("-device", "tpm-crb,tpmdev=tpm0".to_owned());
        }
        option("-serial", "file:console.log".to_owned());
        option("-qmp", format!("unix:{},server=on,wait=off", qmp::SOCKET));
        option("-pidfile", "qemu.pid".to_owned());
        option("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".to_owned());
        let flags = ["-S", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"];
        arguments.extend(flags.map(str::to_owned));
        arguments
    }
}

/// Waits until QEMU is set up, plugs its tap in and lets the guest go.
pub(crate) fn let_go(
    folder: &Path,
    process: &ProcessId,
    bridge: &Bridge,
    link: &str,
    pass: &dyn Fn(&'static str),
) -> Result<(), MachineError> {
    let mut monitor = wait_for_monitor(folder, process)?;
    pass("qemu-set-up");
    let mut netlink = Netlink::open().map_err(MachineError::network("talk about", link))?;
    bridge.plug(&mut netlink, link)?;
    pass("link-plugged-in");
    monitor.resume()
}

fn wait_for_monitor(folder: &Path, process: &ProcessId) -> Result<Monitor, MachineError> {
    let begin = Instant::now();
    loop {
        let error = match Monitor::connect(folder) {
            Ok(monitor) => return Ok(monitor),
            Err(error) => error,
        };
        if process.wait(SETUP_PAUSE).map_err(MachineError::file("watch process of", folder))? {
            let log = folder.join("process.log");
            let output = console::tail(&log).map_err(MachineError::file("read", &log))?;
            return Err(MachineError::EndedAtOnce { program: PROGRAM, output });
        }
        if begin.elapsed() > SETUP_LIMIT {
            return Err(error);
        }
    }
}

/// Where QEMU is.
pub(crate) fn find_program() -> Option<PathBuf> {
    helper::find_program(PROGRAM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_as_recorded() {
        let instance_type = super::super::types::instance_types(false).remove(0);
        let image =
            Image { kernel: "/image/vmlinux".into(), initrd: "/image/initrd".into(), command_line: "console=ttyS0 quiet".to_owned() };
        let plan = Plan {
            id: "local-0123456789ab",
            link: "pp0123456789ab",
            mac: [2, 0x70, 10, 93, 0, 5],
            instance_type: &instance_type,
            boot: Boot::Direct(&image),
            executor: Executor::Tcg { tsc_khz: 2_596_124 },
            boot_files: &BOOT_FILES,
            has_tpm: false,
        };
        let expected = "-name local-0123456789ab -M microvm,acpi=on -accel tcg,thread=multi,tb-size=64 -cpu max -smp 1 -m 256M \
            -kernel /image/vmlinux -initrd /image/initrd -append console=ttyS0 quiet tsc_early_khz=2596124 \
            -netdev tap,id=net,ifname=pp0123456789ab,script=no,downscript=no -device virtio-net-device,netdev=net,mac=02:70:0a:5d:00:05 \
            -drive if=none,id=scratch,file=scratch.img,format=raw,cache=unsafe,discard=unmap -device virtio-blk-device,drive=scratch \
            -fw_cfg name=opt/org.peerpods/user-data,file=boot/user-data -fw_cfg name=opt/org.peerpods/instance-id,file=boot/instance-id \
            -fw_cfg name=opt/org.peerpods/network,file=boot/network -serial file:console.log -qmp unix:qmp.sock,server=on,wait=off \
            -pidfile qemu.pid -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny \
            -S -nodefaults -no-user-config -display none -no-reboot";
        assert_eq!(plan.arguments().join(" "), expected);
        let plan = Plan { executor: Executor::Kvm, ..plan };
        let kvm = plan.arguments().join(" ");
        assert!(kvm.contains("-accel kvm -cpu host") && kvm.contains("-append console=ttyS0 quiet -netdev"), "{kvm}");
        let plan = Plan { boot: Boot::Uefi, ..plan };
        let uefi = plan.arguments().join(" ");
        let disk = "-drive if=none,id=scratch,file=disk.raw,format=raw,cache=unsafe,discard=unmap -device virtio-blk-pci,drive=scratch,bootindex=1";
        assert!(
            uefi.contains("-M q35,smm=off") && uefi.contains("virtio-net-pci") && uefi.contains(disk) && !uefi.contains("-kernel"),
            "{uefi}"
        );
        let measured = Plan { has_tpm: true, ..plan }.arguments().join(" ");
        let tpm = " -chardev socket,id=tpm,path=tpm.sock -tpmdev emulator,id=tpm0,chardev=tpm -device tpm-crb,tpmdev=tpm0";
        assert_eq!(measured.replacen(tpm, "", 1), uefi);
        assert!(measured.contains(&format!("{tpm} -serial")) && !uefi.contains("tpm"), "{measured}");
    }
}
