//! Carrying out what [`super::edit`] decides: files, in an order that a crash at any line does not harm.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use super::edit::{self, FileVersion, Wanted};
use super::record::{InstallRecord, RecordError, VERSION, digest};
use super::{InstallError, diff};

/// Changes one configuration, and remembers it in one folder.
#[derive(Debug, Clone)]
pub struct Installer {
    config: PathBuf,
    state_dir: PathBuf,
    is_dry: bool,
}

/// What a run did, or would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Everything is as wanted.
    Unchanged,
    /// The file is changed, or would be; the difference in the form of `diff -u`.
    Changed(String),
    /// The file is as it was before the first change, byte for byte.
    Restored(String),
    /// Only our entries are taken out, since somebody has changed the file after us.
    TakenOut(String),
    /// The file is removed, since there was none before.
    Removed,
}

const RECORD: &str = "install.json";
const BEFORE: &str = "config.toml.before";

impl Installer {
    /// For that configuration of containerd. `is_dry` writes nothing.
    ///
    /// A symbolic link is followed, so that it stays one.
    pub fn new(config: &Path, state_dir: &Path, is_dry: bool) -> Self {
        Self { config: fs::canonicalize(config).unwrap_or_else(|_| config.to_owned()), state_dir: state_dir.to_owned(), is_dry }
    }

    /// Puts our entries in. Idempotent; entries of an earlier release, or with other settings, are brought up to date.
    pub fn install(&self, wanted: &Wanted, new_version: FileVersion, replace: bool) -> Result<Outcome, InstallError> {
        let now = self.read_config()?;
        let known = self.read_record()?.filter(|record| is_made(record, now.as_deref()));
        let changes = known.as_ref().map_or(&[][..], |record| &record.changes);
        let text = now.as_deref().unwrap_or_default();
        let (new, changes) = edit::add(text, wanted, new_version, changes, replace).map_err(|source| self.edit(source))?;
        if new == text && known.is_some() {
            return Ok(Outcome::Unchanged);
        }
        let shown = Outcome::Changed(diff(text, &new, &self.config.display().to_string()));
        if self.is_dry {
            return Ok(if new == text { Outcome::Unchanged } else { shown });
        }
        let found = now.as_ref().map(|text| digest(text.as_bytes()));
        let after = digest(new.as_bytes());
        let record = match known {
            Some(known) => {
                let is_edited = known.is_edited || !known.is_ours(found.as_deref());
                InstallRecord { changed_from: found, after, is_edited, changes, ..known }
            }
            None => {
                if let Some(text) = &now {
                    self.write(&self.state_dir.join(BEFORE), text.as_bytes(), None)?;
                }
                let (before, changed_from) = (found.clone(), found);
                InstallRecord { version: VERSION, config: self.config.clone(), before, changed_from, after, is_edited: false, changes }
            }
        };
        self.write_record(&record)?;
        if new == text {
            return Ok(Outcome::Unchanged);
        }
        self.write_config(&new)?;
        Ok(shown)
    }

    /// Takes our entries out. Idempotent; `None` when nothing was installed.
    pub fn uninstall(&self) -> Result<Option<Outcome>, InstallError> {
        let Some(record) = self.read_record()? else { return Ok(None) };
        let now = self.read_config()?;
        let outcome = self.take_out(&record, now.as_deref())?;
        if !self.is_dry {
            for name in [RECORD, BEFORE] {
                self.remove(&self.state_dir.join(name))?;
            }
            // Somebody else's files keep it.
            let _ = fs::remove_dir(&self.state_dir);
        }
        Ok(Some(outcome))
    }

    fn take_out(&self, record: &InstallRecord, now: Option<&str>) -> Result<Outcome, InstallError> {
        // Not changed yet, or changed back already; a file that somebody has removed is no one's to bring back.
        let Some(now) = now.filter(|_| is_made(record, now)) else { return Ok(Outcome::Unchanged) };
        let path = self.config.display().to_string();
        if !record.is_edited && record.is_ours(Some(&digest(now.as_bytes()))) {
            let Some(before) = &record.before else {
                if !self.is_dry {
                    self.remove(&self.config)?;
                }
                return Ok(Outcome::Removed);
            };
            let kept = self.read(&self.state_dir.join(BEFORE))?.filter(|kept| digest(kept.as_bytes()) == *before);
            if let Some(kept) = kept {
                let shown = diff(now, &kept, &path);
                self.write_config(&kept)?;
                return Ok(Outcome::Restored(shown));
            }
        }
        let left = edit::remove(now, &record.changes).map_err(|source| self.edit(source))?;
        if left == now {
            return Ok(Outcome::Unchanged);
        }
        self.write_config(&left)?;
        Ok(Outcome::TakenOut(diff(now, &left, &path)))
    }

    // -----------------------------------------------------------------------

    fn read_config(&self) -> Result<Option<String>, InstallError> {
        self.read(&self.config)
    }

    fn read_record(&self) -> Result<Option<InstallRecord>, InstallError> {
        let path = self.state_dir.join(RECORD);
        let Some(text) = self.read(&path)? else { return Ok(None) };
        let damaged = |source| RecordError::Damaged { path: path.clone(), source };
        let value: serde_json::Value = serde_json::from_str(&text).map_err(damaged)?;
        match value.get("version").and_then(serde_json::Value::as_u64) {
            Some(found) if found != u64::from(VERSION) => return Err(RecordError::Version { path, found }.into()),
            _ => {}
        }
        let record: InstallRecord = serde_json::from_value(value).map_err(damaged)?;
        if record.config != self.config {
            return Err(RecordError::OtherConfig { path, config: record.config }.into());
        }
        Ok(Some(record))
    }

    fn write_record(&self, record: &InstallRecord) -> Result<(), InstallError> {
        let path = self.state_dir.join(RECORD);
        let text = serde_json::to_string_pretty(record).map_err(|source| RecordError::Damaged { path: path.clone(), source })?;
        self.write(&path, text.as_bytes(), None)
    }

    /// Keeps mode and owner of the file that was there.
    fn write_config(&self, text: &str) -> Result<(), InstallError> {
        if self.is_dry {
            return Ok(());
        }
        self.write(&self.config, text.as_bytes(), fs::metadata(&self.config).ok().as_ref())
    }

    fn read(&self, path: &Path) -> Result<Option<String>, InstallError> {
        match fs::read(path) {
            Ok(bytes) => String::from_utf8(bytes).map(Some).map_err(|_| InstallError::NotText { path: path.to_owned() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(InstallError::File { action: "read", path: path.to_owned(), source }),
        }
    }

    /// Under another name, flushed, renamed, the folder flushed.
    fn write(&self, path: &Path, bytes: &[u8], like: Option<&fs::Metadata>) -> Result<(), InstallError> {
        let write = || -> io::Result<()> {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            fs::create_dir_all(folder)?;
            let mut name = path.file_name().unwrap_or_default().to_owned();
            name.push(".peerpods-new");
            let temporary = folder.join(name);
            let mode = like.map_or(if path == self.config { 0o644 } else { 0o600 }, |like| like.mode() & 0o7777);
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
            file.set_permissions(fs::Permissions::from_mode(mode))?;
            if let Some(like) = like {
                fchown(&file, Some(like.uid()), Some(like.gid()))?;
            }
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&temporary, path)?;
            File::open(folder)?.sync_all()
        };
        write().map_err(|source| InstallError::File { action: "write", path: path.to_owned(), source })
    }

    fn remove(&self, path: &Path) -> Result<(), InstallError> {
        match fs::remove_file(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(InstallError::File { action: "remove", path: path.to_owned(), source })
            }
            _ => Ok(()),
        }
    }

    fn edit(&self, source: edit::EditError) -> InstallError {
        InstallError::Edit { path: self.config.clone(), source }
    }
}

/// Whether the change that the record announces was made: a run may have been killed before it, or after it was undone. A change of
/// nothing is made when it is recorded.
fn is_made(record: &InstallRecord, now: Option<&str>) -> bool {
    record.before.as_ref() == Some(&record.after) || now.map(|text| digest(text.as_bytes())) != record.before
}
