//! The machines of one state folder: planning and reading.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use nix::fcntl::Flock;
use peerpods_cloud_api::settings::local::{Firmware, Level, LocalSettings};
use peerpods_cloud_api::{InstanceId, InstanceType, LaunchRequest, LaunchToken};

use super::files::{self, create_folder, none_if_missing, read_if_there, sync_folder, write_durably};
use super::netlink::Netlink;
use super::network::{Bridge, Found};
use super::record::VERSION;
use super::{CrashPoints, MachineError, Phase, Record, address, console, types};

/// Machines under construction and under demolition; both are nothing yet or no longer.
const NEW: &str = ".new-";
pub(super) const GONE: &str = ".gone-";

/// The machines of one state folder.
#[derive(Debug)]
pub struct Host {
    pub(super) settings: LocalSettings,
    pub(super) bridge: Bridge,
    pub(super) crash_points: CrashPoints,
    pub(super) handover: Handover,
}

/// How machines learn what they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Handover {
    /// By files that the host gives them.
    BootFiles,
    /// By asking a service of their network, as clouds' machines do.
    MetadataService,
}

impl Host {
    /// Checks the settings; makes and reads nothing.
    pub fn new(settings: LocalSettings) -> Result<Self, MachineError> {
        if settings.level == Level::Sandbox {
            if cfg!(not(feature = "sandbox")) {
                return Err(MachineError::invalid("provider.local.level \"sandbox\" is not in this build (cargo feature \"sandbox\")"));
            }
            if !settings.insecure_sandbox {
                let detail = "provider.local.level \"sandbox\" isolates nothing; it needs provider.local.insecure_sandbox = true";
                return Err(MachineError::invalid(detail));
            }
        }
        if settings.measured && (settings.level, settings.firmware) != (Level::Qemu, Firmware::Uefi) {
            let detail = "provider.local.measured needs provider.local.level = \"qemu\" and provider.local.firmware = \"uefi\": \
                nothing else measures what it boots";
            return Err(MachineError::invalid(detail));
        }
        for (key, path) in [("image", &settings.image), ("state_dir", &settings.state_dir)] {
            if !path.is_absolute() || path.to_str().is_none() {
                return Err(MachineError::invalid(format!("provider.local.{key} must be an absolute UTF-8 path, not {path:?}")));
            }
        }
        let is_link_name = |c: u8| c.is_ascii_alphanumeric() || b"-_.".contains(&c);
        if !(1..=15).contains(&settings.bridge.len()) || !settings.bridge.bytes().all(is_link_name) {
            return Err(MachineError::invalid("provider.local.bridge must be 1 to 15 characters of [A-Za-z0-9._-]"));
        }
        if settings.gateway.octets()[3] == 0 || settings.gateway.octets()[3] == 255 {
            return Err(MachineError::invalid("provider.local.gateway must be a host address of its /24"));
        }
        let bridge = Bridge::new(&settings);
        Ok(Self { bridge, settings, crash_points: CrashPoints::default(), handover: Handover::BootFiles })
    }

    /// The same with a hook for tests.
    pub fn with_crash_points(self, crash_points: CrashPoints) -> Self {
        Self { crash_points, ..self }
    }

    /// Machines get no boot files: they find a DHCP server and a metadata service on the bridge, which has this address too.
    /// Both are the caller's affair.
    pub fn with_metadata_service(self, address: Ipv4Addr) -> Self {
        Self { bridge: self.bridge.with_service(address), handover: Handover::MetadataService, ..self }
    }

    /// The sizes of machines, cheapest first.
    pub fn instance_types(&self) -> Vec<InstanceType> {
        types::instance_types(self.settings.measured)
    }

    /// Records the machines of a launch before anything of them exists, or finds those that an earlier call recorded.
    ///
    /// An error of kind [`MachineError::Invalid`] means that nothing was recorded.
    /// A launch whose planning was cut short has fewer machines for ever; a token is free again once all its machines are gone.
    pub fn plan(&self, request: &LaunchRequest) -> Result<Vec<Record>, MachineError> {
        self.check(request)?;
        create_folder(&self.machines())?;
        let _lock = files::lock(&self.settings.state_dir.join("lock"))?;
        self.sweep()?;
        let all = self.all()?;
        let mut planned = of_token(&all, &request.token);
        if planned.iter().any(|record| record.request != *request) {
            return Err(MachineError::TokenTaken { token: request.token.to_string() });
        }
        let mut netlink = Netlink::open().map_err(MachineError::network("open netlink for", &self.settings.bridge))?;
        if self.bridge.find(&mut netlink)? == Found::Foreign {
            return Err(self.bridge.foreign());
        }
        if planned.is_empty() {
            let mut used: HashSet<Ipv4Addr> = all.iter().map(|record| record.address).collect();
            for _ in 0..request.count {
                let Some(record) = self.plan_one(request, &used)? else { break };
                used.insert(record.address);
                planned.push(record);
            }
        }
        if planned.is_empty() {
            return Err(MachineError::NoAddress { gateway: self.settings.gateway });
        }
        // Here, because the lock keeps it from being removed between the records and the links.
        self.bridge.ensure(&mut netlink)?;
        self.crash_points.pass("bridge-made");
        Ok(planned)
    }

    /// Starts a machine that a killed launch only planned; the bridge may not have come to be yet.
    pub fn start_planned(&self, id: &InstanceId) -> Result<Record, MachineError> {
        {
            let _lock = files::lock(&self.settings.state_dir.join("lock"))?;
            let mut netlink = Netlink::open().map_err(MachineError::network("open netlink for", &self.settings.bridge))?;
            self.bridge.ensure(&mut netlink)?;
        }
        self.start(id)
    }

    /// One machine; `None` when it is gone or never was.
    pub fn read(&self, id: &InstanceId) -> Result<Option<Record>, MachineError> {
        self.read_folder(&self.folder(id)?)
    }

    /// All machines, in no order.
    pub fn all(&self) -> Result<Vec<Record>, MachineError> {
        let mut records = Vec::new();
        for (name, path) in self.entries()? {
            if !name.starts_with('.') {
                records.extend(self.read_folder(&path)?);
            }
        }
        Ok(records)
    }

    /// The last lines that a machine's guest wrote to its console, at most 4 KiB, without control characters.
    pub fn console_tail(&self, id: &InstanceId) -> Result<String, MachineError> {
        let console = self.folder(id)?.join("console.log");
        if self.read(id)?.is_none() {
            return Err(MachineError::NotFound);
        }
        console::tail(&console).map_err(MachineError::file("read", &console))
    }

    fn check(&self, request: &LaunchRequest) -> Result<(), MachineError> {
        if !types::tees(self.settings.measured).contains(&request.tee) {
            let tee = request.tee.as_str();
            return Err(MachineError::invalid(format!(
                "tee {tee:?}: local machines have \"sample\", and \"tpm\" with provider.local.measured"
            )));
        }
        if let Some(zone) = &request.zone {
            return Err(MachineError::invalid(format!("zone {zone}: local machines have no zones")));
        }
        // A path from a request would let whoever writes requests choose what the host boots.
        if request.image.as_ref().is_some_and(|image| Path::new(image) != self.settings.image) {
            return Err(MachineError::invalid("image: local machines boot provider.local.image alone"));
        }
        if !(1..=100).contains(&request.count) {
            return Err(MachineError::invalid(format!("count {}: 1 to 100 is allowed", request.count)));
        }
        if request.user_data.len() > 1024 {
            return Err(MachineError::invalid(format!("user data of {} bytes: at most 1024 are allowed", request.user_data.len())));
        }
        self.instance_type(&request.instance_type).map(drop)
    }

    pub(super) fn instance_type(&self, name: &str) -> Result<InstanceType, MachineError> {
        let types = types::instance_types(self.settings.measured);
        let names: Vec<&str> = types.iter().map(|one| one.name.as_str()).collect();
        let unknown = MachineError::invalid(format!("instance type {name:?}: {} are allowed", names.join(", ")));
        types.into_iter().find(|one| one.name == name).ok_or(unknown)
    }

    /// A folder that appears with its record in it; `None` when no address is free.
    fn plan_one(&self, request: &LaunchRequest, used: &HashSet<Ipv4Addr>) -> Result<Option<Record>, MachineError> {
        let random = random().map_err(MachineError::file("read", Path::new("/dev/urandom")))?;
        let suffix: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let Some(address) = address::allocate(self.settings.gateway, used, random[0]) else { return Ok(None) };
        let id = InstanceId::new(format!("local-{suffix}")).map_err(|error| MachineError::invalid(error.to_string()))?;
        let level = self.settings.level;
        let record = Record { version: VERSION, id, request: request.clone(), address, level, phase: Phase::Planned, process: None };
        let (new, folder) = (self.machines().join(format!("{NEW}{}", record.id)), self.folder(&record.id)?);
        create_folder(&new)?;
        self.crash_points.pass("new-folder-made");
        self.write_to(&new, &record)?;
        let appear = fs::rename(&new, &folder).and_then(|()| sync_folder(&self.machines()));
        appear.map_err(MachineError::file("make", &folder))?;
        self.crash_points.pass("planned");
        Ok(Some(record))
    }

    /// Removes folders that are no machines. The caller holds the host's lock.
    pub(super) fn sweep(&self) -> Result<(), MachineError> {
        for (name, path) in self.entries()? {
            if name.starts_with(NEW) || name.starts_with(GONE) {
                none_if_missing(fs::remove_dir_all(&path)).map_err(MachineError::file("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Names and paths of everything in the machines' folder.
    pub(super) fn entries(&self) -> Result<Vec<(String, PathBuf)>, MachineError> {
        let machines = self.machines();
        let list = || -> io::Result<Vec<(String, PathBuf)>> {
            let Some(entries) = none_if_missing(fs::read_dir(&machines))? else { return Ok(Vec::new()) };
            entries.map(|entry| entry.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()))).collect()
        };
        list().map_err(MachineError::file("list", &machines))
    }

    pub(super) fn machines(&self) -> PathBuf {
        self.settings.state_dir.join("machines")
    }

    /// A machine's folder. An id that is not one of ours names no machine, and above all no other folder.
    pub(super) fn folder(&self, id: &InstanceId) -> Result<PathBuf, MachineError> {
        let suffix = id.as_str().strip_prefix("local-").unwrap_or_default();
        let is_ours = suffix.len() == 12 && suffix.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if is_ours { Ok(self.machines().join(id.as_str())) } else { Err(MachineError::NotFound) }
    }

    /// Holds a machine's steps together.
    pub(super) fn lock_machine(&self, folder: &Path) -> Result<Flock<File>, MachineError> {
        match files::lock(&folder.join("lock")) {
            Err(MachineError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Err(MachineError::NotFound),
            other => other,
        }
    }

    pub(super) fn write(&self, record: &Record) -> Result<(), MachineError> {
        self.write_to(&self.folder(&record.id)?, record)
    }

    fn write_to(&self, folder: &Path, record: &Record) -> Result<(), MachineError> {
        let path = folder.join("machine.json");
        let text = serde_json::to_vec_pretty(record).map_err(io::Error::from).map_err(MachineError::file("write", &path))?;
        write_durably(&path, &text)
    }

    fn read_folder(&self, folder: &Path) -> Result<Option<Record>, MachineError> {
        let path = folder.join("machine.json");
        let Some(text) = read_if_there(&path).map_err(MachineError::file("read", &path))? else { return Ok(None) };
        parse(&text).map(Some).map_err(|detail| MachineError::Understand { path, detail })
    }
}

fn parse(text: &[u8]) -> Result<Record, String> {
    let value: serde_json::Value = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    match value.get("version").and_then(serde_json::Value::as_u64) {
        Some(version) if version == u64::from(VERSION) => serde_json::from_value(value).map_err(|error| error.to_string()),
        version => Err(format!("version {version:?}; this program understands {VERSION}")),
    }
}

fn of_token(all: &[Record], token: &LaunchToken) -> Vec<Record> {
    all.iter().filter(|record| record.request.token == *token).cloned().collect()
}

fn random() -> io::Result<[u8; 6]> {
    let mut random = [0; 6];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    Ok(random)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::ProcessId;

    #[test]
    fn record_of_v1_is_read_and_written_as_it_was() {
        let text = include_str!("../../../../tests/compat/machine/v1/machine.json");
        let record = parse(text.as_bytes()).expect("a record");
        let process = ProcessId { pid: 4711, start_ticks: 1000, boot_id: "0f6ad1c2-7b3a-4c58-9f4e-0f2d8a3f5b11".to_owned() };
        assert_eq!((record.phase, record.level, record.process.clone()), (Phase::Started, Level::Qemu, Some(process)));
        assert_eq!((record.address, record.request.user_data.as_slice()), (Ipv4Addr::new(10, 93, 0, 5), &b"{}"[..]));
        assert_eq!((record.link().as_str(), record.mac()), ("pp0123456789ab", [0x02, 0x70, 10, 93, 0, 5]));
        assert!(!record.is_alive());
        let written = serde_json::to_value(&record).expect("JSON");
        assert_eq!(written, serde_json::from_str::<serde_json::Value>(text).expect("JSON"));
    }

    #[test]
    fn record_of_another_version_is_refused_by_its_version() {
        let said = parse(br#"{"version": 2, "new": true}"#).expect_err("refused");
        assert!(said.contains("version Some(2)"), "{said}");
        assert!(parse(b"{}").is_err() && parse(b"").is_err());
    }
}
