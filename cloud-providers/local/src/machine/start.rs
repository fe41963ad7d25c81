//! From a record to a running machine.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use peerpods_cloud_api::InstanceId;
use peerpods_cloud_api::settings::local::{Firmware, Level};

use super::delete::END_LIMIT;
use super::files::{create_folder, none_if_missing};
use super::helper::Start;
use super::host::Handover;
use super::qemu::{self, Boot, Image, Plan};
use super::spawn::Waiting;
use super::{Host, MachineError, Phase, Record, accelerator, network, qmp, tpm};

impl Host {
    /// Starts a planned machine, anew where an earlier try stopped. One that is started or deleting stays as it is.
    pub fn start(&self, id: &InstanceId) -> Result<Record, MachineError> {
        let folder = self.folder(id)?;
        let _lock = self.lock_machine(&folder)?;
        let mut record = self.read(id)?.ok_or(MachineError::NotFound)?;
        if record.phase != Phase::Planned {
            return Ok(record);
        }
        // Whether an earlier try's process was told to go on cannot be known, and nobody was told of the machine yet.
        if let Some(process) = &record.process
            && !process.kill(END_LIMIT).map_err(MachineError::file("kill process of", &folder))?
        {
            return Err(MachineError::StartMachine { detail: format!("process {} of an earlier try does not end", process.pid) });
        }
        self.prepare(&folder, &record)?;
        let waiting = Waiting::spawn(&folder)?;
        self.crash_points.pass("process-made");
        record.process = Some(waiting.id().clone());
        self.write(&record)?;
        self.crash_points.pass("process-recorded");
        waiting.go(&|step| self.crash_points.pass(step))?;
        self.crash_points.pass("process-is-machine");
        if let (Level::Qemu, Some(process)) = (record.level, &record.process) {
            qemu::let_go(&folder, process, &self.bridge, &record.link(), &|step| self.crash_points.pass(step))?;
            self.crash_points.pass("guest-let-go");
        }
        record.phase = Phase::Started;
        self.write(&record)?;
        self.crash_points.pass("started");
        Ok(record)
    }

    /// Makes the files and, for a sandbox, the link; all anew, as the guest of an earlier try may have come far.
    fn prepare(&self, folder: &Path, record: &Record) -> Result<(), MachineError> {
        super::delete::remove_cgroups(record)?;
        for name in ["console.log", "process.log", qmp::SOCKET, tpm::SOCKET] {
            let path = folder.join(name);
            none_if_missing(fs::remove_file(&path)).map_err(MachineError::file("remove", &path))?;
        }
        create_folder(&folder.join("boot"))?;
        let network = network::boot_file(&self.settings, record);
        let names = self.boot_files();
        for (name, content) in names.iter().zip([record.request.user_data.as_slice(), record.id.as_str().as_bytes(), &network]) {
            let path = folder.join("boot").join(name);
            fs::write(&path, content).map_err(MachineError::file("write", &path))?;
        }
        self.crash_points.pass("boot-files-made");
        let start = match record.level {
            Level::Qemu => self.prepare_qemu(folder, record)?,
            Level::Sandbox => self.prepare_sandbox(folder, record)?,
        };
        let path = folder.join("start.json");
        let text = serde_json::to_vec_pretty(&start).map_err(io::Error::from).map_err(MachineError::file("write", &path))?;
        fs::write(&path, text).map_err(MachineError::file("write", &path))
    }

    /// The names of what machines are given.
    fn boot_files(&self) -> &'static [&'static str] {
        match self.handover {
            Handover::BootFiles => &qemu::BOOT_FILES,
            Handover::MetadataService => &[],
        }
    }

    fn prepare_qemu(&self, folder: &Path, record: &Record) -> Result<Start, MachineError> {
        let program = qemu::find_program().ok_or_else(|| MachineError::invalid(format!("{} is not installed", qemu::PROGRAM)))?;
        let image = Image::open(&self.settings.image)?;
        let executor = accelerator::choose(&self.settings, &image)?;
        let boot = match self.settings.firmware {
            Firmware::None => {
                let disk = folder.join("scratch.img");
                let size = self.settings.scratch_mib.bytes();
                File::create(&disk).and_then(|file| file.set_len(size)).map_err(MachineError::file("make", &disk))?;
                Boot::Direct(&image)
            }
            Firmware::Uefi => {
                self.copy_disk(folder)?;
                Boot::Uefi
            }
        };
        self.crash_points.pass("scratch-made");
        let tpm = self.settings.measured.then(|| tpm::make(&self.settings.state_dir, folder, &self.crash_points)).transpose()?;
        let instance_type = self.instance_type(&record.request.instance_type)?;
        let plan = Plan {
            id: record.id.as_str(),
            link: &record.link(),
            mac: record.mac(),
            instance_type: &instance_type,
            boot,
            executor,
            boot_files: self.boot_files(),
            has_tpm: tpm.is_some(),
        };
        Ok(Start::Program { program, arguments: plan.arguments(), tpm })
    }

    /// The image's disk and the firmware's variables, both the machine's own.
    fn copy_disk(&self, folder: &Path) -> Result<(), MachineError> {
        let (image, disk, vars) = (self.settings.image.join("disk.raw"), folder.join("disk.raw"), folder.join("vars.fd"));
        let copied = fs::copy(&image, &disk).map_err(MachineError::file("copy", &image))?;
        let grow = File::options().write(true).open(&disk).and_then(|file| file.set_len(copied + self.settings.scratch_mib.bytes()));
        grow.map_err(MachineError::file("make", &disk))?;
        fs::copy(qemu::FIRMWARE[1], &vars).map_err(MachineError::file("copy", Path::new(qemu::FIRMWARE[1])))?;
        Ok(())
    }

    #[cfg(feature = "sandbox")]
    fn prepare_sandbox(&self, folder: &Path, record: &Record) -> Result<Start, MachineError> {
        use super::netlink::Netlink;
        use super::sandbox::SandboxStart;

        for name in ["root", "scratch"] {
            let path = folder.join(name);
            none_if_missing(fs::remove_dir_all(&path)).map_err(MachineError::file("remove", &path))?;
            create_folder(&path)?;
        }
        self.crash_points.pass("scratch-made");
        let (link, peer) = (record.link(), format!("pg{}", record.suffix()));
        let mut netlink = Netlink::open().map_err(MachineError::network("open netlink for", &link))?;
        // What an earlier try left may have lost its peer.
        netlink.delete(&link).map_err(MachineError::network("delete link", &link))?;
        netlink.create_veth(&link, &peer, record.mac()).map_err(MachineError::network("make link", &link))?;
        self.crash_points.pass("link-made");
        self.bridge.plug(&mut netlink, &link)?;
        self.crash_points.pass("link-plugged-in");
        Ok(Start::Sandbox(SandboxStart { guest: self.settings.image.clone(), link: peer, name: record.id.to_string() }))
    }

    #[cfg(not(feature = "sandbox"))]
    fn prepare_sandbox(&self, _folder: &Path, _record: &Record) -> Result<Start, MachineError> {
        Err(super::delete::no_sandbox())
    }
}
