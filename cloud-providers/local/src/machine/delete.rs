//! From a machine to nothing, in steps that each find what the last one left.

use std::fs;
use std::io;
use std::time::Duration;

use nix::fcntl::Flock;
use peerpods_cloud_api::InstanceId;
use peerpods_cloud_api::settings::local::Level;

use super::files::{self, none_if_missing, sync_folder};
use super::host::GONE;
use super::netlink::Netlink;
use super::{Host, MachineError, Phase, ProcessId, Record};

/// How long a caller waits for a killed process; what is not over by then is finished by a later call.
pub(super) const END_LIMIT: Duration = Duration::from_secs(3);

impl Host {
    /// Marks a machine as going, kills its process and removes it if that ends soon. Later calls and [`Host::settle`] finish the rest.
    pub fn delete(&self, id: &InstanceId) -> Result<(), MachineError> {
        let folder = self.folder(id)?;
        let lock = self.lock_machine(&folder)?;
        let mut record = self.read(id)?.ok_or(MachineError::NotFound)?;
        if record.phase != Phase::Deleting {
            record.phase = Phase::Deleting;
            self.write(&record)?;
            self.crash_points.pass("deleting");
        }
        drop(lock);
        let has_ended = match &record.process {
            Some(process) => process.kill(END_LIMIT).map_err(MachineError::file("kill process of", &folder))?,
            None => true,
        };
        self.crash_points.pass("killed");
        if has_ended { self.finish(&record).map(drop) } else { Ok(()) }
    }

    /// Finishes what was begun: deletes whose process has ended, folders that are no machines, a bridge without machines.
    ///
    /// One machine that cannot be removed keeps no other from being removed; the last error is given.
    pub fn settle(&self) -> Result<(), MachineError> {
        let mut settled = Ok(());
        for record in self.all()?.iter().filter(|record| record.phase == Phase::Deleting) {
            if let Err(error) = self.settle_one(record) {
                settled = Err(error);
            }
        }
        settled.and(self.remove_bridge_if_unused().map(drop))
    }

    /// Kills again, as a crash may have come before, and removes the machine if it has ended. True when it is gone.
    pub(crate) fn settle_one(&self, record: &Record) -> Result<bool, MachineError> {
        let kill = |process: &ProcessId| process.kill(Duration::ZERO);
        let folder = self.folder(&record.id)?;
        let has_ended = record.process.as_ref().map_or(Ok(true), kill).map_err(MachineError::file("kill process of", &folder))?;
        if has_ended { self.finish(record) } else { Ok(false) }
    }

    /// Removes the bridge if it is ours and no machine is left. False when machines are left.
    pub fn remove_bridge_if_unused(&self) -> Result<bool, MachineError> {
        if none_if_missing(fs::metadata(&self.settings.state_dir))
            .map_err(MachineError::file("look at", &self.settings.state_dir))?
            .is_none()
        {
            return Ok(true);
        }
        let _lock = files::lock(&self.settings.state_dir.join("lock"))?;
        self.sweep()?;
        if !self.entries()?.is_empty() {
            return Ok(false);
        }
        let mut netlink = Netlink::open().map_err(MachineError::network("open netlink for", &self.settings.bridge))?;
        if self.bridge.remove(&mut netlink)? {
            self.crash_points.pass("bridge-removed");
        }
        Ok(true)
    }

    /// Removes all that belongs to a machine whose process has ended. The folder goes last, in one step.
    fn finish(&self, record: &Record) -> Result<bool, MachineError> {
        let folder = self.folder(&record.id)?;
        let lock = match self.lock_machine(&folder) {
            Err(MachineError::NotFound) => return Ok(true),
            other => other?,
        };
        // Whoever had the lock may have finished; the lock file then went with the folder.
        if self.read(&record.id)?.is_none() {
            return Ok(true);
        }
        let link = record.link();
        let delete_link = Netlink::open().and_then(|mut netlink| netlink.delete(&link));
        delete_link.map_err(MachineError::network("delete link", &link))?;
        self.crash_points.pass("link-deleted");
        remove_cgroups(record)?;
        self.crash_points.pass("cgroups-removed");
        let gone = self.machines().join(format!("{GONE}{}", record.id));
        let disappear = || -> io::Result<()> {
            fs::rename(&folder, &gone)?;
            sync_folder(&self.machines())
        };
        disappear().map_err(MachineError::file("remove", &folder))?;
        self.crash_points.pass("gone");
        drop::<Flock<fs::File>>(lock);
        self.remove_bridge_if_unused()?;
        Ok(true)
    }
}

#[cfg(feature = "sandbox")]
pub(super) fn remove_cgroups(record: &Record) -> Result<(), MachineError> {
    match record.level {
        Level::Qemu => Ok(()),
        Level::Sandbox => {
            let name = record.id.as_str();
            super::sandbox::cgroups::remove(name).map_err(MachineError::file("remove cgroups", std::path::Path::new(name)))
        }
    }
}

#[cfg(not(feature = "sandbox"))]
pub(super) fn remove_cgroups(record: &Record) -> Result<(), MachineError> {
    match record.level {
        Level::Qemu => Ok(()),
        Level::Sandbox => Err(no_sandbox()),
    }
}

/// A machine of another build.
#[cfg(not(feature = "sandbox"))]
pub(super) fn no_sandbox() -> MachineError {
    MachineError::invalid("this is a sandbox machine, and sandboxes are not in this build (cargo feature \"sandbox\")")
}
