//! Which file a process executes, found as by runc, in whose words a failure is told: `kubectl` shows them.

use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, accessat};

use crate::failure::text;

/// Why there is nothing to execute.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotFound(pub(super) String);

/// The file that a name stands for. `path` is the value of PATH; names with a slash do not need it.
pub(super) fn find(name: &str, path: Option<&str>) -> Result<PathBuf, NotFound> {
    if name.contains('/') {
        return is_executable(Path::new(name))
            .map(|()| PathBuf::from(name))
            .map_err(|reason| NotFound(format!("exec: {name:?}: {reason}")));
    }
    let folders = path.unwrap_or_default().split(':').filter(|_| path.is_some_and(|path| !path.is_empty()));
    let mut files = folders.map(|folder| Path::new(if folder.is_empty() { "." } else { folder }).join(name));
    files
        .find(|file| !name.is_empty() && is_executable(file).is_ok())
        .ok_or_else(|| NotFound(format!("exec: {name:?}: executable file not found in $PATH")))
}

fn is_executable(file: &Path) -> Result<(), String> {
    let stat = rustix::fs::stat(file).map_err(|error| format!("stat {}: {}", file.display(), text(error)))?;
    let is_folder = rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory;
    // One that nobody may execute is not executable for root either.
    if is_folder || stat.st_mode & 0o111 == 0 {
        return Err("permission denied".to_owned());
    }
    accessat(CWD, file, Access::EXEC_OK, AtFlags::EACCESS).map_err(text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn programs_are_found_as_by_runc() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (name, mode) in [("tool", 0o755), ("data", 0o644)] {
            std::fs::write(at(name), "").unwrap();
            std::fs::set_permissions(at(name), PermissionsExt::from_mode(mode)).unwrap();
        }
        let path = format!("/nowhere:{}", folder.path().display());
        assert_eq!(find("tool", Some(&path)), Ok(at("tool")));
        let full = at("tool").display().to_string();
        assert_eq!(find(&full, None), Ok(at("tool")));
        let error = |name: &str| find(name, Some(&path)).unwrap_err().0;
        assert_eq!(error("nosuch"), "exec: \"nosuch\": executable file not found in $PATH");
        assert_eq!(error("data"), "exec: \"data\": executable file not found in $PATH");
        assert_eq!(error(""), "exec: \"\": executable file not found in $PATH");
        assert_eq!(error("/nowhere/x"), "exec: \"/nowhere/x\": stat /nowhere/x: no such file or directory");
        let data = at("data").display().to_string();
        assert_eq!(error(&data), format!("exec: {data:?}: permission denied"));
        assert_eq!(error(&format!("{data}/x")), format!("exec: \"{data}/x\": stat {data}/x: not a directory"));
        assert_eq!(find("tool", None).unwrap_err().0, "exec: \"tool\": executable file not found in $PATH");
    }
}
